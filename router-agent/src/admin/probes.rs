//! What probes and scrapers ask: `/health`, `/ready` and `/metrics`.

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{Admin, error::ApiError};
use crate::{gateway::Phase, kernel::Steering, telemetry::openmetrics};

/// Whether the process runs.
#[utoipa::path(
    get, path = "/health", tag = "probes", security(()),
    responses((status = 200, description = "it runs", body = String, content_type = "text/plain"))
)]
pub(super) async fn health() -> &'static str {
    "ok\n"
}

/// Whether a request that came now would find a worker.
#[utoipa::path(
    get, path = "/ready", tag = "probes", security(()),
    responses(
        (status = 200, description = "it would", body = String, content_type = "text/plain"),
        (status = 503, description = "no worker is available, or the gateway drains", body = String, content_type = "text/plain"),
    )
)]
pub(super) async fn ready(State(admin): State<Admin>) -> impl IntoResponse {
    if *admin.phase.borrow() != Phase::Serve {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if admin.shared.fleet.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no worker is available\n")
    }
}

/// All metrics, in Prometheus' text format, or in OpenMetrics' where `Accept` asks for it.
#[utoipa::path(
    get, path = "/metrics", tag = "probes",
    responses(
        (status = 200, description = "the metrics", body = String, content_type = "text/plain"),
    )
)]
pub(super) async fn metrics(State(admin): State<Admin>, asked: HeaderMap) -> Response {
    let Admin { shared, steering, .. } = &admin;
    for worker in shared.fleet.workers().iter() {
        shared.metrics.refresh_worker(worker, shared.index.blocks(worker.slot));
        shared.metrics.kv_events.refresh(worker, shared.token_index.blocks(worker.slot));
    }
    shared.refresh_queue_metrics();
    shared.metrics.set_index_bytes(shared.index.bytes());
    shared.metrics.tokenize.cache_bytes.set(shared.tokenizers.cache().bytes() as f64);
    if let Some(Ok(counts)) = steering.as_ref().map(Steering::stats) {
        shared.metrics.set_steering(&counts);
    }
    if let Some(guard) = &admin.guard {
        if let Ok(counts) = guard.counts() {
            shared.metrics.guard.set_counts(&counts);
        }
        if let Ok(rules) = guard.rules() {
            shared.metrics.guard.set_rules(&rules);
        }
    }
    let accepted = asked.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accepted.contains(openmetrics::MEDIA_TYPE) {
        let text = shared.metrics.encode_openmetrics();
        return ([(header::CONTENT_TYPE, openmetrics::CONTENT_TYPE)], text).into_response();
    }
    match shared.metrics.encode() {
        Ok(text) => {
            let content_type = "text/plain; version=0.0.4; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], text).into_response()
        }
        Err(error) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}
