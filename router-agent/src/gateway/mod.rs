//! The gateway: from a client's connection to a worker's response and back.
//!
//! One OS thread per core, each with its own current-thread runtime, its own `SO_REUSEPORT` listener and its own worker
//! connections; no work stealing, and no lock on the data path but the one around a decision. [`request`] reads like the
//! way of one request; everything else here is what it calls.

mod account;
mod body;
mod choose;
mod client_io;
mod connection;
mod error;
mod headers;
mod listen;
mod relay;
pub mod request;
mod route;
mod thread;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use prometheus::IntCounter;

use crate::{
    config::Config,
    fleet::Fleet,
    index::PrefixIndex,
    routing::{Policy, Reason, Router},
    telemetry::Metrics,
};

pub use error::GatewayError;
pub use listen::{ListenError, Listeners};
pub use thread::{DataThread, Heartbeat, Phase, start};

/// What all data threads share.
#[derive(Debug)]
pub struct Shared {
    /// The configuration.
    pub config: Config,
    /// The workers.
    pub fleet: Fleet,
    /// Which worker holds which prefix.
    pub index: Arc<PrefixIndex>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Chooses for requests with a prompt.
    router: Router,
    /// Chooses for everything else: the least loaded worker.
    plain_router: Router,
    /// Decision counters by [`Reason`], looked up once; the second for `plain_router`.
    decisions: [Vec<IntCounter>; 2],
    /// Client connections open, over all threads.
    connections: AtomicUsize,
}

impl Shared {
    /// Puts the parts together.
    pub fn new(config: Config, fleet: Fleet, index: Arc<PrefixIndex>, metrics: Arc<Metrics>) -> Self {
        let counters = |policy: Policy| {
            Reason::ALL.iter().map(|reason| metrics.decisions(policy.label(), *reason)).collect()
        };
        Self {
            router: Router::new(config.policy, fastrand::u64(..)),
            plain_router: Router::new(Policy::LeastLoaded, fastrand::u64(..)),
            decisions: [counters(config.policy), counters(Policy::LeastLoaded)],
            config,
            fleet,
            index,
            metrics,
            connections: AtomicUsize::new(0),
        }
    }

    /// Takes a place for one more client connection, if there is one left; [`Shared::leave`] gives it back.
    fn enter(&self) -> bool {
        let limit = self.config.limits.connections;
        self.connections.fetch_update(Relaxed, Relaxed, |open| (open < limit).then_some(open + 1)).is_ok()
    }

    fn leave(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }
}
