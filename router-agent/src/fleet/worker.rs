//! One worker: its name and address, its health, its breaker, its load, and what its engine last said of itself.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use http::HeaderValue;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Breaker, FleetSpeed, KvCache, Liveness, Load, Models, PeerLoad, Pulse, Record, Rest, Standing,
    WorkerSpeed, standing::StandingCell,
};
use crate::{
    config::{WorkerConfig, WorkerKvEvents, WorkerRole, WorkerUrl},
    index::WorkerSlot,
    routing::Adapter,
    telemetry::WorkerMetrics,
    tls::WorkerTls,
};

/// What active health checks say of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// Not checked yet.
    Unknown = 0,
    /// Its checks pass.
    Healthy = 1,
    /// Its checks fail.
    Unhealthy = 2,
}

impl Health {
    /// Every state, for metrics that show one series per state.
    pub const ALL: [Self; 3] = [Self::Unknown, Self::Healthy, Self::Unhealthy];

    /// The name in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What the engine last said of itself (`GET /metrics`), zero before the first scrape.
#[derive(Debug, Default)]
pub struct Engine {
    /// `vllm:num_requests_running`, summed over engines.
    pub running: AtomicU32,
    /// `vllm:num_requests_waiting`, summed over engines.
    pub waiting: AtomicU32,
    /// What was in flight there from this gateway, and from others by their word, when the two were read: the rest is
    /// other people's.
    pub in_flight_at_scrape: AtomicU32,
    /// `vllm:kv_cache_usage_perc` × 1000, the fullest engine.
    pub kv_usage_permille: AtomicU32,
    /// LoRA adapters that requests run with or wait for, by [`super::model_key`].
    pub adapters: ArcSwapOption<Vec<(u64, Adapter)>>,
    /// KV capacity in tokens (`vllm:cache_config_info`: block size × GPU blocks), zero where it is not said.
    pub kv_capacity_tokens: AtomicU64,
}

/// A worker of this process, never another one's: unlike a name or a place, which are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkerId(u64);

impl WorkerId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

/// One worker. Shared by all threads; every figure is an atomic.
#[derive(Debug)]
pub struct Worker {
    /// Which one it is.
    pub id: WorkerId,
    /// Its place in the index and in the `workers` map.
    pub slot: WorkerSlot,
    /// What it is called everywhere.
    pub name: String,
    /// xxh3 of the name: the same in every gateway, whatever slot it has there.
    pub identity: u64,
    /// Where it listens.
    pub url: WorkerUrl,
    /// Tells it from another one that had the same name and address before; none where nobody says.
    pub incarnation: Option<String>,
    /// `name`, ready for `x-warmpath-worker`.
    pub name_header: HeaderValue,
    /// `url` as text: by it gateways know a worker among each other, whatever each of them calls it.
    pub address_text: Box<str>,
    /// `host:port`, ready for `Host`.
    pub host_header: HeaderValue,
    /// What this gateway has in flight on it.
    pub load: Load,
    /// What other gateways have.
    pub peers: PeerLoad,
    /// Its circuit breaker.
    pub breaker: Breaker,
    /// How it does beside the others.
    pub record: Record,
    /// Whether it has asked to be left alone.
    pub rest: Rest,
    /// Whether its engine works.
    pub liveness: Liveness,
    /// What its engine says.
    pub engine: Engine,
    /// How fast it is.
    pub speed: WorkerSpeed,
    /// What is known of its KV cache from itself.
    pub kv_cache: KvCache,
    /// Its metrics, looked up once.
    pub metrics: WorkerMetrics,
    health: AtomicU8,
    standing: StandingCell,
    /// A [`WorkerRole`].
    role: AtomicU8,
    is_cut_off: AtomicBool,
    emptied_s: AtomicU64,
    kv_events: ArcSwap<WorkerKvEvents>,
    access: ArcSwap<Access>,
    address: ArcSwapOption<SocketAddr>,
    /// None while it has not told them.
    models: ArcSwapOption<Models>,
    /// They are configured, and it is not asked.
    has_listed_models: AtomicBool,
}

/// How a worker and this gateway know each other.
#[derive(Debug)]
pub struct Access {
    /// Its own key, ready for `Authorization`.
    pub authorization: Option<HeaderValue>,
    /// What its certificate must be; none over plain HTTP.
    pub tls: Option<WorkerTls>,
}

impl Access {
    fn of(config: &WorkerConfig) -> Self {
        Self { authorization: config.authorization.clone(), tls: config.tls.clone() }
    }
}

impl Engine {
    /// What it does with the adapter of this name.
    pub fn adapter(&self, model: Option<u64>) -> Adapter {
        let adapters = self.adapters.load();
        let found =
            model.zip(adapters.as_ref()).and_then(|(key, list)| list.iter().find(|(name, _)| *name == key));
        found.map_or(Adapter::Absent, |(_, state)| *state)
    }
}

impl Worker {
    /// A worker that has not been checked yet.
    pub fn new(
        slot: WorkerSlot,
        config: &WorkerConfig,
        breaker: Breaker,
        metrics: WorkerMetrics,
        fleet_speed: Arc<FleetSpeed>,
    ) -> Self {
        let header = |text: &str| {
            HeaderValue::from_str(text)
                .expect("names are checked to be printable, and a host comes from a URL")
        };
        let WorkerConfig { url, name, kv_events, incarnation, .. } = config.clone();
        let worker = Self {
            id: WorkerId::next(),
            slot,
            name_header: header(&name),
            host_header: header(&url.authority()),
            address_text: url.to_string().into(),
            url,
            incarnation,
            load: Load::default(),
            peers: PeerLoad::default(),
            breaker,
            record: Record::default(),
            rest: Rest::default(),
            liveness: Liveness::default(),
            engine: Engine::default(),
            speed: WorkerSpeed::new(fleet_speed),
            identity: xxh3_64(name.as_bytes()),
            name,
            kv_cache: KvCache::default(),
            metrics,
            health: AtomicU8::new(Health::Unknown as u8),
            standing: StandingCell::default(),
            role: AtomicU8::new(config.role as u8),
            is_cut_off: AtomicBool::new(false),
            emptied_s: AtomicU64::new(0),
            kv_events: ArcSwap::from_pointee(kv_events),
            access: ArcSwap::from_pointee(Access::of(config)),
            address: ArcSwapOption::empty(),
            models: ArcSwapOption::empty(),
            has_listed_models: AtomicBool::new(false),
        };
        worker.list_models(&config.models);
        worker
    }

