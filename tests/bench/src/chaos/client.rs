//! One client: sends one request, reads what comes, and judges it.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

use super::answers::{WORD_BYTES, body};

/// Longer than anything here may take: no answer for so long is a hang.
const PATIENCE: Duration = Duration::from_mins(1);

/// Of an answer that ends wrongly, what is shown.
const BYTES_SHOWN: usize = 300;

/// A request, and what its answer is to be.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) prompt: String,
    pub(super) answer: String,
    pub(super) words: usize,
    pub(super) stream: bool,
    /// The client hangs up after so many bytes of body, or in front of the head.
    pub(super) leaves_after: Option<usize>,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Every byte as it must be.
    Exact,
    /// An honest end in the middle: an error event, vLLM's own word that it gave up (`finish_reason: "abort"`), or a body
    /// that is visibly not whole. Something had come.
    Cut,
    /// The same, and nothing had come behind the head: another worker could have begun anew.
    CutAtOnce,
    /// An error in OpenAI's form, with its status and code.
    Refused(u16, String),
    /// The client hung up.
    Left,
    /// What must not be.
    Wrong(String),
}

/// Asks over a connection of its own.
pub(super) async fn ask(gateway: SocketAddr, question: &Question) -> Outcome {
    match timeout(PATIENCE, exchange(gateway, question)).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Wrong(format!("no end within {PATIENCE:?}")),
    }
}

async fn exchange(gateway: SocketAddr, question: &Question) -> Outcome {
    let wrong = |what: &str, error: &dyn std::fmt::Display| Outcome::Wrong(format!("{what}: {error}"));
    let stream = match TcpStream::connect(gateway).await {
        Ok(stream) => stream,
        Err(error) => return wrong("connecting", &error),
    };
    let (mut sender, connection) = match http1::handshake(TokioIo::new(stream)).await {
        Ok(pair) => pair,
        Err(error) => return wrong("handshake", &error),
    };
    // Dropped with this call: the socket is closed then, in whatever state.
    let _connection = Driver(tokio::spawn(connection));
    let bytes = body(&question.prompt, question.words, question.stream).to_string();
    let request = Request::post("/v1/chat/completions")
        .header("host", "chaos")
        .header("content-type", "application/json")
        .header("connection", "close")
        .body(Full::<Bytes>::from(bytes))
        .expect("a constant request head");
    let sent = sender.send_request(request);
    if question.leaves_after == Some(0) {
        let _ = timeout(Duration::from_millis(3), sent).await;
        return Outcome::Left;
    }
    match sent.await {
        Ok(response) => judge(response, question).await,
        Err(error) => wrong("before the head", &error),
    }
}

