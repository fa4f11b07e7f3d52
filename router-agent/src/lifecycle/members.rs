//! Workers come and go: by the admin API one by one, and by lists (`roster.rs`) as the file or a source of workers says.
//!
//! Of a list, what has changed since the last one is applied: who is newly listed is added, who is no longer listed leaves.
//! What was done by the API in between (a worker added, drained or removed) stays as it is.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, Notify};

use crate::{
    config::WorkerConfig,
    fleet::{self, Standing, Worker},
    gateway::Shared,
    limits::WORKERS_MAX,
};

/// How often it is looked whether workers that leave are idle.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Why a worker cannot come or go.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// Another worker has the name or the address.
    #[error("worker {name} ({url}) is in the fleet already: names and URLs must be unique")]
    Taken {
        /// The one that is there.
        name: String,
        /// Its address.
        url: String,
    },
    /// There is no worker of this name.
    #[error("there is no worker {0:?} (GET /workers lists them)")]
    Unknown(String),
    /// It is on its way out.
    #[error("worker {0:?} is leaving: add it again (POST /workers) to keep it")]
    Leaving(String),
    /// All places are taken.
    #[error(
        "{wanted} more worker(s), but there is room for {room}: at most {WORKERS_MAX}, those that have just left included"
    )]
    Full {
        /// To be added.
        wanted: usize,
        /// Places.
        room: usize,
    },
}

/// What became of a worker that was to be added.
#[derive(Debug)]
pub enum Added {
    /// It is new.
    New(Arc<Worker>),
    /// It was leaving, and stays.
    Kept(Arc<Worker>),
}

/// See the module. Shared by the admin port, reloads and the task that sees workers off ([`Members::see_off`]).
pub struct Members {
    shared: Arc<Shared>,
    /// One change at a time.
    changing: Mutex<()>,
    /// Somebody is leaving.
    leaving: Notify,
}

