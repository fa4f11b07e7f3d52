//! The fleet: shown, added to, drained and removed from. Changes last over reloads, until the next restart: see
//! `docs/operations.md`.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin,
    error::{ApiError, ApiResult, ErrorBody},
    extract::{Asked, Body, Name},
};
use crate::{
    config::parse_worker,
    fleet::{Standing, Worker},
    lifecycle::{Added, MemberError},
};

/// One worker.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WorkerView {
    /// As in headers, metrics and maps.
    name: String,
    /// Where it listens.
    #[schema(example = "http://10.0.0.7:8000")]
    url: String,
    /// `both`, `prefill` or `decode`.
    role: &'static str,
    /// `unknown`, `healthy` or `unhealthy`, by its health checks.
    health: &'static str,
    /// `closed`, `open` or `half_open`.
    breaker: &'static str,
    /// `live`, `suspect` (silent for longer than usual) or `hung`.
    engine: &'static str,
    /// Left out because it stands out from the others.
    ejected: bool,
    /// Left alone because it has said that it has too much to do.
    resting: bool,
    /// `serving`, `unready` (says who told of it), `draining` or `leaving`.
    standing: &'static str,
    /// How far it is drained; not there while it serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    drain: Option<Drain>,
    /// Since when it is given no requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    drained_for_seconds: Option<f64>,
    /// When it is removed, whatever is in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    cut_off_in_seconds: Option<f64>,
    /// Requests that this gateway has there.
    in_flight_requests: u32,
    /// Uncached prompt tokens of requests before their first response byte.
    queued_prefill_tokens: u64,
    /// `vllm:num_requests_running` at the last scrape.
    engine_running_requests: u32,
    /// `vllm:num_requests_waiting` at the last scrape.
    engine_waiting_requests: u32,
    /// `vllm:kv_cache_usage_perc` at the last scrape, 0 to 1.
    kv_cache_usage: f64,
    /// How its own KV events stand: `exact`, `gap`, `catching_up`, `connecting`, `silent` or `off`.
    kv_events: &'static str,
    /// Blocks that the index expects there.
    index_blocks: u64,
    /// Responses relayed to their end.
    requests_completed: u64,
    /// Requests that it failed.
    requests_failed: u64,
    /// Requests that it turned away (429, 503).
    requests_rejected: u64,
    /// Requests whose client left.
    requests_cancelled: u64,
}

/// How far a worker is drained.
#[derive(Debug, Serialize, ToSchema)]
struct Drain {
    /// Since when it is given no requests.
    since_seconds: f64,
    /// Requests that were in flight there then.
    in_flight_at_first: u32,
    /// Requests that are in flight still.
    in_flight_left: u32,
    /// Nothing is in flight there.
    done: bool,
}

impl WorkerView {
    pub(super) fn of(worker: &Worker, index_blocks: u64) -> Self {
        let (engine, metrics, standing) = (&worker.engine, &worker.metrics, worker.standing());
        let until = if let Standing::Leaving { until, .. } = standing { until } else { None };
        let in_flight = worker.load.in_flight();
        let drain = standing.since().zip(standing.in_flight_at_first()).map(|(since, at_first)| Drain {
            since_seconds: since.elapsed().as_secs_f64(),
            // One that was being decided when the drain began.
            in_flight_at_first: at_first.max(in_flight),
            in_flight_left: in_flight,
            done: in_flight == 0,
        });
        Self {
            name: worker.name.clone(),
            url: worker.url.to_string(),
            role: worker.role().label(),
            health: worker.health().label(),
            breaker: worker.breaker.state().label(),
            engine: worker.liveness.pulse().label(),
            ejected: worker.record.is_ejected(),
            resting: worker.rest.holds(Instant::now()),
            standing: standing.label(),
            drain,
            drained_for_seconds: standing.since().map(|since| since.elapsed().as_secs_f64()),
            cut_off_in_seconds: until
                .map(|until| until.saturating_duration_since(Instant::now()).as_secs_f64()),
            in_flight_requests: in_flight,
            queued_prefill_tokens: worker.load.queued_prefill_tokens(),
            engine_running_requests: engine.running.load(Relaxed),
            engine_waiting_requests: engine.waiting.load(Relaxed),
            kv_cache_usage: f64::from(engine.kv_usage_permille.load(Relaxed)) / 1000.0,
            kv_events: worker.kv_cache.state().label(),
            index_blocks,
            requests_completed: metrics.completed.get(),
            requests_failed: metrics.failed.get(),
            requests_rejected: metrics.rejected.get(),
            requests_cancelled: metrics.cancelled.get(),
        }
    }
}