    /// What its health checks say.
    pub fn health(&self) -> Health {
        match self.health.load(Relaxed) {
            1 => Health::Healthy,
            2 => Health::Unhealthy,
            _ => Health::Unknown,
        }
    }

    pub(super) fn set_health(&self, health: Health) {
        self.health.store(health as u8, Relaxed);
    }

    /// Whether a request may be sent to it now. Of several such workers, those that are not left out
    /// ([`Worker::is_left_out`]) come first.
    pub fn is_routable(&self, now: Instant) -> bool {
        self.standing.takes_requests()
            && self.health() != Health::Unhealthy
            && self.liveness.pulse() != Pulse::Hung
            && self.breaker.admits(now)
    }

    /// Whether others are asked, as long as there are any: it is an outlier, or wants to be left alone.
    pub fn is_left_out(&self, now: Instant) -> bool {
        self.record.is_ejected() || self.rest.holds(now)
    }

    /// Requests in flight on it, of this gateway and, by their word, of all others.
    pub fn in_flight_of_all(&self) -> u32 {
        self.load.in_flight().saturating_add(self.peers.in_flight())
    }

    /// Whether it is given requests.
    pub fn standing(&self) -> Standing {
        self.standing.get()
    }

    /// See [`Worker::standing`].
    pub fn set_standing(&self, standing: Standing) {
        self.standing.set(standing);
    }

    /// Whether who told of it says that it can take requests. Its health is another matter.
    pub fn set_ready(&self, is_ready: bool) {
        if self.standing.set_ready(is_ready, self.load.in_flight()) {
            tracing::info!(worker = %self.name, is_ready, "worker's readiness has changed");
        }
    }

