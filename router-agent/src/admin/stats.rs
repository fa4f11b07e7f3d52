//! `GET /stats` and `GET /stats/history`: totals, rates, and how long things take.

use std::time::{Duration, Instant};

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin,
    error::ErrorBody,
    extract::Asked,
    histogram::{self, Percentiles},
    recent::{Counts, Look, Point, hit_rate, per_second},
};
use crate::routing::Reason;

/// The gateway as a whole, now and lately. Looked at once a second.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Stats {
    /// Since the process began to serve.
    uptime_seconds: f64,
    /// Client connections open.
    connections: usize,
    /// Requests under way at workers.
    in_flight_requests: u64,
    /// What waits for a worker.
    queue: Queue,
    /// Counters since the start.
    totals: Totals,
    /// The last second.
    last_1s: Lately,
    /// The last ten seconds.
    last_10s: Lately,
    /// The last minute.
    last_60s: Lately,
    /// Since the start.
    since_start: Times,
    /// Decisions by reason: only those that there were.
    decisions: Vec<ReasonView>,
    /// Each worker's last minute.
    workers: Vec<WorkerStats>,
}

/// What waits for a worker.
#[derive(Debug, Serialize, ToSchema)]
struct Queue {
    /// Requests.
    requests: usize,
    /// Prompt tokens per second that it lets through; 0 while not known.
    drain_tokens_per_second: f64,
    /// Memory of request bodies.
    body_bytes: usize,
}

/// Counters since the start.
#[derive(Debug, Serialize, ToSchema)]
struct Totals {
    /// Requests answered.
    requests: u64,
    /// Of these, with a status of 4xx (499: the client left).
    client_errors: u64,
    /// Of these, with a status of 5xx.
    server_errors: u64,
    /// Further tries on another worker.
    retries: u64,
    /// Prompt tokens routed by prefix.
    prompt_tokens: u64,
    /// Of these, expected in the chosen worker's cache.
    matched_tokens: u64,
    /// Events of streams; with vLLM about one a token.
    stream_events: u64,
    /// Client connections accepted.
    connections_accepted: u64,
    /// Client connections turned away at the limit.
    connections_refused: u64,
}

/// A while: rates over it, and times in it. Shorter than it says while the gateway has not run for so long.
#[derive(Debug, Serialize, ToSchema)]
struct Lately {
    requests_per_second: f64,
    server_errors_per_second: f64,
    retries_per_second: f64,
    prompt_tokens_per_second: f64,
    /// Events of streams; with vLLM about one a token.
    stream_events_per_second: f64,
    /// Share of the prompt tokens that was expected in the chosen worker's cache, 0 to 1; not there without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    hit_rate: Option<f64>,
    #[serde(flatten)]
    times: Times,
}

/// How long event streams take.
#[derive(Debug, Serialize, ToSchema)]
struct Times {
    /// Request sent to the first byte of its answer, seconds.
    time_to_first_token: Percentiles,
    /// One event to the next, seconds.
    inter_token_latency: Percentiles,
}

/// How often a reason was the reason.
#[derive(Debug, Serialize, ToSchema)]
struct ReasonView {
    /// As in `x-warmpath-reason`.
    reason: &'static str,
    /// Since the start.
    total: u64,
    /// In the last minute.
    last_60s: u64,
}

/// A worker's last minute.
#[derive(Debug, Serialize, ToSchema)]
struct WorkerStats {
    /// Its name.
    worker: String,
    /// Requests that ended there.
    requests_per_second: f64,
    /// Prompt tokens that it prefills per second, as learned; not there while not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_tokens_per_second: Option<f64>,
    #[serde(flatten)]
    times: Times,
}

/// One second of the charts.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PointView {
    /// Unix time, milliseconds.
    at_ms: u64,
    requests_per_second: f64,
    server_errors_per_second: f64,
    /// Of the last ten seconds; not there without prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    hit_rate: Option<f64>,
    /// Of the last ten seconds.
    #[serde(flatten)]
    times: Times,
}

/// Totals, rates and times of the whole gateway and of every worker.
#[utoipa::path(
    get, path = "/stats", tag = "state",
    responses((status = 200, description = "the figures of the last look, at most a second old", body = Stats))
)]
pub(super) async fn show(State(admin): State<Admin>) -> Json<Stats> {
    Json(view(&admin))
}

/// Of `GET /stats/history`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Since {
    /// Only points after this one (Unix time, milliseconds).
    #[serde(default)]
    #[param(required = false, minimum = 0)]
    after_ms: u64,
}

/// The last five minutes, a point a second.
#[utoipa::path(
    get, path = "/stats/history", tag = "state", params(Since),
    responses(
        (status = 200, description = "the oldest first", body = Vec<PointView>),
        (status = 400, description = "the query is wrong", body = ErrorBody),
    )
)]
pub(super) async fn history(State(admin): State<Admin>, Asked(since): Asked<Since>) -> Json<Vec<PointView>> {
    Json(points(&admin, since.after_ms))
}

