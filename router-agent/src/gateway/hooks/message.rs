//! What a hook is sent, and what it may answer: JSON objects.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use crate::{
    gateway::route::Route,
    limits,
    prompt::{self, ApiKind},
};

/// A request, as far as a hook is told of it.
pub(super) struct About<'a> {
    pub(super) request_id: &'a HeaderValue,
    pub(super) tenant: &'a str,
    pub(super) kind: ApiKind,
    pub(super) path: &'a str,
    pub(super) model: Option<&'a str>,
    pub(super) headers: &'a HeaderMap,
    /// Fields that are sent beside the usual ones.
    pub(super) extra_headers: &'a [HeaderName],
    /// A JSON object.
    pub(super) body: Option<&'a [u8]>,
}

/// Fields that every hook is sent: none that has a secret in it.
const USUAL_HEADERS: [&str; 7] = [
    "accept",
    "accept-language",
    "content-type",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-forwarded-for",
];

#[derive(Serialize)]
struct Written<'a> {
    request_id: &'a str,
    tenant: &'a str,
    route: &'a str,
    path: &'a str,
    model: Option<&'a str>,
    headers: BTreeMap<&'a str, &'a str>,
}

impl About<'_> {
    /// The body stands in it as the client wrote it.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let sent = USUAL_HEADERS.into_iter().chain(self.extra_headers.iter().map(HeaderName::as_str));
        let headers = sent.filter_map(|name| Some((name, self.headers.get(name)?.to_str().ok()?)));
        let written = Written {
            request_id: self.request_id.to_str().unwrap_or_default(),
            tenant: self.tenant,
            route: Route::Inference(self.kind).label(),
            path: self.path,
            model: self.model,
            headers: headers.collect(),
        };
        let mut json = serde_json::to_vec(&written).expect("strings serialise");
        if let Some(body) = self.body.map(prompt::without_mark) {
            json.pop(); // the closing brace
            json.reserve_exact(body.len() + 16);
            json.extend_from_slice(b",\"body\":");
            json.extend_from_slice(body);
            json.push(b'}');
        }
        json
    }
}

/// What a hook says of a request.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// It goes on as it is.
    Allow,
    /// It goes no further, and its client is told so.
    Reject { status: StatusCode, message: String },
    /// It goes on changed.
    Transform { body: Option<Vec<u8>>, headers: HeaderMap },
}

/// Why an answer is none.
#[derive(Debug, thiserror::Error)]
pub(in crate::gateway) enum Misunderstood {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(
        "it may not set the header {0:?}: names that begin with `x-`, but none that this gateway sets or drops"
    )]
    Header(String),
    #[error("it sets {0} headers, more than {max}", max = limits::HOOK_HEADERS_MAX)]
    Headers(usize),
    #[error("the status of a refusal is 400 to 599, not {0}")]
    Status(u16),
    #[error("a body is a JSON object of at most {0} bytes; a hook with `body: none` sends none")]
    Body(usize),
}

#[derive(Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
enum Read {
    Allow,
    Reject {
        status: Option<u16>,
        message: Option<String>,
    },
    Transform {
        #[serde(default)]
        headers: BTreeMap<String, String>,
    },
}

impl Answer {
    /// A body in it may have so many bytes.
    pub(super) fn parse(json: &[u8], body_bytes_max: usize) -> Result<Self, Misunderstood> {
        match serde_json::from_slice(json)? {
            Read::Allow => Ok(Self::Allow),
            Read::Reject { status, message } => {
                let code = status.unwrap_or(StatusCode::FORBIDDEN.as_u16());
                let status = StatusCode::from_u16(code).ok().filter(|status| status.as_u16() >= 400);
                let status =
                    status.filter(|status| status.as_u16() < 600).ok_or(Misunderstood::Status(code))?;
                let mut message = message
                    .unwrap_or_else(|| "this request was refused by a check of this gateway".to_owned());
                message.truncate(message.floor_char_boundary(limits::HOOK_MESSAGE_BYTES_MAX));
                Ok(Self::Reject { status, message })
            }
            Read::Transform { headers } => {
                if headers.len() > limits::HOOK_HEADERS_MAX {
                    return Err(Misunderstood::Headers(headers.len()));
                }
                let headers =
                    headers.iter().map(|(name, value)| field(name, value)).collect::<Result<_, _>>()?;
                let body = prompt::raw_member(json, "body").map(<[u8]>::to_vec);
                if body.as_ref().is_some_and(|body| body.len() > body_bytes_max || !body.starts_with(b"{")) {
                    return Err(Misunderstood::Body(body_bytes_max));
                }
                Ok(Self::Transform { body, headers })
            }
        }
    }
}

