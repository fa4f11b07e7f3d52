//! `POST /admin/reload`: the configuration is read and put in force as by SIGHUP.

use axum::{Json, extract::State, http::StatusCode};

use super::{
    Admin,
    error::{ApiError, ApiResult, ErrorBody},
};
use crate::{config::Changes, lifecycle::ReloadError};

/// Read the configuration again and put it in force, as far as that takes no restart.
#[utoipa::path(
    post, path = "/admin/reload", tag = "configuration",
    responses(
        (status = 200, description = "what has changed, and what a restart would change", body = Changes),
        (status = 422, description = "the configuration is wrong; nothing has changed", body = ErrorBody),
        (status = 500, description = "the kernel refused the guard's rules; nothing has changed", body = ErrorBody),
    )
)]
pub(super) async fn run(State(admin): State<Admin>) -> ApiResult<Json<Changes>> {
    admin.reload.run().await.map(Json).map_err(|error| {
        let status = match error {
            ReloadError::Config(_) | ReloadError::Members(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ReloadError::Guard(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, error)
    })
}
