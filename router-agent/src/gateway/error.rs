//! What a client is told when the gateway itself must answer.
//!
//! An error says whose fault it is by its status: 4xx the client's, 502 and 504 a worker's, 503 nobody there to serve. The
//! client gets an OpenAI error object whose message names what is wrong and what would be right; causes that are nobody's
//! business but the operator's (addresses, system errors) go to the log only. Errors of workers are not errors here: their
//! responses are relayed as they are.

use std::{sync::Arc, time::Duration};

use http::StatusCode;

use crate::{
    prompt::ParseError,
    routing::UnknownPolicy,
    tenants::{OverLimit, Unauthorized},
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
    /// A hook said no, in its own words.
    #[error("{message}")]
    RejectedByHook {
        /// Its status.
        status: StatusCode,
        /// What the client is told.
        message: String,
    },
    /// A hook that must not be left out gave no answer.
    #[error(
        "this request has to be checked before it is served, and the check `{0}` gives no answer; try again shortly"
    )]
    HookFailed(Arc<str>),
    /// The request is longer than a hook that must not be left out is sent.
    #[error(
        "this request has to be checked before it is served, and the check `{hook}` takes no more than {limit} bytes"
    )]
    TooLongForHook {
        /// Its name.
        hook: Arc<str>,
        /// Bytes.
        limit: usize,
    },
    /// No worker can take the request now.
    #[error("no worker is available to serve this request; try again shortly")]
    NoWorker,
    /// This host has no socket left for a connection to a worker.
    #[error("this gateway has no socket left to ask a worker with; try again shortly")]
    OutOfSockets {
        /// The system's word, for the log.
        #[source]
        last: SendError,
    },
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
    /// Envoy does not let its bodies be read.
    #[error(
        "this endpoint picker reads request bodies: set request_body_mode: FULL_DUPLEX_STREAMED (or BUFFERED) in the \
         processing_mode of Envoy's ext_proc filter"
    )]
    BodyMode,
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
            Self::BodyTooLarge { .. } | Self::TooLongForHook { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RejectedByHook { status, .. } => *status,
            Self::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoSuchModel(_) | Self::ModelNotAllowed(_) => StatusCode::NOT_FOUND,
            Self::NoWorker
            | Self::WorkerUnavailable(_)
            | Self::HookFailed(_)
            | Self::OutOfSockets { .. }
            | Self::BodiesTooLarge { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Panicked | Self::BodyMode => StatusCode::INTERNAL_SERVER_ERROR,
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
            | Self::HookFailed(_)
            | Self::BodiesTooLarge { .. }
            | Self::OutOfSockets { .. }
            | Self::Overloaded { .. }
            | Self::Deadline
            | Self::Panicked
            | Self::BodyMode => "gateway",
            _ => "client",
        }
    }

    /// A bounded label for metrics, and the `code` of the error object.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Parse(_) => "invalid_request_body",
            Self::BodyTooLarge { .. } | Self::TooLongForHook { .. } => "request_too_large",
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
            Self::RejectedByHook { .. } => "rejected_by_hook",
            Self::HookFailed(_) => "hook_failed",
            Self::NoWorker => "no_worker_available",
            Self::OutOfSockets { .. } => "out_of_sockets",
            Self::Panicked => "internal_error",
            Self::BodyMode => "body_mode",
            Self::BodiesTooLarge { .. } => "bodies_too_large",
            Self::Header(_) | Self::UnknownPolicy(_) => "malformed_header",
            Self::Overloaded { overload, .. } => overload.label(),
            Self::Deadline => "deadline_exceeded",
            Self::Failed { last, .. } => match last {
                SendError::Connect(_) => "worker_unreachable",
                SendError::Broken { .. } | SendError::Empty(_) | SendError::ErrorEvent => "worker_failed",
                SendError::Timeout(_) | SendError::Silent(_) => "worker_timeout",
                SendError::Hung => "worker_hung",
                SendError::Malformed(_) => "worker_malformed",
                SendError::Removed => "worker_removed",
            },
        }
    }
}
