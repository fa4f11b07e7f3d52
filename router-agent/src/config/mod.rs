//! The configuration: one strict schema for file, environment and flags.
//!
//! A value comes from the flag, else from the environment (`WARMPATH_…`), else from the file, else from the default.
//! Unknown keys are errors: a misspelt key that is silently ignored is an outage that waits for its night.

mod aliases;
mod cache;
mod changes;
mod cidr;
mod decisions;
mod defaults;
mod digest;
mod disaggregation;
mod discovery;
mod error;
mod faults;
mod file;
mod guard;
mod hooks;
mod keys;
mod kv_events;
mod limits;
mod live;
mod overrides;
mod pattern;
mod place;
mod routing;
pub mod schema;
mod secret;
mod shown;
mod shown_discovery;
mod tls;
mod tokenizers;
mod traces;
mod worker_entry;
mod worker_url;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use http::HeaderValue;

use crate::{limits as bounds, prompt::BLOCK_BYTES_MAX, routing::Policy, tls::WorkerTls};

pub use self::limits::{Limits, Timeouts};
pub use aliases::{Alias, Aliases, Target};
pub use cache::{Cache, CacheMode};
pub use changes::{Changes, settle};
pub use cidr::{Cidr, CidrError};
pub use decisions::{DecisionLog, Decisions, LoggedPrompts};
pub use defaults::BodyDefault;
pub use digest::{SecretDigest, SecretDigestError};
pub use disaggregation::{Disaggregation, WorkerRole};
pub use discovery::{
    Discovery, DnsSource, KubernetesObjects, KubernetesPort, KubernetesSource, Source, WorkerTemplate,
};
pub use error::ConfigError;
pub use faults::{Breaker, Health, Outliers};
pub use file::{File, load};
pub use guard::{Guard, GuardInterface, GuardMode};
pub use hooks::HookConfig;
pub(crate) use keys::is_key_name;
pub use keys::{AllowedModels, KeyConfig};
pub use kv_events::{KvEndpoints, KvEvents, WorkerKvEvents};
pub use live::Live;
pub use overrides::Overrides;
pub use pattern::ModelPattern;
pub(crate) use routing::parse_policy;
pub use routing::{Lmcache, Routing};
pub(crate) use secret::admin_token_of_environment;
pub use shown::{MASK, shown};
pub use tls::{ServerTls, TlsVersion};
pub use tokenizers::{TokenSource, Tokenizers};
pub use traces::{TraceProtocol, Traces};
pub(crate) use worker_entry::{check_models, parse_worker, parse_workers, worker_config};
pub use worker_url::{WorkerUrl, WorkerUrlError};

/// The gateway that is alone on its host: its maps are pinned in `/sys/fs/bpf/warmpath` itself.
pub const DEFAULT_INSTANCE: &str = "default";

/// Whether response bodies may be moved by the kernel.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    serde::Deserialize,
    serde::Serialize,
    schemars::JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Splice {
    /// Wherever this kernel and this response allow it.
    #[default]
    Auto,
    /// Never: every byte is copied in user space.
    Off,
}

/// When one way of relaying bodies is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RelayMode {
    /// Where measurements say that it pays.
    Auto,
    /// Wherever it can be.
    On,
    /// Never.
    Off,
}

/// How response bodies are moved; the top-level `splice: off` overrides it all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Relay {
    /// By the kernel, past this process, where the worker is on this host.
    pub bypass: RelayMode,
    /// By the kernel, from this gateway's socket to the worker into the client's, where the worker is on another host.
    pub splice: RelayMode,
    /// By this process. `On`: always. `Off`: only what the kernel cannot move, whatever its length.
    pub copy: RelayMode,
    /// Bodies of known length below this are copied, event streams apart.
    pub min_bytes: u64,
    /// The share of responses that is copied although the kernel could move it: 0 to 1. They show what the worker says of
    /// its cache.
    pub sample: f64,
}

impl Relay {
    /// Whether the kernel may move anything for one of its two ways.
    pub fn allows(&self, mode: RelayMode) -> bool {
        mode != RelayMode::Off && self.copy != RelayMode::On
    }
}

/// What clients of this process speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Front {
    /// OpenAI's API: requests are sent on.
    #[default]
    Gateway,
    /// Envoy's external processing: it is told where to send them (`warmpath epp`).
    EndpointPicker,
}

