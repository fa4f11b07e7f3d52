//! An entry of `workers:`, in the file or over the admin port.

use std::{fmt, path::PathBuf};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{
    ConfigError, WorkerConfig, WorkerRole, WorkerUrl, file, kv_events,
    secret::{Hidden, Place},
    tls,
};
use crate::{limits, tls::WorkerTls};

/// A worker: a URL, or a URL with a name.
#[derive(Debug, schemars::JsonSchema)]
#[schemars(untagged)]
pub(super) enum Worker {
    Url(String),
    Full(Box<WorkerEntry>),
}

/// By hand, so that a mistake inside of a mapping is named, with its place.
impl<'de> Deserialize<'de> for Worker {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WorkerVisitor)
    }
}

struct WorkerVisitor;

impl<'de> Visitor<'de> for WorkerVisitor {
    type Value = Worker;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a URL such as http://127.0.0.1:8000, or a mapping with `url`, `name`, `role`, `kv_events`, `api_key`, `tls` and \
             `models`",
        )
    }

    fn visit_str<E: de::Error>(self, url: &str) -> Result<Worker, E> {
        Ok(Worker::Url(url.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Worker, A::Error> {
        WorkerEntry::deserialize(MapAccessDeserializer::new(map)).map(|entry| Worker::Full(Box::new(entry)))
    }
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
    /// The models that it serves. Left out: it is asked (`GET /v1/models`).
    models: Option<Vec<String>>,
}

impl Worker {
    /// With its secrets read.
    pub(super) fn resolve(self) -> Result<WorkerConfig, ConfigError> {
        match self {
            Self::Url(url) => worker_config(&url, None),
            Self::Full(entry) => (*entry).try_into(),
        }
    }
}

impl TryFrom<WorkerEntry> for WorkerConfig {
    type Error = ConfigError;

    fn try_from(entry: WorkerEntry) -> Result<Self, ConfigError> {
        let key = Place { key: "workers.api_key", value: entry.api_key, file: entry.api_key_file }.read()?;
        let url = parse_url(&entry.url)?;
        let tls = tls::WorkerWritten::resolve(entry.tls, &url)?;
        let models = entry.models.unwrap_or_default();
        check_models("workers.models", &models)?;
        Ok(Self {
            models,
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
    if !is_worker_name(&name) {
        return Err(ConfigError::Value {
            key: "workers.name",
            message: format!(
                "{name:?}: 1 to 64 printable ASCII characters without spaces (it goes into a header)"
            ),
        });
    }
    Ok(WorkerConfig {
        url,
        name,
        role: WorkerRole::default(),
        kv_events: super::WorkerKvEvents::default(),
        authorization: None,
        tls,
        models: Vec::new(),
        incarnation: None,
    })
}

/// Whether a worker may be called so.
pub(super) fn is_worker_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_graphic())
}

/// Whether these can be names of models.
pub(crate) fn check_models(key: &'static str, models: &[String]) -> Result<(), ConfigError> {
    let is_name = |name: &String| (1..=limits::MODEL_NAME_BYTES_MAX).contains(&name.len());
    match models.iter().find(|name| !is_name(name)) {
        None => Ok(()),
        Some(name) => {
            let max = limits::MODEL_NAME_BYTES_MAX;
            Err(ConfigError::Value { key, message: format!("models: {name:?} is no name: 1 to {max} bytes") })
        }
    }
}

/// The list of workers in a file of its own: entries as under `workers:`. An empty document is an empty list.
pub(crate) fn parse_workers(text: &str) -> Result<Vec<WorkerConfig>, String> {
    if text.lines().all(file::is_blank) {
        return Ok(Vec::new());
    }
    let entries: Vec<Worker> = file::parse_yaml(text)?;
    let resolve = |entry: Worker| {
        let worker = entry.resolve()?;
        worker.kv_events.validate()?;
        Ok(worker)
    };
    entries.into_iter().map(resolve).collect::<Result<_, ConfigError>>().map_err(|error| error.to_string())
}
