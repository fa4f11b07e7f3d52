//! `decisions:` and `decision_log:`: how many records of decisions are kept in memory, and where they are written.

use std::path::PathBuf;

use bytesize::ByteSize;
use serde::Deserialize;

use super::{ConfigError, file::set, schema};
use crate::limits;

/// The last decisions, in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decisions {
    /// Records; 0: none.
    pub keep: usize,
    /// Their memory, bytes.
    pub bytes_max: usize,
}

impl Default for Decisions {
    fn default() -> Self {
        Self { keep: limits::DECISIONS_KEPT, bytes_max: limits::DECISIONS_BYTES }
    }
}

/// What of a prompt is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LoggedPrompts {
    /// Its length.
    #[default]
    None,
    /// The hashes of its blocks, too: what `warmpath replay` finds prefixes by.
    Hashes,
}

/// The decision log; see docs/decision-log.md.
#[derive(Debug, Clone, PartialEq)]
pub struct DecisionLog {
    /// The file; none: no log.
    pub path: Option<PathBuf>,
    /// A file that would become larger is rotated.
    pub rotate_bytes: u64,
    /// Rotated files beside the one that is written.
    pub keep: usize,
    /// What of a prompt is written.
    pub prompts: LoggedPrompts,
    /// The share of decisions that is written, 0 to 1.
    pub sample: f64,
}

impl Default for DecisionLog {
    fn default() -> Self {
        Self {
            path: None,
            rotate_bytes: limits::DECISION_LOG_ROTATE_BYTES,
            keep: limits::DECISION_LOG_KEPT,
            prompts: LoggedPrompts::default(),
            sample: 1.0,
        }
    }
}

impl Decisions {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let value = |key, message: String| Err(ConfigError::Value { key, message });
        if self.keep > limits::DECISIONS_KEPT_MAX {
            return value(
                "decisions.keep",
                format!("{} is out of range: 0 (none) to {}", self.keep, limits::DECISIONS_KEPT_MAX),
            );
        }
        if self.keep > 0 && self.bytes_max < limits::DECISIONS_BYTES_MIN {
            return value(
                "decisions.max_bytes",
                format!("{} bytes: at least {}", self.bytes_max, limits::DECISIONS_BYTES_MIN),
            );
        }
        Ok(())
    }
}

impl DecisionLog {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let value = |key, message: String| Err(ConfigError::Value { key, message });
        if self.path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return value("decision_log.path", "an empty path: name a file, or leave it out".to_owned());
        }
        if self.rotate_bytes < limits::DECISION_LOG_ROTATE_BYTES_MIN {
            return value(
                "decision_log.rotate_bytes",
                format!("{} bytes: at least {}", self.rotate_bytes, limits::DECISION_LOG_ROTATE_BYTES_MIN),
            );
        }
        if self.keep > limits::DECISION_LOG_KEPT_MAX {
            return value(
                "decision_log.keep",
                format!("{} is out of range: 0 to {}", self.keep, limits::DECISION_LOG_KEPT_MAX),
            );
        }
        if !(self.sample > 0.0 && self.sample <= 1.0) {
            return value(
                "decision_log.sample",
                format!("{} is no share of decisions: above 0 and up to 1", self.sample),
            );
        }
        Ok(())
    }
}

/// `decisions:` as written.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DecisionsFile {
    /// Records that are kept; 0: none.
    keep: Option<usize>,
    /// Memory of them all.
    #[schemars(with = "Option<schema::BytesText>")]
    max_bytes: Option<ByteSize>,
}

impl DecisionsFile {
    pub(super) fn apply(self, decisions: &mut Decisions) {
        set(&mut decisions.keep, self.keep);
        set(&mut decisions.bytes_max, self.max_bytes.map(|bytes| bytes.as_u64() as usize));
    }
}

/// `decision_log:` as written.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DecisionLogFile {
    /// The file; no log where not set.
    path: Option<PathBuf>,
    /// A file that would become larger becomes `PATH.1`.
    #[schemars(with = "Option<schema::BytesText>")]
    rotate_bytes: Option<ByteSize>,
    /// Rotated files.
    keep: Option<usize>,
    /// What of a prompt is written: nothing, or the hashes of its blocks, for `warmpath replay`.
    prompts: Option<LoggedPrompts>,
    /// The share of decisions that is written, above 0 and up to 1.
    sample: Option<f64>,
}

impl DecisionLogFile {
    pub(super) fn apply(self, log: &mut DecisionLog) {
        if self.path.is_some() {
            log.path = self.path;
        }
        set(&mut log.rotate_bytes, self.rotate_bytes.map(|bytes| bytes.as_u64()));
        set(&mut log.keep, self.keep);
        set(&mut log.prompts, self.prompts);
        set(&mut log.sample, self.sample);
    }
}
