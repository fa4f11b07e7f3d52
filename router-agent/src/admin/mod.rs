//! The operators' port: metrics, health and the fleet, on the control thread.
//!
//! | path | answers |
//! |---|---|
//! | `GET /metrics` | Prometheus text format |
//! | `GET /health` | 200 while the process runs |
//! | `GET /ready` | 200 while at least one worker can take requests and the gateway is not draining, else 503 |
//! | `/workers`, `/workers/NAME`, … | the fleet: shown, drained, changed; see `workers.rs` |
//! | `POST /admin/reload` | reads the configuration again, see `reload.rs` |
//! | `/decisions`, `/decisions/REQUEST_ID`, `/decisions/follow` | what was decided, and why, see `decisions.rs` |
//! | `/cache` | the response cache, shown and cleared; see `cache.rs` |
//! | `/guard`, `/guard/rules` | the XDP guard and its rules, see `guard.rs` |
//!
//! Who may ask: `access.rs`.

mod access;
mod cache;
mod decisions;
mod guard;
mod reload;
mod tls;
mod workers;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;
use tokio::sync::watch;

use crate::{
    gateway::{Phase, Shared},
    kernel::{Guard, Steering},
    lifecycle::{Members, Reload},
    tls::ServerTls,
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
    /// Who brings workers in and sees them off.
    pub members: Arc<Members>,
}

/// What the port offers by ALPN.
pub const ALPN: &[&[u8]] = &[b"http/1.1"];

/// Serves on `listener`, over TLS where there is a certificate, until the future is dropped, or a successor does.
pub async fn serve(listener: tokio::net::TcpListener, tls: Option<Arc<ServerTls>>, admin: Admin) {
    let mut phase = admin.phase.clone();
    let handed_over = async move {
        let _ = phase.wait_for(|phase| *phase == Phase::HandOver).await; // or nobody is there to say so
    };
    let router = probes()
        .merge(operations())
        .layer(middleware::from_fn_with_state(admin.clone(), access::check))
        .with_state(admin);
    let served = match tls {
        None => axum::serve(listener, router).with_graceful_shutdown(handed_over).await,
        Some(tls) => {
            let listener = tls::TlsListener::new(listener, tls);
            axum::serve(listener, router).with_graceful_shutdown(handed_over).await
        }
    };
    if let Err(error) = served {
        tracing::error!(%error, "the admin port is closed");
    }
}

/// What probes and scrapers ask.
fn probes() -> Router<Admin> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(async || "ok\n"))
        .route("/ready", get(ready))
}

/// What shows or changes the gateway: for operators alone.
fn operations() -> Router<Admin> {
    Router::new()
        .route("/workers", get(workers::list).post(workers::add))
        .route("/workers/{name}", get(workers::show).delete(workers::remove))
        .route("/workers/{name}/drain", post(workers::drain))
        .route("/workers/{name}/undrain", post(workers::undrain))
        .route("/admin/reload", post(reload::run))
        .route("/decisions", get(decisions::list))
        .route("/decisions/follow", get(decisions::follow))
        .route("/decisions/{request_id}", get(decisions::show))
        .route("/guard", get(guard::show))
        .route("/cache", get(cache::show).delete(cache::clear))
        .route("/guard/rules", post(guard::add).delete(guard::remove))
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let Admin { shared, steering, .. } = &admin;
    for worker in shared.fleet.workers().iter() {
        shared.metrics.refresh_worker(worker, shared.index.blocks(worker.slot));
        shared.metrics.kv_events.refresh(worker, shared.token_index.blocks(worker.slot));
    }
    shared.refresh_queue_metrics();
    shared.refresh_cache_metrics();
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

/// A refusal: what is wrong, and what would be right.
fn refuse(status: StatusCode, error: impl std::fmt::Display) -> Response {
    (status, Json(json!({ "error": error.to_string() }))).into_response()
}