impl Members {
    /// Over the fleet of `shared`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, changing: Mutex::default(), leaving: Notify::new() }
    }

    /// The worker of this name; of several, one of which leaves, the one that stays.
    pub fn find(&self, name: &str) -> Result<Arc<Worker>, MemberError> {
        let workers = self.shared.fleet.workers();
        let named = || workers.iter().filter(|worker| worker.name == name);
        let found = named().find(|worker| !is_leaving(worker)).or_else(|| named().next());
        found.cloned().ok_or_else(|| MemberError::Unknown(name.to_owned()))
    }

    /// Adds a worker: asks it for its health, and then it may be chosen. One that is just leaving stays.
    pub async fn add(&self, config: &WorkerConfig) -> Result<Added, MemberError> {
        let _one_at_a_time = self.changing.lock().await;
        {
            let workers = self.shared.fleet.workers();
            if let Some(leaving) = workers.iter().find(|worker| is_leaving(worker) && is_same(worker, config))
            {
                keep(leaving, config);
                self.shared.fleet.announce();
                tracing::info!(worker = %config.name, "worker stays");
                return Ok(Added::Kept(leaving.clone()));
            }
            let taken = |other: &&Arc<Worker>| {
                !is_leaving(other) && (other.name == config.name || other.url == config.url)
            };
            if let Some(other) = workers.iter().find(taken) {
                return Err(MemberError::Taken { name: other.name.clone(), url: other.url.to_string() });
            }
        }
        self.check_room(1)?;
        let added = self.admit(std::slice::from_ref(config)).await;
        added.into_iter().next().map(Added::New).ok_or(MemberError::Full { wanted: 1, room: 0 })
    }

    /// Gives the worker no more requests, until [`Members::undrain`].
    pub fn drain(&self, name: &str) -> Result<Arc<Worker>, MemberError> {
        let worker = self.find(name)?;
        match worker.standing() {
            Standing::Leaving { .. } => return Err(MemberError::Leaving(name.to_owned())),
            Standing::Draining { .. } => {}
            Standing::Serving | Standing::Unready { .. } => {
                let in_flight = worker.load.in_flight();
                worker.set_standing(Standing::Draining { since: Instant::now(), in_flight });
                tracing::info!(worker = name, in_flight, "worker is drained");
            }
        }
        Ok(worker)
    }

    /// Gives the worker requests again.
    pub fn undrain(&self, name: &str) -> Result<Arc<Worker>, MemberError> {
        let worker = self.find(name)?;
        match worker.standing() {
            Standing::Leaving { .. } => return Err(MemberError::Leaving(name.to_owned())),
            Standing::Serving | Standing::Unready { .. } => {}
            Standing::Draining { .. } => {
                worker.set_standing(Standing::Serving);
                tracing::info!(worker = name, "worker serves again");
            }
        }
        Ok(worker)
    }

    /// Gives the worker no more requests, and takes it out of the fleet when nothing is in flight on it, or after
    /// `timeout` if that is sooner; then what is in flight is cut off. Asked again, the new timeout counts from now.
    pub fn remove(&self, name: &str, timeout: Option<Duration>) -> Result<Arc<Worker>, MemberError> {
        let worker = self.find(name)?;
        self.send_off(&worker, timeout);
        Ok(worker)
    }

    /// Takes from the end of `new` those who would be added to `old` and find no room; how many.
    pub fn make_room(&self, old: &[WorkerConfig], new: &mut Vec<WorkerConfig>) -> usize {
        let to_add = self.to_add(old, new);
        let room = self.shared.fleet.room();
        let Some(beyond) = to_add.get(room..) else { return 0 };
        new.retain(|config| !beyond.iter().any(|other| is_same_entry(other, config)));
        beyond.len()
    }

    /// Whether the workers that `new` lists over `old` find room. To be asked before [`Members::apply`].
    pub fn check(&self, old: &[WorkerConfig], new: &[WorkerConfig]) -> Result<(), MemberError> {
        self.check_room(self.to_add(old, new).len())
    }

    /// Brings in whom `new` lists and `old` did not, sends off whom only `old` did, and tells those that stay what is
    /// configured otherwise. Who leaves has until `timeout` to end what is in flight there; none: as long as it takes.
    pub async fn apply(&self, old: &[WorkerConfig], new: &[WorkerConfig], timeout: Option<Duration>) {
        let _one_at_a_time = self.changing.lock().await;
        let to_add = self.to_add(old, new);
        let workers = self.shared.fleet.workers().to_vec();
        for worker in &workers {
            if let Some(config) = new.iter().find(|config| is_same(worker, config)) {
                let was = old.iter().find(|config| is_same(worker, config));
                if was != Some(config) {
                    keep(worker, config);
                }
                continue;
            }
            let was_listed = old.iter().any(|config| is_same(worker, config));
            let is_replaced =
                to_add.iter().any(|config| config.name == worker.name || config.url == worker.url);
            if was_listed || is_replaced {
                self.send_off(worker, timeout);
            }
        }
        self.shared.fleet.announce();
        self.admit(&to_add).await;
    }

    /// Sees off the workers that leave, and gives their places free; for ever.
    pub async fn see_off(&self) {
        let fleet = &self.shared.fleet;
        loop {
            let now = Instant::now();
            let mut anybody = false;
            for worker in fleet.workers().to_vec() {
                let Standing::Leaving { until, .. } = worker.standing() else { continue };
                let in_flight = worker.load.in_flight();
                if in_flight > 0 && until.is_none_or(|until| now < until) {
                    anybody = true;
                    continue;
                }
                if in_flight > 0 {
                    tracing::warn!(worker = %worker.name, in_flight, "worker is removed: what is in flight is cut off");
                } else {
                    tracing::info!(worker = %worker.name, "worker is removed");
                }
                fleet.dismiss(&worker);
                if !fleet.workers().iter().any(|other| other.name == worker.name) {
                    self.shared.metrics.forget_worker(&worker.name);
                }
            }
            fleet.recycle(now, |slot| self.shared.forget(slot));
            if anybody || fleet.has_resting_slots() {
                tokio::time::sleep(LOOK_EVERY).await;
            } else {
                self.leaving.notified().await;
            }
        }
    }

    /// Those that `new` lists over `old` and that are not there.
    fn to_add(&self, old: &[WorkerConfig], new: &[WorkerConfig]) -> Vec<WorkerConfig> {
        let workers = self.shared.fleet.workers();
        let is_new = |config: &&WorkerConfig| {
            let was_listed = old.iter().any(|other| is_same_entry(other, config));
            !was_listed && !workers.iter().any(|worker| is_same(worker, config))
        };
        new.iter().filter(is_new).cloned().collect()
    }

    fn check_room(&self, wanted: usize) -> Result<(), MemberError> {
        let room = self.shared.fleet.room();
        if wanted > room { Err(MemberError::Full { wanted, room }) } else { Ok(()) }
    }

    /// Makes these workers, asks them for their health, and lets them be chosen.
    async fn admit(&self, configs: &[WorkerConfig]) -> Vec<Arc<Worker>> {
        let shared = &self.shared;
        let config = shared.config.get();
        let make = |worker: &WorkerConfig| shared.fleet.make(worker, config.breaker, &shared.metrics);
        let workers: Vec<_> = configs.iter().filter_map(make).collect();
        fleet::check_all(&workers, &config).await;
        for worker in &workers {
            tracing::info!(worker = %worker.name, url = %worker.url, health = worker.health().label(), "worker is added");
            shared.fleet.admit(worker);
        }
        workers
    }

    fn send_off(&self, worker: &Arc<Worker>, timeout: Option<Duration>) {
        let now = Instant::now();
        let before = worker.standing();
        let since = before.since().unwrap_or(now);
        let in_flight = before.in_flight_at_first().unwrap_or_else(|| worker.load.in_flight());
        // A time that no clock has is none.
        let until = timeout.and_then(|timeout| now.checked_add(timeout));
        worker.set_standing(Standing::Leaving { since, in_flight, until });
        // One that has not seen this yet is counted before it is looked whether the worker is idle.
        self.shared.wait_for_decisions();
        tracing::info!(worker = %worker.name, in_flight = worker.load.in_flight(), "worker leaves");
        self.leaving.notify_one();
    }
}

fn is_leaving(worker: &Worker) -> bool {
    matches!(worker.standing(), Standing::Leaving { .. })
}

/// Whether the worker is the one that is configured, whatever else is said of it.
fn is_same(worker: &Worker, config: &WorkerConfig) -> bool {
    worker.name == config.name && worker.url == config.url && worker.incarnation == config.incarnation
}

fn is_same_entry(one: &WorkerConfig, other: &WorkerConfig) -> bool {
    one.name == other.name && one.url == other.url && one.incarnation == other.incarnation
}

/// The worker stays, with what is configured now.
fn keep(worker: &Worker, config: &WorkerConfig) {
    if is_leaving(worker) {
        worker.set_standing(Standing::Serving);
    }
    worker.set_access(config);
    worker.set_role(config.role);
    worker.set_kv_events(config.kv_events.clone());
    worker.list_models(&config.models);
}
