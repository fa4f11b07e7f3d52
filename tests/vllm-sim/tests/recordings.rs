//! Every recorded exchange, sent again to a simulated worker that was started with the recorded server's options.
//!
//! Compared: status line; names, order and values of headers; the JSON's members, their order, types and (where they do
//! not follow from the model) values; events, one by one, with their chunk boundaries; and what happens to the
//! connection. Errors must be equal byte for byte.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::value::RawValue;
use vllm_sim::SimConfig;

use crate::support::{Client, Response, fixture, fixture_lines, start, tiny};

/// Members whose values depend on the model, the tokenizer, the clock or chance. Their types are compared.
const FREE: &[&str] = &[
    "id",
    "item_id",
    "request_id",
    "created",
    "created_at",
    "system_fingerprint",
    "text",
    "content",
    "delta",
    "prompt",
    "prompt_tokens",
    "total_tokens",
    "completion_tokens",
    "cached_tokens",
    "created_cache_tokens",
    "input_tokens",
    "output_tokens",
    "count",
    "tokens",
    "token_ids",
    "prompt_token_ids",
    "token_strs",
    "token_logprobs",
    "text_offset",
    "max_tokens",
];

/// Inter-token latency at which even a busy host keeps tokens apart.
const SLOWEST: Duration = Duration::from_millis(100);

fn options_for(name: &str) -> SimConfig {
    let mut config = tiny();
    if ["apikey_", "render_", "orca_"].iter().any(|prefix| name.starts_with(prefix)) {
        config.api_key = Some("sk-test".to_owned());
        config.enable_request_id_headers = true;
        config.enable_scale_out = true;
    }
    config
}

/// Exchanges that need more than one connection; they have tests of their own below.
const SEPARATE: &[&str] =
    &["stream_queued_sse_keepalive", "admission_503", "admission_503_stream", "health_while_rejecting"];

