//! What a worker says of itself, asked from outside: for `check` and `doctor`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::{
    config::{Config, WorkerConfig},
    fleet::{Fleet, Worker},
    kv_events, limits,
    telemetry::Metrics,
    upstream::fetch::{self, FetchError},
};

/// A worker's answers.
#[derive(Debug, Serialize)]
pub(super) struct Surveyed {
    pub(super) name: String,
    pub(super) url: String,
    /// Why it cannot take requests; none if it can.
    pub(super) fault: Option<String>,
    /// How long `GET /health` took, milliseconds.
    pub(super) health_ms: Option<u64>,
    /// vLLM's version.
    pub(super) version: Option<String>,
    pub(super) models: Vec<String>,
    pub(super) kv_events: KvEventsState,
    /// Whether its engine keeps prefixes; none if it does not say.
    pub(super) prefix_caching: Option<bool>,
}

/// Whether a worker publishes KV events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KvEventsState {
    /// It does, or the configuration says where.
    On,
    /// It does not, or is too old to say.
    Off,
    /// They are switched off in the configuration.
    Unwanted,
    /// It could not be asked.
    Unknown,
}

impl KvEventsState {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Unwanted => "not followed",
            Self::Unknown => "?",
        }
    }
}

/// Asks all workers at once, each within the health check's timeout per question.
pub(super) async fn survey(config: &Config, metrics: &Metrics) -> Vec<Surveyed> {
    let fleet = Fleet::default();
    let mut asking = JoinSet::new();
    for (number, of) in config.workers.iter().enumerate() {
        let Some(worker) = fleet.make(of, config.breaker, metrics) else { continue };
        let (of, timeout, follow) = (of.clone(), config.health.timeout, config.kv_events.is_on);
        asking.spawn(async move { (number, ask(&worker, &of, timeout, follow).await) });
    }
    let mut all = asking.join_all().await;
    all.sort_by_key(|(number, _)| *number);
    all.into_iter().map(|(_, surveyed)| surveyed).collect()
}

async fn ask(worker: &Arc<Worker>, of: &WorkerConfig, timeout: Duration, follow: bool) -> Surveyed {
    let began = Instant::now();
    let health = fetch::get(worker, "/health", timeout, limits::MODELS_BYTES_MAX).await;
    let mut surveyed = Surveyed {
        name: of.name.clone(),
        url: of.url.to_string(),
        fault: fault(&health),
        health_ms: health.is_ok().then(|| began.elapsed().as_millis() as u64),
        version: None,
        models: Vec::new(),
        kv_events: KvEventsState::Unknown,
        prefix_caching: None,
    };
    if health.is_err() {
        return surveyed;
    }
    surveyed.version = json(worker, "/version", timeout)
        .await
        .and_then(|said| Some(said.get("version")?.as_str()?.to_owned()));
    if let Some(list) = json(worker, "/v1/models", timeout).await {
        let ids = list["data"].as_array().into_iter().flatten().filter_map(|entry| entry["id"].as_str());
        surveyed.models = ids.map(str::to_owned).collect();
    }
    surveyed.kv_events = if follow {
        kv_events::publishes(worker, timeout)
            .await
            .map_or(KvEventsState::Unknown, |does| if does { KvEventsState::On } else { KvEventsState::Off })
    } else {
        KvEventsState::Unwanted
    };
    if let Ok((StatusCode::OK, text)) =
        fetch::get(worker, "/metrics", timeout, limits::SCRAPE_BYTES_MAX).await
    {
        surveyed.prefix_caching = prefix_caching(&String::from_utf8_lossy(&text));
    }
    surveyed
}

fn fault(health: &Result<(StatusCode, bytes::Bytes), FetchError>) -> Option<String> {
    match health {
        Ok((status, _)) if status.is_success() => None,
        Ok((status, _)) => Some(format!("GET /health answers {status}")),
        Err(error) => Some(error.to_string()),
    }
}

async fn json(worker: &Worker, path: &'static str, timeout: Duration) -> Option<Value> {
    match fetch::get(worker, path, timeout, limits::MODELS_BYTES_MAX).await {
        Ok((StatusCode::OK, body)) => serde_json::from_slice(&body).ok(),
        _ => None,
    }
}

/// `enable_prefix_caching` of `vllm:cache_config_info`.
fn prefix_caching(metrics: &str) -> Option<bool> {
    let info = metrics.lines().find(|line| line.starts_with("vllm:cache_config_info{"))?;
    let (_, rest) = info.split_once("enable_prefix_caching=\"")?;
    match rest.split_once('"')?.0 {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_prefixes_are_kept_is_read_from_the_metrics() {
        let of = |value: &str| {
            prefix_caching(&format!(
                "# HELP x\nvllm:cache_config_info{{block_size=\"16\",enable_prefix_caching=\"{value}\",x=\"y\"}} 1.0\n"
            ))
        };
        assert_eq!((of("True"), of("False"), of("None")), (Some(true), Some(false), None));
        assert_eq!(prefix_caching("vllm:num_requests_running 1\n"), None);
    }
}
