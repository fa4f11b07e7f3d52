//! Where a worker publishes its KV events, and what it serves: `GET /kv_event_sources` and `GET /v1/models`.

use std::{collections::BTreeMap, time::Duration};

use http::StatusCode;
use serde::Deserialize;

use super::zmtp::{Endpoint, EndpointError, worker_binds};
use crate::{
    config::KvEndpoints,
    fleet::Worker,
    limits,
    upstream::fetch::{self, FetchError},
};

/// Bytes of an answer; a list of models with a thousand adapters is below it.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// One rank's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// Engine number in the metrics, data parallel rank in the events.
    pub(super) rank: u32,
    pub(super) live: Direction,
    /// Where to ask for what was missed; none if the worker has no such socket.
    pub(super) replay: Option<Endpoint>,
    /// First frame of its messages.
    pub(super) topic: String,
}

/// Who connects to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Direction {
    /// The worker has bound it.
    Connect(Endpoint),
    /// The worker connects to it.
    Bind(Endpoint),
}

/// Why a worker's sources are not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    #[error("GET /kv_event_sources: {0}")]
    Fetch(#[from] FetchError),
    #[error("GET /kv_event_sources: {0}")]
    Json(#[from] serde_json::Error),
    #[error("GET /kv_event_sources: {0} data parallel ranks, at most {max} are followed", max = limits::KV_RANKS_MAX)]
    Ranks(usize),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

/// One rank in the answer.
#[derive(Deserialize)]
struct Published {
    endpoint: String,
    replay_endpoint: Option<String>,
    #[serde(default)]
    topic: String,
}

/// Asks the worker. No sources: it publishes nothing, or is too old to say.
pub(super) async fn discover(worker: &Worker, timeout: Duration) -> Result<Vec<Source>, SourceError> {
    let (status, body) = fetch::get(worker, "/kv_event_sources", timeout, ANSWER_BYTES_MAX).await?;
    if status != StatusCode::OK {
        return Ok(Vec::new());
    }
    read(&body, &worker.url.host)
}

fn read(body: &[u8], host: &str) -> Result<Vec<Source>, SourceError> {
    let ranks: Option<BTreeMap<u32, Published>> = serde_json::from_slice(body)?;
    let ranks = ranks.unwrap_or_default();
    if ranks.len() > limits::KV_RANKS_MAX {
        return Err(SourceError::Ranks(ranks.len()));
    }
    ranks
        .into_iter()
        .map(|(rank, Published { endpoint, replay_endpoint, topic })| {
            source(rank, &endpoint, replay_endpoint.as_deref(), topic, host)
        })
        .collect()
}

/// The source that the configuration gives.
pub(super) fn configured(endpoints: &KvEndpoints, host: &str) -> Result<Source, SourceError> {
    let KvEndpoints { endpoint, replay_endpoint, topic } = endpoints;
    source(0, endpoint, replay_endpoint.as_deref(), topic.clone(), host)
}

fn source(
    rank: u32,
    endpoint: &str,
    replay: Option<&str>,
    topic: String,
    host: &str,
) -> Result<Source, SourceError> {
    let parsed: Endpoint = endpoint.parse()?;
    let live = if worker_binds(endpoint) {
        Direction::Connect(parsed.on_host(host))
    } else {
        Direction::Bind(parsed)
    };
    let replay = replay.map(str::parse::<Endpoint>).transpose()?.map(|endpoint| endpoint.on_host(host));
    Ok(Source { rank, live, replay, topic })
}

/// What a worker serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model {
    /// Where the weights came from.
    pub(super) root: String,
    /// Its names; those of adapters are not among them.
    pub(super) names: Vec<String>,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<ModelCard>,
}

#[derive(Deserialize)]
struct ModelCard {
    id: String,
    root: Option<String>,
    /// The model that an adapter is for.
    parent: Option<String>,
}

/// Asks the worker what it serves; none if it does not say (an API key is wanted).
pub(super) async fn model(worker: &Worker, timeout: Duration) -> Option<Model> {
    let (status, body) = fetch::get(worker, "/v1/models", timeout, ANSWER_BYTES_MAX).await.ok()?;
    if status == StatusCode::OK { read_model(&body) } else { None }
}

fn read_model(body: &[u8]) -> Option<Model> {
    let models: Models = serde_json::from_slice(body).ok()?;
    let own: Vec<ModelCard> = models.data.into_iter().filter(|card| card.parent.is_none()).collect();
    let first = own.first()?;
    let root = first.root.clone().unwrap_or_else(|| first.id.clone());
    Some(Model { root, names: own.into_iter().map(|card| card.id).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_as_vllm_gives_them() {
        let answer = r#"{"0":{"endpoint":"tcp://*:5557","replay_endpoint":"tcp://*:5558","buffer_steps":10000,"hwm":1,
            "topic":"kv@a"},"1":{"endpoint":"tcp://10.0.0.1:6000","replay_endpoint":null,"topic":""}}"#;
        let sources = read(answer.as_bytes(), "gpu1").unwrap();
        let endpoint = |text: &str| text.parse::<Endpoint>().unwrap();
        assert_eq!(
            sources,
            [
                Source {
                    rank: 0,
                    live: Direction::Connect(endpoint("tcp://gpu1:5557")),
                    replay: Some(endpoint("tcp://gpu1:5558")),
                    topic: "kv@a".into(),
                },
                Source {
                    rank: 1,
                    live: Direction::Bind(endpoint("tcp://10.0.0.1:6000")),
                    replay: None,
                    topic: String::new(),
                },
            ]
        );
        assert!(read(b"{}", "a").unwrap().is_empty() && read(b"null", "a").unwrap().is_empty());
        assert!(read(b"[1]", "a").is_err());
        let inproc = r#"{"0":{"endpoint":"inproc://a"}}"#;
        assert!(read(inproc.as_bytes(), "a").unwrap_err().to_string().contains("tcp:// or ipc://"));
        let many: Vec<String> =
            (0..65).map(|rank| format!(r#""{rank}":{{"endpoint":"tcp://*:1"}}"#)).collect();
        let many = format!("{{{}}}", many.join(","));
        assert!(read(many.as_bytes(), "a").unwrap_err().to_string().contains("at most 64"));
    }

    #[test]
    fn names_of_adapters_are_not_the_models() {
        let answer =
            br#"{"object":"list","data":[{"id":"m","root":"/w/m","parent":null},{"id":"alias","root":"/w/m"},
            {"id":"ad1","root":"/w/ad1","parent":"m"}]}"#;
        assert_eq!(
            read_model(answer).unwrap(),
            Model { root: "/w/m".into(), names: vec!["m".into(), "alias".into()] }
        );
        assert_eq!(read_model(br#"{"data":[{"id":"m"}]}"#).unwrap().root, "m");
        assert_eq!(read_model(br#"{"data":[]}"#), None);
        assert_eq!(read_model(b"unauthorized"), None);
    }
}
