//! KV events: what each worker says of its own KV cache, block by block, put into the index of tokens.
//!
//! Promise: what the index claims for a worker in state `exact` or `gap` ([`crate::fleet::KvState`]) the worker has
//! announced and not withdrawn, or is expected to announce within a second ([`predictions`]); what is gone without an
//! event (restart, a reset while idle, sleep) is not claimed for longer than one scrape. In state `exact` everything that
//! the worker holds is known. A worker in any other state counts by what was sent there, as if it published nothing.
//!
//! ```text
//! worker ──PUB──▶ zmtp ──▶ live ──▶ follow ──▶ wire ──▶ mirror ──▶ PrefixIndex (tokens)
//!    ├──ROUTER (replay) ──▶ replay ─────┘ │       └──▶ checker ──▶ metrics
//!    └──GET /metrics ──▶ fleet/monitor ───┴─ vigil
//! ```
//!
//! Everything runs on one thread of its own: a burst of events delays neither requests nor health checks. Formats and
//! facts: `docs/kv-events.md`.

mod checker;
mod follow;
mod followers;
mod live;
mod mirror;
mod predictions;
#[cfg(test)]
mod recordings;
mod replay;
mod source;
mod states;
mod vigil;
pub mod wire;
mod worker;
pub mod zmtp;

use std::{collections::HashMap, io, sync::Arc, thread::JoinHandle, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::sleep_until,
};

use self::{followers::Followers, live::Publishers, mirror::Mirror};
pub use self::{
    mirror::Indices,
    predictions::{Over, Prediction, Predictions},
};
use crate::{
    config::Live,
    fleet::{Fleet, Worker},
    index::WorkerSlot,
    telemetry::Metrics,
};

/// Whether a worker says that it publishes KV events; none if it does not answer.
pub async fn publishes(worker: &Worker, timeout: Duration) -> Option<bool> {
    source::discover(worker, timeout).await.ok().map(|sources| !sources.is_empty())
}

/// The thread that follows all workers. Dropped, it ends.
pub struct KvEvents {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts to follow every worker that is to be followed, those that come included. `ended` is the other end of
/// [`Predictions::new`].
pub fn start(
    config: &Arc<Live>,
    fleet: &Arc<Fleet>,
    indices: &Indices,
    metrics: &Arc<Metrics>,
    ended: mpsc::Receiver<Over>,
) -> io::Result<KvEvents> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let mirrors = Mirrors::default();
    let followers = Followers {
        config: config.clone(),
        fleet: fleet.clone(),
        indices: indices.clone(),
        metrics: metrics.clone(),
        mirrors: mirrors.clone(),
        publishers: Publishers::default(),
        followed: HashMap::new(),
    };
    let metrics = metrics.clone();
    let follow = async move {
        let mut tasks = JoinSet::new();
        tasks.spawn(settle(mirrors, ended, metrics));
        tasks.spawn(followers.run());
        let _ = stopped.await; // said, or its sender dropped: the end
    };
    let thread =
        std::thread::Builder::new().name("kv-events".into()).spawn(move || runtime.block_on(follow))?;
    Ok(KvEvents { stop: Some(stop), thread: Some(thread) })
}

impl Drop for KvEvents {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there has been printed
        }
    }
}

/// What each worker's events add up to, by its place.
type Mirrors = Arc<Mutex<HashMap<WorkerSlot, Arc<Mutex<Mirror>>>>>;

/// Takes back what was predicted and not confirmed in time. Predictions end in the order of their times.
async fn settle(mirrors: Mirrors, mut ended: mpsc::Receiver<Over>, metrics: Arc<Metrics>) {
    while let Some(Over { slot, keys, due }) = ended.recv().await {
        sleep_until(due).await;
        let Some(mirror) = mirrors.lock().get(&slot).cloned() else { continue };
        let confirmed = mirror.lock().settle(&keys);
        let metrics = &metrics.kv_events;
        if confirmed { &metrics.predictions_confirmed } else { &metrics.predictions_expired }.inc();
    }
}
