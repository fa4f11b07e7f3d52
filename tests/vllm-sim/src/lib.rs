//! A simulated vLLM worker.
//!
//! To a router it looks like vLLM 0.32: the same headers, framing and write boundaries, the same errors, the same
//! metrics and KV events. Behind that is no model but a time model: a continuous-batching scheduler over a block pool
//! with prefix caching, so that what a router does well or badly shows in the latencies.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use vllm_sim::{Sim, SimConfig};
//!
//! let sim = Sim::start(SimConfig { model: "llama".to_owned(), ..SimConfig::default() }).await.unwrap();
//! println!("POST {}/v1/chat/completions", sim.url());
//! assert_eq!(sim.stats().requests, 0);
//! sim.stop().await;
//! # });
//! ```
//!
//! - [`SimConfig`] is what a worker is told; [`SimHandle`] observes it, gives it [`Fault`]s, ends it.
//! - [`engine`] holds the block pool and the block hashes, byte for byte vLLM's.
//! - [`kv_events`] holds the published events and their wire forms.
//!
//! `README.md` beside this crate says what is imitated, and what is not.
#![forbid(unsafe_code)]

mod api;
mod config;
pub mod engine;
mod faults;
mod http;
pub mod kv_events;
mod kv_transfer;
mod metrics;
mod rng;
mod sim;
mod stats;
pub mod tokenizer;
mod vocabulary;
mod worker;

pub use config::{
    EngineConfig, EventFormat, HashForm, KvEventsConfig, KvTransferConfig, Lora, SimConfig, TimeModel,
};
pub use engine::hashing::HashAlgo;
pub use faults::{Ending, Fault, FaultKind};
pub use sim::{Sim, SimHandle, StartError};
pub use stats::SimStats;
