//! `/log-level`: what is logged, looked up and changed while the gateway runs.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Admin,
    error::{ApiError, ApiResult, ErrorBody},
    extract::Body,
};

/// What is logged.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogLevel {
    /// A level (error, warn, info, debug, trace, off), or directives as in `WARMPATH_LOG`.
    #[schema(example = "info,router_agent::gateway=debug", max_length = 1024)]
    filter: String,
}

/// What is logged now.
#[utoipa::path(
    get, path = "/log-level", tag = "configuration",
    responses(
        (status = 200, description = "the filter in force", body = LogLevel),
    )
)]
pub(super) async fn show(State(admin): State<Admin>) -> Json<LogLevel> {
    Json(LogLevel { filter: admin.log_filter.get() })
}

/// Log by another filter, from now on and until the process ends.
#[utoipa::path(
    put, path = "/log-level", tag = "configuration", request_body = LogLevel,
    responses(
        (status = 200, description = "the filter in force", body = LogLevel),
        (status = 400, description = "it is no filter", body = ErrorBody),
        (status = 413, description = "the body is too long", body = ErrorBody),
    )
)]
pub(super) async fn set(State(admin): State<Admin>, body: Body) -> ApiResult<Json<LogLevel>> {
    let wanted: LogLevel = body.json(r#"{"filter": "debug"}"#)?;
    admin.log_filter.set(&wanted.filter).map_err(|error| {
        ApiError::bad_request(format!(
            "{error} (a level: error, warn, info, debug, trace, off; or target=level, …)"
        ))
    })?;
    tracing::info!(filter = wanted.filter, "log filter set by the admin API");
    Ok(Json(LogLevel { filter: admin.log_filter.get() }))
}
