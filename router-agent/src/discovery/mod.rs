//! Discovery: sources that tell of workers, beside those that are configured.
//!
//! A source is a file, a name in the DNS, or objects of a Kubernetes cluster. Each has a task of its own on the control
//! thread and tells all the workers that it knows after every change; the [`ledger`] keeps what they said, and what comes of
//! it is published as one list ([`Discovered`]), which `lifecycle` applies to the fleet. What holds for every source:
//!
//! * One that cannot be asked, or says what cannot be used, changes nothing: what it said last holds, and so does the fleet.
//! * A worker that is no longer named is still used for `discovery.gone_after`, since answers flap; one that is said to be
//!   ending is not.
//! * An answer without a single worker is believed only when none of those that it named before passes its health checks.
//! * A worker that is not ready is not taken in; one that was ready and is not stays and gets no requests.
//! * A worker is its address. Another incarnation at the same address (a pod's UID) is another worker, without a cache.

mod dns;
mod file;
mod kubernetes;
mod ledger;
mod teller;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep_until,
};

use self::{
    ledger::Ledger,
    teller::{Teller, Told},
};
use crate::{
    config::{Live, Source, WorkerConfig, WorkerUrl},
    fleet::{Fleet, Health},
    telemetry::{Metrics, SourceMetrics},
};

/// A worker as a source tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// With its address, and whatever else the source knows.
    pub(crate) worker: WorkerConfig,
    /// Whether it can take requests.
    pub(crate) readiness: Readiness,
}

/// Whether a worker can take requests, by its source. The better ones come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Readiness {
    /// It can.
    Ready,
    /// Not now.
    Unready,
    /// It is about to end, and will not be back.
    Ending,
}

/// A worker that is to be in the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As it would be configured.
    pub worker: WorkerConfig,
    /// Whether it is to be given requests.
    pub is_ready: bool,
}

/// What all sources say together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discovered {
    /// In the order of the sources, by address within one; an address may be there several times.
    pub members: Vec<Member>,
    /// Every source has answered, or failed to, at least once.
    pub is_complete: bool,
}

/// Answers that wait to be looked at; a source that has more to say waits.
const TOLD_MAX: usize = 64;

/// How soon workers of an answer that may be wrong are looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The list as it changes, and what keeps it up to date, for ever: to be spawned on the control thread.
pub fn start(
    config: Arc<Live>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
) -> (watch::Receiver<Discovered>, impl Future<Output = ()>) {
    let (publish, discovered) = watch::channel(Discovered::default());
    let (tell, told) = mpsc::channel(TOLD_MAX);
    let follower = Follower {
        config,
        fleet,
        metrics,
        publish,
        tell,
        told,
        ledger: Ledger::default(),
        sources: Vec::new(),
    };
    (discovered, follower.follow())
}

/// Listens to all sources.
struct Follower {
    config: Arc<Live>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    publish: watch::Sender<Discovered>,
    tell: mpsc::Sender<Told>,
    told: mpsc::Receiver<Told>,
    ledger: Ledger,
    sources: Vec<Running>,
}

/// A source that is asked.
struct Running {
    source: Source,
    label: Arc<str>,
    metrics: SourceMetrics,
    /// Why it could not be asked the last time; none: it answered.
    failure: Option<String>,
    has_said_anything: bool,
    /// Ends with it.
    _task: JoinSet<()>,
}

impl Follower {
    async fn follow(mut self) {
        let mut changes = self.config.changes();
        self.configure();
        loop {
            let look_again = self.settle();
            tokio::select! {
                told = self.told.recv() => {
                    let Some(told) = told else { return };
                    self.hear(told);
                    // Whatever else was said meanwhile: one change of the fleet, not many.
                    while let Ok(told) = self.told.try_recv() {
                        self.hear(told);
                    }
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.configure();
                }
                () = wait_until(look_again) => {}
            }
        }
    }

    /// Starts and ends sources so that they are those of the configuration.
    fn configure(&mut self) {
        let config = self.config.get();
        let wanted = &config.discovery.sources;
        self.sources.retain(|running| {
            let stays = wanted.contains(&running.source);
            if !stays {
                self.metrics.discovery.forget(&running.label);
            }
            stays
        });
        for source in wanted {
            if !self.sources.iter().any(|running| running.source == *source) {
                let running = self.start(source);
                self.sources.push(running);
            }
        }
        self.sources.sort_by_key(|running| wanted.iter().position(|source| *source == running.source));
        self.ledger.keep(self.sources.iter().map(|running| running.label.clone()));
    }

    fn start(&self, source: &Source) -> Running {
        let label: Arc<str> = source.label().into();
        let teller = Teller::new(label.clone(), self.tell.clone());
        let mut task = JoinSet::new();
        match source.clone() {
            Source::File(path) => drop(task.spawn(file::follow(path, teller))),
            Source::Dns(source) => drop(task.spawn(dns::follow(source, teller))),
            Source::Kubernetes(source) => drop(task.spawn(kubernetes::follow(source, teller))),
        }
        let metrics = self.metrics.discovery.of(&label);
        Running {
            source: source.clone(),
            label,
            metrics,
            failure: None,
            has_said_anything: false,
            _task: task,
        }
    }

    fn hear(&mut self, Told { source: label, said }: Told) {
        // One that was ended may have said something before.
        let Some(running) = self.sources.iter_mut().find(|running| running.label == label) else { return };
        let is_first = !std::mem::replace(&mut running.has_said_anything, true);
        match said {
            Ok(found) => {
                running.metrics.answered();
                if running.failure.take().is_some() || is_first {
                    tracing::info!(source = %label, workers = found.len(), "discovery: the source answers");
                }
                self.ledger.answer(&label, found, Instant::now());
            }
            Err(error) => {
                running.metrics.failed();
                if running.failure.as_ref() != Some(&error) {
                    tracing::warn!(source = %label, %error, "discovery: the source fails; what it said last holds");
                }
                running.failure = Some(error);
            }
        }
    }

    /// Publishes what holds now; when to look again.
    fn settle(&mut self) -> Option<Instant> {
        let gone_after = self.config.load().discovery.gone_after;
        let workers = self.fleet.workers().clone();
        let is_healthy = |url: &WorkerUrl| {
            workers.iter().any(|worker| worker.url == *url && worker.health() == Health::Healthy)
        };
        let now = Instant::now();
        let next = self.ledger.settle(now, gone_after, is_healthy);
        for running in &self.sources {
            running.metrics.count(self.ledger.counts(&running.label));
        }
        let is_complete = self.sources.iter().all(|running| running.has_said_anything);
        let discovered = Discovered { members: self.ledger.members(), is_complete };
        self.publish.send_if_modified(|published| {
            let is_news = *published != discovered;
            *published = discovered;
            is_news
        });
        next.map(|wait| now + wait.min(LOOK_AGAIN))
    }
}

async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
