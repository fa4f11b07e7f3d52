//! One follower for each worker whose events are to be followed. They come and go with the workers and the configuration.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::{Indices, Mirrors, live::Publishers, mirror::Mirror, worker::WorkerFollower};
use crate::{
    config::{Live, WorkerKvEvents},
    fleet::{Fleet, KvState, Worker, WorkerId},
    telemetry::Metrics,
};

/// What followers need, and what there is of them.
pub(super) struct Followers {
    pub(super) config: Arc<Live>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) indices: Indices,
    pub(super) metrics: Arc<Metrics>,
    pub(super) mirrors: Mirrors,
    pub(super) publishers: Publishers,
    pub(super) followed: HashMap<WorkerId, Followed>,
}

/// A worker with its mirror, and the follower if there is one.
pub(super) struct Followed {
    worker: Arc<Worker>,
    mirror: Arc<Mutex<Mirror>>,
    terms: Terms,
    task: Option<JoinHandle<()>>,
}

/// What a follower is started with.
#[derive(Clone, PartialEq, Eq)]
struct Terms {
    config: Arc<WorkerKvEvents>,
    hash_seed: Option<String>,
}

impl Followers {
    /// Follows the fleet, for ever.
    pub(super) async fn run(mut self) {
        let (mut workers, mut config) = (self.fleet.changes(), self.config.changes());
        loop {
            self.bring_up_to_date().await;
            tokio::select! {
                Ok(()) = workers.changed() => {}
                Ok(()) = config.changed() => {}
                else => return,
            }
        }
    }

    async fn bring_up_to_date(&mut self) {
        let workers: Vec<_> = self.fleet.workers().to_vec();
        let gone = |id: &WorkerId| !workers.iter().any(|worker| worker.id == *id);
        for (_, followed) in self.followed.extract_if(|id, _| gone(id)) {
            self.mirrors.lock().remove(&followed.worker.slot);
            stop(followed.task).await;
        }
        for worker in workers {
            let terms = self.terms(&worker);
            match self.followed.get_mut(&worker.id) {
                Some(followed) if followed.terms == terms => {}
                Some(followed) => {
                    stop(followed.task.take()).await;
                    worker.kv_cache.set_state(KvState::Off);
                    followed.mirror.lock().reset();
                    let mirror = followed.mirror.clone();
                    let task = self.start(&worker, &mirror, &terms);
                    self.followed.insert(worker.id, Followed { worker, mirror, terms, task });
                }
                None => {
                    let metrics = self.metrics.kv_events.worker(&worker.name);
                    let key_spaces = self.fleet.key_spaces().clone();
                    let mirror = Mirror::new(worker.clone(), self.indices.clone(), key_spaces, metrics);
                    let mirror = Arc::new(Mutex::new(mirror));
                    self.mirrors.lock().insert(worker.slot, mirror.clone());
                    let task = self.start(&worker, &mirror, &terms);
                    self.followed.insert(worker.id, Followed { worker, mirror, terms, task });
                }
            }
        }
    }

    fn terms(&self, worker: &Worker) -> Terms {
        let settings = &self.config.load().kv_events;
        let config = if settings.is_on { worker.kv_events() } else { Arc::new(WorkerKvEvents::Off) };
        Terms { config, hash_seed: settings.hash_seed.clone() }
    }

    fn start(
        &self,
        worker: &Arc<Worker>,
        mirror: &Arc<Mutex<Mirror>>,
        terms: &Terms,
    ) -> Option<JoinHandle<()>> {
        let follower = WorkerFollower {
            worker: worker.clone(),
            mirror: mirror.clone(),
            metrics: self.metrics.kv_events.worker(&worker.name),
            config: WorkerKvEvents::clone(&terms.config),
            hash_seed: terms.hash_seed.clone(),
            publishers: self.publishers.clone(),
            live: self.config.clone(),
        };
        (follower.config != WorkerKvEvents::Off).then(|| tokio::spawn(follower.run()))
    }
}

/// Ends a follower, and waits until nothing of it is left.
async fn stop(task: Option<JoinHandle<()>>) {
    if let Some(task) = task {
        task.abort();
        let _ = task.await; // it was aborted, or a panic has been printed
    }
}