/// How log lines are written.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    serde::Deserialize,
    serde::Serialize,
    schemars::JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// One worker as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Where it listens.
    pub url: WorkerUrl,
    /// What it is called in headers, metrics and maps; `host:port` where nothing else is said.
    pub name: String,
    /// What of a request it does.
    pub role: WorkerRole,
    /// Where its KV events are.
    pub kv_events: WorkerKvEvents,
    /// Its own key, as it is sent: `Bearer …`. Clients' keys are for this gateway.
    pub authorization: Option<HeaderValue>,
    /// How it is known over TLS; none over plain HTTP.
    pub tls: Option<WorkerTls>,
    /// The models that it serves; empty: it is asked.
    pub models: Vec<String>,
    /// Tells it from another one that had the same name and address before, as a pod's UID does; none where nobody says.
    pub incarnation: Option<String>,
}

/// The prefix index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Index {
    /// Prompt bytes per block.
    pub block_bytes: usize,
    /// Memory of the whole index, bytes.
    pub bytes_max: usize,
    /// KV capacity assumed for a worker that does not say it in `vllm:cache_config_info`, tokens.
    pub worker_capacity_tokens: u64,
}

/// Everything `warmpath serve` needs, with every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where operators connect: metrics, health, admin API.
    pub admin: SocketAddr,
    /// The fleet.
    pub workers: Vec<WorkerConfig>,
    /// Workers that are not listed.
    pub discovery: Discovery,
    /// By the command that was started; no key.
    pub front: Front,
    /// Simulated workers to start when `workers` is empty (only in builds with the feature `sim`).
    pub sim_workers: usize,
    /// How a worker is chosen.
    pub routing: Routing,
    /// Prefill apart from decode.
    pub disaggregation: Disaggregation,
    /// Data threads.
    pub threads: usize,
    /// Whether the kernel may move response bodies.
    pub splice: Splice,
    /// Which ways of moving them are used when.
    pub relay: Relay,
    /// Log format.
    pub log_format: LogFormat,
    /// Name of this gateway among several on one host: part of the pin path under bpffs.
    pub instance: String,
    /// Active health checks.
    pub health: Health,
    /// Circuit breaker.
    pub breaker: Breaker,
    /// Outlier detection.
    pub outliers: Outliers,
    /// Pause between two scrapes of a worker's `/metrics`.
    pub scrape_interval: Duration,
    /// Prefix index.
    pub index: Index,
    /// KV events.
    pub kv_events: KvEvents,
    /// Limits.
    pub limits: Limits,
    /// Timeouts.
    pub timeouts: Timeouts,
    /// The XDP guard.
    pub guard: Guard,
    /// Where token ids come from.
    pub tokenizers: Tokenizers,
    /// Who may ask; none: everyone.
    pub keys: Vec<KeyConfig>,
    /// Where some of `keys` come from.
    pub keys_file: Option<PathBuf>,
    /// Models that clients may name, and what is served for them.
    pub aliases: Aliases,
    /// The response cache.
    pub cache: Cache,
    /// Who sees requests before they are routed.
    pub hooks: Vec<HookConfig>,
    /// What clients may decide by headers whose keys do not say; none: everything without keys, nothing with.
    pub overrides: Option<Overrides>,
    /// Whom the process becomes when it serves; none: nobody else.
    pub user: Option<String>,
    /// What operators have to show; none: nothing.
    pub admin_token: Option<SecretDigest>,
    /// `/metrics` is for everyone all the same.
    pub admin_open_metrics: bool,
    /// The data port's certificate; none: plain HTTP.
    pub tls: Option<ServerTls>,
    /// The admin port's.
    pub admin_tls: Option<ServerTls>,
    /// Proxies that say truly whom they speak for.
    pub trusted_proxies: Vec<Cidr>,
    /// The last decisions, in memory.
    pub decisions: Decisions,
    /// Decisions, in a file.
    pub decision_log: DecisionLog,
    /// Traces.
    pub traces: Traces,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin: SocketAddr::from(([127, 0, 0, 1], 9090)),
            workers: Vec::new(),
            discovery: Discovery::default(),
            front: Front::default(),
            sim_workers: 0,
            routing: Routing::default(),
            disaggregation: Disaggregation::default(),
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            splice: Splice::default(),
            relay: Relay {
                bypass: RelayMode::Auto,
                splice: RelayMode::Auto,
                copy: RelayMode::Auto,
                min_bytes: bounds::RELAY_MIN_BYTES,
                sample: bounds::RELAY_SAMPLE,
            },
            log_format: LogFormat::default(),
            instance: DEFAULT_INSTANCE.to_owned(),
            health: Health::default(),
            breaker: Breaker::default(),
            outliers: Outliers::default(),
            scrape_interval: Duration::from_secs(1),
            index: Index {
                block_bytes: crate::prompt::BLOCK_BYTES,
                bytes_max: bounds::INDEX_BYTES_MAX,
                worker_capacity_tokens: 524_288,
            },
            kv_events: KvEvents { is_on: true, hash_seed: None },
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            guard: Guard::default(),
            tokenizers: Tokenizers::default(),
            keys: Vec::new(),
            keys_file: None,
            aliases: Aliases::default(),
            cache: Cache::default(),
            hooks: Vec::new(),
            overrides: None,
            user: None,
            admin_token: None,
            admin_open_metrics: false,
            tls: None,
            admin_tls: None,
            trusted_proxies: Vec::new(),
            decisions: Decisions::default(),
            decision_log: DecisionLog::default(),
            traces: Traces::default(),
        }
    }
}

