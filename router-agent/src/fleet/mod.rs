//! The fleet: which workers there are, how they are, and how loaded they are.
//!
//! What the data threads read is a snapshot ([`Fleet::workers`], one atomic load) of shared [`Worker`]s whose figures are
//! atomics. Workers come and go while the gateway runs ([`Fleet::admit`], [`Fleet::dismiss`]); whoever keeps something for
//! each of them follows [`Fleet::changes`].

mod breaker;
mod kv_cache;
mod liveness;
mod load;
mod models;
mod monitor;
mod outliers;
mod rest;
mod row;
mod scrape;
mod slots;
mod speed;
mod standing;
mod worker;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::sync::watch;

use self::slots::Slots;
use crate::{
    config::{self, WorkerRole},
    index::WorkerSlot,
    telemetry::Metrics,
};

pub use breaker::{Breaker, BreakerState, Outcome, Role};
pub use kv_cache::{KeySpace, KeySpaces, KvCache, KvFacts, KvState};
pub use liveness::{Liveness, Pulse};
pub use load::{Flight, Load, Reservation};
pub use models::{Models, model_key};
pub use monitor::{check_all, watch as monitor};
pub use outliers::{Record, Standout};
pub use rest::Rest;
pub use row::row;
pub use speed::{FleetSpeed, WorkerSpeed};
pub use standing::Standing;
pub use worker::{Engine, Health, Worker, WorkerId};

/// The workers of a fleet, for those who need no more of it.
pub type WorkerList = Arc<ArcSwap<Vec<Arc<Worker>>>>;

/// The workers of this gateway.
#[derive(Debug)]
pub struct Fleet {
    workers: WorkerList,
    key_spaces: Arc<KeySpaces>,
    speed: Arc<FleetSpeed>,
    /// There are workers for prefill stages.
    has_prefill: AtomicBool,
    slots: Mutex<Slots>,
    changed: watch::Sender<()>,
    cut: watch::Sender<()>,
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            workers: Arc::default(),
            key_spaces: Arc::default(),
            speed: Arc::default(),
            has_prefill: AtomicBool::new(false),
            slots: Mutex::default(),
            changed: watch::Sender::new(()),
            cut: watch::Sender::new(()),
        }
    }
}

impl Fleet {
    /// The workers now. Cheap: no lock, no reference count on the usual path.
    pub fn workers(&self) -> Guard<Arc<Vec<Arc<Worker>>>> {
        self.workers.load()
    }

    /// The list itself, which is replaced when a worker comes or goes.
    pub fn list(&self) -> WorkerList {
        self.workers.clone()
    }

    /// Sees every worker that comes or goes, or whose configuration changes, from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Sees every worker whose requests are to be cut off ([`Worker::is_cut_off`]), from now on.
    pub fn cuts(&self) -> watch::Receiver<()> {
        self.cut.subscribe()
    }

    /// A worker with a place of its own that is not chosen yet; none if there is no place.
    pub fn make(
        &self,
        worker: &config::WorkerConfig,
        breaker: config::Breaker,
        metrics: &Metrics,
    ) -> Option<Arc<Worker>> {
        let slot = self.slots.lock().take()?;
        let breaker = Breaker::new(breaker);
        Some(Arc::new(Worker::new(slot, worker, breaker, metrics.worker(&worker.name), self.speed.clone())))
    }

    /// Workers that [`Fleet::make`] has room for.
    pub fn room(&self) -> usize {
        self.slots.lock().available()
    }

    /// From now on the worker may be chosen.
    pub fn admit(&self, worker: &Arc<Worker>) {
        self.workers.rcu(|workers| [&workers[..], std::slice::from_ref(worker)].concat());
        self.announce();
    }

    /// From now on it is no worker of this fleet; what is in flight on it is cut off.
    pub fn dismiss(&self, worker: &Arc<Worker>) {
        self.workers
            .rcu(|workers| workers.iter().filter(|other| other.id != worker.id).cloned().collect::<Vec<_>>());
        self.slots.lock().retire(worker.clone());
        worker.cut_off();
        self.announce();
        self.cut.send_replace(());
    }

    /// Something of a worker is configured otherwise.
    pub fn announce(&self) {
        let has_prefill = self.workers().iter().any(|worker| worker.role() == WorkerRole::Prefill);
        self.has_prefill.store(has_prefill, Relaxed);
        self.changed.send_replace(());
    }

    /// Whether there are workers whose role is [`WorkerRole::Prefill`], well or not.
    pub fn has_prefill(&self) -> bool {
        self.has_prefill.load(Relaxed)
    }

    /// What is learned of all workers together.
    pub fn speed(&self) -> &FleetSpeed {
        &self.speed
    }

    /// Whether places of workers that have left wait to be given out again.
    pub fn has_resting_slots(&self) -> bool {
        self.slots.lock().any_rests()
    }

    /// Empties, by `empty`, every place of which its last worker is long gone, and gives it out again from now on.
    pub fn recycle(&self, now: Instant, empty: impl Fn(WorkerSlot)) {
        let rested = self.slots.lock().rested(now);
        for slot in rested {
            empty(slot);
            self.slots.lock().put_back(slot);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, limits::WORKERS_MAX};

    fn make(fleet: &Fleet, name: &str, metrics: &Metrics) -> Option<Arc<Worker>> {
        let worker = config::worker_config("http://127.0.0.1:1", Some(name.to_owned())).expect("a URL");
        fleet.make(&worker, Config::default().breaker, metrics)
    }

    #[test]
    fn a_fleet_that_is_full_has_room_when_a_worker_has_left_and_its_place_was_emptied() {
        let (fleet, metrics) = (Fleet::default(), Metrics::new().expect("a fresh registry"));
        for number in 0..WORKERS_MAX {
            let worker = make(&fleet, &format!("w{number}"), &metrics).expect("there is room");
            fleet.admit(&worker);
        }
        assert!(make(&fleet, "beyond", &metrics).is_none());
        let gone = fleet.workers()[7].clone();
        let (slot, id) = (gone.slot, gone.id);
        fleet.dismiss(&gone);
        assert!(gone.is_cut_off() && fleet.workers().len() == WORKERS_MAX - 1);
        drop(gone);
        let began = Instant::now();
        let never = |_| panic!("it rests");
        fleet.recycle(began, never);
        assert!(make(&fleet, "too-soon", &metrics).is_none());
        let emptied = std::cell::Cell::new(None);
        fleet.recycle(began + slots::REST, |slot| emptied.set(Some(slot)));
        assert_eq!(emptied.get(), Some(slot));
        let next = make(&fleet, "w7", &metrics).expect("there is room");
        assert_eq!(next.slot, slot);
        assert_ne!(next.id, id, "it is another worker");
    }
}
