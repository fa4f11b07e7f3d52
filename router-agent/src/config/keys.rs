//! `keys:` and `keys_file:`: who may ask, for which models, and how much.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;

use super::{
    CacheMode, ConfigError, SecretDigest,
    defaults::{self, BodyDefault},
    overrides::{Override, Overrides},
    pattern::ModelPattern,
};
use crate::{limits, routing::Policy};

/// A client with API keys of its own, as configured.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyConfig {
    /// What it is called in metrics and logs.
    pub name: Arc<str>,
    /// Of its keys; two or more while one is replaced by another.
    pub digests: Vec<SecretDigest>,
    /// The models that it may name.
    pub models: AllowedModels,
    /// Requests per second; none: no limit.
    pub requests_per_second: Option<f64>,
    /// Requests at once after a pause, within [`Self::requests_per_second`].
    pub burst: u32,
    /// Requests at the same time; none: no limit.
    pub concurrent: Option<u32>,
    /// Tokens of prompts and answers per minute, and at once after a pause; none: no limit.
    pub tokens_per_minute: Option<u64>,
    /// Its share beside others' where requests have to wait.
    pub weight: u32,
    /// Of its requests that name none; lower is sooner, as in vLLM.
    pub priority: i64,
    /// Whether it may use every path that workers have, and not only their inference API.
    pub all_paths: bool,
    /// How its requests are routed that say nothing else; none: as everybody's.
    pub policy: Option<Policy>,
    /// Members that its requests get where they have none.
    pub defaults: Vec<BodyDefault>,
    /// What its requests may decide by headers; none: as everybody's (`overrides:`).
    pub overrides: Option<Overrides>,
    /// Which of its answers are given again; none: as everybody's (`cache.mode`).
    pub cache: Option<CacheMode>,
}

/// Patterns of model names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedModels {
    /// Every one.
    All,
    /// Those that one of the patterns matches.
    Only(Vec<ModelPattern>),
}

impl AllowedModels {
    /// Whether a request may name this model.
    pub fn allow(&self, model: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(patterns) => patterns.iter().any(|pattern| pattern.matches(model)),
        }
    }
}

/// An entry as written.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    /// What the client is called in metrics and logs.
    name: String,
    /// SHA-256 of its key in hexadecimal; a list of them while one key replaces another.
    sha256: OneOrMore,
    /// Models that it may use: a name, or the beginning of one and `*`. Left out: all.
    models: Option<Vec<String>>,
    /// Left out: no limit.
    requests_per_second: Option<f64>,
    /// Requests at once after a pause. Left out: one second's.
    burst: Option<u32>,
    /// Requests at the same time. Left out: no limit.
    concurrent: Option<u32>,
    /// Tokens of prompts and answers. Left out: no limit.
    tokens_per_minute: Option<u64>,
    /// Its share beside others' where requests have to wait.
    weight: Option<u32>,
    /// Of its requests that name none, and the most urgent they may name; lower is sooner.
    priority: Option<i64>,
    /// What it may reach: `api` (inference) or `all` (whatever a worker has: `/sleep`, `/metrics` …).
    #[serde(default)]
    paths: Paths,
    /// How its requests with a prompt are routed. Left out: `routing.policy`.
    policy: Option<String>,
    /// Members of a request body, for requests that do not have them: docs/shaping.md.
    defaults: Option<BTreeMap<String, serde_json::Value>>,
    /// What its requests may decide by `x-warmpath-…` headers. Left out: as the top-level `overrides`.
    overrides: Option<Vec<Override>>,
    /// Which of its answers are given again: `off`, `deterministic` or `all`. Left out: `cache.mode`.
    cache: Option<CacheMode>,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(untagged, expecting = "a SHA-256 digest in hexadecimal, or a list of them")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// What a key may reach of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Paths {
    /// Inference, and what belongs to it.
    #[default]
    Api,
    /// Whatever the worker has.
    All,
}

