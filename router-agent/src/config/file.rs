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
    Cidr, Config, ConfigError, GuardMode, LogFormat, RelayMode, Splice, TokenSource, WorkerConfig, WorkerUrl,
    faults::{BreakerFile, HealthFile, OutliersFile},
    kv_events,
    limits::{LimitsFile, TimeoutsFile},
    secret::{Hidden, Place},
    tls,
};
use crate::tls::WorkerTls;

/// The file as written. Every key is optional; an unknown one is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_field_names, reason = "the fields are the keys")]
pub struct File {
    listen: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    workers: Option<Vec<Worker>>,
    routing: super::routing::File,
    threads: Option<usize>,
    splice: Option<Splice>,
    log_format: Option<LogFormat>,
    instance: Option<String>,
    #[serde(with = "humantime_serde")]
    drain_timeout: Option<Duration>,
    #[serde(with = "humantime_serde")]
    upgrade_timeout: Option<Duration>,
    #[serde(with = "humantime_serde")]
    scrape_interval: Option<Duration>,
    health: HealthFile,
    breaker: BreakerFile,
    outliers: OutliersFile,
    relay: Relay,
    index: Index,
    kv_events: KvEvents,
    limits: LimitsFile,
    timeouts: TimeoutsFile,
    guard: Guard,
    tokenizers: Tokenizers,
    keys: Option<Vec<super::keys::Written>>,
    keys_file: Option<PathBuf>,
    aliases: Option<Vec<super::aliases::Written>>,
    hooks: Option<Vec<super::hooks::Written>>,
    overrides: Option<Vec<super::overrides::Override>>,
    trusted_proxies: Option<Vec<String>>,
    user: Option<String>,
    admin_token: Option<Hidden>,
    admin_token_file: Option<PathBuf>,
    admin_open_metrics: Option<bool>,
    tls: Option<super::ServerTls>,
    admin_tls: Option<super::ServerTls>,
}

/// A worker: a URL, or a URL with a name.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a URL such as http://127.0.0.1:8000, or a mapping with `url`, `name`, `kv_events`, `api_key` and `tls`"
)]
enum Worker {
    Url(String),
    Full(WorkerEntry),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkerEntry {
    url: String,
    name: Option<String>,
    kv_events: Option<kv_events::Written>,
    api_key: Option<Hidden>,
    api_key_file: Option<PathBuf>,
    tls: Option<tls::WorkerWritten>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Relay {
    bypass: Option<RelayMode>,
    splice: Option<RelayMode>,
    copy: Option<RelayMode>,
    min_bytes: Option<ByteSize>,
    sample: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Index {
    block_bytes: Option<usize>,
    max_bytes: Option<ByteSize>,
    worker_capacity_tokens: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KvEvents {
    mode: Option<kv_events::Switch>,
    hash_seed: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Guard {
    interfaces: Option<Vec<String>>,
    mode: Option<GuardMode>,
    deny: Option<Vec<String>>,
    allow: Option<Vec<String>>,
    syn_rate: Option<u32>,
    syn_burst: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tokenizers {
    default: Option<TokenSource>,
    models: Option<BTreeMap<String, TokenSource>>,
    threads: Option<usize>,
    queue: Option<usize>,
    #[serde(with = "humantime_serde")]
    deadline: Option<Duration>,
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
        if let Some(workers) = self.workers {
            config.workers = workers
                .into_iter()
                .map(|worker| match worker {
                    Worker::Url(url) => worker_config(&url, None),
                    Worker::Full(entry) => entry.try_into(),
                })
                .collect::<Result<_, _>>()?;
        }
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

impl TryFrom<WorkerEntry> for WorkerConfig {
    type Error = ConfigError;

    fn try_from(entry: WorkerEntry) -> Result<Self, ConfigError> {
        let key = Place { key: "workers.api_key", value: entry.api_key, file: entry.api_key_file }.read()?;
        let url = parse_url(&entry.url)?;
        let tls = tls::WorkerWritten::resolve(entry.tls, &url)?;
        Ok(Self {
            kv_events: entry.kv_events.map(Into::into).unwrap_or_default(),
            authorization: key.map(|key| key.bearer()),
            ..named(url, tls, entry.name)?
        })
    }
}

/// Why the JSON of a worker cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    /// It is not what an entry of `workers:` is.
    #[error("not a worker such as {{\"url\": \"http://10.0.0.7:8000\", \"name\": \"gpu7\"}}: {0}")]
    Json(#[from] serde_json::Error),
    /// A value is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// A worker as JSON, with the keys of an entry of `workers:`. A secret is there or nowhere: whoever may add a worker shall
/// not have files and environment of this process sent to it.
pub(crate) fn parse_worker(json: &[u8]) -> Result<WorkerConfig, WorkerError> {
    let entry = serde_json::from_slice::<WorkerEntry>(json)?;
    if entry.api_key_file.is_some() || entry.api_key.as_ref().is_some_and(Hidden::is_elsewhere) {
        let message =
            "write the key itself here; a file or a variable is for the configuration file".to_owned();
        return Err(ConfigError::Value { key: "api_key", message }.into());
    }
    let worker = WorkerConfig::try_from(entry)?;
    worker.kv_events.validate()?;
    Ok(worker)
}

/// A worker from its URL, named `host:port` unless told otherwise.
pub(crate) fn worker_config(url: &str, name: Option<String>) -> Result<WorkerConfig, ConfigError> {
    let url = parse_url(url)?;
    let tls = tls::WorkerWritten::resolve(None, &url)?;
    named(url, tls, name)
}

fn parse_url(url: &str) -> Result<WorkerUrl, ConfigError> {
    url.parse().map_err(|source| ConfigError::Worker { url: url.to_owned(), source })
}

fn named(url: WorkerUrl, tls: Option<WorkerTls>, name: Option<String>) -> Result<WorkerConfig, ConfigError> {
    let name = name.unwrap_or_else(|| url.authority());
    let printable = |c: char| c.is_ascii_graphic();
    if name.is_empty() || name.len() > 64 || !name.chars().all(printable) {
        return Err(ConfigError::Value {
            key: "workers.name",
            message: format!(
                "{name:?}: 1 to 64 printable ASCII characters without spaces (it goes into a header)"
            ),
        });
    }
    Ok(WorkerConfig { url, name, kv_events: super::WorkerKvEvents::default(), authorization: None, tls })
}
