//! The simulation held against recordings of a real vLLM, and against its own promises.
#![forbid(unsafe_code)]

mod block_pool;
mod connections;
mod conversations;
mod faults;
mod hashing;
mod kv_events;
mod metrics;
mod recordings;
mod support;
