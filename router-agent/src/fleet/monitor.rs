//! Active health checks and scrapes, one task per worker on the control thread, for as long as it is in the fleet.
//!
//! `GET /health` decides whether a worker is routable (`unhealthy_after` failures in a row take it out, `healthy_after`
//! passes bring it back); `GET /metrics` feeds [`super::Engine`]. A worker that was restarted has an empty KV cache, so the
//! index forgets it: seen by `process_start_time_seconds`, or, where a worker does not export that, by a port that
//! refused connections for a while. So has one whose cache was reset, or whose engine sleeps. `GET /v1/models`, at each check
//! that passes, says which models a worker serves; one that does not say (another answer than a list) is taken to serve any.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::StatusCode;
use router_common::latency::LatencyKind;
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep},
};

use super::{
    Fleet, Health, Models, Worker, WorkerId, WorkerList, liveness, model_key, outliers, scrape, speed,
};
use crate::{
    config::{Config, Live},
    index::PrefixIndex,
    kernel::Flows,
    limits,
    upstream::fetch::{self, FetchError},
};

/// Where a fleet monitor keeps what it knows between rounds.
#[derive(Debug, Default)]
struct History {
    passes: u32,
    failures: u32,
    refused: bool,
    process_start: Option<f64>,
    /// Requests that ran at the last scrape.
    running: Option<f64>,
    /// Gaps between events until then, and their sum.
    gaps: (u64, u64),
    /// Successful resets and sleeps so far: each emptied the worker's prefix cache.
    emptied: Option<u64>,
}

/// What the monitors need of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Settings {
    health: crate::config::Health,
    scrape_interval: Duration,
    block_tokens: u64,
    default_capacity_tokens: u64,
}

impl Settings {
    fn of(config: &Config) -> Self {
        Self {
            health: config.health,
            scrape_interval: config.scrape_interval,
            block_tokens: (config.index.block_bytes / crate::prompt::BYTES_PER_TOKEN).max(1) as u64,
            default_capacity_tokens: config.index.worker_capacity_tokens,
        }
    }

    /// Bounds what the index believes of the worker: by its own word, or by what is assumed while it gives none.
    fn bound(&self, worker: &Worker, index: &PrefixIndex) {
        let own = Some(worker.engine.kv_capacity_tokens.load(Relaxed)).filter(|tokens| *tokens > 0);
        let tokens = own.unwrap_or(self.default_capacity_tokens);
        index.set_capacity_blocks(worker.slot, (tokens / self.block_tokens).max(1));
    }
}

/// Checks these workers once, at the same time: what the gateway knows of them before it chooses among them.
pub async fn check_all(workers: &[Arc<Worker>], config: &Config) {
    let mut checks = JoinSet::new();
    for worker in workers.iter().cloned() {
        let timeout = config.health.timeout;
        checks.spawn(async move {
            let passed = probe(&worker, timeout).await;
            worker.set_health(if passed.is_ok() { Health::Healthy } else { Health::Unhealthy });
            match passed {
                Ok(()) => list_models(&worker, timeout).await,
                Err(error) => {
                    tracing::warn!(worker = %worker.name, %error, "worker does not answer its health check");
                }
            }
        });
    }
    checks.join_all().await;
}

