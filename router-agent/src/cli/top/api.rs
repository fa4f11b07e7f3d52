//! `top` over the admin port: where there are no BPF maps, or not on this host.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    Source, TopError,
    view::{DecisionLine, PrefixLine, StreamLine, Times, View, WorkerLine},
};
use crate::cli::{
    admin::{AdminArgs, AdminClient},
    workers::{state, text},
};

/// See the module.
pub(super) struct Api(AdminClient);

impl Api {
    pub(super) fn new(args: &AdminArgs) -> Result<Self, TopError> {
        Ok(Self(AdminClient::new(args)?))
    }
}

impl Source for Api {
    fn read(&mut self) -> Result<View, TopError> {
        let [workers, stats, live, index, decisions] =
            ["/workers", "/stats", "/live", "/index?prefixes=100", "/decisions?limit=200"]
                .map(|path| self.0.get::<Value>(path));
        Ok(view(&self.0.url(), &workers?, &stats?, &live?, &index?, &decisions?, Timestamp::now()))
    }
}

fn view(
    url: &str,
    workers: &Value,
    stats: &Value,
    live: &Value,
    index: &Value,
    decisions: &Value,
    now: Timestamp,
) -> View {
    View {
        source: url.to_owned(),
        uptime_s: stats["uptime_seconds"].as_f64(),
        requests_per_s: stats["last_10s"]["requests_per_second"].as_f64(),
        workers: items(workers).iter().map(|worker| worker_line(worker, &stats["workers"])).collect(),
        streams: items(&live["streams"]).iter().map(stream_line).collect(),
        prefixes: items(&index["hottest_prefixes"]).iter().map(prefix_line).collect(),
        decisions: items(decisions).iter().map(|decision| decision_line(decision, now)).collect(),
    }
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn times(value: &Value) -> Times {
    Times { p50: value["p50"].as_f64(), p99: value["p99"].as_f64() }
}

fn worker_line(worker: &Value, stats: &Value) -> WorkerLine {
    let recent = items(stats).iter().find(|other| other["worker"] == worker["name"]).unwrap_or(&Value::Null);
    WorkerLine {
        name: text(worker, "name"),
        state: state(worker),
        breaker: text(worker, "breaker"),
        in_flight: number(&worker["in_flight_requests"]),
        kv_cache: worker["kv_cache_usage"].as_f64().unwrap_or(0.0),
        queued_prefill_tokens: number(&worker["queued_prefill_tokens"]),
        requests_per_s: recent["requests_per_second"].as_f64(),
        first_token: times(&recent["time_to_first_token"]),
        between_tokens: times(&recent["inter_token_latency"]),
    }
}

fn stream_line(stream: &Value) -> StreamLine {
    StreamLine {
        client: text(stream, "client"),
        worker: text(stream, "worker"),
        moved_by: text(stream, "moved_by"),
        age_s: stream["age_seconds"].as_f64().unwrap_or(0.0),
        first_token_s: stream["first_byte_seconds"].as_f64(),
        events: number(&stream["events"]),
        bytes: number(&stream["bytes"]),
    }
}

fn prefix_line(prefix: &Value) -> PrefixLine {
    let names = items(&prefix["workers"]).iter().filter_map(Value::as_str);
    PrefixLine {
        hash: text(prefix, "hash"),
        blocks: number(&prefix["depth_blocks"]),
        hits: number(&prefix["hits"]),
        idle_s: prefix["idle_seconds"].as_f64().unwrap_or(0.0),
        workers: names.map(str::to_owned).collect(),
    }
}

fn decision_line(decision: &Value, now: Timestamp) -> DecisionLine {
    let made: Option<Timestamp> = decision["time"].as_str().and_then(|time| time.parse().ok());
    DecisionLine {
        age_s: made.map_or(0.0, |made| now.duration_since(made).as_secs_f64()),
        request_id: text(decision, "request_id"),
        worker: text(decision, "worker"),
        reason: text(decision, "reason"),
        prompt_tokens: number(&decision["prompt_tokens"]),
        matched_tokens: number(&decision["matched_tokens"]),
        new_tokens: number(&decision["new_tokens"]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_of_the_admin_port_become_lines() {
        let worker = json!({
            "name": "a", "standing": "serving", "health": "healthy", "engine": "live", "breaker": "closed",
            "in_flight_requests": 3, "kv_cache_usage": 0.5, "queued_prefill_tokens": 9,
        });
        let stats = json!({
            "uptime_seconds": 7.5, "last_10s": {"requests_per_second": 4.0},
            "workers": [{"worker": "a", "requests_per_second": 2.0, "time_to_first_token": {"p50": 0.1, "p99": 0.2},
                         "inter_token_latency": {"count": 0}}],
        });
        let decision = json!({"time": "2026-01-01T00:00:00Z", "request_id": "r\u{1b}[2J", "worker": "a", "reason": "tie_lru"});
        let now = "2026-01-01T00:00:05Z".parse().expect("a time");
        let view = view("u", &json!([worker]), &stats, &json!({}), &json!({}), &json!([decision]), now);
        let WorkerLine { in_flight, requests_per_s, first_token, between_tokens, .. } = &view.workers[0];
        assert_eq!((*in_flight, *requests_per_s), (3, Some(2.0)));
        assert_eq!((first_token.p99, between_tokens.p50), (Some(0.2), None));
        assert_eq!((view.decisions[0].age_s, view.decisions[0].request_id.as_str()), (5.0, "r?[2J"));
        assert_eq!((view.uptime_s, view.streams.len()), (Some(7.5), 0));
    }
}
