//! `shared:`: what several gateways tell each other through Redis or Valkey.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    ConfigError, RedisUrl,
    file::set,
    schema,
    secret::{Hidden, Place},
    shown::{masked, time},
};
use crate::limits;

/// Whether a part of the shared state is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// Shared state; see docs/shared-state.md. Only a restart changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedState {
    /// The servers: one, or of a cluster any of its nodes. None: nothing is shared.
    pub urls: Vec<RedisUrl>,
    /// Whether they are nodes of a cluster.
    pub is_cluster: bool,
    /// Who this gateway is to them; none: the default user.
    pub username: Option<String>,
    /// What it shows.
    pub password: Option<Hidden>,
    /// PEM of who vouches for their certificates; none: the system's.
    pub ca: Option<PathBuf>,
    /// What all keys and channels begin with.
    pub key_prefix: String,
    /// What this gateway is called by the others; none: the host's name.
    pub gateway: Option<String>,
    /// How long anything takes that no request waits for.
    pub timeout: Duration,
    /// Pause between two messages about this gateway's load.
    pub load_interval: Duration,
    /// A gateway that is silent for so long counts no longer.
    pub peer_ttl: Duration,
    /// Prefixes that other gateways have sent.
    pub hints: Hints,
    /// Tenants' limits.
    pub limits: SharedLimits,
}

/// Limits that gateways keep together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedLimits {
    /// Whether they do.
    pub is_on: bool,
    /// How long a request waits for a lease.
    pub deadline: Duration,
}

/// Prefix hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hints {
    /// Whether there are any.
    pub is_on: bool,
    /// How long a request waits for them.
    pub deadline: Duration,
    /// How long they are kept.
    pub ttl: Duration,
}

impl Default for SharedState {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            is_cluster: false,
            username: None,
            password: None,
            ca: None,
            key_prefix: "warmpath:".to_owned(),
            gateway: None,
            timeout: Duration::from_millis(250),
            load_interval: Duration::from_millis(50),
            peer_ttl: Duration::from_secs(1),
            hints: Hints { is_on: true, deadline: Duration::from_millis(2), ttl: Duration::from_mins(10) },
            limits: SharedLimits { is_on: true, deadline: Duration::from_millis(20) },
        }
    }
}

impl SharedState {
    /// Checks what the types cannot say.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let value = |key, message: String| Err(ConfigError::Value { key, message });
        let in_range = |key, time: Duration, least: Duration, most: Duration| {
            if (least..=most).contains(&time) {
                return Ok(());
            }
            value(key, format!("{time:?} is out of range: {least:?} to {most:?}"))
        };
        if self.urls.len() > 1 && !self.is_cluster {
            return value(
                "shared.urls",
                format!("{} servers: one, or nodes of one cluster with cluster: on", self.urls.len()),
            );
        }
        if self.urls.len() > limits::SHARED_URLS_MAX {
            return value(
                "shared.urls",
                format!("{} nodes: at most {}", self.urls.len(), limits::SHARED_URLS_MAX),
            );
        }
        if self.is_cluster {
            if self.urls.is_empty() {
                return value("shared.cluster", "on, and shared.urls names no node of it".to_owned());
            }
            if let Some(url) = self.urls.iter().find(|url| !url.may_be_of_a_cluster()) {
                return value(
                    "shared.urls",
                    format!(
                        "{url}: a cluster's nodes are redis://HOST:PORT or rediss://HOST:PORT, database 0"
                    ),
                );
            }
            if self.urls.iter().any(|url| url.is_tls() != self.urls[0].is_tls()) {
                return value(
                    "shared.urls",
                    "all nodes of a cluster are redis://, or all are rediss://".to_owned(),
                );
            }
        }
        if self.username.is_some() && self.password.is_none() {
            return value(
                "shared.username",
                "a user needs a password, too: password or password_file".to_owned(),
            );
        }
        let is_plain = |text: &str| {
            (1..=64).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"{}\"\\".contains(&byte))
        };
        if !is_plain(&self.key_prefix) {
            return value(
                "shared.key_prefix",
                format!(
                    "{:?}: 1 to 64 printable characters without spaces, braces and quotes",
                    self.key_prefix
                ),
            );
        }
        if let Some(name) = self.gateway.as_ref().filter(|name| !is_plain(name)) {
            return value(
                "shared.gateway",
                format!("{name:?}: 1 to 64 printable characters without spaces, braces and quotes"),
            );
        }
        let ms = Duration::from_millis;
        in_range("shared.timeout", self.timeout, ms(10), ms(10_000))?;
        in_range("shared.load_interval", self.load_interval, ms(10), ms(1_000))?;
        in_range("shared.peer_ttl", self.peer_ttl, 4 * self.load_interval, ms(60_000))?;
        in_range("shared.hints.deadline", self.hints.deadline, ms(1), ms(1_000))?;
        in_range("shared.limits.deadline", self.limits.deadline, ms(1), ms(1_000))?;
        in_range("shared.hints.ttl", self.hints.ttl, ms(1_000), Duration::from_hours(24 * 7))?;
        Ok(())
    }
}

