//! The product's own index, compiled with shuttle's atomics (`build.rs`).

#[path = "../../../router-agent/src/index/mod.rs"]
#[allow(missing_debug_implementations)]
pub mod index;
