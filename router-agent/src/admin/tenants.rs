//! `GET /tenants`: who may ask, how much, and how that stands now.

use std::time::Instant;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::Admin;
use crate::{
    config::AllowedModels,
    tenants::{Limit, Standing, Tenant},
};

/// A client with API keys of its own; `default` is everyone where there are no keys.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TenantView {
    /// As in metrics and logs.
    name: String,
    /// Patterns of the models that it may name; not there: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<Vec<String>>,
    /// Its share beside others' where requests have to wait.
    weight: u32,
    /// Of its requests that name none; lower is sooner.
    priority: i64,
    /// Whether it may use every path that workers have.
    all_paths: bool,
    /// Requests under way.
    in_flight_requests: u32,
    /// Requests at the same time; not there: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrent: Option<u32>,
    /// Its limit of requests per second; not there: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<BucketView>,
    /// Its limit of tokens per minute; not there: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<BucketView>,
    /// What it has asked for since the start, or since it was configured.
    totals: TenantTotals,
}

/// A token bucket.
#[derive(Debug, Serialize, ToSchema)]
struct BucketView {
    /// What comes in.
    per_second: f64,
    /// What a full one holds.
    capacity: u64,
    /// What is in it now.
    remaining: u64,
    /// Until it is full, if nothing is taken.
    full_in_seconds: f64,
}

/// Counters of a tenant. Beyond 1000 tenants the others count together.
#[derive(Debug, Serialize, ToSchema)]
struct TenantTotals {
    /// Requests within its limits.
    admitted: u64,
    /// Requests beyond `requests_per_second`.
    refused_requests: u64,
    /// Requests beyond `concurrent`.
    refused_concurrent: u64,
    /// Requests beyond `tokens_per_minute`.
    refused_tokens: u64,
    /// Tokens of prompts and answers.
    tokens: u64,
}

impl TenantView {
    fn of(tenant: &Tenant, now: Instant) -> Self {
        let ((requests, concurrent, tokens), standings) = (tenant.limits(), tenant.standings(now));
        let bucket = |per_second, standing: Option<Standing>| {
            standing.map(|standing| BucketView {
                per_second,
                capacity: standing.limit,
                remaining: standing.remaining,
                full_in_seconds: standing.reset.as_secs_f64(),
            })
        };
        let metrics = tenant.metrics();
        Self {
            name: tenant.name.to_string(),
            models: match tenant.models() {
                AllowedModels::All => None,
                AllowedModels::Only(patterns) => Some(patterns.iter().map(ToString::to_string).collect()),
            },
            weight: tenant.weight,
            priority: tenant.priority,
            all_paths: tenant.all_paths,
            in_flight_requests: tenant.in_flight(),
            concurrent,
            requests: requests.and_then(|(per_second, _)| bucket(per_second, standings.requests)),
            tokens: tokens.and_then(|per_minute| bucket(per_minute / 60.0, standings.tokens)),
            totals: TenantTotals {
                admitted: metrics.admitted.get(),
                refused_requests: metrics.refused(Limit::Requests).get(),
                refused_concurrent: metrics.refused(Limit::Concurrent).get(),
                refused_tokens: metrics.refused(Limit::Tokens).get(),
                tokens: metrics.tokens.get(),
            },
        }
    }
}

/// Everyone who may ask: limits, and how they stand now.
#[utoipa::path(
    get, path = "/tenants", tag = "state",
    responses((status = 200, description = "the tenants by name", body = Vec<TenantView>))
)]
pub(super) async fn list(State(admin): State<Admin>) -> Json<Vec<TenantView>> {
    let now = Instant::now();
    Json(admin.shared.tenants.list().iter().map(|tenant| TenantView::of(tenant, now)).collect())
}
