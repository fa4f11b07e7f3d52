//! `warmpath.yaml`: the same keys as the flags, and what has no flag.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use bytesize::ByteSize;
use serde::Deserialize;

use super::{
    Cidr, Config, ConfigError, GuardMode, LogFormat, RelayMode, Splice, TokenSource,
    decisions::{DecisionLogFile, DecisionsFile},
    faults::{BreakerFile, HealthFile, OutliersFile},
    kv_events,
    limits::{LimitsFile, TimeoutsFile},
    schema,
    secret::{Hidden, Place},
    worker_entry::Worker,
};

/// The file as written. Every key is optional; an unknown one is an error.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_field_names, reason = "the fields are the keys")]
pub struct File {
    /// Address and port that clients connect to.
    #[schemars(with = "Option<String>")]
    listen: Option<SocketAddr>,
    /// Address and port of operators: metrics, health, the admin API.
    #[schemars(with = "Option<String>")]
    admin: Option<SocketAddr>,
    /// The vLLM servers. Each is a URL, or a mapping with a URL.
    workers: Option<Vec<Worker>>,
    /// Workers that come and go by themselves, beside those: docs/kubernetes.md.
    discovery: super::discovery::DiscoveryFile,
    /// Which worker: docs/routing.md.
    routing: super::routing::File,
    /// Prefill on workers whose role is `prefill`, decode on the others: docs/disaggregation.md.
    disaggregation: super::disaggregation::File,
    /// Data threads; one per core where not set.
    threads: Option<usize>,
    /// Whether the kernel may move response bodies; `off` overrules `relay`.
    splice: Option<Splice>,
    /// How log lines are written; their levels are set by `WARMPATH_LOG`, e.g. `debug,hyper=warn`.
    log_format: Option<LogFormat>,
    /// Name of this gateway among several on one host: its maps are pinned in a directory of that name.
    instance: Option<String>,
    /// How long requests in flight may take to end after SIGTERM.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    drain_timeout: Option<Duration>,
    /// How long they may take after a successor has taken over.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    upgrade_timeout: Option<Duration>,
    /// How often a worker's `/metrics` are read: running, waiting, KV use, KV capacity.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    scrape_interval: Option<Duration>,
    /// Checks of `GET /health`, and what tells that an engine hangs.
    health: HealthFile,
    /// A worker's circuit breaker: docs/reliability.md.
    breaker: BreakerFile,
    /// Workers that stand out from the others are left out for a while.
    outliers: OutliersFile,
    /// Who moves response bodies: docs/relay.md.
    relay: Relay,
    /// The prefix index.
    index: Index,
    /// What workers say of their own caches: docs/kv-events.md.
    kv_events: KvEvents,
    /// What there may be of each thing. At a limit there is a clear error or back-pressure, never growth.
    limits: LimitsFile,
    /// How long things may take.
    timeouts: TimeoutsFile,
    /// XDP in front of the listening port: docs/guard.md. Reloads replace its rules.
    guard: Guard,
    /// The prompt's token ids, exactly as the engine makes them: docs/tokens.md.
    tokenizers: Tokenizers,
    /// API keys: docs/security.md. None: everyone may ask, and clients' own keys pass to the workers. `warmpath
    /// key NAME` makes one.
    keys: Option<Vec<super::keys::Written>>,
    /// A file with more of them: a list as under `keys`.
    keys_file: Option<PathBuf>,
    /// Models that clients may name, and what is served for them: docs/shaping.md.
    aliases: Option<Vec<super::aliases::Written>>,
    /// Answers that are given again: docs/cache.md.
    cache: super::cache::CacheFile,
    /// Services that see requests before they are routed: docs/shaping.md.
    hooks: Option<Vec<super::hooks::Written>>,
    /// What clients may decide by `x-warmpath-…` headers. Left out: everything without keys, nothing with.
    overrides: Option<Vec<super::overrides::Override>>,
    /// Addresses whose `x-forwarded-…` and `Forwarded` are believed, e.g. `10.0.0.0/8`.
    trusted_proxies: Option<Vec<String>>,
    /// Who the process becomes before it serves, where root starts it.
    user: Option<String>,
    /// What operators show: `Authorization: Bearer …`. The token, or `${VARIABLE}`; `WARMPATH_ADMIN_TOKEN` wins
    /// over it. Needed, or `admin_tls` with `client_ca`, for an admin address that others can reach.
    admin_token: Option<Hidden>,
    /// A file with the token, instead of `admin_token`.
    admin_token_file: Option<PathBuf>,
    /// Whether `/metrics` is served without the token.
    admin_open_metrics: Option<bool>,
    /// Certificate of the data port: HTTP/2 and HTTP/1.1 over TLS. Read again when the files change.
    tls: Option<super::ServerTls>,
    /// Certificate of the admin port.
    admin_tls: Option<super::ServerTls>,
    /// The last decisions, in memory: docs/decision-log.md.
    decisions: DecisionsFile,
    /// Decisions in a file, one JSON object per line: docs/decision-log.md.
    decision_log: DecisionLogFile,
    /// OpenTelemetry traces: docs/traces.md.
    traces: super::traces::TracesFile,
    /// What several gateways tell each other through Redis or Valkey: docs/shared-state.md.
    shared: super::shared::SharedFile,
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Relay {
    /// The kernel, for workers on this host: `auto` (event streams), `on` (long bodies too), `off`.
    bypass: Option<RelayMode>,
    /// The kernel, for workers on other hosts: as `bypass`.
    splice: Option<RelayMode>,
    /// This process: `auto`, `on` (always), `off` (only what the kernel cannot move).
    copy: Option<RelayMode>,
    /// What is a long body.
    #[schemars(with = "Option<schema::BytesText>")]
    min_bytes: Option<ByteSize>,
    /// Share of responses that is copied on purpose, 0 to 1: they show what the worker says of its cache.
    sample: Option<f64>,
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Index {
    /// Prompt bytes per block (128 are about 32 tokens).
    block_bytes: Option<usize>,
    /// Memory of the index, all workers together.
    #[schemars(with = "Option<schema::BytesText>")]
    max_bytes: Option<ByteSize>,
    /// KV capacity of a worker that does not tell it, tokens.
    worker_capacity_tokens: Option<u64>,
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct KvEvents {
    /// `auto`: each worker is asked for its events. `off`: none are followed.
    mode: Option<kv_events::Switch>,
    /// `PYTHONHASHSEED` of the workers, to check their block hashes; vLLM's own seed where not set.
    hash_seed: Option<String>,
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Guard {
    /// Network interfaces whose packets are looked at, e.g. `eth0` or `eth1:generic`; none: off.
    interfaces: Option<Vec<String>>,
    /// Where the program is attached: `native` (the driver), `generic` (the stack), `auto` (native where the
    /// driver can).
    mode: Option<GuardMode>,
    /// Sources whose packets are dropped: `192.0.2.7`, `192.0.2.0/24`, `2001:db8::/32`.
    deny: Option<Vec<String>>,
    /// Sources that pass, without the limit on connections; the longest prefix wins.
    allow: Option<Vec<String>>,
    /// New connections per second and source (IPv6: per /64); 0: no limit.
    syn_rate: Option<u32>,
    /// New connections that a source may open at once after a pause.
    syn_burst: Option<u32>,
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Tokenizers {
    /// Where token ids come from: `off`, `worker` (its own `/tokenize`), or `{ local: DIR }` with
    /// `tokenizer.json`.
    default: Option<TokenSource>,
    /// The same by the model's name.
    models: Option<BTreeMap<String, TokenSource>>,
    /// Threads that tokenise.
    threads: Option<usize>,
    /// Requests that may wait for them; one more goes on without tokens.
    queue: Option<usize>,
    /// How long a request waits for its tokens; then it goes on without.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    deadline: Option<Duration>,
    /// Memory for tokens of texts seen before.
    #[schemars(with = "Option<schema::BytesText>")]
    cache: Option<ByteSize>,
}

/// Reads and parses a file. Errors name the file, and the parser's message the line, the column and the key.
pub fn load(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    File::parse(&text).map_err(|message| ConfigError::Parse { path: path.to_owned(), message })
}

pub(super) fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

/// A line without YAML in it.
pub(super) fn is_blank(line: &str) -> bool {
    line.trim().is_empty() || line.trim_start().starts_with('#')
}

/// Parses a document that is not empty; an error names line, column and key. It does not show the lines around a mistake:
/// there may be secrets in them.
pub(super) fn parse_yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let mut key = None;
    let parsed = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            key = Some(error.path().to_string()).filter(|path| path != ".");
            error.into_inner()
        })
    });
    parsed.map_err(|error: serde_saphyr::Error| match key {
        Some(key) => format!("{key}: {error}"),
        None => error.to_string(),
    })
}

