//! The harness of the behaviour tests: a real `warmpath` process in front of simulated workers in this process.
//!
//! ```ignore
//! let sims = sims(3).await;
//! let gateway = Gateway::start(&urls(&sims), &["--policy", "round_robin"]).await;
//! let reply = gateway.chat("Hello").await;
//! assert_eq!(reply.status, 200);
//! ```
#![forbid(unsafe_code)]

mod certificates;
mod client;
mod dns;
mod gateway;
pub mod kubernetes;
pub mod network;
mod python;
mod redis;
pub mod stress;

use std::{future::Future, time::Duration};

pub use certificates::{Authority, Pair, TlsClient};
pub use client::{Connected, Reply, Stream, get, open, open_over, random, request, request_over};
pub use dns::DnsServer;
pub use gateway::{Gateway, Signal, binary};
pub use python::python_with;
pub use redis::Redis;
pub use vllm_sim::{Sim, SimConfig, SimHandle};

/// How long a condition is awaited before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// `n` simulated workers with default settings, seeds 0, 1, 2 ….
pub async fn sims(n: u64) -> Vec<SimHandle> {
    let mut handles = Vec::new();
    for seed in 0..n {
        handles.push(sim(SimConfig { seed, ..SimConfig::default() }).await);
    }
    handles
}

/// One simulated worker.
pub async fn sim(config: SimConfig) -> SimHandle {
    Sim::start(config).await.expect("a simulated worker starts")
}

/// Where they listen, as `--worker` takes it.
pub fn urls(sims: &[SimHandle]) -> Vec<String> {
    sims.iter().map(|sim| format!("http://{}", sim.addr())).collect()
}

/// Waits until `probe` gives something; fails with `what` if it never does.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, probe: impl FnMut() -> F) -> T {
    eventually_within(PATIENCE, what, probe).await
}

/// The same with another patience.
pub async fn eventually_within<T, F: Future<Output = Option<T>>>(
    patience: Duration,
    what: &str,
    mut probe: impl FnMut() -> F,
) -> T {
    let started = tokio::time::Instant::now();
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(started.elapsed() < patience, "waited {patience:?} for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
