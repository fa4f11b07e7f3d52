//! The operators' port, on the control thread: what happens and why, the fleet and the configuration to be changed, and the
//! web page.
//!
//! Every endpoint is in `api.rs`, with the OpenAPI document that the handlers make (`GET /openapi.json`); `docs/admin-api.md`
//! is for people. Who may ask: `access.rs`. What is refused has one shape: `error.rs`.

mod access;
mod api;
mod cache;
mod config;
mod decisions;
mod error;
mod events;
mod explain;
mod extract;
mod guard;
mod histogram;
mod index;
mod live;
mod log_level;
mod page;
mod probes;
mod recent;
mod reload;
mod stats;
mod tenants;
mod tls;
mod workers;

use std::{sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use axum::middleware;
use tokio::sync::watch;

use crate::{
    gateway::{Phase, Shared},
    index::Prefix,
    kernel::{Guard, Steering},
    lifecycle::{Members, Reload},
    telemetry::LogFilter,
    tls::ServerTls,
};

pub use events::Followers;
pub(crate) use histogram::{Buckets, Percentiles, between};
pub use recent::Recent;

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
    /// What happened lately.
    pub recent: Arc<Recent>,
    /// The most used prefixes, as last sampled.
    pub hottest: Arc<ArcSwap<Vec<Prefix>>>,
    /// What is logged.
    pub log_filter: LogFilter,
    /// Who follows the events.
    pub followers: Followers,
    /// When the process began to serve.
    pub started: Instant,
}

/// What the port offers by ALPN.
pub const ALPN: &[&[u8]] = &[b"http/1.1"];

/// Serves on `listener`, over TLS where there is a certificate, until the future is dropped, or a successor does.
pub async fn serve(listener: tokio::net::TcpListener, tls: Option<Arc<ServerTls>>, admin: Admin) {
    let mut phase = admin.phase.clone();
    let handed_over = async move {
        let _ = phase.wait_for(|phase| *phase == Phase::HandOver).await; // or nobody is there to say so
    };
    let router =
        api::router().layer(middleware::from_fn_with_state(admin.clone(), access::check)).with_state(admin);
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
