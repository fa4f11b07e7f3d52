//! The gateway: from a client's connection to a worker's response and back.
//!
//! One OS thread per core, each with its own current-thread runtime, its own `SO_REUSEPORT` listener and its own worker
//! connections; no work stealing, and no lock on the data path but the one around a decision. [`request`] reads like the
//! way of one request; everything else here is what it calls.

mod account;
mod admission;
mod bodies;
mod body;
mod bytes_per_token;
mod cached;
mod choose;
mod client_io;
mod conformance;
mod connection;
mod cut;
mod decided;
mod decisions;
mod disaggregation;
mod eligible;
mod ending;
mod epp;
mod error;
mod error_object;
mod explain;
mod forwarded;
mod headers;
mod hooks;
mod http2;
mod identify;
mod idlers;
mod known;
mod last_words;
mod listen;
mod lmcache;
mod model;
mod models;
mod outgoing;
mod overrides;
mod panics;
mod phases;
mod planned;
mod protocol;
mod pulse;
mod raw;
mod relay;
pub mod request;
mod retry_budget;
mod route;
mod shape;
mod shared_body;
mod snapshot;
mod thread;
mod token_keys;
mod tokens;
mod tries;
mod usage;
mod verify;
mod wishes;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;

use self::{admission::Admission, bodies::Bodies, hooks::Hook, retry_budget::RetryBudget};
use crate::{
    cache::ResponseCache,
    config::{Config, Live},
    fleet::{Fleet, Worker},
    index::{PrefixIndex, WorkerSlot},
    kernel::{Decisions, Flows, Relays},
    kv_events::{Indices, Predictions},
    records::Recorder,
    routing::{Policy, Reason, Router, Settings},
    telemetry::Metrics,
    tenants::Tenants,
    tls::ServerTls,
    tokenize::Tokenizers,
    traces::Tracer,
};

use decisions::DecisionCounters;

pub use epp::report as report_picker_health;
pub use error::{GatewayError, Overload};
pub use explain::{Apart, Explanation, Part, Question, explain};
pub use listen::{ListenError, Listeners};
pub use lmcache::watch_lmcache;
pub use protocol::ALPN;
pub use pulse::Pulses;
pub use thread::{DataThread, Phase, start};
pub use verify::verify_tokenizers;

use bytes_per_token::BytesPerToken;

/// One thing for requests routed by prefix, another for all others.
struct ByKind<T> {
    by_prefix: T,
    plain: T,
}

/// The configured policy for requests with a prompt; everything else goes to the least loaded worker.
type Routers = ByKind<Router>;

/// What the data path has of the kernel's.
pub struct KernelSide {
    /// The ways past this process that it has for bodies.
    pub relays: Relays,
    /// The streams under way and their times.
    pub flows: Flows,
    /// Where decisions are published, if it has the map.
    pub decisions: Option<Decisions>,
    /// Client connections that this process may have open ([`crate::descriptors`]), whatever the configuration says.
    pub connections_max: usize,
}

/// What is known of the workers' caches.
pub struct CacheView {
    /// Who holds what.
    pub indices: Indices,
    /// Who is about to.
    pub predictions: Predictions,
}

/// What all data threads share.
pub struct Shared {
    /// The configuration in force. A request on a data thread has its own snapshot of it.
    pub config: Arc<Live>,
    /// The workers.
    pub fleet: Arc<Fleet>,
    /// Which worker holds which prefix.
    pub index: Arc<PrefixIndex>,
    /// Which worker holds which token blocks, by its own word.
    pub token_index: Arc<PrefixIndex>,
    /// Expects in it what is sent.
    predictions: Predictions,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The ways past this process that the kernel has for bodies.
    pub relays: Relays,
    /// The streams under way and their times.
    pub flows: Flows,
    /// Where token ids come from.
    pub tokenizers: Tokenizers,
    /// Who may ask.
    pub tenants: Tenants,
    /// The data port's certificate, if it has one.
    pub tls: Option<Arc<ServerTls>>,
    bytes_per_token: BytesPerToken,
    /// Where decisions are published, if the kernel has the map.
    decisions_map: Option<Decisions>,
    /// Held over a decision and the load that it adds, about a microsecond: counted later, a burst over several threads
    /// would see one idle worker and herd onto it.
    routers: Mutex<Routers>,
    /// The LMCache controller's instances, for the policy `lmcache`.
    lmcache_instances: lmcache::Instances,
    /// The way to the controller from the control thread.
    lmcache_control: ArcSwapOption<lmcache::Controller>,
    /// Answers that are given again.
    pub cache: Arc<ResponseCache>,
    /// Who sees requests before they are routed; as [`Config::hooks`].
    hooks: ArcSwap<Vec<Arc<Hook>>>,
    /// What was decided, for whoever asks later.
    pub records: Arc<Recorder>,
    /// The way of requests, for a collector.
    pub tracer: Arc<Tracer>,
    /// Decision counters.
    decisions: DecisionCounters,
    /// Whether the data threads' event loops turn.
    pub pulses: Arc<Pulses>,
    /// Client connections open, over all threads.
    connections: AtomicUsize,
    /// What the system allows of them.
    connections_max: usize,
    retries: RetryBudget,
    /// Who waits for a worker.
    admission: Admission,
    /// The memory of request bodies.
    bodies: Arc<Bodies>,
    /// What an endpoint picker says of itself.
    picker_health: epp::Health,
}

