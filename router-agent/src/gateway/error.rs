//! What a client is told when the gateway itself must answer.
//!
//! An error says whose fault it is by its status: 4xx the client's, 502 and 504 a worker's, 503 nobody there to serve. The
//! client gets an OpenAI error object whose message names what is wrong and what would be right; causes that are nobody's
//! business but the operator's (addresses, system errors) go to the log only. Errors of workers are not errors here: their
//! responses are relayed as they are.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

use super::{identify, route::Route};
use crate::{
    prompt::{ApiKind, ParseError},
    routing::UnknownPolicy,
    tenants::{Limit, OverLimit, Unauthorized},
    upstream::SendError,
};

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
    /// The bodies of all requests are too long.
    #[error(
        "this gateway holds request bodies of {limit} bytes, its limit (limits.bodies_bytes); try again shortly"
    )]
    BodiesTooLarge {
        /// Bytes.
        limit: usize,
    },
    /// A header of this gateway's own says something else than it may.
    #[error("malformed header {0}")]
    Header(&'static str),
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
    /// No key, or one that is not known.
    #[error(transparent)]
    Unauthorized(#[from] Unauthorized),
    /// The key is for the inference API only.
    #[error("this API key may use the inference API only (paths: all allows the rest)")]
    PathNotAllowed,
    /// The key's limit is reached.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// The key is not for this model, which may or may not exist.
    #[error("The model `{0}` does not exist or you do not have access to it.")]
    ModelNotAllowed(String),
    /// The key is for some models only, and the request names none: the worker could take any.
    #[error("you must provide a model parameter: this API key may use some models only")]
    ModelNotNamed,
    /// The request names a model that no worker serves.
    #[error(
        "The model `{0}` does not exist: no worker of this gateway serves it (GET /v1/models lists those that are)"
    )]
    NoSuchModel(String),
    /// The header is obeyed for those only whom the configuration says.
    #[error(
        "this client may not decide by x-warmpath-{0} (overrides: [{0}], for all or for its key, allows it)"
    )]
    OverrideNotAllowed(&'static str),
    /// `x-warmpath-policy` names none.
    #[error("malformed header x-warmpath-policy: {0}")]
    UnknownPolicy(#[from] UnknownPolicy),
    /// `x-warmpath-worker` names none.
    #[error("x-warmpath-worker: no worker of this gateway is called `{0}`")]
    UnknownWorker(String),
    /// It names one that does not serve the model.
    #[error("x-warmpath-worker: worker `{0}` does not serve the model of this request")]
    WorkerLacksModel(String),
    /// It names one that is given no requests now.
    #[error("x-warmpath-worker: worker `{0}` takes no requests now: it is draining, unhealthy or failing")]
    WorkerUnavailable(String),
    /// No worker can take the request now.
    #[error("no worker is available to serve this request; try again shortly")]
    NoWorker,
    /// A defect of this program.
    #[error("internal error of the gateway")]
    Panicked,
    /// The workers have too much to do.
    #[error("the workers of this gateway have too much to do: {}; try again later", overload.why())]
    Overloaded {
        /// What of the queue.
        overload: Overload,
        /// When it is worth while again; zero where that is not known.
        retry_after: Duration,
    },
    /// The client's own deadline passed before a worker began to answer.
    #[error("no worker has begun to answer within the time that the client gave (x-warmpath-timeout)")]
    Deadline,
    /// Every worker that was tried failed before it answered.
    #[error("{tries} worker(s) failed before answering this request")]
    Failed {
        /// How many were tried.
        tries: usize,
        /// The last failure, for the log.
        last: SendError,
    },
}

/// Why a request may not wait, or not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overload {
    /// The queue is full.
    QueueFull,
    /// It was, and another tenant had less than its share of it.
    PushedOut,
    /// It waited for as long as it may.
    Waited,
    /// At the pace of the last seconds it would wait for longer than it may.
    TooLate,
}

impl Overload {
    /// The name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::PushedOut => "pushed_out",
            Self::Waited => "queue_timeout",
            Self::TooLate => "too_late",
        }
    }

    fn why(self) -> &'static str {
        match self {
            Self::QueueFull => "the queue is full (limits.queue)",
            Self::PushedOut => "the queue is full, and other clients have fewer requests in it",
            Self::Waited => "none had room for this request in time (timeouts.queue, x-warmpath-timeout)",
            Self::TooLate => {
                "this request would wait for longer than it may (timeouts.queue, x-warmpath-timeout)"
            }
        }
    }
}

impl GatewayError {
    /// The status that says whose fault it is.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Parse(_)
            | Self::BodyBroken
            | Self::Malformed(_)
            | Self::Header(_)
            | Self::UnknownPolicy(_)
            | Self::UnknownWorker(_)
            | Self::WorkerLacksModel(_)
            | Self::ModelNotNamed => StatusCode::BAD_REQUEST,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::PathNotAllowed | Self::OverrideNotAllowed(_) => StatusCode::FORBIDDEN,
            Self::OverLimit(_) | Self::Overloaded { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoSuchModel(_) | Self::ModelNotAllowed(_) => StatusCode::NOT_FOUND,
            Self::NoWorker | Self::WorkerUnavailable(_) | Self::BodiesTooLarge { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Self::Failed { last: SendError::Timeout(_) | SendError::Silent(_) | SendError::Hung, .. } => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Failed { .. } => StatusCode::BAD_GATEWAY,
        }
    }

    /// Whose fault it is, for metrics.
    pub fn source_label(&self) -> &'static str {
        match self {
            Self::Failed { .. } => "worker",
            Self::NoWorker
            | Self::WorkerUnavailable(_)
            | Self::BodiesTooLarge { .. }
            | Self::Overloaded { .. }
            | Self::Deadline
            | Self::Panicked => "gateway",
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
            Self::NoSuchModel(_) | Self::ModelNotAllowed(_) => "model_not_found",
            Self::ModelNotNamed => "model_not_named",
            Self::Unauthorized(_) => "invalid_api_key",
            Self::PathNotAllowed => "path_not_allowed",
            Self::OverLimit(_) => "rate_limit_exceeded",
            Self::OverrideNotAllowed(_) => "override_not_allowed",
            Self::UnknownWorker(_) => "worker_not_found",
            Self::WorkerLacksModel(_) => "model_not_on_worker",
            Self::WorkerUnavailable(_) => "worker_unavailable",
            Self::NoWorker => "no_worker_available",
            Self::Panicked => "internal_error",
            Self::BodiesTooLarge { .. } => "bodies_too_large",
            Self::Header(_) | Self::UnknownPolicy(_) => "malformed_header",
            Self::Overloaded { overload, .. } => overload.label(),
            Self::Deadline => "deadline_exceeded",
            Self::Failed { last, .. } => match last {
                SendError::Connect(_) => "worker_unreachable",
                SendError::Broken { .. } | SendError::Empty(_) => "worker_failed",
                SendError::Timeout(_) | SendError::Silent(_) => "worker_timeout",
                SendError::Hung => "worker_hung",
                SendError::Malformed(_) => "worker_malformed",
                SendError::Removed => "worker_removed",
            },
        }
    }

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
}

impl GatewayError {
    /// When to come again; `None` where that would not help.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::OverLimit(over) => over.retry_after,
            Self::Overloaded { retry_after, .. } => Some((*retry_after).min(RETRY_AFTER_MAX)),
            Self::NoWorker | Self::WorkerUnavailable(_) | Self::BodiesTooLarge { .. } => {
                Some(Duration::from_secs(1))
            }
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