    /// What of a request it does.
    pub fn role(&self) -> WorkerRole {
        const PREFILL: u8 = WorkerRole::Prefill as u8;
        const DECODE: u8 = WorkerRole::Decode as u8;
        match self.role.load(Relaxed) {
            PREFILL => WorkerRole::Prefill,
            DECODE => WorkerRole::Decode,
            _ => WorkerRole::Both,
        }
    }

    /// A reload says otherwise; [`super::Fleet::announce`] tells the others.
    pub fn set_role(&self, role: WorkerRole) {
        self.role.store(role as u8, Relaxed);
    }

    /// Whether it was dismissed: what is in flight on it is cut off.
    pub fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Relaxed)
    }

    pub(super) fn cut_off(&self) {
        self.is_cut_off.store(true, Relaxed);
    }

    /// When its cache was last seen to have been emptied, seconds since 1970; 0: never, as far as this gateway knows.
    pub fn emptied_s(&self) -> u64 {
        self.emptied_s.load(Relaxed)
    }

    /// Its cache is empty from now on.
    pub fn emptied_now(&self) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        self.emptied_s.store(since.map_or(0, |since| since.as_secs()), Relaxed);
    }

    /// What it wants to be shown, and what it has to show.
    pub fn access(&self) -> arc_swap::Guard<Arc<Access>> {
        self.access.load()
    }

    /// A reload says otherwise; connections that are there go on.
    pub fn set_access(&self, config: &WorkerConfig) {
        self.access.store(Arc::new(Access::of(config)));
    }

    /// Where its KV events are, as configured.
    pub fn kv_events(&self) -> Arc<WorkerKvEvents> {
        self.kv_events.load_full()
    }

    /// See [`Worker::kv_events`]; [`super::Fleet::announce`] says so.
    pub fn set_kv_events(&self, kv_events: WorkerKvEvents) {
        self.kv_events.store(Arc::new(kv_events));
    }

    /// The models that it serves; none while it has not told them.
    pub fn models(&self) -> Option<Arc<Models>> {
        self.models.load_full()
    }

    /// What it has said of them, unless they are configured.
    pub(super) fn set_models(&self, models: Option<Models>) {
        if !self.has_listed_models() {
            self.models.store(models.map(Arc::new));
        }
    }

    /// Whether its models are configured, so that it need not be asked.
    pub(super) fn has_listed_models(&self) -> bool {
        self.has_listed_models.load(Relaxed)
    }

    /// The models that it serves by the configuration; empty: it is asked, at its next health check.
    pub fn list_models(&self, names: &[String]) {
        self.has_listed_models.store(!names.is_empty(), Relaxed);
        if !names.is_empty() {
            self.models.store(Some(Arc::new(Models::listed(names))));
        }
    }

    /// Whether it serves the model ([`super::model_key`]). Who has told no list is asked for anything, and whoever names
    /// no model takes any.
    pub fn serves(&self, model: Option<u64>) -> bool {
        model.is_none_or(|key| self.models.load().as_ref().is_none_or(|models| models.contains(key)))
    }

    /// Its address as last resolved; none before the first connection.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address.load().as_deref().copied()
    }

    pub(crate) fn set_address(&self, address: SocketAddr) {
        if self.address() != Some(address) {
            self.address.store(Some(Arc::new(address)));
        }
    }

    /// A worker for unit tests, in slot 0, with metrics of its own.
    #[cfg(test)]
    pub(crate) fn for_tests(url: &str) -> Arc<Self> {
        Self::for_tests_in(url, Arc::default())
    }

    /// The same, of a fleet whose speeds are these.
    #[cfg(test)]
    pub(crate) fn for_tests_in(url: &str, fleet_speed: Arc<FleetSpeed>) -> Arc<Self> {
        let config = crate::config::worker_config(url, Some("test".to_owned())).expect("a test's URL");
        let metrics = crate::telemetry::Metrics::new().expect("fresh registry").worker("test");
        let breaker = Breaker::new(super::breaker::settings_for_tests());
        Arc::new(Self::new(WorkerSlot(0), &config, breaker, metrics, fleet_speed))
    }
}
