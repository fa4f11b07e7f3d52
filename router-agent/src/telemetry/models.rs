//! Metrics by the model that a request names.
//!
//! The name is the client's where no worker tells its models, so there is a bound: beyond it, models share `other`.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec};

use super::metrics::{Maker, Result, TTFT_BUCKETS_SECONDS};
use crate::limits;

/// The families, and the series of each model that was asked for.
#[derive(Debug)]
pub struct ModelFamilies {
    requests: IntCounterVec,
    prompt_tokens: IntCounterVec,
    matched_tokens: IntCounterVec,
    time_to_first_token: HistogramVec,
    /// By the hash of the name. Read with each request, written with the first of a model.
    known: ArcSwap<HashMap<u64, Arc<ModelMetrics>>>,
}

/// Those of one model, looked up once.
#[derive(Debug)]
pub struct ModelMetrics {
    requests: [IntCounter; CLASSES.len()],
    /// Of prompts routed by prefix.
    pub prompt_tokens: IntCounter,
    /// Of these, those expected in the chosen worker's cache.
    pub matched_tokens: IntCounter,
    /// Request sent to first body chunk, streamed responses.
    pub time_to_first_token: Histogram,
}

/// What a request can come to.
const CLASSES: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "left"];
const LEFT: usize = 4;
/// Models beyond the bound.
const OTHER: &str = "other";

impl ModelFamilies {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        Ok(Self {
            requests: make.counters(
                "warmpath_model_requests_total",
                "Requests by the model that they name, and what they came to; left: the client, first.",
                &["model", "status"],
            )?,
            prompt_tokens: make.counters(
                "warmpath_model_prompt_tokens_total",
                "Tokens of prompts routed by prefix, by model.",
                &["model"],
            )?,
            matched_tokens: make.counters(
                "warmpath_model_matched_tokens_total",
                "Of these, tokens that the index expected in the chosen worker's cache.",
                &["model"],
            )?,
            time_to_first_token: make.histograms(
                "warmpath_model_time_to_first_token_seconds",
                "Request sent to a worker to first body chunk, streamed responses, by model.",
                &["model"],
                TTFT_BUCKETS_SECONDS,
            )?,
            known: ArcSwap::default(),
        })
    }

    /// The series of a model; `key` is the hash of its name.
    pub fn of(&self, key: u64, name: &str) -> Arc<ModelMetrics> {
        if let Some(known) = self.known.load().get(&key) {
            return known.clone();
        }
        let is_full = self.known.load().len() >= limits::MODEL_SERIES_MAX;
        let metrics = Arc::new(self.make(if is_full { OTHER } else { name }));
        if !is_full {
            self.known.rcu(|known| {
                let mut known = HashMap::clone(known);
                known.insert(key, metrics.clone());
                known
            });
        }
        metrics
    }

    fn make(&self, name: &str) -> ModelMetrics {
        ModelMetrics {
            requests: CLASSES.map(|class| self.requests.with_label_values(&[name, class])),
            prompt_tokens: self.prompt_tokens.with_label_values(&[name]),
            matched_tokens: self.matched_tokens.with_label_values(&[name]),
            time_to_first_token: self.time_to_first_token.with_label_values(&[name]),
        }
    }
}

impl ModelMetrics {
    /// A request has ended with this status; none: its client left before.
    pub fn ended(&self, status: Option<http::StatusCode>) {
        let class = status.map_or(LEFT, |status| usize::from(status.as_u16() / 100).clamp(2, 5) - 2);
        self.requests[class].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn models_beyond_the_bound_share_a_series() {
        let metrics = Metrics::new().unwrap();
        for number in 0..limits::MODEL_SERIES_MAX as u64 + 10 {
            let model = metrics.models.of(number, &format!("m{number}"));
            model.ended(Some(http::StatusCode::OK));
            model.ended(None);
        }
        let text = metrics.encode().unwrap();
        let series = |text: &str| {
            text.lines().filter(|line| line.starts_with("warmpath_model_requests_total{")).count()
        };
        assert_eq!(series(&text), (limits::MODEL_SERIES_MAX + 1) * CLASSES.len());
        assert!(
            text.contains("warmpath_model_requests_total{model=\"other\",status=\"2xx\"} 10\n"),
            "{text}"
        );
        assert!(text.contains("warmpath_model_requests_total{model=\"m0\",status=\"left\"} 1\n"));
    }
}
