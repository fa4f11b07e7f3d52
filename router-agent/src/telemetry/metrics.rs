//! Prometheus metrics, all named `warmpath_…`, in base units.
//!
//! The hot path touches handles that were looked up once (per worker, per route, per reason), never a label map.
//! Gauges that are known elsewhere (in-flight, index size, worker state) are read at scrape time from where they live.

use std::{cell::RefCell, sync::Arc};

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
    core::{MetricVec, MetricVecBuilder},
};

use router_common::cores::SteeringCounts;

use super::{
    CacheMetrics, DisaggregationMetrics, DiscoveryMetrics, FaultMetrics, GuardMetrics, HookMetrics,
    KvEventMetrics, LmcacheMetrics, ModelFamilies, QueueMetrics, RecordMetrics, RelayMetrics, SharedMetrics,
    TenantFamilies, TlsMetrics, TokenizeMetrics, TraceMetrics, WorkerFaultMetrics,
    by_worker::{ByWorker, WORKER_LABEL},
    exemplars::Exemplars,
    latency::LatencyCollector,
    openmetrics,
};
use crate::{
    fleet::{Standing, Worker, WorkerList},
    kernel::Flows,
    routing::Reason,
};

pub(super) type Result<T> = std::result::Result<T, prometheus::Error>;

