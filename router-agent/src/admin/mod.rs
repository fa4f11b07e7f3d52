//! The operators' port: metrics, health and the fleet, on the control thread.
//!
//! | path | answers |
//! |---|---|
//! | `GET /metrics` | Prometheus text format |
//! | `GET /health` | 200 while the process runs |
//! | `GET /ready` | 200 while at least one worker can take requests and the gateway is not draining, else 503 |
//! | `GET /workers` | the fleet as JSON |
//! | `POST /admin/reload` | reads the configuration again, see `reload.rs` |
//! | `/guard`, `/guard/rules` | the XDP guard and its rules, see `guard.rs` |

mod guard;
mod reload;

use std::sync::{Arc, atomic::Ordering::Relaxed};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};
use serde::Serialize;
use tokio::sync::watch;

use crate::{
    fleet::Worker,
    gateway::{Phase, Shared},
    kernel::{Guard, Steering},
    lifecycle::Reload,
};

/// What the admin port reads.
#[derive(Clone)]
pub struct Admin {
    /// The gateway's state.
    pub shared: Arc<Shared>,
    /// Whether the gateway drains.
    pub phase: watch::Receiver<Phase>,
    /// The steering program, where there is one.
    pub steering: Option<Steering>,
    /// The XDP guard, where there is one.
    pub guard: Option<Guard>,
    /// Why there is none, or that there is.
    pub guard_state: Arc<str>,
    /// What SIGHUP does, too.
    pub reload: Arc<Reload>,
}

/// Serves on `listener` until the future is dropped.
pub async fn serve(listener: tokio::net::TcpListener, admin: Admin) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(async || "ok\n"))
        .route("/ready", get(ready))
        .route("/workers", get(workers))
        .route("/admin/reload", post(reload::run))
        .route("/guard", get(guard::show))
        .route("/guard/rules", post(guard::add).delete(guard::remove))
        .with_state(admin);
    axum::serve(listener, router).await
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
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
    match shared.metrics.encode() {
        Ok(text) => {
            let content_type = "text/plain; version=0.0.4; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(admin): State<Admin>) -> impl IntoResponse {
    if *admin.phase.borrow() != Phase::Serve {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if admin.shared.fleet.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no worker is available\n")
    }
}

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
        let (engine, metrics) = (&worker.engine, &worker.metrics);
        Self {
            name: worker.name.clone(),
            url: worker.url.to_string(),
            health: worker.health().label(),
            breaker: worker.breaker.state().label(),
            engine: worker.liveness.pulse().label(),
            ejected: worker.standing.is_ejected(),
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

async fn workers(State(admin): State<Admin>) -> Json<Vec<WorkerView>> {
    let Admin { shared, .. } = &admin;
    let view = |worker: &Arc<Worker>| WorkerView::of(worker, shared.index.blocks(worker.slot));
    Json(shared.fleet.workers().iter().map(view).collect())
}