/// A header field that a hook may set.
fn field(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Misunderstood> {
    const OURS: [&str; 5] = ["x-warmpath-", "x-forwarded-", "x-real-ip", "x-request-id", "x-api-key"];
    let field = name.parse::<HeaderName>().ok().filter(|field| {
        let name = field.as_str().replace('_', "-");
        name.starts_with("x-") && !OURS.iter().any(|start| name.starts_with(start))
    });
    field.zip(value.parse().ok()).ok_or_else(|| Misunderstood::Header(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_hook_is_sent_the_body_as_it_is_and_no_secret() {
        let headers = [("authorization", "Bearer k"), ("cookie", "k"), ("x-team", "t"), ("user-agent", "u")];
        let headers =
            headers.map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()));
        let about = About {
            request_id: &HeaderValue::from_static("id"),
            tenant: "a",
            kind: ApiKind::Chat,
            path: "/v1/chat/completions",
            model: Some("m"),
            headers: &headers.into_iter().collect(),
            extra_headers: &[HeaderName::from_static("x-team")],
            body: Some(b"\xef\xbb\xbf{\"n\": 1.50}"),
        };
        let json = String::from_utf8(about.to_json()).unwrap();
        assert!(json.ends_with(",\"body\":{\"n\": 1.50}}"), "{json}");
        let expected = json!({
            "request_id": "id", "tenant": "a", "route": "chat", "path": "/v1/chat/completions", "model": "m",
            "headers": {"user-agent": "u", "x-team": "t"}, "body": {"n": 1.5},
        });
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), expected);
        let without = About { body: None, ..about };
        assert!(serde_json::from_slice::<Value>(&without.to_json()).unwrap().get("body").is_none());
    }

    fn answer(json: &Value) -> Result<Answer, String> {
        Answer::parse(json.to_string().as_bytes(), 20).map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_hook_may_answer_is_read() {
        assert_eq!(answer(&json!({"action": "allow", "more": 1})), Ok(Answer::Allow));
        let rejected = |status, message: &str| Answer::Reject { status, message: message.to_owned() };
        let said = answer(&json!({"action": "reject", "status": 451, "message": "no"})).unwrap();
        assert_eq!(said, rejected(StatusCode::from_u16(451).unwrap(), "no"));
        let long = answer(&json!({"action": "reject", "message": "ü".repeat(5_000)})).unwrap();
        assert_eq!(long, rejected(StatusCode::FORBIDDEN, &"ü".repeat(limits::HOOK_MESSAGE_BYTES_MAX / 2)));
        let json = br#"{"action": "transform", "body": { "n" : 1 }, "headers": {"X-Team": "t"}}"#;
        let headers =
            HeaderMap::from_iter([(HeaderName::from_static("x-team"), HeaderValue::from_static("t"))]);
        assert_eq!(
            Answer::parse(json, 20).unwrap(),
            Answer::Transform { body: Some(b"{ \"n\" : 1 }".into()), headers }
        );
        let nothing = Answer::Transform { body: None, headers: HeaderMap::new() };
        assert_eq!(answer(&json!({"action": "transform"})), Ok(nothing));
    }

    #[test]
    fn what_it_may_not_is_named() {
        let wrong = |json: Value, word: &str| {
            let said = answer(&json).unwrap_err();
            assert!(said.contains(word), "{said}");
        };
        wrong(json!({"action": "perhaps"}), "perhaps");
        wrong(json!([]), "action");
        wrong(json!({"action": "reject", "status": 200}), "400 to 599");
        wrong(json!({"action": "transform", "body": []}), "JSON object");
        wrong(json!({"action": "transform", "body": {"a": "longer than it may be"}}), "at most 20");
        for name in [
            "authorization",
            "host",
            "x-api-key",
            "x-warmpath-worker",
            "x_request_id",
            "x-forwarded-for",
            "a b",
        ] {
            wrong(json!({"action": "transform", "headers": {name: "v"}}), name);
        }
        wrong(json!({"action": "transform", "headers": {"x-a": "1\n2"}}), "x-a");
        let many: BTreeMap<_, _> = (0..17).map(|n| (format!("x-{n}"), "v")).collect();
        wrong(json!({"action": "transform", "headers": many}), "17 headers");
    }
}