impl SharedState {
    /// The section as operators see it: [`super::shown`].
    pub(super) fn shown(&self) -> Value {
        let SharedState {
            urls,
            is_cluster,
            username,
            password,
            ca,
            key_prefix,
            gateway,
            timeout,
            load_interval,
            peer_ttl,
            hints,
            limits,
        } = self;
        let part = |is_on: bool| if is_on { Part::On } else { Part::Off };
        json!({
            "urls": urls.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "cluster": part(*is_cluster),
            "username": username,
            "password": masked(password.as_ref()),
            "ca": ca,
            "key_prefix": key_prefix,
            "gateway": gateway,
            "timeout": time(*timeout),
            "load_interval": time(*load_interval),
            "peer_ttl": time(*peer_ttl),
            "hints": {
                "mode": part(hints.is_on),
                "deadline": time(hints.deadline),
                "ttl": time(hints.ttl),
            },
            "limits": { "mode": part(limits.is_on), "deadline": time(limits.deadline) },
        })
    }
}

/// The section as written.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SharedFile {
    /// Redis or Valkey: `redis://HOST:PORT`, `rediss://HOST:PORT` (TLS) or `unix:///PATH`, with `/DB` where it is not 0.
    /// Of a cluster some of its nodes. Nothing is shared where there is none.
    urls: Option<Vec<String>>,
    /// Whether they are nodes of a cluster.
    cluster: Option<Part>,
    /// User of the server's ACL; the default user where not set.
    username: Option<String>,
    /// The password, or `${VARIABLE}`.
    password: Option<Hidden>,
    /// A file with the password, instead of `password`.
    password_file: Option<PathBuf>,
    /// PEM: who vouches for the server's certificate; the system's authorities where not set.
    ca: Option<PathBuf>,
    /// What all keys and channels begin with. Gateways with the same prefix share.
    key_prefix: Option<String>,
    /// What the other gateways call this one; the host's name where not set.
    gateway: Option<String>,
    /// How long a command takes that no request waits for, and a connection.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    timeout: Option<Duration>,
    /// Pause between two messages about this gateway's load.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    load_interval: Option<Duration>,
    /// A gateway that says nothing for so long has no load any more.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    peer_ttl: Option<Duration>,
    /// Which worker has which prefix, as far as other gateways have sent it there.
    hints: HintsFile,
    /// Limits of API keys (`requests_per_second`, `tokens_per_minute`), which all gateways keep together.
    limits: SharedLimitsFile,
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct SharedLimitsFile {
    /// Whether they are kept together; each gateway has its own where not.
    mode: Option<Part>,
    /// How long a request waits where nothing is left here; then it goes by this gateway's own share.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    deadline: Option<Duration>,
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct HintsFile {
    /// Whether hints are written and read.
    mode: Option<Part>,
    /// How long a request waits for them; then it goes on without.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    deadline: Option<Duration>,
    /// How long a prefix that nobody sends any more is remembered.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    ttl: Option<Duration>,
}

impl SharedFile {
    pub(super) fn apply(self, shared: &mut SharedState) -> Result<(), ConfigError> {
        if let Some(urls) = self.urls {
            shared.urls = urls.iter().map(|url| url.parse()).collect::<Result<_, _>>()?;
        }
        set(&mut shared.is_cluster, self.cluster.map(|part| part == Part::On));
        if self.username.is_some() {
            shared.username = self.username;
        }
        let place = Place { key: "shared.password", value: self.password, file: self.password_file };
        if let Some(password) = place.read()? {
            shared.password = Some(password);
        }
        if self.ca.is_some() {
            shared.ca = self.ca;
        }
        set(&mut shared.key_prefix, self.key_prefix);
        if self.gateway.is_some() {
            shared.gateway = self.gateway;
        }
        set(&mut shared.timeout, self.timeout);
        set(&mut shared.load_interval, self.load_interval);
        set(&mut shared.peer_ttl, self.peer_ttl);
        set(&mut shared.hints.is_on, self.hints.mode.map(|part| part == Part::On));
        set(&mut shared.hints.deadline, self.hints.deadline);
        set(&mut shared.hints.ttl, self.hints.ttl);
        set(&mut shared.limits.is_on, self.limits.mode.map(|part| part == Part::On));
        set(&mut shared.limits.deadline, self.limits.deadline);
        Ok(())
    }
}
