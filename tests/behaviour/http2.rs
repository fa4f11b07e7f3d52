//! HTTP/2 with clients: many requests on one connection, each with its own end, and limits on what one client may cost.
//! Here in clear text, as a client begins that knows what it talks to; over TLS the rest is the same.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http2::{SendRequest, handshake},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use warmpath_tests::{Authority, Connected, Gateway, PATIENCE, Signal, eventually, get, sims, urls};

use crate::conformance::Worker;

type Client = SendRequest<Full<Bytes>>;

async fn over(stream: impl Connected) -> Client {
    let (client, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn connect(gateway: &Gateway) -> Client {
    over(TcpStream::connect(gateway.address).await.unwrap()).await
}

async fn post(client: &Client, path: &str, body: impl Into<Bytes>) -> hyper::Result<Response<Incoming>> {
    let request = Request::post(format!("http://gateway.example{path}"))
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap();
    let mut client = client.clone();
    client.ready().await?;
    tokio::time::timeout(PATIENCE, client.send_request(request)).await.expect("answers")
}

async fn completion(client: &Client, tokens: u32) -> hyper::Result<Response<Incoming>> {
    let body = json!({"prompt": "x", "max_tokens": tokens, "ignore_eos": true, "stream": true,
        "stream_options": {"include_usage": true}});
    post(client, "/v1/completions", body.to_string()).await
}

async fn text(response: Response<Incoming>) -> hyper::Result<String> {
    let bytes =
        tokio::time::timeout(PATIENCE, response.into_body().collect()).await.expect("ends")?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn many_requests_share_a_connection_and_each_has_its_whole_answer() {
    let sims = sims(2).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let client = connect(&gateway).await;
    let ask = async |tokens: u32| {
        let response = completion(&client, tokens).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.headers().contains_key("x-warmpath-worker"));
        let text = text(response).await.unwrap();
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        assert!(
            text.contains(&format!("\"completion_tokens\":{tokens}")),
            "its own length, {tokens}: {text}"
        );
    };
    join_all((1..=40).map(ask)).await;
    assert!((gateway.metric("warmpath_connections_accepted_total").await - 1.0).abs() < f64::EPSILON);
    gateway.idle().await;
}

#[tokio::test]
async fn the_same_over_tls_and_beside_http_1() {
    let (authority, sims) = (Authority::default(), sims(1).await);
    let file = authority.write("warmpath.yaml", &format!("tls: {{{}}}", authority.server("server")));
    let gateway = Gateway::start(&urls(&sims), &["--config", file.to_str().unwrap()]).await;
    let client = over(authority.client(&["h2"], None).connect(gateway.address).await.unwrap()).await;
    let texts =
        join_all((0..5).map(async |_| text(completion(&client, 9).await.unwrap()).await.unwrap())).await;
    assert!(texts.iter().all(|text| text.ends_with("data: [DONE]\n\n")), "{texts:?}");
}

#[tokio::test]
async fn a_worker_gets_the_request_that_an_http_1_client_would_have_sent() {
    let worker =
        Worker::start("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: x-hop\r\nx-hop: 1\r\n\r\nok")
            .await;
    let gateway = Gateway::start(&[worker.url()], &[]).await;
    let client = connect(&gateway).await;
    let response = post(&client, "/v1/embeddings?a=b", "{}").await.unwrap();
    assert!(!response.headers().contains_key("connection") && !response.headers().contains_key("x-hop"));
    assert_eq!(text(response).await.unwrap(), "ok");
    let seen = worker.take().join("\n");
    assert!(seen.starts_with("POST /v1/embeddings?a=b HTTP/1.1\r\n"), "{seen}");
    for field in [
        "content-length: 2",
        "x-forwarded-host: gateway.example",
        "x-forwarded-proto: http",
        "x-forwarded-for: 127.0.0.1",
    ] {
        assert!(seen.contains(&format!("\r\n{field}\r\n")), "{field}: {seen}");
    }
    let differing = Request::post("http://gateway.example/v1/embeddings").header("host", "other.example");
    let response = client.clone().send_request(differing.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 400);
    assert!(text(response).await.unwrap().contains("malformed_request"));
    assert!(worker.take().is_empty());
}

#[tokio::test]
async fn a_stream_that_is_reset_is_given_up_at_once_and_its_neighbours_go_on() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let client = connect(&gateway).await;
    let mut kept = completion(&client, 100_000).await.unwrap();
    let mut left = completion(&client, 100_000).await.unwrap();
    left.frame().await.unwrap().unwrap();
    kept.frame().await.unwrap().unwrap();
    assert_eq!(gateway.workers().await[0]["in_flight_requests"], 2);
    drop(left);
    eventually("one is given up", || async {
        let stats = sims[0].stats();
        (stats.aborts == 1 && stats.generating == 1).then_some(())
    })
    .await;
    kept.frame().await.unwrap().unwrap();

    // One that has no answer yet.
    let unanswered = json!({"prompt": "x", "max_tokens": 100_000, "ignore_eos": true}).to_string();
    let unanswered =
        tokio::time::timeout(Duration::from_millis(300), post(&client, "/v1/completions", unanswered));
    assert!(unanswered.await.is_err(), "it takes longer");
    eventually("it is given up", || async { (sims[0].stats().aborts == 2).then_some(()) }).await;
    let worker = &gateway.workers().await[0];
    assert_eq!((&worker["requests_failed"], &worker["breaker"]), (&json!(0), &json!("closed")));

    drop((kept, client));
    eventually("with the connection, all", || async { (sims[0].stats().generating == 0).then_some(()) })
        .await;
    gateway.idle().await;
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_takes_no_new_ones() {
    let sims = sims(1).await;
    let mut gateway = Gateway::start(&urls(&sims), &["--drain-timeout", "20s"]).await;
    let client = connect(&gateway).await;
    let mut response = completion(&client, 300).await.unwrap();
    response.frame().await.unwrap().unwrap();
    gateway.signal(Signal::TERM);
    eventually("no new request", || async { completion(&client, 1).await.is_err().then_some(()) }).await;
    assert!(text(response).await.unwrap().ends_with("data: [DONE]\n\n"));
    assert_eq!(gateway.ended().await, Some(0));
}

#[tokio::test]
async fn a_worker_that_breaks_off_is_told_in_the_stream_or_by_a_reset() {
    let worker =
        Worker::start("HTTP/1.1 200 OK\r\ncontent-length: 100\r\nconnection: close\r\n\r\nhalf").await;
    let gateway = Gateway::start(&[worker.url()], &[]).await;
    let client = connect(&gateway).await;
    let response = post(&client, "/v1/embeddings", "{}").await.unwrap();
    assert!(text(response).await.is_err(), "half a body does not look whole");
    assert!(post(&client, "/v1/embeddings", "{}").await.is_ok(), "the connection goes on");
}

#[tokio::test]
async fn a_reader_that_stops_holds_up_its_own_stream_and_no_other() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1024).initial_connection_window_size(1024 * 1024);
    let (client, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let unread = completion(&client, 2000).await.unwrap();
    for _ in 0..3 {
        assert!(text(completion(&client, 50).await.unwrap()).await.unwrap().ends_with("data: [DONE]\n\n"));
    }
    // And when it reads again, everything is there.
    let text = text(unread).await.unwrap();
    assert!(
        text.contains("\"completion_tokens\":2000") && text.ends_with("data: [DONE]\n\n"),
        "{}",
        text.len()
    );
}

/// The largest body and head that these tests allow.
const LIMITS: &str = "limits: {body_bytes: 10KiB}\ntimeouts: {body_idle: 300ms, keep_alive: 1s}\n";

async fn limited(workers: &[String]) -> Gateway {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), LIMITS).unwrap();
    Gateway::start(workers, &["--config", file.path().to_str().unwrap()]).await
}