/// Time to first token: from a warm cache hit on a small model to a long queue.
pub(super) const TTFT_BUCKETS_SECONDS: &[f64] =
    &[0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
/// The histogram that has exemplars.
const TTFT: &str = "warmpath_time_to_first_token_seconds";
/// Whole responses: a tokenise call to a long generation.
const DURATION_BUCKETS_SECONDS: &[f64] =
    &[0.001, 0.005, 0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Decisions: parse, hash, lookup, score, in microseconds.
const DECISION_BUCKETS_SECONDS: &[f64] = &[1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2];

/// Every metric of one gateway.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    by_worker: ByWorker,
    /// Requests answered, by route and status.
    pub requests: IntCounterVec,
    /// Failures by whose fault they are (`client`, `worker`, `gateway`) and kind.
    pub errors: IntCounterVec,
    /// Whole requests, head received to last body byte.
    pub duration: HistogramVec,
    /// Parse, hash, lookup and choice of one request.
    pub decision: Histogram,
    /// Tokens of prompts routed by prefix.
    pub prompt_tokens: IntCounter,
    /// Of these, tokens that the index expected in the chosen worker's cache.
    pub matched_tokens: IntCounter,
    /// Further tries, by what went wrong before.
    pub retries: IntCounterVec,
    /// Further tries that the budget did not allow.
    pub retries_denied: IntCounter,
    /// Client connections open now, over all threads.
    pub connections: IntGauge,
    /// Client connections accepted.
    pub accepted: IntCounter,
    /// Client connections turned away at the limit.
    pub refused: IntCounter,
    /// Requests whose handling panicked: always a defect.
    pub panics: IntCounter,
    /// Reloads of the configuration that put one in force.
    pub reloads_done: IntCounter,
    /// Reloads that changed nothing, the configuration being wrong.
    pub reloads_failed: IntCounter,
    /// Who moves response bodies.
    pub relay: RelayMetrics,
    /// What takes workers out of the fleet.
    pub faults: FaultMetrics,
    /// What waits for a worker.
    pub queue: QueueMetrics,
    /// What the XDP guard does.
    pub guard: GuardMetrics,
    /// The response cache.
    pub cache: Arc<CacheMetrics>,
    /// Sources of workers.
    pub discovery: DiscoveryMetrics,
    /// Services that see requests before they are routed.
    pub hooks: HookMetrics,
    /// Prefill apart from decode.
    pub disaggregation: DisaggregationMetrics,
    /// The LMCache controller.
    pub lmcache: LmcacheMetrics,
    /// What workers say of their KV caches.
    pub kv_events: KvEventMetrics,
    /// Where token ids come from.
    pub tokenize: TokenizeMetrics,
    /// What gateways share.
    pub shared: SharedMetrics,
    /// API keys.
    pub tenants: TenantFamilies,
    /// By model.
    pub models: ModelFamilies,
    /// TLS on the data port.
    pub tls: TlsMetrics,
    /// Records of decisions.
    pub records: RecordMetrics,
    /// Traces.
    pub traces: TraceMetrics,
    /// Traced requests among the times to first token.
    pub exemplars: Exemplars,
    decisions: IntCounterVec,
    time_to_first_token: HistogramVec,
    time_to_first_token_error: HistogramVec,
    worker_prefill_rate: GaugeVec,
    worker_decode_slope: GaugeVec,
    worker_requests: IntCounterVec,
    worker_in_flight: IntGaugeVec,
    worker_queued: IntGaugeVec,
    worker_health: IntGaugeVec,
    worker_breaker: IntGaugeVec,
    worker_standing: IntGaugeVec,
    worker_running: IntGaugeVec,
    worker_waiting: IntGaugeVec,
    worker_kv_usage: GaugeVec,
    worker_scrape_failures: IntCounterVec,
    index_bytes: Gauge,
    index_blocks: IntGaugeVec,
    kernel: IntGaugeVec,
    steering: IntCounterVec,
}

/// The metrics of one worker, looked up once.
#[derive(Debug)]
pub struct WorkerMetrics {
    /// Send of the request to first body chunk.
    pub time_to_first_token: Histogram,
    /// What a decision had expected of that time, less or more.
    pub time_to_first_token_error: Histogram,
    /// Responses relayed to their end.
    pub completed: IntCounter,
    /// Requests that the worker failed.
    pub failed: IntCounter,
    /// Requests that the worker turned away (429, 503).
    pub rejected: IntCounter,
    /// Requests whose client left.
    pub cancelled: IntCounter,
    /// Scrapes of its `/metrics` that gave nothing.
    pub scrape_failures: IntCounter,
    /// What took it out of the fleet.
    pub faults: WorkerFaultMetrics,
}

impl WorkerMetrics {
    /// Requests that have ended, whichever way.
    pub fn ended(&self) -> u64 {
        [&self.completed, &self.failed, &self.rejected, &self.cancelled].map(IntCounter::get).iter().sum()
    }
}

/// Registers each metric where it is made, so that none can be forgotten.
pub(super) struct Maker {
    registry: Registry,
    by_worker: RefCell<ByWorker>,
}

impl Maker {
    fn new() -> Self {
        Self { registry: Registry::new(), by_worker: RefCell::default() }
    }

    fn register<T: MetricVecBuilder + 'static>(&self, metric: &MetricVec<T>, labels: &[&str]) -> Result<()> {
        self.registry.register(Box::new(metric.clone()))?;
        if labels.contains(&WORKER_LABEL) {
            self.by_worker.borrow_mut().note(metric.clone());
        }
        Ok(())
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.register(&metric, labels)?;
        Ok(metric)
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        let metric = IntCounter::new(name, help)?;
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.register(&metric, labels)?;
        Ok(metric)
    }

    fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
        let metric = GaugeVec::new(Opts::new(name, help), labels)?;
        self.register(&metric, labels)?;
        Ok(metric)
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        let metric = IntGauge::new(name, help)?;
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub(super) fn float_gauge(&self, name: &str, help: &str) -> Result<Gauge> {
        let metric = Gauge::new(name, help)?;
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub(super) fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<HistogramVec> {
        let metric = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?;
        self.register(&metric, labels)?;
        Ok(metric)
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
        let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
}

impl Metrics {
    /// A registry of its own with every metric in it.
    pub fn new() -> Result<Arc<Self>> {
        let make = Maker::new();
        let reloads = make.counters(
            "warmpath_reloads_total",
            "Reloads of the configuration: done, or failed (it was wrong, and nothing changed).",
            &["result"],
        )?;
        Ok(Arc::new(Self {
            requests: make.counters(
                "warmpath_requests_total",
                "Requests answered, by route and HTTP status (499: the client left first).",
                &["route", "status"],
            )?,
            errors: make.counters(
                "warmpath_errors_total",
                "Failures, by whose fault they are and kind.",
                &["source", "kind"],
            )?,
            duration: make.histograms(
                "warmpath_request_duration_seconds",
                "Request head received to last response byte handed over.",
                &["route"],
                DURATION_BUCKETS_SECONDS,
            )?,
            decision: make.histogram(
                "warmpath_decision_seconds",
                "Parsing, hashing, looking up and choosing a worker, for one request routed by prefix.",
                DECISION_BUCKETS_SECONDS,
            )?,
            prompt_tokens: make.counter(
                "warmpath_prompt_tokens_total",
                "Tokens of prompts routed by prefix (estimated from bytes unless their ids are known).",
            )?,
            matched_tokens: make.counter(
                "warmpath_matched_tokens_total",
                "Prompt tokens that the index expected in the chosen worker's KV cache.",
            )?,
            retries: make.counters(
                "warmpath_retries_total",
                "Further tries of a request on another worker, by what went wrong before.",
                &["reason"],
            )?,
            retries_denied: make.counter(
                "warmpath_retries_denied_total",
                "Further tries that limits.retry_share did not allow.",
            )?,
            connections: make.gauge("warmpath_connections", "Client connections open.")?,
            accepted: make.counter("warmpath_connections_accepted_total", "Client connections accepted.")?,
            refused: make.counter(
                "warmpath_connections_refused_total",
                "Client connections turned away at the limit.",
            )?,
            panics: make.counter(
                "warmpath_panics_total",
                "Requests whose handling panicked. Always a defect: please report it.",
            )?,
            reloads_done: reloads.with_label_values(&["done"]),
            reloads_failed: reloads.with_label_values(&["failed"]),
            decisions: make.counters(
                "warmpath_decisions_total",
                "Routing decisions, by policy and reason.",
                &["policy", "reason"],
            )?,
            time_to_first_token: make.histograms(
                TTFT,
                "Request sent to a worker to first response body chunk, streamed responses.",
                &["worker"],
                TTFT_BUCKETS_SECONDS,
            )?,
            time_to_first_token_error: make.histograms(
                "warmpath_time_to_first_token_error_seconds",
                "Difference between predicted and observed time to first token, streamed responses.",
                &["worker"],
                TTFT_BUCKETS_SECONDS,
            )?,
            worker_prefill_rate: make.float_gauges(
                "warmpath_worker_prefill_tokens_per_second",
                "Prefill rate of a worker as learned from times to first token; 0 while not known.",
                &["worker"],
            )?,
            worker_decode_slope: make.float_gauges(
                "warmpath_worker_decode_slope_seconds",
                "What one more running request adds to each token of the others, as learned; 0 while not known.",
                &["worker"],
            )?,
            worker_requests: make.counters(
                "warmpath_worker_requests_total",
                "Requests sent to a worker, by how they ended.",
                &["worker", "outcome"],
            )?,
            worker_in_flight: make.gauges(
                "warmpath_worker_in_flight_requests",
                "Requests that this gateway has on a worker now.",
                &["worker"],
            )?,
            worker_queued: make.gauges(
                "warmpath_worker_queued_prefill_tokens",
                "Uncached prompt tokens sent to a worker and not yet past their first response byte.",
                &["worker"],
            )?,
            worker_health: make.gauges(
                "warmpath_worker_state",
                "Health of a worker: 1 for the state that it is in.",
                &["worker", "state"],
            )?,
            worker_breaker: make.gauges(
                "warmpath_worker_breaker_state",
                "Circuit breaker of a worker: 1 for the state that it is in.",
                &["worker", "state"],
            )?,
            worker_standing: make.gauges(
                "warmpath_worker_standing",
                "Whether a worker is given requests (serving), or none (draining, leaving): 1 for what it is.",
                &["worker", "standing"],
            )?,
            worker_running: make.gauges(
                "warmpath_worker_engine_running_requests",
                "vllm:num_requests_running as last scraped.",
                &["worker"],
            )?,
            worker_waiting: make.gauges(
                "warmpath_worker_engine_waiting_requests",
                "vllm:num_requests_waiting as last scraped.",
                &["worker"],
            )?,
            worker_kv_usage: make.float_gauges(
                "warmpath_worker_kv_cache_usage_ratio",
                "vllm:kv_cache_usage_perc as last scraped, 0 to 1.",
                &["worker"],
            )?,
            worker_scrape_failures: make.counters(
                "warmpath_worker_scrape_failures_total",
                "Scrapes of a worker's /metrics that gave nothing.",
                &["worker"],
            )?,
            index_bytes: make.float_gauge("warmpath_index_bytes", "Memory of the prefix index.")?,
            index_blocks: make.gauges(
                "warmpath_index_blocks",
                "Blocks that the prefix index holds for a worker.",
                &["worker"],
            )?,
            kernel: make.gauges(
                "warmpath_kernel_available",
                "What the kernel lets this gateway do: 1 yes, 0 no (the log says why).",
                &["capability"],
            )?,
            steering: make.counters(
                "warmpath_steering_connections_total",
                "New connections seen by the steering program, by what it did.",
                &["result"],
            )?,
            relay: RelayMetrics::new(&make)?,
            faults: FaultMetrics::new(&make)?,
            queue: QueueMetrics::new(&make)?,
            guard: GuardMetrics::new(&make)?,
            cache: Arc::new(CacheMetrics::new(&make)?),
            discovery: DiscoveryMetrics::new(&make)?,
            hooks: HookMetrics::new(&make)?,
            disaggregation: DisaggregationMetrics::new(&make)?,
            lmcache: LmcacheMetrics::new(&make)?,
            kv_events: KvEventMetrics::new(&make)?,
            tokenize: TokenizeMetrics::new(&make)?,
            shared: SharedMetrics::new(&make)?,
            tenants: TenantFamilies::new(&make)?,
            models: ModelFamilies::new(&make)?,
            tls: TlsMetrics::new(&make)?,
            records: RecordMetrics::new(&make)?,
            traces: TraceMetrics::new(&make)?,
            exemplars: Exemplars::new(TTFT_BUCKETS_SECONDS),
            by_worker: make.by_worker.into_inner(),
            registry: make.registry,
        }))
    }

    /// The counter of one decision reason.
    pub fn decisions(&self, policy: &str, reason: Reason) -> IntCounter {
        self.decisions.with_label_values(&[policy, reason.label()])
    }

    /// The handles of one worker.
    pub fn worker(&self, name: &str) -> WorkerMetrics {
        self.lmcache.set_keys(name, 0);
        WorkerMetrics {
            time_to_first_token: self.time_to_first_token.with_label_values(&[name]),
            time_to_first_token_error: self.time_to_first_token_error.with_label_values(&[name]),
            completed: self.worker_requests.with_label_values(&[name, "completed"]),
            failed: self.worker_requests.with_label_values(&[name, "failed"]),
            rejected: self.worker_requests.with_label_values(&[name, "rejected"]),
            cancelled: self.worker_requests.with_label_values(&[name, "cancelled"]),
            scrape_failures: self.worker_scrape_failures.with_label_values(&[name]),
            faults: self.faults.worker(name),
        }
    }

    /// Drops every series of a worker that is there no longer.
    pub fn forget_worker(&self, name: &str) {
        self.by_worker.forget(name);
        self.exemplars.forget(name);
    }

    /// From here on, the streams' times are among the metrics.
    pub fn show_latency(&self, flows: Flows, workers: WorkerList) -> Result<()> {
        self.registry.register(Box::new(LatencyCollector::new(flows, workers)?))
    }

    /// Notes what the kernel allows.
    pub fn set_kernel(&self, capability: &str, available: bool) {
        self.kernel.with_label_values(&[&capability.replace(' ', "_")]).set(i64::from(available));
    }

    /// Notes what the steering program has done so far.
    pub fn set_steering(&self, counts: &SteeringCounts) {
        for (result, now) in [
            ("selected", counts.selected),
            ("hash_no_thread_reported", counts.fallback_no_core),
            ("hash_listener_gone", counts.fallback_refused),
        ] {
            let counter = self.steering.with_label_values(&[result]);
            counter.inc_by(now.saturating_sub(counter.get()));
        }
    }

    /// Notes the index's size.
    pub fn set_index_bytes(&self, bytes: usize) {
        self.index_bytes.set(bytes as f64);
    }

    /// Copies a worker's figures of this moment into its gauges.
    pub fn refresh_worker(&self, worker: &Worker, index_blocks: u64) {
        use std::sync::atomic::Ordering::Relaxed;

        use crate::fleet::{BreakerState, Health};
        let name = worker.name.as_str();
        let set = |vec: &IntGaugeVec, value: i64| vec.with_label_values(&[name]).set(value);
        set(&self.worker_in_flight, i64::from(worker.load.in_flight()));
        set(&self.worker_queued, worker.load.queued_prefill_tokens() as i64);
        set(&self.worker_running, i64::from(worker.engine.running.load(Relaxed)));
        set(&self.worker_waiting, i64::from(worker.engine.waiting.load(Relaxed)));
        set(&self.index_blocks, index_blocks as i64);
        let usage = f64::from(worker.engine.kv_usage_permille.load(Relaxed)) / 1000.0;
        self.worker_kv_usage.with_label_values(&[name]).set(usage);
        let rate = worker.speed.get().map_or(0.0, |speed| 1.0 / speed.token_s);
        self.worker_prefill_rate.with_label_values(&[name]).set(rate);
        self.worker_decode_slope.with_label_values(&[name]).set(worker.speed.decode_slope_s());
        self.faults.refresh(worker);
        self.shared.set_peer_load(name, worker.peers.in_flight(), worker.peers.queued_prefill_tokens());
        let health = worker.health();
        for state in Health::ALL {
            let is = i64::from(state == health);
            self.worker_health.with_label_values(&[name, state.label()]).set(is);
        }
        let standing = worker.standing().label();
        for label in Standing::LABELS {
            self.worker_standing.with_label_values(&[name, label]).set(i64::from(label == standing));
        }
        let breaker = worker.breaker.state();
        for state in [BreakerState::Closed, BreakerState::Open, BreakerState::HalfOpen] {
            let is = i64::from(state == breaker);
            self.worker_breaker.with_label_values(&[name, state.label()]).set(is);
        }
    }

    /// The OpenMetrics text format, with exemplars.
    pub fn encode_openmetrics(&self) -> String {
        openmetrics::encode(&self.registry.gather(), (TTFT, &self.exemplars))
    }

    /// The Prometheus text format.
    pub fn encode(&self) -> Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}
