//! The simulation held against recordings of a real vLLM, and against its own promises.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "clippy knows test functions, not the helpers beside them")]
#![allow(clippy::float_cmp, reason = "counters that happen to be floats")]
#![allow(clippy::format_collect, reason = "clarity before speed")]

mod block_pool;
mod command_line;
mod connections;
mod conversations;
mod faults;
mod kv_events;
mod kv_transfer;
mod metrics;
mod recordings;
mod support;
