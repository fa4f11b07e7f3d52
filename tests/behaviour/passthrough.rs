//! What passes through unchanged.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use warmpath_tests::{Gateway, get, request, sims, urls};

#[tokio::test]
async fn every_path_and_method_reaches_a_worker() {
    let sims = sims(2).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let to = gateway.address;
    let version = get(to, "/version").await;
    assert_eq!(version.status, 200);
    assert!(version.header("x-warmpath-worker").starts_with("127.0.0.1:"));
    assert_eq!(version.header("x-warmpath-policy"), "least_loaded");
    assert_eq!(get(to, "/health").await.status, 200);
    let json = [("content-type", "application/json")];
    let tokens = request(to, "POST", "/tokenize", &json, json!({"prompt": "one two"}).to_string()).await;
    assert!(tokens.json()["count"].as_u64().unwrap() > 0);
    let back = json!({"tokens": tokens.json()["tokens"]}).to_string();
    assert!(request(to, "POST", "/detokenize", &json, back).await.json()["prompt"].is_string());
    // What the worker says of unknown paths and methods is the worker's word.
    assert_eq!(get(to, "/no/such/path?x=1").await.json()["detail"], "Not Found");
    assert_eq!(request(to, "HEAD", "/health", &[], "").await.status, 405);
    assert_eq!(request(to, "PUT", "/v1/models", &[], "").await.status, 405);
}

/// Accepts one request and gives back its bytes, answering with an empty 200.
pub(crate) async fn one_request(listener: TcpListener) -> Vec<u8> {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 65_536];
        loop {
            let n = stream.read(&mut buffer).await.unwrap();
            bytes.extend_from_slice(&buffer[..n]);
            let text = String::from_utf8_lossy(&bytes);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |n| n.parse().unwrap()) {
                break;
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        // The gateway asks for a worker's health and more.
        if !String::from_utf8_lossy(&bytes).contains("\r\nuser-agent: warmpath/") {
            return bytes;
        }
    }
}

#[tokio::test]
async fn the_body_arrives_with_its_own_bytes_and_the_head_with_its_own_fields() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let worker = listener.local_addr().unwrap();
    let seen = tokio::spawn(one_request(listener));
    let gateway = Gateway::start(&[format!("http://{worker}")], &[]).await;
    // Odd spacing, an unknown field, escapes, a repeated key: nothing is rewritten.
    let body =
        "{ \"model\" :\"m\\u00e9\",\n\t\"future_field\": [1, 2.50, null],\"model\":\"n\" ,\"messages\":[]}";
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions?a=b%20c HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer k\r\nX-Custom: 1\r\n\
         X-Custom: 2\r\nConnection: keep-alive, x-drop\r\nX-Drop: 1\r\nExpect: 100-continue\r\n\
         X-Request-Id: mine\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).await.unwrap();
    let mut buffer = [0; 1024];
    let n = client.read(&mut buffer).await.unwrap();
    assert!(buffer[..n].starts_with(b"HTTP/1.1 100 Continue"), "the gateway answers Expect itself");
    client.write_all(body.as_bytes()).await.unwrap();

    let seen = String::from_utf8(seen.await.unwrap()).unwrap();
    let (seen_head, seen_body) = seen.split_once("\r\n\r\n").unwrap();
    assert_eq!(seen_body, body);
    let mut lines = seen_head.lines();
    assert_eq!(lines.next(), Some("POST /v1/chat/completions?a=b%20c HTTP/1.1"));
    let fields: Vec<&str> = lines.collect();
    for expected in [
        "authorization: Bearer k",
        "x-custom: 1",
        "x-custom: 2",
        "x-request-id: mine",
        "x-forwarded-for: 127.0.0.1",
        &format!("host: {worker}"),
        &format!("content-length: {}", body.len()),
    ] {
        assert!(fields.contains(&expected), "{expected:?} is missing in {fields:?}");
    }
    for gone in ["connection", "x-drop", "expect", "transfer-encoding"] {
        assert!(
            !fields.iter().any(|field| field.starts_with(gone)),
            "{gone} should end at the gateway: {fields:?}"
        );
    }
    let n = client.read(&mut buffer).await.unwrap();
    let reply = String::from_utf8_lossy(&buffer[..n]);
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.contains("x-request-id: mine\r\n"), "{reply}");
}

#[tokio::test]
async fn a_streamed_answer_is_the_workers_answer_event_by_event() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let body = |stream| json!({"prompt": "count", "max_tokens": 12, "ignore_eos": true, "temperature": 0, "stream": stream});
    let whole = gateway.post("/v1/completions", &body(false)).await.json();
    let streamed = gateway.post("/v1/completions", &body(true)).await;
    assert_eq!(streamed.header("content-type"), "text/event-stream; charset=utf-8");
    let text = streamed.text();
    let mut pieces = String::new();
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(events.last(), Some(&"data: [DONE]"));
    for event in &events[..events.len() - 1] {
        let event: serde_json::Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        pieces.push_str(event["choices"][0]["text"].as_str().unwrap());
    }
    assert_eq!(whole["choices"][0]["text"], pieces);
    let ttft = "warmpath_time_to_first_token_seconds_count{worker=\"";
    let series = format!("{ttft}{}\"}}", sims[0].addr());
    assert!((gateway.metric(&series).await - 1.0).abs() < f64::EPSILON, "one stream, one first token");
}