/// The points after `after_ms`.
pub(super) fn points(admin: &Admin, after_ms: u64) -> Vec<PointView> {
    admin.recent.points(after_ms).iter().map(PointView::of).collect()
}

impl PointView {
    /// Unix time, milliseconds.
    pub(super) fn at_ms(&self) -> u64 {
        self.at_ms
    }

    fn of(point: &Point) -> Self {
        Self {
            at_ms: point.at_ms,
            requests_per_second: point.requests_per_second,
            server_errors_per_second: point.errors_per_second,
            hit_rate: point.hit_rate,
            times: Times { time_to_first_token: point.first_byte, inter_token_latency: point.gap },
        }
    }
}

/// The gateway's figures.
pub(super) fn view(admin: &Admin) -> Stats {
    let shared = &admin.shared;
    let (requests, drain_tokens_per_second, body_bytes) = shared.queue();
    let over = |seconds| admin.recent.over(Duration::from_secs(seconds));
    let lately = |seconds| over(seconds).as_ref().map_or_else(Lately::nothing, Lately::between);
    let minute = over(60);
    let newest = minute.as_ref().map(|(_, newest)| newest);
    let Counts {
        requests: answered,
        client_errors,
        server_errors,
        retries,
        prompt_tokens,
        matched_tokens,
        events,
    } = newest.map(|look| look.counts).unwrap_or_default();
    let now = Instant::now();
    let workers = shared.fleet.workers();
    Stats {
        uptime_seconds: admin.started.elapsed().as_secs_f64(),
        connections: shared.connections(),
        in_flight_requests: workers.iter().map(|worker| u64::from(worker.load.in_flight())).sum(),
        queue: Queue { requests, drain_tokens_per_second, body_bytes },
        totals: Totals {
            requests: answered,
            client_errors,
            server_errors,
            retries,
            prompt_tokens,
            matched_tokens,
            stream_events: events,
            connections_accepted: shared.metrics.accepted.get(),
            connections_refused: shared.metrics.refused.get(),
        },
        last_1s: lately(1),
        last_10s: lately(10),
        last_60s: lately(60),
        since_start: newest.map_or_else(Times::none, |look| Times {
            time_to_first_token: Percentiles::of(&look.first_byte),
            inter_token_latency: Percentiles::of(&look.gap),
        }),
        decisions: minute.as_ref().map_or_else(Vec::new, |(old, new)| reasons(old, new)),
        workers: workers
            .iter()
            .filter_map(|worker| {
                let minute = admin.recent.worker(worker.id, now)?;
                Some(WorkerStats {
                    worker: worker.name.clone(),
                    requests_per_second: minute.requests_per_second,
                    prefill_tokens_per_second: worker.speed.get().map(|speed| 1.0 / speed.token_s),
                    times: Times { time_to_first_token: minute.first_byte, inter_token_latency: minute.gap },
                })
            })
            .collect(),
    }
}

fn reasons(old: &Look, new: &Look) -> Vec<ReasonView> {
    let counts = Reason::ALL.iter().zip(old.reasons).zip(new.reasons);
    let mut reasons: Vec<_> = counts
        .map(|((reason, old), new)| ReasonView { reason: reason.label(), total: new, last_60s: new - old })
        .filter(|view| view.total > 0)
        .collect();
    reasons.sort_by_key(|view| std::cmp::Reverse((view.last_60s, view.total)));
    reasons
}

impl Lately {
    fn between((old, new): &(Look, Look)) -> Self {
        let rate = |count: fn(&Counts) -> u64| per_second(old, new, count);
        Self {
            requests_per_second: rate(|counts| counts.requests),
            server_errors_per_second: rate(|counts| counts.server_errors),
            retries_per_second: rate(|counts| counts.retries),
            prompt_tokens_per_second: rate(|counts| counts.prompt_tokens),
            stream_events_per_second: rate(|counts| counts.events),
            hit_rate: hit_rate(old, new),
            times: Times {
                time_to_first_token: Percentiles::of(&histogram::between(&old.first_byte, &new.first_byte)),
                inter_token_latency: Percentiles::of(&histogram::between(&old.gap, &new.gap)),
            },
        }
    }

    /// Before the first look.
    fn nothing() -> Self {
        Self {
            requests_per_second: 0.0,
            server_errors_per_second: 0.0,
            retries_per_second: 0.0,
            prompt_tokens_per_second: 0.0,
            stream_events_per_second: 0.0,
            hit_rate: None,
            times: Times::none(),
        }
    }
}

impl Times {
    fn none() -> Self {
        let none = Percentiles { count: 0, p50: None, p90: None, p99: None };
        Self { time_to_first_token: none, inter_token_latency: none }
    }
}
