//! One worker: asks where it publishes, follows each of its ranks, and begins anew when its process is another one.

use std::{net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    net::lookup_host,
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use vllm_block_hash::HashAlgo;

use super::{
    checker::Checker,
    follow::{Follower, Position},
    live::{self, Live, Publishers, Registration},
    mirror::Mirror,
    source::{self, Direction, Source, SourceError},
    states::RankState,
    zmtp::Endpoint,
};
use crate::{
    config::{Live as LiveConfig, WorkerKvEvents},
    fleet::{KvState, Worker},
    limits,
    telemetry::KvWorkerMetrics,
};

/// Until a worker that does not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Until a worker that publishes nothing is asked again.
const ASK_OFF_AGAIN: Duration = Duration::from_secs(30);
/// Until an endpoint that could not be bound is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(5);
/// How long the first scrape is waited for: it says how long blocks are.
const FIRST_SCRAPE: Duration = Duration::from_millis(500);

/// Follows one worker's events for as long as it runs.
pub(super) struct WorkerFollower {
    pub(super) worker: Arc<Worker>,
    pub(super) mirror: Arc<Mutex<Mirror>>,
    pub(super) metrics: KvWorkerMetrics,
    pub(super) config: WorkerKvEvents,
    pub(super) hash_seed: Option<String>,
    pub(super) publishers: Publishers,
    /// How long each question to the worker may take.
    pub(super) live: Arc<LiveConfig>,
}

impl WorkerFollower {
    pub(super) async fn run(self) {
        let mut said = String::new();
        loop {
            let sources = match self.sources().await {
                Ok(sources) => sources,
                Err(error) => {
                    let error = error.to_string();
                    if said != error {
                        tracing::warn!(worker = %self.worker.name, error, "KV events: where they are is not known");
                        said = error;
                    }
                    self.worker.kv_cache.set_state(KvState::Connecting);
                    sleep(ASK_AGAIN).await;
                    continue;
                }
            };
            said.clear();
            if sources.is_empty() {
                self.worker.kv_cache.set_state(KvState::Off);
                let _ = timeout(ASK_OFF_AGAIN, self.restarted()).await; // whichever comes first
                continue;
            }
            self.learn_model().await;
            let mut tasks = JoinSet::new();
            for (source, state) in sources.iter().zip(RankState::of(&self.worker, sources.len())) {
                self.follow(source.clone(), state, &mut tasks);
            }
            self.restarted().await;
            tasks.shutdown().await;
            tracing::info!(worker = %self.worker.name, "another process: what its events said is forgotten");
            self.metrics.cleared_restart.inc();
            self.worker.kv_cache.set_state(KvState::Connecting);
            self.mirror.lock().clear_all();
        }
    }

    fn timeout(&self) -> Duration {
        self.live.load().health.timeout
    }

    async fn sources(&self) -> Result<Vec<Source>, SourceError> {
        match &self.config {
            WorkerKvEvents::Auto => source::discover(&self.worker, self.timeout()).await,
            WorkerKvEvents::At(endpoints) => Ok(vec![source::configured(endpoints, &self.worker.url.host)?]),
            WorkerKvEvents::Off => Ok(Vec::new()),
        }
    }

    /// Completes when a scrape shows another process than the one before.
    async fn restarted(&self) {
        let mut scrapes = self.worker.kv_cache.scrapes();
        let mut known = None;
        loop {
            let start = scrapes.borrow_and_update().as_ref().and_then(|facts| facts.process_start);
            if let Some(start) = start {
                let start = start.to_bits();
                if known.is_some_and(|known| known != start) {
                    return;
                }
                known = Some(start);
            }
            if scrapes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn learn_model(&self) {
        let mut scrapes = self.worker.kv_cache.scrapes();
        let first = timeout(FIRST_SCRAPE, scrapes.wait_for(Option::is_some)).await;
        let facts = first.ok().and_then(|scraped| scraped.ok().and_then(|facts| facts.clone()));
        let scraped_name = facts.as_ref().and_then(|facts| facts.model_name.clone());
        let block_tokens = facts.as_ref().and_then(|facts| facts.block_tokens);
        let (root, names) = match source::model(&self.worker, self.timeout()).await {
            Some(model) => (model.root, model.names),
            None => (scraped_name.clone().unwrap_or_default(), scraped_name.into_iter().collect()),
        };
        self.mirror.lock().set_model(root, names, block_tokens);
    }

    fn checker(&self) -> Option<Checker> {
        let facts = self.worker.kv_cache.scrapes().borrow().clone()?;
        let algo = HashAlgo::from_name(facts.hash_algo.as_deref()?)?;
        Some(Checker::new(algo, self.hash_seed.as_deref(), self.metrics.clone()))
    }

    fn follow(&self, source: Source, state: RankState, tasks: &mut JoinSet<()>) {
        let (to, live) = mpsc::channel(limits::KV_EVENT_MESSAGES_WAITING);
        tracing::debug!(worker = %self.worker.name, ?source, "KV events");
        match source.live {
            Direction::Connect(endpoint) => {
                tasks.spawn(live::connect(endpoint, self.worker.name.clone(), to));
            }
            Direction::Bind(endpoint) => {
                let (publishers, worker) = (self.publishers.clone(), self.worker.clone());
                tasks.spawn(async move {
                    let _registration = bind(&publishers, &worker, &endpoint, source.topic, to).await;
                    std::future::pending::<()>().await;
                });
            }
        }
        let follower = Follower {
            worker: self.worker.clone(),
            mirror: self.mirror.clone(),
            metrics: self.metrics.clone(),
            checker: self.checker(),
            state,
            rank: source.rank,
            replay: source.replay,
            live,
            position: Position::default(),
        };
        tasks.spawn(follower.run());
    }
}

/// Binds an endpoint for the worker, again and again until it can be had.
async fn bind(
    publishers: &Publishers,
    worker: &Worker,
    endpoint: &Endpoint,
    topic: String,
    to: mpsc::Sender<Live>,
) -> Registration {
    let mut said = false;
    loop {
        let found = lookup_host((worker.url.host.as_str(), worker.url.port)).await;
        let addresses: Vec<IpAddr> =
            found.map(|all| all.map(|address| address.ip()).collect()).unwrap_or_default();
        match publishers.expect(endpoint, topic.clone(), addresses, to.clone()).await {
            Ok(registration) => return registration,
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(
                        worker = %worker.name, %endpoint, %error,
                        "the worker connects to this endpoint, and it cannot be bound here; trying on"
                    );
                }
                sleep(BIND_AGAIN).await;
            }
        }
    }
}
