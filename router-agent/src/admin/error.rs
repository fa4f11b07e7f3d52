//! What this port answers when it does not do what it was asked: one shape for everything, `{"error": "…"}`, whose text
//! names what is wrong and what would be right. Statuses: 400 the request is wrong, 401 and 403 who asks may not, 404 there
//! is no such thing, 405 not by this method, 409 not as things are, 413 too long, 422 a configuration is wrong, 500 the
//! kernel or this program failed, 503 not now.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

/// A refusal.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
}

/// What is wrong, and what would be right.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// One line.
    #[schema(example = "there is no worker \"gpu9\" (GET /workers lists them)")]
    pub(super) error: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl std::fmt::Display) -> Self {
        Self { status, message: message.to_string() }
    }

    pub(super) fn bad_request(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn not_found(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(super) fn conflict(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { error: self.message })).into_response()
    }
}

/// What handlers return.
pub(super) type ApiResult<T> = Result<T, ApiError>;
