//! `routing:`: how a worker is chosen.

use std::{collections::BTreeMap, time::Duration};

use http::HeaderName;
use serde::Deserialize;

use super::{ConfigError, WorkerUrl, file::set, schema};
use crate::{
    limits,
    routing::{Pick, Policy, Scorer, Settings, UnknownPolicy},
};

/// How a worker is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// The policy, and what can be set of each.
    pub settings: Settings,
    /// Header whose value is the session's key; without it, `session_id`, `prompt_cache_key` or `user` of the body.
    pub session_header: HeaderName,
    /// For the policy `lmcache`.
    pub lmcache: Lmcache,
}

/// The LMCache controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lmcache {
    /// Where it listens.
    pub controller: Option<WorkerUrl>,
    /// How long a request waits for its answer.
    pub timeout: Duration,
    /// Instance id to worker name, where they differ.
    pub instances: BTreeMap<String, String>,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            settings: Settings::new(Policy::default()),
            session_header: HeaderName::from_static("x-session-id"),
            lmcache: Lmcache {
                controller: None,
                timeout: limits::LMCACHE_TIMEOUT,
                instances: BTreeMap::new(),
            },
        }
    }
}

impl Routing {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let value = |key, message: String| Err(ConfigError::Value { key, message });
        let Settings { policy, prefix, session, weighted } = &self.settings;
        if prefix.saturation == 0 {
            return value("routing.prefix.saturation", "0 would never use a prefix: at least 1".to_owned());
        }
        if !(session.bound >= 1.0 && session.bound.is_finite()) {
            return value(
                "routing.session.bound",
                format!(
                    "{} is no multiple of the mean that can hold all requests: at least 1",
                    session.bound
                ),
            );
        }
        if let Some((scorer, weight)) = weighted.scorers.iter().find(|(_, w)| !(*w >= 0.0 && w.is_finite())) {
            return value("routing.weighted.scorers", format!("{scorer}: {weight} is no weight: 0 or more"));
        }
        if !weighted.scorers.iter().any(|(_, weight)| *weight > 0.0) {
            return value("routing.weighted.scorers", "no scorer has a weight above 0".to_owned());
        }
        if !(weighted.temperature >= 0.01 && weighted.temperature <= 100.0) {
            return value(
                "routing.weighted.temperature",
                format!("{} is out of range: 0.01 to 100", weighted.temperature),
            );
        }
        if *policy == Policy::Lmcache && self.lmcache.controller.is_none() {
            return value(
                "routing.lmcache.controller",
                "the policy lmcache needs the controller's URL, e.g. http://127.0.0.1:9000".to_owned(),
            );
        }
        if self.lmcache.timeout.is_zero() {
            return value("routing.lmcache.timeout", "0s: must be longer than zero".to_owned());
        }
        Ok(())
    }
}

/// The section as written.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    /// `warm` (least predicted time to the first token), `prefix`, `session`, `lmcache`, `weighted`,
    /// `round_robin`, `random`, `least_loaded` or `power_of_two`.
    policy: Option<String>,
    /// For the policy `prefix`.
    prefix: Prefix,
    /// For the policy `session`.
    session: Session,
    /// For the policy `weighted`.
    weighted: Weighted,
    /// For the policy `lmcache`.
    lmcache: LmcacheFile,
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Prefix {
    /// Blocks that must match for a match to count.
    blocks_min: Option<u32>,
    /// Requests from which on a worker gets no more by its prefix.
    saturation: Option<u32>,
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Session {
    /// Header with the session's key; without it `session_id`, `prompt_cache_key` or `user` of the body.
    header: Option<String>,
    /// Requests of one worker over the mean of all, at most.
    bound: Option<f64>,
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Weighted {
    /// Weights of `prefix`, `queue`, `kv_usage`, `load`, `session` and `lora`.
    scorers: Option<BTreeMap<String, f64>>,
    /// `max`: the highest sum. `weighted_random`: at random, by the sums.
    pick: Option<Pick>,
    /// Of `weighted_random`: the lower, the closer to `max`.
    temperature: Option<f64>,
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct LmcacheFile {
    /// The controller, e.g. `http://127.0.0.1:9000`.
    controller: Option<String>,
    /// How long a request waits for its answer.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    timeout: Option<Duration>,
    /// The controller's instance ids: the names of workers, where they differ.
    instances: Option<BTreeMap<String, String>>,
}

impl File {
    pub(super) fn apply(self, routing: &mut Routing) -> Result<(), ConfigError> {
        let value = |key, message: String| ConfigError::Value { key, message };
        let settings = &mut routing.settings;
        if let Some(policy) = self.policy {
            settings.policy = parse_policy(&policy)?;
        }
        set(&mut settings.prefix.blocks_min, self.prefix.blocks_min);
        set(&mut settings.prefix.saturation, self.prefix.saturation);
        set(&mut settings.session.bound, self.session.bound);
        if let Some(header) = self.session.header {
            routing.session_header = header.parse().map_err(|_| {
                value(
                    "routing.session.header",
                    format!("{header:?} is no name of a header, such as x-session-id"),
                )
            })?;
        }
        if let Some(scorers) = self.weighted.scorers {
            let scorer = |(name, weight): (String, f64)| match name.parse::<Scorer>() {
                Ok(scorer) => Ok((scorer, weight)),
                Err(error) => Err(value("routing.weighted.scorers", error.to_string())),
            };
            let mut scorers = scorers.into_iter().map(scorer).collect::<Result<Vec<_>, _>>()?;
            scorers.sort_by_key(|(scorer, _)| *scorer as u8);
            settings.weighted.scorers = scorers;
        }
        set(&mut settings.weighted.pick, self.weighted.pick);
        set(&mut settings.weighted.temperature, self.weighted.temperature);
        if let Some(url) = self.lmcache.controller {
            let parsed = url.parse::<WorkerUrl>();
            let parsed =
                parsed.map_err(|error| value("routing.lmcache.controller", format!("{url:?}: {error}")))?;
            if parsed.is_tls {
                return Err(value(
                    "routing.lmcache.controller",
                    format!("{url:?}: only http:// is supported"),
                ));
            }
            routing.lmcache.controller = Some(parsed);
        }
        set(&mut routing.lmcache.timeout, self.lmcache.timeout);
        set(&mut routing.lmcache.instances, self.lmcache.instances);
        Ok(())
    }
}

/// A policy by name; the error lists the names.
pub(crate) fn parse_policy(name: &str) -> Result<Policy, ConfigError> {
    name.parse().map_err(|error: UnknownPolicy| ConfigError::Value {
        key: "routing.policy",
        message: error.to_string(),
    })
}
