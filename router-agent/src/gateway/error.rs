//! What a client is told when the gateway itself must answer.
//!
//! An error says whose fault it is by its status: 4xx the client's, 502 and 504 a worker's, 503 nobody there to serve. The
//! client gets an OpenAI error object whose message names what is wrong and what would be right; causes that are nobody's
//! business but the operator's (addresses, system errors) go to the log only. Errors of workers are not errors here: their
//! responses are relayed as they are.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

use crate::{prompt::ParseError, upstream::SendError};

/// Why the gateway answers instead of a worker.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The body is not what the API takes.
    #[error("{0}")]
    Parse(#[from] ParseError),
    /// The body is too long.
    #[error("request body is larger than {limit} bytes, the limit of this gateway (limits.body_bytes)")]
    BodyTooLarge {
        /// Bytes.
        limit: usize,
    },
    /// The body stopped coming.
    #[error("request body paused for longer than {0:?} (timeouts.body_idle)")]
    BodyTimeout(Duration),
    /// The body broke off or is not well framed. The client is mostly gone.
    #[error("request body could not be read to its end")]
    BodyBroken,
    /// The head is HTTP, and yet not to be served: see `conformance`.
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    /// A body that is coded in another way than in chunks.
    #[error("the only transfer coding that this gateway reads is `chunked`, once")]
    TransferCoding,
    /// An `Expect` field of something else.
    #[error("the only expectation that this gateway can meet is `100-continue`")]
    Expectation,
    /// A method that makes no sense here.
    #[error("method CONNECT is not supported: this is a gateway, not a forward proxy")]
    Connect,
    /// The request names a model that no worker serves.
    #[error(
        "The model `{0}` does not exist: no worker of this gateway serves it (GET /v1/models lists those that are)"
    )]
    NoSuchModel(String),
    /// No worker can take the request now.
    #[error("no worker is available to serve this request; try again shortly")]
    NoWorker,
    /// Every worker that was tried failed before it answered.
    #[error("{tries} worker(s) failed before answering this request")]
    Failed {
        /// How many were tried.
        tries: usize,
        /// The last failure, for the log.
        last: SendError,
    },
}

impl GatewayError {
    /// The status that says whose fault it is.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Parse(_) | Self::BodyBroken | Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoSuchModel(_) => StatusCode::NOT_FOUND,
            Self::NoWorker => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed { last: SendError::Timeout(_), .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Failed { .. } => StatusCode::BAD_GATEWAY,
        }
    }

    /// Whose fault it is, for metrics.
    pub fn source_label(&self) -> &'static str {
        match self {
            Self::Failed { .. } => "worker",
            Self::NoWorker => "gateway",
            _ => "client",
        }
    }

    /// A bounded label for metrics, and the `code` of the error object.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Parse(_) => "invalid_request_body",
            Self::BodyTooLarge { .. } => "request_too_large",
            Self::BodyTimeout(_) => "request_timeout",
            Self::BodyBroken => "request_incomplete",
            Self::Malformed(_) => "malformed_request",
            Self::TransferCoding => "transfer_coding_not_supported",
            Self::Expectation => "expectation_failed",
            Self::Connect => "method_not_supported",
            Self::NoSuchModel(_) => "model_not_found",
            Self::NoWorker => "no_worker_available",
            Self::Failed { last, .. } => match last {
                SendError::Connect(_) => "worker_unreachable",
                SendError::Broken { .. } => "worker_failed",
                SendError::Timeout(_) => "worker_timeout",
                SendError::Malformed(_) => "worker_malformed",
                SendError::Removed => "worker_removed",
            },
        }
    }

    /// The OpenAI error object, as a response.
    pub fn response(&self) -> Response<Full<Bytes>> {
        let status = self.status();
        let kind = if status.is_client_error() { "invalid_request_error" } else { "server_error" };
        let message = self.to_string();
        let param = matches!(self, Self::NoSuchModel(_)).then_some("model");
        let error = ErrorObject { message: &message, r#type: kind, param, code: self.kind() };
        let body = serde_json::to_string(&ErrorBody { error }).expect("strings serialise");
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        let leaves_bytes = matches!(
            self,
            Self::BodyTooLarge { .. }
                | Self::BodyTimeout(_)
                | Self::BodyBroken
                | Self::Malformed(_)
                | Self::TransferCoding
                | Self::Expectation
        );
        if leaves_bytes {
            // What remains of the body is not read, so the connection cannot carry another request.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

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