#[tokio::test]
async fn heads_and_bodies_are_limited_as_over_http_1() {
    let sims = sims(1).await;
    let gateway = limited(&urls(&sims)).await;
    let client = connect(&gateway).await;
    let response = post(&client, "/v1/completions", "x".repeat(11_000)).await.unwrap();
    assert_eq!(response.status(), 413);
    assert!(text(response).await.unwrap().contains("request_too_large"));
    let long =
        Request::get("http://g/version").header("x-long", "x".repeat(70_000)).body(Full::default()).unwrap();
    let refused = client.clone().send_request(long).await;
    assert!(refused.is_err() || refused.unwrap().status() == 431);
    let client = connect(&gateway).await;
    assert_eq!(post(&client, "/tokenize", "{\"prompt\": \"x\"}").await.unwrap().status(), 200);
}

/// Of RFC 9113: a frame's head, with a stream's number.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// `GET /version` of `g`, by HPACK: from the static table, but for the path and the authority.
const GET: &[u8] = b"\x82\x86\x04\x08/version\x41\x01g";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The types of the frames that come until the gateway closes.
async fn frames(socket: &mut TcpStream) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    let mut head = [0; 9];
    while tokio::time::timeout(PATIENCE, socket.read_exact(&mut head)).await.expect("it closes").is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if socket.read_exact(&mut payload).await.is_err() {
            break;
        }
        frames.push((head[3], payload));
    }
    frames
}

