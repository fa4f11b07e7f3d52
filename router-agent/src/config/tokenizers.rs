//! `tokenizers:`: where the token ids of a prompt come from, per model.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::ConfigError;
use crate::limits;

/// Where a model's token ids come from. In the file: `off`, `worker`, or `{ local: DIR }`.
#[derive(
    Debug, Clone, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase", expecting = "off, worker, or a mapping such as { local: /models/NAME }")]
pub enum TokenSource {
    /// Nowhere: lengths are estimated from bytes.
    #[default]
    Off,
    /// A worker's own `/tokenize`, over the token cache.
    Worker,
    /// A tokenizer of this process: a directory with `tokenizer.json` and `tokenizer_config.json`.
    Local(PathBuf),
}

/// The tokenizers; see docs/tokens.md.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokenizers {
    /// By the model that a request names; an adapter is a model of its own.
    pub models: BTreeMap<String, TokenSource>,
    /// For all other models, and for requests that name none.
    pub default: TokenSource,
    /// Threads that tokenise.
    pub threads: usize,
    /// Requests that may wait for a thread; one more goes on without tokens.
    pub queue: usize,
    /// How long a request waits for its tokens before it goes on without.
    pub deadline: Duration,
    /// Memory of the token cache, bytes.
    pub cache_bytes: usize,
}

impl Default for Tokenizers {
    fn default() -> Self {
        Self {
            models: BTreeMap::new(),
            default: TokenSource::Off,
            threads: limits::TOKENIZE_THREADS,
            queue: limits::TOKENIZE_QUEUE_MAX,
            deadline: limits::TOKENIZE_DEADLINE,
            cache_bytes: limits::TOKEN_CACHE_BYTES_MAX,
        }
    }
}

impl Tokenizers {
    /// Checks what the types cannot say. Whether directories can be read is seen when they are.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let value = |key, message: String| Err(ConfigError::Value { key, message });
        if !(1..=limits::TOKENIZE_THREADS_MAX).contains(&self.threads) {
            return value(
                "tokenizers.threads",
                format!("{} is out of range: 1 to {}", self.threads, limits::TOKENIZE_THREADS_MAX),
            );
        }
        if self.deadline.is_zero() {
            return value("tokenizers.deadline", "0s: must be longer than zero".to_owned());
        }
        if self.cache_bytes < limits::TOKEN_CACHE_BYTES_MIN {
            return value(
                "tokenizers.cache",
                format!("{} bytes: at least {}", self.cache_bytes, limits::TOKEN_CACHE_BYTES_MIN),
            );
        }
        Ok(())
    }
}