#[tokio::test]
async fn every_recorded_exchange_is_answered_alike() {
    let index = fixture_lines("http_index.jsonl");
    assert!(index.len() > 70, "the recordings are there");
    let mut exchanges = Vec::new();
    for entry in index {
        let name = entry["name"].as_str().unwrap().to_owned();
        if SEPARATE.contains(&name.as_str()) {
            continue;
        }
        exchanges.push((
            name.clone(),
            tokio::spawn(async move {
                let closed = entry["closed"].as_array().map(|closed| closed[1].as_f64().unwrap());
                replay(&name, closed).await;
            }),
        ));
    }
    let mut failures = String::new();
    for (name, exchange) in exchanges {
        if let Err(panic) = exchange.await {
            let panic = panic.into_panic();
            let said = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "panicked".to_owned());
            write!(failures, "\n== {name}\n{said}").unwrap();
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

async fn replay(name: &str, closed_s: Option<f64>) {
    let request = fixture(&format!("http/{name}.req"));
    let head_only = request.starts_with(b"HEAD");
    let recorded = Response::parse_all(&fixture(&format!("http/{name}.resp")), head_only);
    let mut config = options_for(name);
    let chunks =
        |responses: &[Response]| responses.iter().filter_map(|own| own.chunks.clone()).flatten().count();
    // On a busy host tokens merge into one event, as under vLLM: then once more, with a slower engine.
    let (sim, mut client, answered) = loop {
        let sim = start(config.clone()).await;
        let mut client = Client::connect(sim.addr()).await;
        client.send(&request).await;
        let answered =
            if recorded.is_empty() { Vec::new() } else { client.responses(recorded.len(), head_only).await };
        if chunks(&answered) >= chunks(&recorded) || config.engine.time.itl_base > SLOWEST {
            break (sim, client, answered);
        }
        config.engine.time.itl_base *= 4;
    };
    assert_eq!(answered.len(), recorded.len(), "number of responses");
    for (own, recorded) in answered.iter().zip(&recorded) {
        compare_heads(own, recorded, &sim.addr().to_string());
        if name == "completion_stream_n2" {
            compare_unordered(own, recorded);
        } else {
            compare_bodies(own, recorded);
        }
    }
    if answered.iter().any(|response| response.chunks.is_some()) {
        check_write_boundaries(&client);
    }
    match closed_s {
        Some(at_s) => {
            while client.read().await {}
            let own_s = client.closed.unwrap().as_secs_f64();
            assert!((own_s - at_s).abs() < 0.5, "closed after {own_s} s, recorded {at_s} s");
        }
        None => assert!(!client.closes_within(Duration::from_millis(100)).await, "the connection is kept"),
    }
}

fn compare_heads(own: &Response, recorded: &Response, addr: &str) {
    assert_eq!(own.status_line, recorded.status_line);
    let names =
        |response: &Response| response.headers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(own), names(recorded), "{own:?}");
    for ((name, own_value), (_, value)) in own.headers.iter().zip(&recorded.headers) {
        match name.as_str() {
            "date" => assert_eq!(shape_of_text(own_value), shape_of_text(value)),
            "content-length" => {} // the body says
            "x-request-id" => {
                assert!(own_value.len() == 32 && own_value.bytes().all(|b| b.is_ascii_hexdigit()));
            }
            "location" => assert_eq!(own_value.replace(addr, "127.0.0.1:8001"), *value),
            _ => assert_eq!(own_value, value, "{name}"),
        }
    }
}

fn compare_bodies(own: &Response, recorded: &Response) {
    let (Some(own_chunks), Some(chunks)) = (&own.chunks, &recorded.chunks) else {
        assert_eq!(own.chunks.is_some(), recorded.chunks.is_some());
        let content_type = recorded.header("content-type").unwrap_or_default();
        if content_type.starts_with("text/plain; version") {
            return; // the metrics have a test of their own
        }
        assert_eq!(body_shape(&own.body), body_shape(&recorded.body));
        if recorded.status() >= 400 {
            assert_eq!(own.body_text(), recorded.body_text());
        }
        return;
    };
    let shapes = |chunks: &[Vec<u8>]| chunks.iter().map(|chunk| event_shape(chunk)).collect::<Vec<_>>();
    let (own_shapes, shapes) = (shapes(own_chunks), shapes(chunks));
    for (position, (own_shape, shape)) in own_shapes.iter().zip(&shapes).enumerate() {
        assert_eq!(own_shape, shape, "event {position}");
    }
    assert_eq!(own_shapes.len(), shapes.len(), "number of events");
}

/// With two choices, which one's event comes first is the server's business.
fn compare_unordered(own: &Response, recorded: &Response) {
    let shapes = |response: &Response| {
        let mut shapes: Vec<_> =
            response.chunks.as_ref().unwrap().iter().map(|chunk| event_shape(chunk)).collect();
        shapes.sort();
        shapes
    };
    assert_eq!(shapes(own), shapes(recorded));
}

/// The head leaves before the first event, and no read ends within a chunk: each was sent whole.
fn check_write_boundaries(client: &Client) {
    let bytes = client.bytes();
    let head_len = Response::parse_all(&bytes, false)[0].head_len;
    let mut boundaries = vec![head_len];
    while let Some(line) =
        bytes[*boundaries.last().unwrap()..].windows(2).position(|window| window == b"\r\n")
    {
        let at = *boundaries.last().unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).unwrap(), 16).unwrap();
        boundaries.push(at + line + 2 + size + 2);
    }
    let mut end = 0;
    for (_, read) in &client.reads {
        end += read.len();
        assert!(boundaries.contains(&end), "a read ends at byte {end}, writes at {boundaries:?}");
    }
}

