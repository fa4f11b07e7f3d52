//! Metrics of the step that learns a prompt's token ids.

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGaugeVec};

use super::metrics::{Maker, Result};
use crate::tokenize::Unknown;

/// From a cached prompt's hundred microseconds to the usual deadline and above.
const BUCKETS_SECONDS: &[f64] = &[1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5];

/// Where a request's token ids were sought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokensFrom {
    /// They are in the request.
    Given,
    /// A tokenizer of this process.
    Local,
    /// A worker, or what it told before.
    Worker,
}

impl TokensFrom {
    const ALL: [Self; 3] = [Self::Given, Self::Local, Self::Worker];

    /// The name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Local => "local",
            Self::Worker => "worker",
        }
    }
}

const AGREES: &str = "agrees";
const DIFFERS: &str = "differs";
const UNCOMPARED: &str = "uncompared";

/// Requests, tokens and time of that step.
#[derive(Debug)]
pub struct TokenizeMetrics {
    exact: [IntCounter; 3],
    unknown: IntCounterVec,
    /// Waiting for the tokens of one request, however that ended.
    pub seconds: Histogram,
    /// Tokens that were found in the cache.
    pub cached_tokens: IntCounter,
    /// Tokens that were made.
    pub new_tokens: IntCounter,
    /// Memory of the token cache.
    pub cache_bytes: Gauge,
    tokenizers: IntGaugeVec,
}

impl TokenizeMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        let requests = make.counters(
            "warmpath_tokenize_requests_total",
            "Requests with a prompt, by where its token ids were sought and what came of it.",
            &["source", "result"],
        )?;
        let tokens = make.counters(
            "warmpath_tokenize_tokens_total",
            "Tokens of prompts, by whether their piece of the text was in the cache or was tokenised.",
            &["from"],
        )?;
        let tokenizers = make.gauges(
            "warmpath_tokenizers",
            "Tokenizers of this process, by what came of comparing them with a worker's.",
            &["state"],
        )?;
        for state in [AGREES, DIFFERS, UNCOMPARED] {
            tokenizers.with_label_values(&[state]).set(0);
        }
        Ok(Self {
            exact: TokensFrom::ALL.map(|source| requests.with_label_values(&[source.label(), "exact"])),
            unknown: requests,
            seconds: make.histogram(
                "warmpath_tokenize_seconds",
                "Waiting for the token ids of one request, from a tokenizer of this process or a worker.",
                BUCKETS_SECONDS,
            )?,
            cached_tokens: tokens.with_label_values(&["cache"]),
            new_tokens: tokens.with_label_values(&["text"]),
            cache_bytes: make.float_gauge("warmpath_tokenize_cache_bytes", "Memory of the token cache.")?,
            tokenizers,
        })
    }

    /// The ids of a request are known.
    pub fn exact(&self, source: TokensFrom) {
        self.exact[source as usize].inc();
    }

    /// They are not.
    pub fn unknown(&self, source: TokensFrom, why: &Unknown) {
        self.unknown.with_label_values(&[source.label(), why.label()]).inc();
    }

    /// Notes how many tokenizers a worker agrees with, how many it does not, and how many wait to be compared.
    pub fn set_tokenizers(&self, agree: usize, differ: usize, uncompared: usize) {
        for (state, count) in [(AGREES, agree), (DIFFERS, differ), (UNCOMPARED, uncompared)] {
            self.tokenizers.with_label_values(&[state]).set(count as i64);
        }
    }
}
