//! A worker's state out of those of its ranks: the worst one.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::fleet::{KvState, Worker};

/// One rank's state. Setting it sets the worker's.
#[derive(Clone)]
pub(super) struct RankState {
    worker: Arc<Worker>,
    all: Arc<Mutex<Vec<KvState>>>,
    place: usize,
}

impl RankState {
    /// The states of a worker's `ranks`, all `connecting`.
    pub(super) fn of(worker: &Arc<Worker>, ranks: usize) -> Vec<Self> {
        let all = Arc::new(Mutex::new(vec![KvState::Connecting; ranks]));
        (0..ranks).map(|place| Self { worker: worker.clone(), all: all.clone(), place }).collect()
    }

    pub(super) fn get(&self) -> KvState {
        self.all.lock()[self.place]
    }

    pub(super) fn set(&self, state: KvState) {
        let worst = {
            let mut all = self.all.lock();
            all[self.place] = state;
            all.iter().copied().max().unwrap_or(KvState::Off)
        };
        let before = self.worker.kv_cache.set_state(worst);
        if before != worst {
            tracing::info!(worker = %self.worker.name, from = before.label(), to = worst.label(), "KV events");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_as_its_worst_rank() {
        let worker = Worker::for_tests("http://127.0.0.1:1");
        let ranks = RankState::of(&worker, 2);
        ranks[0].set(KvState::Exact);
        assert_eq!(worker.kv_cache.state(), KvState::Connecting);
        ranks[1].set(KvState::Gap);
        assert_eq!(worker.kv_cache.state(), KvState::Gap);
        ranks[1].set(KvState::Exact);
        assert_eq!(worker.kv_cache.state(), KvState::Exact);
        ranks[0].set(KvState::Silent);
        assert_eq!((worker.kv_cache.state(), ranks[1].get()), (KvState::Silent, KvState::Exact));
    }
}