impl File {
    /// Parses YAML. An empty document is an empty configuration.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.lines().all(is_blank) {
            return Ok(Self::default());
        }
        parse_yaml(text)
    }

    /// Lays the file's values over `config`.
    pub fn apply(self, config: &mut Config) -> Result<(), ConfigError> {
        set(&mut config.listen, self.listen);
        set(&mut config.admin, self.admin);
        set(&mut config.threads, self.threads);
        set(&mut config.splice, self.splice);
        set(&mut config.log_format, self.log_format);
        set(&mut config.instance, self.instance);
        set(&mut config.scrape_interval, self.scrape_interval);
        set(&mut config.timeouts.drain, self.drain_timeout);
        set(&mut config.timeouts.upgrade, self.upgrade_timeout);
        self.routing.apply(&mut config.routing)?;
        self.disaggregation.apply(&mut config.disaggregation);
        if let Some(workers) = self.workers {
            config.workers = workers.into_iter().map(Worker::resolve).collect::<Result<_, _>>()?;
        }
        self.discovery.apply(&mut config.discovery)?;
        self.health.apply(&mut config.health);
        self.breaker.apply(&mut config.breaker);
        self.outliers.apply(&mut config.outliers);
        set(&mut config.relay.bypass, self.relay.bypass);
        set(&mut config.relay.splice, self.relay.splice);
        set(&mut config.relay.copy, self.relay.copy);
        set(&mut config.relay.sample, self.relay.sample);
        set(&mut config.relay.min_bytes, self.relay.min_bytes.map(|b| b.as_u64()));
        set(&mut config.index.block_bytes, self.index.block_bytes);
        set(&mut config.index.bytes_max, self.index.max_bytes.map(|b| b.as_u64() as usize));
        set(&mut config.index.worker_capacity_tokens, self.index.worker_capacity_tokens);
        set(&mut config.kv_events.is_on, self.kv_events.mode.map(|mode| mode == kv_events::Switch::Auto));
        if self.kv_events.hash_seed.is_some() {
            config.kv_events.hash_seed = self.kv_events.hash_seed;
        }
        self.limits.apply(&mut config.limits);
        self.timeouts.apply(&mut config.timeouts);
        self.decisions.apply(&mut config.decisions);
        self.decision_log.apply(&mut config.decision_log);
        self.traces.apply(&mut config.traces)?;
        self.shared.apply(&mut config.shared)?;
        if let Some(interfaces) = self.guard.interfaces {
            config.guard.interfaces =
                interfaces.iter().map(|interface| interface.parse()).collect::<Result<_, _>>()?;
        }
        set(&mut config.guard.mode, self.guard.mode);
        set(&mut config.guard.deny, ranges("guard.deny", self.guard.deny)?);
        set(&mut config.guard.allow, ranges("guard.allow", self.guard.allow)?);
        set(&mut config.guard.syn_rate, self.guard.syn_rate);
        set(&mut config.guard.syn_burst, self.guard.syn_burst);
        let from_file = self.keys_file.as_deref().map(super::keys::load).transpose()?;
        if self.keys.is_some() || from_file.is_some() {
            let written = self.keys.into_iter().chain(from_file).flatten();
            config.keys = written.map(super::keys::Written::resolve).collect::<Result<_, _>>()?;
            config.keys_file = self.keys_file;
        }
        if let Some(written) = self.aliases {
            config.aliases = super::aliases::resolve(written)?;
        }
        self.cache.apply(&mut config.cache);
        if let Some(written) = self.hooks {
            config.hooks = super::hooks::resolve(written)?;
        }
        if self.overrides.is_some() {
            config.overrides = self.overrides.map(Into::into);
        }
        let token =
            Place { key: "admin_token", value: self.admin_token, file: self.admin_token_file }.read()?;
        if token.is_some() {
            config.admin_token = token.map(|token| token.digest());
        }
        if self.user.is_some() {
            config.user = self.user;
        }
        set(&mut config.admin_open_metrics, self.admin_open_metrics);
        if self.tls.is_some() {
            config.tls = self.tls;
        }
        if self.admin_tls.is_some() {
            config.admin_tls = self.admin_tls;
        }
        set(&mut config.trusted_proxies, ranges("trusted_proxies", self.trusted_proxies)?);
        set(&mut config.tokenizers.default, self.tokenizers.default);
        set(&mut config.tokenizers.models, self.tokenizers.models);
        set(&mut config.tokenizers.threads, self.tokenizers.threads);
        set(&mut config.tokenizers.queue, self.tokenizers.queue);
        set(&mut config.tokenizers.deadline, self.tokenizers.deadline);
        set(&mut config.tokenizers.cache_bytes, self.tokenizers.cache.map(|b| b.as_u64() as usize));
        Ok(())
    }
}

fn ranges(key: &'static str, texts: Option<Vec<String>>) -> Result<Option<Vec<Cidr>>, ConfigError> {
    let range = |text: String| text.parse().map_err(|source| ConfigError::Cidr { key, source });
    texts.map(|texts| texts.into_iter().map(range).collect()).transpose()
}
