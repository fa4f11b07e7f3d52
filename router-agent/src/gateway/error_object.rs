//! An error of the gateway as a response: the error object of the API that the client speaks, and the header fields that
//! belong to it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

use super::{GatewayError, identify, route::Route};
use crate::{prompt::ApiKind, tenants::Limit};

impl GatewayError {
    /// The error object of the API that the client speaks, as a response: Anthropic's on its route, else OpenAI's.
    pub(super) fn response(&self, route: Route) -> Response<Full<Bytes>> {
        let status = self.status();
        let message = self.to_string();
        let body = if route == Route::Inference(ApiKind::Messages) {
            let error = AnthropicError { r#type: self.anthropic_type(), message: &message };
            serde_json::to_string(&AnthropicBody { r#type: "error", error })
        } else {
            let param = matches!(self, Self::NoSuchModel(_) | Self::ModelNotAllowed(_) | Self::ModelNotNamed);
            let param = param.then_some("model");
            let error =
                ErrorObject { message: &message, r#type: self.openai_type(), param, code: self.kind() };
            serde_json::to_string(&ErrorBody { error })
        };
        let mut response = Response::new(Full::from(body.expect("strings serialise")));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(after) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, whole_seconds(after));
        }
        match self {
            Self::Unauthorized(_) => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::OverLimit(over) => {
                identify::set_standings(headers, over.tenant.standings(Instant::now()));
            }
            _ => {}
        }
        let leaves_bytes = matches!(
            self,
            Self::BodyTooLarge { .. }
                | Self::BodiesTooLarge { .. }
                | Self::BodyTimeout(_)
                | Self::BodyBroken
                | Self::Malformed(_)
                | Self::TransferCoding
                | Self::Expectation
                | Self::Header(_)
        );
        if leaves_bytes {
            // What remains of the body is not read, so the connection cannot carry another request.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn openai_type(&self) -> &'static str {
        match self {
            Self::OverLimit(over) if over.kind == Limit::Tokens => "tokens",
            Self::OverLimit(_) | Self::Overloaded { .. } => "requests",
            _ if self.status().is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    fn anthropic_type(&self) -> &'static str {
        match self.status() {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        }
    }

    /// When to come again; `None` where that would not help.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::OverLimit(over) => over.retry_after,
            Self::Overloaded { retry_after, .. } => Some((*retry_after).min(RETRY_AFTER_MAX)),
            Self::NoWorker
            | Self::WorkerUnavailable(_)
            | Self::HookFailed(_)
            | Self::OutOfSockets { .. }
            | Self::BodiesTooLarge { .. } => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

/// A client that is told to come in an hour is told to go.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(2);

/// OpenAI's error shape: `{"error": {"message", "type", "param", "code"}}`.
#[derive(serde::Serialize)]
struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

#[derive(serde::Serialize)]
struct ErrorObject<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}

/// Anthropic's: `{"type": "error", "error": {"type", "message"}}`.
#[derive(serde::Serialize)]
struct AnthropicBody<'a> {
    r#type: &'static str,
    error: AnthropicError<'a>,
}

#[derive(serde::Serialize)]
struct AnthropicError<'a> {
    r#type: &'static str,
    message: &'a str,
}

/// `Retry-After` has whole seconds; none of them is too early.
fn whole_seconds(time: Duration) -> HeaderValue {
    let seconds = time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)).max(1);
    HeaderValue::from(seconds)
}