fn view(admin: &Admin, worker: &Worker) -> Json<WorkerView> {
    Json(WorkerView::of(worker, admin.shared.index.blocks(worker.slot)))
}

fn refused(error: MemberError) -> ApiError {
    match error {
        MemberError::Unknown(_) => ApiError::not_found(error),
        MemberError::Taken { .. } | MemberError::Leaving(_) | MemberError::Full { .. } => {
            ApiError::conflict(error)
        }
    }
}

type OneWorker = ApiResult<(StatusCode, Json<WorkerView>)>;

fn shown(admin: &Admin, status: StatusCode, result: Result<Arc<Worker>, MemberError>) -> OneWorker {
    result.map(|worker| (status, view(admin, &worker))).map_err(refused)
}

/// All workers, as they are now.
pub(super) fn all(admin: &Admin) -> Vec<WorkerView> {
    let workers = admin.shared.fleet.workers();
    let view = |worker: &Arc<Worker>| WorkerView::of(worker, admin.shared.index.blocks(worker.slot));
    workers.iter().map(view).collect()
}

/// All workers.
#[utoipa::path(
    get, path = "/workers", tag = "workers",
    responses((status = 200, description = "the fleet", body = Vec<WorkerView>))
)]
pub(super) async fn list(State(admin): State<Admin>) -> Json<Vec<WorkerView>> {
    Json(all(&admin))
}

/// One worker; while it is drained, `drain` says how far.
#[utoipa::path(
    get, path = "/workers/{name}", tag = "workers", params(("name" = String, Path, description = "its name")),
    responses(
        (status = 200, description = "the worker", body = WorkerView),
        (status = 400, description = "the path is no text", body = ErrorBody),
        (status = 404, description = "there is no such worker", body = ErrorBody),
    )
)]
pub(super) async fn show(State(admin): State<Admin>, Name(name): Name) -> OneWorker {
    shown(&admin, StatusCode::OK, admin.members.find(&name))
}

/// A worker to be added: the keys of an entry of `workers:` in the file.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes what `parse_worker` reads")]
pub(super) struct NewWorker {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    #[schema(example = "http://10.0.0.7:8000")]
    url: String,
    /// 1 to 64 printable characters without spaces; `HOST:PORT` where left out.
    #[schema(required = false, example = "gpu7", max_length = 64)]
    name: Option<String>,
    /// `both`, `prefill` or `decode`: what of a request it does (docs/disaggregation.md).
    #[schema(required = false, example = "both")]
    role: Option<String>,
    /// Of vLLM's `--api-key`; the key itself, not a place where it is.
    #[schema(required = false)]
    api_key: Option<String>,
    /// `auto`, `off`, or where its KV events are: `{"endpoint": …, "replay_endpoint": …, "topic": …}`.
    #[schema(required = false, value_type = Object)]
    kv_events: Option<serde_json::Value>,
    /// With `https://`: `{"ca": PATH, "server_name": NAME}`.
    #[schema(required = false, value_type = Object)]
    tls: Option<serde_json::Value>,
    /// The models that it serves; left out, it is asked.
    #[schema(required = false)]
    models: Option<Vec<String>>,
}

