//! `GET /live`: the responses that are under way.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::{Json, extract::State};
use router_common::flows::{FlowState, FlowValue};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Admin, error::ErrorBody, extract::Asked};
use crate::{kernel::now_ns, limits::LIVE_STREAMS_SHOWN_MAX};

/// The responses under way that are streamed, or moved by the kernel.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LiveView {
    /// All of them, listed or not.
    count: usize,
    /// The longest under way first.
    streams: Vec<StreamView>,
}

/// One of them.
#[derive(Debug, Serialize, ToSchema)]
struct StreamView {
    /// Who serves it; not there for a worker that has just left.
    worker: Option<String>,
    /// The client's address.
    #[schema(example = "10.1.2.3:49152")]
    client: String,
    /// Who moves its bytes: `copy` (this process), `bypass` or `splice` (the kernel).
    moved_by: &'static str,
    /// Since the request was sent to the worker.
    age_seconds: f64,
    /// What its first byte took; not there before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_byte_seconds: Option<f64>,
    /// Since its last event; not there before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_seconds: Option<f64>,
    /// Events so far; with vLLM about one a token.
    events: u64,
    /// Bytes so far.
    bytes: u64,
}

/// Of `GET /live`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// The most that are listed.
    #[serde(default = "streams_shown")]
    #[param(default = 100, maximum = 1000)]
    limit: usize,
}

fn streams_shown() -> usize {
    100
}

/// The streams that are under way.
#[utoipa::path(
    get, path = "/live", tag = "state", params(Which),
    responses(
        (status = 200, description = "the streams", body = LiveView),
        (status = 400, description = "the query is wrong", body = ErrorBody),
    )
)]
pub(super) async fn list(State(admin): State<Admin>, Asked(which): Asked<Which>) -> Json<LiveView> {
    Json(view(&admin, which.limit))
}

/// The streams under way, at most `limit` of them listed.
pub(super) fn view(admin: &Admin, limit: usize) -> LiveView {
    let mut flows = admin.shared.flows.under_way();
    flows.sort_by_key(|flow| flow.started_ns);
    let count = flows.len();
    flows.truncate(limit.min(LIVE_STREAMS_SHOWN_MAX));
    let (workers, now_ns) = (admin.shared.fleet.workers(), now_ns());
    let stream = |flow: &FlowValue| {
        let since = |then_ns: u64| now_ns.saturating_sub(then_ns) as f64 / 1e9;
        let worker = workers.iter().find(|worker| u32::from(worker.slot.0) == flow.worker);
        StreamView {
            worker: worker.map(|worker| worker.name.clone()),
            client: address(flow).to_string(),
            moved_by: match flow.state {
                FlowState::Bypass => "bypass",
                FlowState::Splice => "splice",
                FlowState::Free | FlowState::Copy => "copy",
            },
            age_seconds: since(flow.started_ns),
            first_byte_seconds: (flow.first_byte_ns != 0)
                .then(|| flow.first_byte_ns.saturating_sub(flow.started_ns) as f64 / 1e9),
            idle_seconds: (flow.last_event_ns != 0).then(|| since(flow.last_event_ns)),
            events: flow.events,
            bytes: flow.bytes,
        }
    };
    LiveView { count, streams: flows.iter().map(stream).collect() }
}

fn address(flow: &FlowValue) -> SocketAddr {
    let ip = Ipv6Addr::from(flow.client);
    let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
    SocketAddr::new(ip, flow.client_port as u16)
}
