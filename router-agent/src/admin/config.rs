//! `GET /config`: the configuration in force.

use axum::{Json, extract::State};
use serde_json::Value;

use super::Admin;
use crate::config::shown;

/// The configuration in force, with every default filled in, by the keys of the file. Secrets, and digests of secrets, are
/// shown as `***`.
#[utoipa::path(
    get, path = "/config", tag = "configuration",
    responses(
        (status = 200, description = "the configuration", body = Object),
    )
)]
pub(super) async fn show(State(admin): State<Admin>) -> Json<Value> {
    Json(shown(&admin.shared.config.get()))
}