/// An SSE event's lines, with the data's JSON as its shape.
fn event_shape(chunk: &[u8]) -> String {
    let text = std::str::from_utf8(chunk).unwrap();
    assert!(text.ends_with("\n\n"), "an event is a chunk: {text:?}");
    let lines = text.trim_end().lines().map(|line| match line.strip_prefix("data: {") {
        Some(_) => format!("data: {}", body_shape(line.trim_start_matches("data: ").as_bytes())),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn body_shape(body: &[u8]) -> String {
    match serde_json::from_slice::<&RawValue>(body) {
        Ok(raw) => shape(raw.get(), false),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    }
}

/// A JSON text with its free values replaced by their types; members stay in order.
fn shape(text: &str, free: bool) -> String {
    match text.as_bytes()[0] {
        b'{' => {
            let members: Members<'_> = serde_json::from_str(text).unwrap();
            let inner: Vec<_> = members
                .0
                .iter()
                .map(|(key, raw)| {
                    // Log probabilities are keyed by token.
                    let key = if raw.get().starts_with('-') { "TOKEN" } else { key };
                    let free = FREE.contains(&key) || key == "TOKEN";
                    format!("{key}:{}", shape(raw.get(), free))
                })
                .collect();
            format!("{{{}}}", inner.join(","))
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(text).unwrap();
            let mut shapes: Vec<_> = items.iter().map(|item| shape(item.get(), free)).collect();
            if free {
                shapes.dedup();
            }
            format!("[{}]", shapes.join(","))
        }
        b'"' if free => "string".to_owned(),
        b'-' | b'0'..=b'9' if free => if text.contains('.') { "float" } else { "int" }.to_owned(),
        _ => text.to_owned(),
    }
}

/// An object's members, in order.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for Members<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

fn shape_of_text(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_ascii_digit() {
                '0'
            } else if c.is_ascii_alphabetic() {
                'a'
            } else {
                c
            }
        })
        .collect()
}

#[tokio::test]
async fn a_queued_stream_gets_its_head_at_once_and_comments_while_it_waits() {
    let recorded = Response::parse_all(&fixture("http/stream_queued_sse_keepalive.resp"), false).remove(0);
    let mut config = tiny();
    config.engine.max_num_seqs = 1;
    config.sse_keep_alive_interval = Some(Duration::from_millis(100));
    let blocked = Duration::from_millis(500);
    // As above: on a busy host once more, with a slower engine.
    loop {
        config.engine.time.itl_base *= 4;
        let itl = config.engine.time.itl_base;
        let sim = start(config.clone()).await;
        let mut blocker = Client::connect(sim.addr()).await;
        let max_tokens = (blocked.as_secs_f64() / itl.as_secs_f64()).ceil();
        let body = serde_json::json!({"prompt": "x", "max_tokens": max_tokens as u32, "ignore_eos": true, "stream": true});
        blocker.send(&crate::support::post("/v1/completions", &body)).await;
        blocker.read().await;

        let mut client = Client::connect(sim.addr()).await;
        client.send(&fixture("http/stream_queued_sse_keepalive.req")).await;
        let own = client.responses(1, false).await.remove(0);
        compare_heads(&own, &recorded, "");
        let (head_at, head) = &client.reads[0];
        assert!(*head_at < blocked / 2, "the head came after {head_at:?}");
        assert!(head.ends_with(b"\r\n\r\n") && head.starts_with(b"HTTP/1.1 200"), "the head came alone");
        let events = |response: &Response| {
            let shapes = response.chunks.as_ref().unwrap().iter().map(|chunk| event_shape(chunk));
            shapes.partition::<Vec<_>, _>(|event| event == ": keep-alive")
        };
        let ((comments, own), (_, recorded)) = (events(&own), events(&recorded));
        assert!(comments.len() >= 2, "{} comments", comments.len());
        if own == recorded || itl > SLOWEST {
            assert_eq!(own, recorded);
            return;
        }
    }
}

#[tokio::test]
async fn beyond_the_queue_limit_requests_are_refused_and_health_is_not() {
    let mut config = tiny();
    config.engine.max_num_seqs = 1;
    config.max_num_queued_reqs = Some(2);
    let sim = start(config).await;
    let mut blockers = Vec::new();
    for _ in 0..3 {
        let mut blocker = Client::connect(sim.addr()).await;
        let body = serde_json::json!({"prompt": "x", "max_tokens": 2000, "ignore_eos": true, "stream": true});
        blocker.send(&crate::support::post("/v1/completions", &body)).await;
        blocker.read().await;
        blockers.push(blocker);
    }
    for name in ["admission_503", "admission_503_stream", "health_while_rejecting"] {
        let recorded = Response::parse_all(&fixture(&format!("http/{name}.resp")), false).remove(0);
        let mut client = Client::connect(sim.addr()).await;
        client.send(&fixture(&format!("http/{name}.req"))).await;
        let own = client.responses(1, false).await.remove(0);
        compare_heads(&own, &recorded, "");
        compare_bodies(&own, &recorded);
    }
}
