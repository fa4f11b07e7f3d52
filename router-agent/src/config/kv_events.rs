//! `kv_events:`, for all workers and for one.

use serde::Deserialize;

use super::ConfigError;
use crate::kv_events::zmtp::Endpoint;

/// KV events of all workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvEvents {
    /// Whether workers' KV events are followed.
    pub is_on: bool,
    /// `PYTHONHASHSEED` of the workers, for the checker of hashes; vLLM's own seed where not set.
    pub hash_seed: Option<String>,
}

/// KV events of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum WorkerKvEvents {
    /// It is asked (`GET /kv_event_sources`).
    #[default]
    Auto,
    /// They are not followed.
    Off,
    /// Where it says nothing of them itself (before vLLM 0.30), or what it says is not how it is reached from here.
    At(KvEndpoints),
}

/// As in the worker's `--kv-events-config`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KvEndpoints {
    /// `tcp://HOST:PORT`, `tcp://*:PORT` or `ipc://PATH`.
    pub endpoint: String,
    /// Where it replays; without, nothing is known of what was before the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_endpoint: Option<String>,
    /// First frame of its messages; tells workers apart that share an endpoint.
    #[serde(default)]
    pub topic: String,
}

/// `auto` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Switch {
    Auto,
    Off,
}

/// `kv_events:` of a worker, as written.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(untagged, expecting = "auto, off, or a mapping with `endpoint`, `replay_endpoint` and `topic`")]
pub(super) enum Written {
    /// A bare `off` is a boolean where YAML is not told what to expect.
    Flag(bool),
    Switch(Switch),
    At(KvEndpoints),
}

impl From<Written> for WorkerKvEvents {
    fn from(written: Written) -> Self {
        match written {
            Written::Flag(true) | Written::Switch(Switch::Auto) => Self::Auto,
            Written::Flag(false) | Written::Switch(Switch::Off) => Self::Off,
            Written::At(endpoints) => Self::At(endpoints),
        }
    }
}

impl WorkerKvEvents {
    /// Checks what the types cannot say.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let Self::At(KvEndpoints { endpoint, replay_endpoint, .. }) = self else { return Ok(()) };
        for (key, text) in [
            ("workers.kv_events.endpoint", Some(endpoint)),
            ("workers.kv_events.replay_endpoint", replay_endpoint.as_ref()),
        ] {
            if let Some(Err(error)) = text.map(|text| text.parse::<Endpoint>()) {
                return Err(ConfigError::Value { key, message: error.to_string() });
            }
        }
        Ok(())
    }
}
