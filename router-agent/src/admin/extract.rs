//! Bodies, queries and names of requests, with refusals in the one shape of this port.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use super::{Admin, error::ApiError};

/// The query of a URL. Unknown members are refused where its type denies them.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Admin> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, ApiError> {
        match Query::from_request_parts(parts, admin).await {
            Ok(Query(asked)) => Ok(Self(asked)),
            Err(error) => Err(ApiError::bad_request(error.body_text())),
        }
    }
}

/// The name in a path such as `/workers/{name}`.
pub(super) struct Name(pub(super) String);

impl FromRequestParts<Admin> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, admin).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(error) => Err(ApiError::bad_request(error.body_text())),
        }
    }
}

/// A whole body, at most as long as axum's limit or the route's. Not by axum's `Json`: that insists on a content type, which
/// `curl -d` gives another one.
pub(super) struct Body(pub(super) Bytes);

impl FromRequest<Admin> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, admin: &Admin) -> Result<Self, ApiError> {
        match Bytes::from_request(request, admin).await {
            Ok(bytes) => Ok(Self(bytes)),
            Err(error) => Err(ApiError::new(error.status(), error.body_text())),
        }
    }
}

impl Body {
    /// As JSON of this form; `wanted` is an example of what would be right.
    pub(super) fn json<T: DeserializeOwned>(&self, wanted: &str) -> Result<T, ApiError> {
        serde_json::from_slice(&self.0)
            .map_err(|why| ApiError::bad_request(format!("{why}; wanted {wanted}")))
    }
}
