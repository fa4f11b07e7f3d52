//! The fleet on the admin port.
//!
//! | path | does |
//! |---|---|
//! | `GET /workers` | lists all workers |
//! | `GET /workers/NAME` | shows one; `in_flight_requests` is what a drain waits for |
//! | `POST /workers` `{"url": "http://10.0.0.7:8000", "name": "gpu7"}` | adds one, with the keys of an entry of `workers:` in the file (201; 200 if it was just leaving) |
//! | `POST /workers/NAME/drain` | gives it no more requests; those in flight go on |
//! | `POST /workers/NAME/undrain` | gives it requests again |
//! | `DELETE /workers/NAME` | drains it, then removes it (202); with `?timeout=30s` what is in flight then is cut off, with `?force` at once |
//!
//! A wrong request is answered 400, an unknown worker 404, one that cannot be added or changed now 409, each with
//! `{"error": …}`. Changes last over reloads, until the next restart: see `docs/operations.md`.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::{Admin, refuse};
use crate::{
    config::parse_worker,
    fleet::{Standing, Worker},
    lifecycle::{Added, MemberError},
};

/// One worker, as JSON.
#[derive(Debug, Serialize)]
struct WorkerView {
    name: String,
    url: String,
    health: &'static str,
    breaker: &'static str,
    /// `live`, `suspect` (silent for longer than usual) or `hung`.
    engine: &'static str,
    /// Left out because it stands out from the others.
    ejected: bool,
    standing: &'static str,
    /// Since when it is given no requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    drained_for_seconds: Option<f64>,
    /// When it is removed, whatever is in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    cut_off_in_seconds: Option<f64>,
    in_flight_requests: u32,
    queued_prefill_tokens: u64,
    engine_running_requests: u32,
    engine_waiting_requests: u32,
    kv_cache_usage: f64,
    index_blocks: u64,
    requests_completed: u64,
    requests_failed: u64,
    requests_rejected: u64,
    requests_cancelled: u64,
}

impl WorkerView {
    fn of(worker: &Worker, index_blocks: u64) -> Self {
        let (engine, metrics, standing) = (&worker.engine, &worker.metrics, worker.standing());
        let until = if let Standing::Leaving { until, .. } = standing { until } else { None };
        Self {
            name: worker.name.clone(),
            url: worker.url.to_string(),
            health: worker.health().label(),
            breaker: worker.breaker.state().label(),
            engine: worker.liveness.pulse().label(),
            ejected: worker.record.is_ejected(),
            standing: standing.label(),
            drained_for_seconds: standing.since().map(|since| since.elapsed().as_secs_f64()),
            cut_off_in_seconds: until
                .map(|until| until.saturating_duration_since(Instant::now()).as_secs_f64()),
            in_flight_requests: worker.load.in_flight(),
            queued_prefill_tokens: worker.load.queued_prefill_tokens(),
            engine_running_requests: engine.running.load(Relaxed),
            engine_waiting_requests: engine.waiting.load(Relaxed),
            kv_cache_usage: f64::from(engine.kv_usage_permille.load(Relaxed)) / 1000.0,
            index_blocks,
            requests_completed: metrics.completed.get(),
            requests_failed: metrics.failed.get(),
            requests_rejected: metrics.rejected.get(),
            requests_cancelled: metrics.cancelled.get(),
        }
    }
}

fn view(admin: &Admin, worker: &Worker) -> Json<impl Serialize + use<>> {
    Json(WorkerView::of(worker, admin.shared.index.blocks(worker.slot)))
}

fn refused(error: &MemberError) -> Response {
    let status = match error {
        MemberError::Unknown(_) => StatusCode::NOT_FOUND,
        MemberError::Taken { .. } | MemberError::Leaving(_) | MemberError::Full { .. } => {
            StatusCode::CONFLICT
        }
    };
    refuse(status, error)
}

fn shown(admin: &Admin, status: StatusCode, result: Result<Arc<Worker>, MemberError>) -> Response {
    match result {
        Ok(worker) => (status, view(admin, &worker)).into_response(),
        Err(error) => refused(&error),
    }
}

pub(super) async fn list(State(admin): State<Admin>) -> Response {
    let workers = admin.shared.fleet.workers();
    let view = |worker: &Arc<Worker>| WorkerView::of(worker, admin.shared.index.blocks(worker.slot));
    Json(workers.iter().map(view).collect::<Vec<_>>()).into_response()
}

pub(super) async fn show(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    shown(&admin, StatusCode::OK, admin.members.find(&name))
}

pub(super) async fn add(State(admin): State<Admin>, body: Bytes) -> Response {
    let config = match parse_worker(&body) {
        Ok(config) => config,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error),
    };
    match admin.members.add(&config).await {
        Ok(Added::New(worker)) => (StatusCode::CREATED, view(&admin, &worker)).into_response(),
        Ok(Added::Kept(worker)) => (StatusCode::OK, view(&admin, &worker)).into_response(),
        Err(error) => refused(&error),
    }
}

pub(super) async fn drain(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    shown(&admin, StatusCode::OK, admin.members.drain(&name))
}

pub(super) async fn undrain(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    shown(&admin, StatusCode::OK, admin.members.undrain(&name))
}

/// Of `DELETE /workers/NAME`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Removal {
    #[serde(default, with = "humantime_serde")]
    timeout: Option<Duration>,
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

pub(super) async fn remove(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    removal: Result<Query<Removal>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let limit = match removal {
        Ok(Query(removal)) => removal.limit(),
        Err(error) => Err(error.body_text()),
    };
    match limit {
        Ok(limit) => shown(&admin, StatusCode::ACCEPTED, admin.members.remove(&name, limit)),
        Err(error) => refuse(StatusCode::BAD_REQUEST, error),
    }
}
