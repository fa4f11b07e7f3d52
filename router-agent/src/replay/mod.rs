//! Replay: recorded requests again, through another configuration in simulated time ([`what_if`]), or for real against a
//! server ([`live`]).
//!
//! | module | is |
//! |---|---|
//! | [`trace`] | recorded requests: Mooncake's form, prompts, our decision log |
//! | [`engine`], [`simulation`] | workers in simulated time, and the product's own router, index and learned speeds over them |
//! | [`schedule`], [`prompt`], [`client`], [`sse`], [`drive`] | requests at their times over HTTP, open loop, and their answers timed |
//! | [`stats`], [`bootstrap`], [`table`], [`plot`] | what came of it, with confidence intervals |
//!
//! The benchmark `tests/bench` compares routers with the same parts.

pub mod bootstrap;
pub mod client;
pub mod drive;
pub mod engine;
pub mod live;
pub mod plot;
pub mod prompt;
pub mod schedule;
pub mod simulation;
pub mod sse;
pub mod stats;
pub mod table;
pub mod trace;
pub mod what_if;