/// The reason of the last `GOAWAY`.
fn reason(frames: &[(u8, Vec<u8>)]) -> Option<u32> {
    let (_, payload) = frames.iter().rev().find(|(kind, _)| *kind == GOAWAY)?;
    Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()))
}

const ENHANCE_YOUR_CALM: u32 = 0xb;

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let mut flood = PREFACE.to_vec();
    for number in 0..5000 {
        flood.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, GET));
        flood.extend(frame(RST_STREAM, 0, 2 * number + 1, &8u32.to_be_bytes()));
    }
    let _ = socket.write_all(&flood).await;
    assert_eq!(reason(&frames(&mut socket).await), Some(ENHANCE_YOUR_CALM));
    gateway.idle().await;
    assert_eq!(get(gateway.address, "/version").await.status, 200);
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let sims = sims(1).await;
    let gateway = limited(&urls(&sims)).await;
    // In pieces without end.
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let mut flood = [PREFACE, &frame(HEADERS, END_STREAM, 1, GET)].concat();
    for _ in 0..200_000 {
        flood.extend(frame(9, 0, 1, b"\0\x01a\x01b"));
    }
    let _ = socket.write_all(&flood).await;
    assert!(reason(&frames(&mut socket).await).is_none_or(|reason| reason != 0));
    // And in one that pauses: the connection is idle, for all that it has said.
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    socket.write_all(&[PREFACE, &frame(HEADERS, END_STREAM, 1, &GET[..4])].concat()).await.unwrap();
    frames(&mut socket).await;
    assert_eq!(get(gateway.address, "/version").await.status, 200);
}

#[tokio::test]
async fn an_idle_connection_is_told_to_go_and_closed() {
    let sims = sims(1).await;
    let gateway = limited(&urls(&sims)).await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    socket.write_all(&[PREFACE, &frame(HEADERS, END_STREAM | END_HEADERS, 1, GET)].concat()).await.unwrap();
    let frames = frames(&mut socket).await;
    assert!(frames.iter().any(|(kind, _)| *kind == HEADERS), "it was answered");
    assert_eq!(reason(&frames), Some(0));
}

#[tokio::test]
async fn streams_beyond_the_limit_wait_or_are_refused_and_none_is_lost() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let client = connect(&gateway).await;
    let ask = async |_| text(completion(&client, 3).await.unwrap()).await.unwrap();
    let texts = join_all((0..300).map(ask)).await;
    assert!(texts.iter().all(|text| text.ends_with("data: [DONE]\n\n")));
    // Somebody who does not keep to the limit of 128.
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let mut streams = PREFACE.to_vec();
    for number in 0..200 {
        streams.extend(frame(HEADERS, END_HEADERS, 2 * number + 1, GET));
    }
    socket.write_all(&streams).await.unwrap();
    let refused = eventually_refused(&mut socket).await;
    assert_eq!(refused, 7, "REFUSED_STREAM");
}

/// The reason of the first stream that is reset.
async fn eventually_refused(socket: &mut TcpStream) -> u32 {
    let mut head = [0; 9];
    loop {
        tokio::time::timeout(PATIENCE, socket.read_exact(&mut head)).await.expect("it says so").unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        socket.read_exact(&mut payload).await.unwrap();
        if head[3] == RST_STREAM {
            return u32::from_be_bytes(payload.try_into().unwrap());
        }
    }
}
