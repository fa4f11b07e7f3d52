//! `/cache`: the response cache, shown and cleared.
//!
//! | request | does |
//! |---|---|
//! | `GET /cache` | its entries, their bytes, and the bytes of answers that are under way |
//! | `DELETE /cache` | drops every entry; with `?tenant=NAME`, `?model=NAME` or both those of it; `{"removed": N}` |

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, refuse};
use crate::cache::Which;

/// What of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    tenant: Option<String>,
    model: Option<String>,
}

pub(super) async fn show(State(admin): State<Admin>) -> Json<Value> {
    let cache = &admin.shared.cache;
    let (entries, bytes) = cache.size();
    let bytes_max = admin.shared.config().cache.bytes_max;
    Json(json!({
        "entries": entries,
        "bytes": bytes,
        "bytes_max": bytes_max,
        "in_flight_bytes": cache.in_flight_bytes(),
    }))
}

pub(super) async fn clear(
    State(admin): State<Admin>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    match asked {
        Ok(Query(Asked { tenant, model })) => {
            let removed = admin.shared.cache.clear(&Which { tenant, model });
            tracing::info!(removed, "response cache cleared");
            Json(json!({ "removed": removed })).into_response()
        }
        Err(error) => refuse(StatusCode::BAD_REQUEST, error),
    }
}
