//! `/cache`: the response cache, shown and cleared.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin,
    error::{ApiResult, ErrorBody},
    extract::Asked,
};
use crate::cache::Which;

/// What the response cache holds.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CacheView {
    /// Answers.
    entries: usize,
    /// Their bytes, requests included.
    bytes: u64,
    /// The most that there may be (`cache.max_bytes`).
    bytes_max: usize,
    /// Of answers that are under way and shared.
    in_flight_bytes: usize,
}

/// What of it; without a member: all.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Part {
    /// Of this tenant.
    tenant: Option<String>,
    /// Of this model, as clients name it.
    model: Option<String>,
}

/// What became of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Cleared {
    /// Entries that are gone.
    removed: u64,
}

/// What the response cache holds.
#[utoipa::path(get, path = "/cache", tag = "state", responses((status = 200, description = "its size", body = CacheView)))]
pub(super) async fn show(State(admin): State<Admin>) -> Json<CacheView> {
    let cache = &admin.shared.cache;
    let (entries, bytes) = cache.size();
    let bytes_max = admin.shared.config().cache.bytes_max;
    Json(CacheView { entries, bytes, bytes_max, in_flight_bytes: cache.in_flight_bytes() })
}

/// Drop what the response cache holds.
#[utoipa::path(
    delete, path = "/cache", tag = "state", params(Part),
    responses(
        (status = 200, description = "how much that was", body = Cleared),
        (status = 400, description = "there is no such parameter", body = ErrorBody),
    )
)]
pub(super) async fn clear(
    State(admin): State<Admin>,
    Asked(Part { tenant, model }): Asked<Part>,
) -> ApiResult<Json<Cleared>> {
    let removed = admin.shared.cache.clear(&Which { tenant, model });
    tracing::info!(removed, "response cache cleared");
    Ok(Json(Cleared { removed }))
}
