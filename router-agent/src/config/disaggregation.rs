//! `disaggregation:` and the roles of workers: who prefills, and who decodes.

use serde::{Deserialize, Serialize};

use super::{ConfigError, file::set, kv_events::Switch};
use crate::limits;

/// What of a request a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WorkerRole {
    /// Whole requests, and the decode stage of others.
    #[default]
    Both,
    /// Prefill stages; whole requests only where nobody else is there.
    Prefill,
    /// Decode stages, and whole requests where a prompt is short or its prefill stage failed.
    Decode,
}

impl WorkerRole {
    /// The name in the configuration and on the admin port.
    pub fn label(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Prefill apart from decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disaggregation {
    /// Where there are workers whose role is [`WorkerRole::Prefill`].
    pub is_on: bool,
    /// Uncached prompt tokens from which on a prompt is prefilled apart; none: learned.
    pub tokens_min: Option<u32>,
}

impl Default for Disaggregation {
    fn default() -> Self {
        Self { is_on: true, tokens_min: None }
    }
}

impl Disaggregation {
    pub(super) fn validate(self) -> Result<(), ConfigError> {
        if self.tokens_min.is_some_and(|tokens| tokens < limits::HANDOFF_TOKENS_MIN) {
            return Err(ConfigError::Value {
                key: "disaggregation.tokens_min",
                message: format!(
                    "prompts this short are prefilled sooner than they are handed over: at least {}, or auto",
                    limits::HANDOFF_TOKENS_MIN
                ),
            });
        }
        Ok(())
    }
}

/// A number of tokens, or `auto`.
#[derive(Debug, Clone, Copy, Deserialize, schemars::JsonSchema)]
#[serde(untagged, expecting = "a number of tokens, or auto")]
enum TokensMin {
    Tokens(u32),
    Auto(Auto),
}

#[derive(Debug, Clone, Copy, Deserialize, schemars::JsonSchema)]
enum Auto {
    #[serde(rename = "auto")]
    Auto,
}

/// The section as written.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    /// `auto`: where there are workers whose role is `prefill`. `off`: every request goes to one worker.
    mode: Option<Switch>,
    /// Uncached prompt tokens from which on a prompt is prefilled apart: a number, or `auto` (where prefilling takes longer
    /// than handing over, as learned).
    tokens_min: Option<TokensMin>,
}

impl File {
    pub(super) fn apply(self, disaggregation: &mut Disaggregation) {
        set(&mut disaggregation.is_on, self.mode.map(|mode| mode == Switch::Auto));
        set(
            &mut disaggregation.tokens_min,
            self.tokens_min.map(|written| match written {
                TokensMin::Tokens(tokens) => Some(tokens),
                TokensMin::Auto(Auto::Auto) => None,
            }),
        );
    }
}
