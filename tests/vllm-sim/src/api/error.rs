//! vLLM's error bodies.
//!
//! Three shapes exist: FastAPI's own `{"detail": …}`, the API key guard's `{"error": "Unauthorized"}`, and OpenAI's
//! `{"error": {"message", "type", "param", "code"}}`, whose `type` tells validation by pydantic ("Bad Request") from
//! validation by vLLM ("BadRequestError").

use serde::Serialize;

/// An error that ends a request before its response began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    pub(crate) kind: String,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    pub(crate) retry_after_s: Option<u64>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: u16,
}

impl ApiError {
    fn new(status: u16, kind: &str, message: String, param: Option<&str>) -> Self {
        Self { status, kind: kind.to_owned(), message, param: param.map(str::to_owned), retry_after_s: None }
    }

    /// A field that vLLM itself refuses.
    pub(crate) fn bad_request(message: String, param: Option<&str>) -> Self {
        Self::new(400, "BadRequestError", message, param)
    }

    /// As [`ApiError::bad_request`], for one parameter and, where it is told, its value.
    pub(crate) fn parameter(message: &str, param: &str, value: Option<String>) -> Self {
        let value = value.map(|value| format!(", value={value}")).unwrap_or_default();
        Self::bad_request(format!("{message} (parameter={param}{value})"), Some(param))
    }

    /// What pydantic refuses: `details` is its error in Python's dict notation.
    pub(crate) fn validation(details: &str, param: Option<&str>) -> Self {
        Self::new(400, "Bad Request", format!("1 validation error:\n  {details}"), param)
    }

    /// A field of the wrong type. `input` is the value in Python's notation.
    pub(crate) fn wrong_type(kind: &str, location: &str, message: &str, input: &str) -> Self {
        let details =
            format!("{{'type': '{kind}', 'loc': '{location}', 'msg': '{message}', 'input': {input}}}");
        Self::validation(&details, Some(location))
    }

    pub(crate) fn unknown_model(model: &str, known: &[&str]) -> Self {
        let message = format!("The model `{model}` does not exist. Valid aliases: {}.", known.join(", "));
        Self::new(404, "NotFoundError", message, Some("model"))
    }

    pub(crate) fn too_long(max_model_len: usize, tokens: usize, at_least: bool) -> Self {
        let at_least = if at_least { "at least " } else { "" };
        let message = format!(
            "This model's maximum context length is {max_model_len} tokens. However, your prompt contains \
             {at_least}{tokens} input tokens, which exceeds this limit even without any output tokens. Please reduce \
             the length of the input prompt."
        );
        Self::parameter(&message, "input_tokens", Some(tokens.to_string()))
    }

    pub(crate) fn busy() -> Self {
        let message = "The engine is currently busy and cannot accept new requests. Please try again later or on a \
                       different instance.";
        Self::new(503, "Service Unavailable", message.to_owned(), None)
    }

    pub(crate) fn shutting_down() -> Self {
        let message = "cannot schedule new futures after shutdown".to_owned();
        Self::new(500, "InternalServerError", message, None)
    }

    pub(crate) fn engine_dead() -> Self {
        Self::new(500, "InternalServerError", ENGINE_DEAD.to_owned(), None)
    }

    /// The KV blocks of a prompt that was computed elsewhere could not be fetched.
    pub(crate) fn kv_load_failed() -> Self {
        Self::new(500, "InternalServerError", KV_LOAD_FAILED.to_owned(), None)
    }

    /// A status on demand.
    pub(crate) fn injected(status: u16, retry_after_s: Option<u64>) -> Self {
        let (kind, message) = match status {
            503 => return Self { retry_after_s, ..Self::busy() },
            429 => ("Too Many Requests", "Too many requests. Please try again later."),
            500 => return Self { retry_after_s, ..Self::engine_dead() },
            _ => ("Internal Server Error", "Injected fault."),
        };
        Self { retry_after_s, ..Self::new(status, kind, message.to_owned(), None) }
    }

    /// The body, in compact JSON.
    pub(crate) fn body(&self) -> Vec<u8> {
        let param = self.param.as_deref();
        let inner = Inner { message: &self.message, r#type: &self.kind, param, code: self.status };
        serde_json::to_vec(&Body { error: inner }).expect("strings and numbers serialise")
    }
}

impl ApiError {
    /// The body as `/v1/messages` has it; what pydantic refuses keeps OpenAI's shape there too.
    pub(crate) fn anthropic_body(&self) -> Vec<u8> {
        if self.kind == "Bad Request" {
            return self.body();
        }
        let quoted = |text: &str| serde_json::to_string(text).expect("a string serialises");
        let (kind, message) = (quoted(&self.kind), quoted(&self.message));
        format!("{{\"type\":\"error\",\"error\":{{\"type\":{kind},\"message\":{message}}}}}").into_bytes()
    }
}

const ENGINE_DEAD: &str = "EngineCore encountered an issue. See stack trace (above) for the root cause.";

/// What a request is told that failed in the engine, without more.
const KV_LOAD_FAILED: &str = "Internal server error";

impl ApiError {
    /// The SSE event with which it ends a stream, in `json.dumps`' spacing.
    pub(crate) fn stream_event(&self) -> String {
        let Self { message, kind, status, .. } = self;
        format!(
            "data: {{\"error\": {{\"message\": \"{message}\", \"type\": \"{kind}\", \"param\": null, \
             \"code\": {status}}}}}\n\n"
        )
    }
}
