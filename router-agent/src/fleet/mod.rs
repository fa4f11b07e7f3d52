//! The fleet: which workers there are, how they are, and how loaded they are.
//!
//! What the data threads read is a snapshot ([`Fleet::workers`], one atomic load) of shared [`Worker`]s whose figures are
//! atomics.

mod breaker;
mod kv_cache;
mod liveness;
mod load;
mod models;
mod monitor;
mod outliers;
mod row;
mod scrape;
mod speed;
mod worker;

use std::{sync::Arc, time::Instant};

use arc_swap::{ArcSwap, Guard};

pub use breaker::{Breaker, BreakerState, Outcome, Role};
pub use kv_cache::{KeySpace, KeySpaces, KvCache, KvFacts, KvState};
pub use liveness::{Liveness, Pulse};
pub use load::{Flight, Load, Reservation};
pub use models::{Models, model_key};
pub use monitor::{check_all, spawn as spawn_monitors};
pub use outliers::{Standing, Standout};
pub use row::row;
pub use speed::{FleetSpeed, WorkerSpeed};
pub use worker::{Engine, Health, Worker};

/// The workers of this gateway.
#[derive(Debug)]
pub struct Fleet {
    workers: ArcSwap<Vec<Arc<Worker>>>,
    key_spaces: Arc<KeySpaces>,
}

impl Fleet {
    /// A fleet of these workers, in this order.
    pub fn new(workers: Vec<Arc<Worker>>) -> Self {
        Self { workers: ArcSwap::from_pointee(workers), key_spaces: Arc::default() }
    }

    /// The workers now. Cheap: no lock, no reference count on the usual path.
    pub fn workers(&self) -> Guard<Arc<Vec<Arc<Worker>>>> {
        self.workers.load()
    }

    /// Whether any worker, healthy or not, serves the model.
    pub fn serves(&self, model: Option<u64>) -> bool {
        let workers = self.workers();
        workers.is_empty() || workers.iter().any(|worker| worker.serves(model))
    }

    /// How the workers' KV blocks are keyed.
    pub fn key_spaces(&self) -> &Arc<KeySpaces> {
        &self.key_spaces
    }

    /// Whether a request that came now would find a worker.
    pub fn is_ready(&self) -> bool {
        let now = Instant::now();
        self.workers().iter().any(|worker| worker.is_routable(now))
    }
}
