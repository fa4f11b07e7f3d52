//! `POST /admin/reload`: the configuration is read and put in force as by SIGHUP.
//!
//! Answers 200 with what changed and what takes a restart (`{"changed": […], "needs_restart": […]}`), 422 with what is
//! wrong if the configuration is (`{"error": …}`; nothing changed), 500 if the kernel refused the guard's rules.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::{Admin, refuse};
use crate::lifecycle::ReloadError;

pub(super) async fn run(State(admin): State<Admin>) -> Response {
    match admin.reload.run().await {
        Ok(changes) => Json(changes).into_response(),
        Err(error) => {
            let status = match error {
                ReloadError::Config(_) | ReloadError::Members(_) => StatusCode::UNPROCESSABLE_ENTITY,
                ReloadError::Guard(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            refuse(status, error)
        }
    }
}