impl Shared {
    /// Puts the parts together.
    pub fn new(
        config: Arc<Live>,
        fleet: Arc<Fleet>,
        caches: CacheView,
        metrics: Arc<Metrics>,
        kernel: KernelSide,
        tokenizers: Tokenizers,
        tls: Option<Arc<ServerTls>>,
    ) -> Self {
        let KernelSide { relays, flows, decisions: decisions_map, connections_max } = kernel;
        let router = |settings| Router::new(settings, fastrand::u64(..));
        let started = config.get();
        Self {
            routers: Mutex::new(ByKind {
                by_prefix: router(started.routing.settings.clone()),
                plain: router(Settings::new(Policy::LeastLoaded)),
            }),
            lmcache_instances: lmcache::Instances::default(),
            lmcache_control: ArcSwapOption::empty(),
            tracer: Arc::new(Tracer::new(&started.traces, metrics.traces.clone())),
            cache: Arc::new(ResponseCache::new(started.cache.bytes_max, metrics.cache.clone())),
            hooks: ArcSwap::from_pointee(hooks::hooks(&started, &[], &metrics.hooks)),
            records: Arc::new(Recorder::new(&started, metrics.records.clone())),
            decisions: DecisionCounters::new(&metrics, started.routing.settings.policy),
            pulses: Arc::new(Pulses::new(started.threads)),
            retries: RetryBudget::new(started.limits.retry_share),
            tls,
            tenants: Tenants::new(&started.keys, metrics.clone()),
            config,
            fleet,
            index: caches.indices.bytes,
            token_index: caches.indices.tokens,
            predictions: caches.predictions,
            metrics,
            relays,
            flows,
            tokenizers,
            bytes_per_token: BytesPerToken::default(),
            decisions_map,
            connections: AtomicUsize::new(0),
            connections_max,
            admission: Admission::default(),
            bodies: Arc::default(),
            picker_health: epp::Health::default(),
        }
    }

    /// The configuration now, to look something up; see [`Live::load`].
    pub fn config(&self) -> arc_swap::Guard<Arc<Config>> {
        self.config.load()
    }

    /// Puts another configuration in force: for new requests at once, for what runs at its next look. What only a restart
    /// can change must be as it was ([`crate::config::settle`]).
    pub fn reconfigure(&self, config: Config) {
        let settings = config.routing.settings.clone();
        self.decisions.expect(settings.policy);
        self.retries.set_share(config.limits.retry_share);
        self.tenants.replace(&config.keys);
        self.cache.resize(config.cache.bytes_max);
        let hooks = hooks::hooks(&config, &self.hooks.load(), &self.metrics.hooks);
        self.hooks.store(Arc::new(hooks));
        for worker in self.fleet.workers().iter() {
            worker.breaker.configure(config.breaker, Instant::now());
        }
        self.records.reconfigure(&config);
        self.tracer.reconfigure(&config.traces);
        self.config.replace(config);
        self.routers.lock().by_prefix.configure(settings);
    }

    /// Copies the queue's figures of this moment into its gauges.
    pub fn refresh_queue_metrics(&self) {
        let queue = &self.metrics.queue;
        queue.length.set(self.admission.waiting() as i64);
        queue.drain_rate.set(self.admission.drain_rate());
        queue.body_bytes.set(self.bodies.bytes() as i64);
    }

    /// Requests that wait for a worker, prompt tokens per second that the queue lets through, bytes of request bodies in
    /// memory.
    pub fn queue(&self) -> (usize, f64, usize) {
        (self.admission.waiting(), self.admission.drain_rate(), self.bodies.bytes())
    }

    /// Bytes of prompt that make a token, about.
    pub fn bytes_per_token(&self) -> f64 {
        self.bytes_per_token.get()
    }

    /// Client connections open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Decisions so far, by reason.
    pub fn decisions_by_reason(&self) -> [u64; Reason::ALL.len()] {
        self.decisions.by_reason()
    }

    /// Copies what the response cache holds at this moment into its gauges.
    pub fn refresh_cache_metrics(&self) {
        let metrics = &self.metrics.cache;
        let (entries, bytes) = self.cache.size();
        metrics.entries.set(entries as i64);
        metrics.entry_bytes.set(bytes as i64);
        metrics.in_flight_bytes.set(self.cache.in_flight_bytes() as i64);
    }

    /// Returns when every decision that began before has been made and counted.
    pub fn wait_for_decisions(&self) {
        drop(self.routers.lock());
    }

    /// Empties a place whose worker has left: what is known of the next one begins with nothing.
    pub fn forget(&self, slot: WorkerSlot) {
        self.index.remove_worker(slot);
        self.token_index.remove_worker(slot);
        self.flows.forget(slot.0.into());
        self.lmcache_instances.rcu(|instances| {
            let mut instances = HashMap::clone(instances);
            instances.retain(|_, of| *of != slot);
            instances
        });
    }

    /// Grows with every connection and every request that ends: the same twice, nothing went on in between.
    pub fn activity(&self) -> u64 {
        let ended = |worker: &Arc<Worker>| worker.metrics.ended();
        self.metrics.accepted.get() + self.fleet.workers().iter().map(ended).sum::<u64>()
    }

    /// Requests that workers have now.
    pub fn in_flight(&self) -> u32 {
        self.fleet.workers().iter().map(|worker| worker.load.in_flight()).sum()
    }

    /// Takes a retry out of the budget; what is refused is counted.
    fn may_retry(&self) -> bool {
        let may = self.retries.take();
        if !may {
            self.metrics.retries_denied.inc();
        }
        may
    }

    /// Takes a place for one more client connection, if there is one left; [`Shared::leave`] gives it back.
    fn enter(&self) -> bool {
        let limit = self.config().limits.connections.min(self.connections_max);
        self.connections.fetch_update(Relaxed, Relaxed, |open| (open < limit).then_some(open + 1)).is_ok()
    }

    fn leave(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }
}