/// Add a worker. It is asked for its health first, and then it may be chosen.
#[utoipa::path(
    post, path = "/workers", tag = "workers", request_body = NewWorker,
    responses(
        (status = 201, description = "it is in the fleet", body = WorkerView),
        (status = 200, description = "it was leaving, and stays", body = WorkerView),
        (status = 400, description = "this is no worker", body = ErrorBody),
        (status = 409, description = "its name or URL is taken, or the fleet is full", body = ErrorBody),
        (status = 413, description = "the body is too long", body = ErrorBody),
    )
)]
pub(super) async fn add(State(admin): State<Admin>, body: Body) -> OneWorker {
    let config = parse_worker(&body.0).map_err(ApiError::bad_request)?;
    match admin.members.add(&config).await.map_err(refused)? {
        Added::New(worker) => Ok((StatusCode::CREATED, view(&admin, &worker))),
        Added::Kept(worker) => Ok((StatusCode::OK, view(&admin, &worker))),
    }
}

/// Give a worker no more requests; those in flight go on. It stays in the fleet.
#[utoipa::path(
    post, path = "/workers/{name}/drain", tag = "workers", params(("name" = String, Path, description = "its name")),
    responses(
        (status = 200, description = "it is given none from now on", body = WorkerView),
        (status = 400, description = "the path is no text", body = ErrorBody),
        (status = 404, description = "there is no such worker", body = ErrorBody),
        (status = 409, description = "it is leaving", body = ErrorBody),
    )
)]
pub(super) async fn drain(State(admin): State<Admin>, Name(name): Name) -> OneWorker {
    shown(&admin, StatusCode::OK, admin.members.drain(&name))
}

/// Give a drained worker requests again.
#[utoipa::path(
    post, path = "/workers/{name}/undrain", tag = "workers", params(("name" = String, Path, description = "its name")),
    responses(
        (status = 200, description = "it is given requests from now on", body = WorkerView),
        (status = 400, description = "the path is no text", body = ErrorBody),
        (status = 404, description = "there is no such worker", body = ErrorBody),
        (status = 409, description = "it is leaving", body = ErrorBody),
    )
)]
pub(super) async fn undrain(State(admin): State<Admin>, Name(name): Name) -> OneWorker {
    shown(&admin, StatusCode::OK, admin.members.undrain(&name))
}

/// Of `DELETE /workers/NAME`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Removal {
    /// When what is in flight is cut off, such as `30s` or `5m`; without it, never.
    #[serde(default, with = "humantime_serde")]
    #[param(value_type = Option<String>, example = "30s")]
    timeout: Option<Duration>,
    /// Cut off what is in flight at once: nothing, `true` or `false`.
    force: Option<String>,
}

impl Removal {
    /// How long what is in flight may take; for ever, if it is not said.
    fn limit(&self) -> Result<Option<Duration>, String> {
        match (self.force.as_deref(), self.timeout) {
            (None | Some("false"), timeout) => Ok(timeout),
            (Some("" | "true"), None) => Ok(Some(Duration::ZERO)),
            (Some("" | "true"), Some(_)) => Err("force or timeout, not both".to_owned()),
            (Some(other), _) => Err(format!("force={other:?}: true or false")),
        }
    }
}

/// Drain a worker, then remove it from the fleet.
#[utoipa::path(
    delete, path = "/workers/{name}", tag = "workers",
    params(("name" = String, Path, description = "its name"), Removal),
    responses(
        (status = 202, description = "it is leaving", body = WorkerView),
        (status = 400, description = "timeout or force is wrong", body = ErrorBody),
        (status = 404, description = "there is no such worker", body = ErrorBody),
    )
)]
pub(super) async fn remove(
    State(admin): State<Admin>,
    Name(name): Name,
    Asked(removal): Asked<Removal>,
) -> OneWorker {
    let limit = removal.limit().map_err(ApiError::bad_request)?;
    shown(&admin, StatusCode::ACCEPTED, admin.members.remove(&name, limit))
}