struct Driver(tokio::task::JoinHandle<hyper::Result<()>>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn judge(mut response: Response<Incoming>, question: &Question) -> Outcome {
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    let mut body = Vec::new();
    let mut is_whole = true;
    while let Some(frame) = response.frame().await {
        let Ok(frame) = frame else {
            is_whole = false;
            break;
        };
        body.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        if question.leaves_after.is_some_and(|bytes| body.len() >= bytes) {
            return Outcome::Left;
        }
    }
    let text = String::from_utf8_lossy(&body);
    if status != 200 {
        let code = serde_json::from_str::<Value>(&text).ok().filter(|_| is_whole).and_then(|error| {
            let error = error.get("error")?;
            error.get("message")?.as_str()?;
            Some(error.get("code")?.to_string())
        });
        return code.map_or_else(
            || Outcome::Wrong(format!("status {status} with {text:?} and {headers:?}")),
            |code| Outcome::Refused(status, code),
        );
    }
    let expected = &question.answer[..question.words * WORD_BYTES];
    if question.stream {
        judge_stream(&text, is_whole, expected)
    } else {
        judge_whole(&text, is_whole, expected)
    }
}

/// An honest end behind `text`.
fn cut(text: &str) -> Outcome {
    if text.is_empty() { Outcome::CutAtOnce } else { Outcome::Cut }
}

fn judge_whole(text: &str, is_whole: bool, expected: &str) -> Outcome {
    if !is_whole {
        return cut(text);
    }
    let answer = serde_json::from_str::<Value>(text).unwrap_or_default();
    let string = |pointer| answer.pointer(pointer).and_then(Value::as_str);
    match string("/choices/0/message/content") {
        Some(content) if content == expected => Outcome::Exact,
        Some(content)
            if expected.starts_with(content) && string("/choices/0/finish_reason") == Some("abort") =>
        {
            cut(text)
        }
        Some(content) => Outcome::Wrong(format!("an answer of {content:?}, not {expected:?}")),
        None => Outcome::Wrong(format!("an answer that is none: {text:?}")),
    }
}

fn judge_stream(text: &str, is_whole: bool, expected: &str) -> Outcome {
    let (mut content, mut is_done, mut has_error, mut half) = (String::new(), false, false, None);
    // What stands behind the last blank line is half an event.
    let complete = text.rfind("\n\n").map_or("", |end| &text[..end]);
    for event in complete.split("\n\n").filter(|event| !event.is_empty()) {
        let Some(data) = event.strip_prefix("data: ") else {
            return Outcome::Wrong(format!("an event of {event:?}"));
        };
        if data == "[DONE]" {
            is_done = true;
            continue;
        }
        let Ok(data) = serde_json::from_str::<Value>(data) else {
            // Cut in its middle, which the error event behind it must say.
            if let Some(before) = half.replace(data) {
                return Outcome::Wrong(format!("half an event with more behind it: {before:?}"));
            }
            continue;
        };
        let aborted = data.pointer("/choices/0/finish_reason").and_then(Value::as_str) == Some("abort");
        has_error |= aborted || data.get("error").is_some();
        if half.is_some() && !has_error {
            return Outcome::Wrong(format!("half an event with more behind it: {half:?}"));
        }
        content
            .push_str(data.pointer("/choices/0/delta/content").and_then(Value::as_str).unwrap_or_default());
    }
    if !expected.starts_with(&content) {
        return Outcome::Wrong(format!("a stream of {content:?}, not {expected:?}"));
    }
    if content == expected && is_done && is_whole && !has_error {
        Outcome::Exact
    } else if half.is_some() && !has_error {
        Outcome::Wrong(format!("half an event at a proper end: {half:?}"))
    } else if has_error || !is_whole {
        cut(text)
    } else {
        let last = &text[text.floor_char_boundary(text.len().saturating_sub(BYTES_SHOWN))..];
        Outcome::Wrong(format!("a stream that ends as if it were whole, and before its end: …{last:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> String {
        format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
    }

    #[test]
    fn a_stream_is_exact_or_visibly_cut_or_wrong() {
        let (one, two) = (event("abcd"), event("efgh"));
        let error = "data: {\"error\":{\"message\":\"x\"}}\n\n";
        let done = "data: [DONE]\n\n";
        let judge = |text: String, is_whole| judge_stream(&text, is_whole, "abcdefgh");
        assert_eq!(judge(format!("{one}{two}{done}"), true), Outcome::Exact);
        assert_eq!(judge(format!("{one}{error}{done}"), true), Outcome::Cut);
        assert_eq!(judge(format!("{one}{}", &two[..9]), false), Outcome::Cut);
        assert!(matches!(judge(format!("{one}{done}"), true), Outcome::Wrong(_)), "a silent cut");
        assert!(matches!(judge(format!("{two}{one}{done}"), true), Outcome::Wrong(_)), "out of order");
        assert!(matches!(judge(format!("{one}{two}"), true), Outcome::Wrong(_)), "no end");
        let abort = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"abort\"}]}\n\n";
        assert_eq!(judge(format!("{one}{abort}{done}"), true), Outcome::Cut);
        let half = format!("{}   \n\n", &two[..20]);
        assert_eq!(judge(format!("{one}{half}{error}{done}"), true), Outcome::Cut);
        assert!(
            matches!(judge(format!("{one}{half}{two}{done}"), true), Outcome::Wrong(_)),
            "more behind it"
        );
        assert!(matches!(judge(format!("{one}{half}{done}"), true), Outcome::Wrong(_)), "nothing says it");
    }
}