impl Config {
    /// Whether what this sender says of others' addresses is to be believed.
    pub fn is_trusted_proxy(&self, sender: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|range| range.contains(sender))
    }

    /// Checks what the types cannot say.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let value = |key, message: String| Err(ConfigError::Value { key, message });
        if self.workers.is_empty() && self.sim_workers == 0 && self.discovery.sources.is_empty() {
            return Err(ConfigError::NoWorkers);
        }
        if self.workers.len() > bounds::WORKERS_MAX {
            return value(
                "workers",
                format!("{} workers, at most {} are possible", self.workers.len(), bounds::WORKERS_MAX),
            );
        }
        for (i, worker) in self.workers.iter().enumerate() {
            if let Some(other) =
                self.workers[..i].iter().find(|o| o.name == worker.name || o.url == worker.url)
            {
                return value(
                    "workers",
                    format!(
                        "{} ({}) is listed twice (also as {}): names and URLs must be unique",
                        worker.name, worker.url, other.name
                    ),
                );
            }
        }
        if self.threads == 0 || self.threads > 1024 {
            return value("threads", format!("{} is out of range: 1 to 1024", self.threads));
        }
        if self.listen == self.admin && self.listen.port() != 0 {
            return value(
                "admin",
                format!("{} is also the listen address: give it a port of its own", self.admin),
            );
        }
        let admin_is_guarded =
            self.admin_token.is_some() || self.admin_tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        if !self.admin.ip().to_canonical().is_loopback() && !admin_is_guarded {
            return value(
                "admin",
                format!(
                    "{} can be reached from other hosts, and whoever reaches it can drain workers and change the guard: \
                     set admin_token (or admin_token_file, or WARMPATH_ADMIN_TOKEN), or admin_tls with client_ca, or \
                     listen on 127.0.0.1",
                    self.admin
                ),
            );
        }
        if !(16..=BLOCK_BYTES_MAX).contains(&self.index.block_bytes) {
            return value(
                "index.block_bytes",
                format!("{} is out of range: 16 to {BLOCK_BYTES_MAX}", self.index.block_bytes),
            );
        }
        if !(0.0..=1.0).contains(&self.relay.sample) {
            return value("relay.sample", format!("{} is no share of responses: 0 to 1", self.relay.sample));
        }
        let name_ok = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.instance.is_empty() || self.instance.len() > 32 || !self.instance.chars().all(name_ok) {
            return value(
                "instance",
                format!("{:?}: 1 to 32 letters, digits, '-' or '_' (it names a directory)", self.instance),
            );
        }
        faults::validate(&self.health, &self.breaker, &self.outliers)?;
        self.guard.validate()?;
        self.routing.validate()?;
        self.disaggregation.validate()?;
        self.discovery.validate()?;
        self.workers.iter().try_for_each(|worker| worker.kv_events.validate())?;
        self.tokenizers.validate()?;
        keys::validate(&self.keys, self.keys_file.as_ref())?;
        let wants_lmcache = |key: &&KeyConfig| key.policy == Some(Policy::Lmcache);
        if let Some(key) = self.keys.iter().find(wants_lmcache)
            && self.routing.settings.policy != Policy::Lmcache
        {
            let message = format!("{}: lmcache is for gateways whose routing.policy it is", key.name);
            return value("keys.policy", message);
        }
        self.cache.validate()?;
        self.limits.validate()?;
        self.timeouts.validate()?;
        self.decisions.validate()?;
        self.decision_log.validate()?;
        self.traces.validate()?;
        if self.scrape_interval.is_zero() {
            return value("scrape_interval", "0s: must be longer than zero".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