/// Watches every worker, those that come included, and compares their speeds. For ever; dropped, all of it ends.
pub async fn watch(fleet: &Fleet, index: &Arc<PrefixIndex>, flows: &Flows, config: &Arc<Live>) {
    let mut changes = fleet.changes();
    let mut tasks = JoinSet::new();
    let mut watched: HashMap<WorkerId, AbortHandle> = HashMap::new();
    tasks.spawn(level(fleet.list(), config.clone()));
    tasks.spawn(compare(fleet.list(), config.clone()));
    loop {
        let workers: Vec<_> = fleet.workers().to_vec();
        watched.retain(|id, task| {
            let stays = workers.iter().any(|worker| worker.id == *id);
            if !stays {
                task.abort();
            }
            stays
        });
        for worker in workers {
            watched.entry(worker.id).or_insert_with(|| {
                tasks.spawn(watch_one(worker, index.clone(), flows.clone(), config.clone()))
            });
        }
        while tasks.try_join_next().is_some() {} // those of workers that have left
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Compares the workers' speeds again and again.
async fn level(workers: WorkerList, config: Arc<Live>) {
    loop {
        speed::level(&workers.load());
        let every = config.load().scrape_interval;
        sleep(every).await;
    }
}

/// Pause between two looks for outliers.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// Looks for outliers again and again.
async fn compare(workers: WorkerList, config: Arc<Live>) {
    loop {
        sleep(COMPARE_EVERY).await;
        outliers::sweep(&workers.load(), &config.load().outliers, std::time::Instant::now());
    }
}

/// Watches one worker: its health, what it says of itself, and whether it says anything.
async fn watch_one(worker: Arc<Worker>, index: Arc<PrefixIndex>, flows: Flows, config: Arc<Live>) {
    let settings = config.clone();
    let pulse = liveness::watch(worker.clone(), flows.clone(), move || settings.load().health);
    tokio::join!(check_and_scrape(worker, index, flows, config), pulse);
}

/// Checks and scrapes one worker, and at another pace when the configuration says so.
async fn check_and_scrape(worker: Arc<Worker>, index: Arc<PrefixIndex>, flows: Flows, config: Arc<Live>) {
    let mut changes = config.changes();
    let mut settings = Settings::of(&config.load());
    settings.bound(&worker, &index);
    let mut history = History::default();
    // The first check was made before the gateway said that it is ready; the first scrape was not.
    let mut checks = rounds(settings.health.interval);
    let mut scrapes = rounds(settings.scrape_interval);
    scrapes.reset_immediately();
    loop {
        tokio::select! {
            _ = checks.tick() => check(&worker, &index, &settings, &mut history).await,
            _ = scrapes.tick() => {
                if worker.health() == Health::Healthy {
                    scrape(&worker, &index, &settings, &mut history).await;
                    learn(&worker, &flows, &mut history);
                }
            }
            Ok(()) = changes.changed() => {
                let before = std::mem::replace(&mut settings, Settings::of(&config.load()));
                if settings.health.interval != before.health.interval {
                    checks = rounds(settings.health.interval);
                }
                if settings.scrape_interval != before.scrape_interval {
                    scrapes = rounds(settings.scrape_interval);
                }
                if settings != before {
                    settings.bound(&worker, &index);
                }
            }
        }
    }
}

/// Ticks, the first one after a whole interval.
fn rounds(interval: Duration) -> Interval {
    let mut rounds = interval_at(Instant::now() + interval, interval);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rounds
}

async fn check(worker: &Worker, index: &PrefixIndex, settings: &Settings, history: &mut History) {
    match probe(worker, settings.health.timeout).await {
        Ok(()) => {
            history.passes += 1;
            history.failures = 0;
            list_models(worker, settings.health.timeout).await;
            if worker.health() != Health::Healthy && history.passes >= settings.health.healthy_after {
                if std::mem::take(&mut history.refused) {
                    forget_prefixes(worker, index);
                }
                tracing::info!(worker = %worker.name, "worker is healthy");
                worker.set_health(Health::Healthy);
            }
        }
        Err(error) => {
            history.passes = 0;
            history.failures += 1;
            history.refused |= error.is_refused();
            if worker.health() != Health::Unhealthy && history.failures >= settings.health.unhealthy_after {
                tracing::warn!(worker = %worker.name, %error, "worker is unhealthy");
                worker.set_health(Health::Unhealthy);
            }
        }
    }
}

/// Its cache is empty: what was sent there before counts for nothing.
fn forget_prefixes(worker: &Worker, index: &PrefixIndex) {
    worker.emptied_now();
    index.clear(worker.slot);
}

/// One health check: 200 within the time, or why not.
async fn probe(worker: &Worker, timeout: Duration) -> Result<(), ProbeError> {
    let (status, _) = fetch::get(worker, "/health", timeout, 64 * 1024).await?;
    if status == StatusCode::OK { Ok(()) } else { Err(ProbeError::Status(status)) }
}

async fn list_models(worker: &Worker, timeout: Duration) {
    if worker.has_listed_models() {
        return;
    }
    match fetch::get(worker, "/v1/models", timeout, limits::MODELS_BYTES_MAX).await {
        Ok((StatusCode::OK, body)) => worker.set_models(Models::parse(&body)),
        Ok(_) => worker.set_models(None),
        Err(error) => tracing::debug!(worker = %worker.name, %error, "no list of models"),
    }
}

#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("GET /health answered {0}")]
    Status(StatusCode),
    #[error("GET /health: {0}")]
    Fetch(#[from] FetchError),
}

impl ProbeError {
    fn is_refused(&self) -> bool {
        matches!(self, Self::Fetch(FetchError::Connect(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

async fn scrape(worker: &Worker, index: &PrefixIndex, settings: &Settings, history: &mut History) {
    let text = match fetch::get(worker, "/metrics", settings.health.timeout, limits::SCRAPE_BYTES_MAX).await {
        Ok((StatusCode::OK, body)) => body,
        Ok((status, _)) => {
            worker.metrics.scrape_failures.inc();
            tracing::debug!(worker = %worker.name, %status, "no metrics");
            return;
        }
        Err(error) => {
            worker.metrics.scrape_failures.inc();
            tracing::debug!(worker = %worker.name, %error, "no metrics");
            return;
        }
    };
    let scrape = scrape::parse(&String::from_utf8_lossy(&text));
    let engine = &worker.engine;
    engine.running.store(scrape.running.unwrap_or(0.0) as u32, Relaxed);
    engine.waiting.store(scrape.waiting.unwrap_or(0.0) as u32, Relaxed);
    engine.in_flight_at_scrape.store(worker.in_flight_of_all(), Relaxed);
    engine.kv_usage_permille.store((scrape.kv_usage.unwrap_or(0.0) * 1000.0) as u32, Relaxed);
    let adapters = scrape.adapters.iter().map(|(name, state)| (model_key(name), *state)).collect();
    engine.adapters.store(Some(Arc::new(adapters)));
    if let Some(tokens) = scrape.kv_capacity_tokens.filter(|t| *t > 0)
        && engine.kv_capacity_tokens.swap(tokens, Relaxed) != tokens
    {
        settings.bound(worker, index);
    }
    if let Some(start) = scrape.process_start {
        if history.process_start.is_some_and(|known| known.to_bits() != start.to_bits()) {
            tracing::info!(worker = %worker.name, "worker was restarted: its prefixes are forgotten");
            forget_prefixes(worker, index);
        }
        history.process_start = Some(start);
        history.refused = false;
    }
    let emptied = scrape.kv.resets + scrape.kv.sleeps;
    let was_emptied = scrape.kv.is_asleep || history.emptied.is_some_and(|known| emptied > known);
    // Whoever follows its events knows better what has been stored since.
    if was_emptied && !worker.kv_cache.state().is_sound() {
        forget_prefixes(worker, index);
    }
    history.emptied = Some(emptied);
    worker.kv_cache.scraped(scrape.kv);
}

/// What the last while says of the worker's decoding: the gaps between its streams' events, whoever moved them, and the
/// requests that ran, its own count at both ends of the while.
fn learn(worker: &Worker, flows: &Flows, history: &mut History) {
    let slot = u32::from(worker.slot.0);
    let (Some(gaps), Some(streams)) =
        (flows.latency(slot, LatencyKind::EventGap), flows.latency(slot, LatencyKind::TimeToFirstByte))
    else {
        return;
    };
    let now = f64::from(worker.engine.running.load(Relaxed));
    let before = history.running.replace(now).unwrap_or(now);
    let (count, sum_ns) = std::mem::replace(&mut history.gaps, (gaps.count, gaps.sum_ns));
    let (count, sum_ns) = (gaps.count.saturating_sub(count), gaps.sum_ns.saturating_sub(sum_ns));
    let running = f64::midpoint(before, now);
    if count > 0 && running > 0.0 {
        let events_per_stream = gaps.count as f64 / streams.count.max(1) as f64;
        worker.speed.decoded(running, sum_ns as f64 / count as f64 / 1e9, events_per_stream);
    }
}