impl Written {
    /// With its defaults, checked.
    pub(super) fn resolve(self) -> Result<KeyConfig, ConfigError> {
        let name = self.name;
        if !is_key_name(&name) {
            return wrong(
                "keys.name",
                format!(
                    "{name:?}: 1 to 64 printable ASCII characters without spaces, quotes and backslashes"
                ),
            );
        }
        let texts = match self.sha256 {
            OneOrMore::One(text) => vec![text],
            OneOrMore::More(texts) => texts,
        };
        if texts.is_empty() {
            return wrong("keys.sha256", format!("{name}: at least one digest"));
        }
        let digest =
            |text: String| text.parse().map_err(|error| value("keys.sha256", format!("{name}: {error}")));
        let digests = texts.into_iter().map(digest).collect::<Result<_, _>>()?;
        let models = match self.models {
            None => AllowedModels::All,
            Some(patterns) => allowed(&name, patterns)?,
        };
        let per_second = self.requests_per_second;
        if per_second.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
            return wrong(
                "keys.requests_per_second",
                format!("{name}: must be more than 0; leave it out for no limit"),
            );
        }
        let at_least_one = [
            ("keys.burst", self.burst.map(u64::from)),
            ("keys.concurrent", self.concurrent.map(u64::from)),
            ("keys.tokens_per_minute", self.tokens_per_minute),
            ("keys.weight", self.weight.map(u64::from)),
        ];
        if let Some((key, _)) = at_least_one.iter().find(|(_, value)| *value == Some(0)) {
            return wrong(key, format!("{name}: at least 1; leave it out for the default"));
        }
        if self.burst.is_some() && per_second.is_none() {
            return wrong("keys.burst", format!("{name}: has no meaning without requests_per_second"));
        }
        let policy = self.policy.as_deref().map(str::parse).transpose();
        let policy = policy.map_err(|error| value("keys.policy", format!("{name}: {error}")))?;
        let defaults = defaults::resolve(&name, self.defaults.unwrap_or_default())?;
        Ok(KeyConfig {
            policy,
            defaults,
            overrides: self.overrides.map(Into::into),
            cache: self.cache,
            digests,
            models,
            requests_per_second: per_second,
            burst: self.burst.unwrap_or_else(|| per_second.unwrap_or(1.0).ceil().max(1.0) as u32),
            concurrent: self.concurrent,
            tokens_per_minute: self.tokens_per_minute,
            weight: self.weight.unwrap_or(1),
            priority: self.priority.unwrap_or(0),
            all_paths: self.paths == Paths::All,
            name: name.into(),
        })
    }
}

fn allowed(name: &str, patterns: Vec<String>) -> Result<AllowedModels, ConfigError> {
    if patterns.is_empty() {
        return wrong(
            "keys.models",
            format!("{name}: an empty list allows nothing; leave it out to allow all"),
        );
    }
    let pattern = |text: String| {
        ModelPattern::parse(&text).ok_or_else(|| {
            let why = format!("{name}: {text:?} is no pattern: a model's name, or its beginning and `*`");
            value("keys.models", why)
        })
    };
    let patterns = patterns.into_iter().map(pattern).collect::<Result<Vec<_>, _>>()?;
    let all = patterns.iter().any(ModelPattern::is_any);
    Ok(if all { AllowedModels::All } else { AllowedModels::Only(patterns) })
}

/// Whether a tenant may be called so: it goes into labels, logs and a line of YAML.
pub(crate) fn is_key_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_graphic() && c != '"' && c != '\\')
}

/// The entries of a keys file: a list as under `keys:`.
pub(super) fn load(path: &Path) -> Result<Vec<Written>, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    if text.lines().all(super::file::is_blank) {
        return Ok(Vec::new());
    }
    super::file::parse_yaml(&text).map_err(|message| ConfigError::Parse { path: path.to_owned(), message })
}

/// Checks what concerns all of them together.
pub(super) fn validate(keys: &[KeyConfig], file: Option<&PathBuf>) -> Result<(), ConfigError> {
    if file.is_some() && keys.is_empty() {
        return wrong(
            "keys_file",
            "there is no key in it, nor under `keys`: with none, everyone may ask. Add one (`warmpath key NAME`)"
                .to_owned(),
        );
    }
    if keys.len() > limits::KEYS_MAX {
        return wrong("keys", format!("{} entries, at most {} are possible", keys.len(), limits::KEYS_MAX));
    }
    let (mut names, mut prefixes) = (HashSet::new(), HashSet::new());
    for KeyConfig { name, digests, .. } in keys {
        if !names.insert(name) {
            return wrong("keys.name", format!("{name} is listed twice: give one entry a list of digests"));
        }
        if !digests.iter().all(|digest| prefixes.insert(digest.prefix())) {
            return wrong("keys.sha256", format!("{name}: a digest of it is listed twice"));
        }
    }
    Ok(())
}

fn value(key: &'static str, message: String) -> ConfigError {
    ConfigError::Value { key, message }
}

fn wrong<T>(key: &'static str, message: String) -> Result<T, ConfigError> {
    Err(value(key, message))
}
