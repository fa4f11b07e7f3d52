//! An entry of `workers:`, in the file or over the admin port.

use std::path::PathBuf;

use serde::Deserialize;

use super::{
    ConfigError, WorkerConfig, WorkerRole, WorkerUrl, kv_events,
    secret::{Hidden, Place},
    tls,
};
use crate::tls::WorkerTls;

/// A worker: a URL, or a URL with a name.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(
    untagged,
    expecting = "a URL such as http://127.0.0.1:8000, or a mapping with `url`, `name`, `role`, `kv_events`, `api_key` and `tls`"
)]
pub(super) enum Worker {
    Url(String),
    Full(WorkerEntry),
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkerEntry {
    /// `http://HOST:PORT` or `https://HOST:PORT`, without a path.
    url: String,
    /// What it is called in headers, metrics and maps; `HOST:PORT` where not set.
    name: Option<String>,
    /// What of a request it does: `both`, `prefill` or `decode`.
    role: Option<WorkerRole>,
    /// Where its KV events are: `auto` (it is asked), `off`, or its endpoints.
    kv_events: Option<kv_events::Written>,
    /// vLLM's `--api-key`: the key, or `${VARIABLE}`.
    api_key: Option<Hidden>,
    /// A file with that key.
    api_key_file: Option<PathBuf>,
    /// How it is known over TLS.
    tls: Option<tls::WorkerWritten>,
}

impl Worker {
    /// With its secrets read.
    pub(super) fn resolve(self) -> Result<WorkerConfig, ConfigError> {
        match self {
            Self::Url(url) => worker_config(&url, None),
            Self::Full(entry) => entry.try_into(),
        }
    }
}

impl TryFrom<WorkerEntry> for WorkerConfig {
    type Error = ConfigError;

    fn try_from(entry: WorkerEntry) -> Result<Self, ConfigError> {
        let key = Place { key: "workers.api_key", value: entry.api_key, file: entry.api_key_file }.read()?;
        let url = parse_url(&entry.url)?;
        let tls = tls::WorkerWritten::resolve(entry.tls, &url)?;
        Ok(Self {
            role: entry.role.unwrap_or_default(),
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
    let (role, kv_events) = (WorkerRole::default(), super::WorkerKvEvents::default());
    Ok(WorkerConfig { url, name, role, kv_events, authorization: None, tls })
}
