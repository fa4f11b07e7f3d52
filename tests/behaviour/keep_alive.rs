//! Connections are kept and used again, on both sides.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use warmpath_tests::{Gateway, SimConfig, sim, sims, urls};

/// Sends one unary request on an open connection and reads its response.
async fn exchange(socket: &mut TcpStream, body: &str) -> String {
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let n = socket.read(&mut buffer).await.unwrap();
        assert!(n > 0, "the connection stays open: {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("unary");
            if body.len() == length.parse::<usize>().unwrap() {
                return text.into_owned();
            }
        }
    }
}

#[tokio::test]
async fn many_requests_over_one_connection_pair() {
    let sims = [sim(SimConfig::default()).await];
    let gateway = Gateway::start(&urls(&sims), &["--threads", "1"]).await;
    let body = json!({"prompt": "x", "max_tokens": 1}).to_string();
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    exchange(&mut socket, &body).await;
    let before = sims[0].stats();
    for _ in 0..50 {
        assert!(exchange(&mut socket, &body).await.starts_with("HTTP/1.1 200 OK"));
    }
    let after = sims[0].stats();
    // Health checks and scrapes come on connections of their own; requests do not.
    let of_checks = after.requests - before.requests - 50;
    assert_eq!(after.connections_accepted - before.connections_accepted, of_checks);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let sims = [sim(SimConfig::default()).await];
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let two = "GET /version HTTP/1.1\r\nhost: g\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n";
    socket.write_all(two.as_bytes()).await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(10), socket.read_to_string(&mut text)).await.unwrap().unwrap();
    let (first, second) = (text.find("\"version\"").unwrap(), text.find("\"object\":\"list\"").unwrap());
    assert!(first < second, "{text}");
}

#[tokio::test]
async fn a_connection_that_the_worker_closed_meanwhile_costs_no_request() {
    // The worker closes after 30 ms, long before the pool would: every reuse races with that close.
    let config = SimConfig { keep_alive_timeout: Duration::from_millis(30), ..SimConfig::default() };
    let sims = [sim(config).await];
    let gateway = Gateway::start(&urls(&sims), &["--threads", "1"]).await;
    for pause_ms in (0..60).step_by(3) {
        assert_eq!(gateway.chat("x").await.status, 200);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
    let worker = &gateway.workers().await[0];
    assert_eq!((&worker["requests_failed"], &worker["requests_completed"]), (&json!(0), &json!(20)));
}

#[tokio::test]
async fn http_1_0_is_answered_and_closed() {
    let sims = [sim(SimConfig::default()).await];
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    socket.write_all(b"GET /version HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(10), socket.read_to_string(&mut text)).await.unwrap().unwrap();
    assert!(text.contains("200 OK") && text.contains("\"version\""), "{text}");
}

/// Connections are looked at as often as a head may take.
const LOOKS: &str = "timeouts: {head: 1200ms, keep_alive: 1m}\n";
/// Longer than a connection is idle before it rests, by a look.
const A_WHILE: Duration = Duration::from_millis(1_700);

async fn resting_gateway(sims: &[vllm_sim::SimHandle]) -> Gateway {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), LOOKS).unwrap();
    Gateway::start(&urls(sims), &["--config", file.path().to_str().unwrap()]).await
}

#[tokio::test]
async fn a_connection_that_rested_goes_on_where_it_was() {
    let sims = sims(2).await;
    let gateway = resting_gateway(&sims).await;
    let mut sockets = Vec::new();
    for _ in 0..8 {
        sockets.push(TcpStream::connect(gateway.address).await.unwrap());
    }
    let body = r#"{"prompt": "x", "max_tokens": 3, "stream": true}"#;
    let stream = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let plain = "GET /version HTTP/1.1\r\nhost: g\r\n\r\n";
    for round in 0..3 {
        for (number, socket) in sockets.iter_mut().enumerate() {
            let (request, end) = if number % 2 == 0 { (stream.as_str(), "0\r\n\r\n") } else { (plain, "}") };
            socket.write_all(request.as_bytes()).await.unwrap();
            let said = until(socket, end).await;
            assert!(said.starts_with("HTTP/1.1 200 "), "round {round}, connection {number}: {said}");
        }
        tokio::time::sleep(A_WHILE).await;
    }
    assert!(gateway.metric("warmpath_connections").await >= 8.0, "they are the same connections");
}

#[tokio::test]
async fn what_was_read_before_a_rest_is_not_lost() {
    let sims = sims(1).await;
    let gateway = resting_gateway(&sims).await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    socket.write_all(b"GET /version HTTP/1.1\r\nhost: g\r\n\r\nGET /v1/mod").await.unwrap();
    until(&mut socket, "}").await;
    tokio::time::sleep(A_WHILE).await;
    socket.write_all(b"els HTTP/1.1\r\nhost: g\r\n\r\n").await.unwrap();
    let said = until(&mut socket, "\"list\"}").await;
    assert!(said.starts_with("HTTP/1.1 200 ") && said.contains("\"object\":\"list\""), "{said}");
}

#[tokio::test]
async fn the_rest_of_a_body_is_never_taken_for_a_request() {
    let sims = sims(1).await;
    let gateway = resting_gateway(&sims).await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    // Refused by its head; its body is still to come.
    let head = "POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 99999999999\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    let said = until(&mut socket, "}}").await;
    assert!(said.starts_with("HTTP/1.1 413 "), "{said}");
    tokio::time::sleep(A_WHILE).await;
    let _ = socket.write_all(b"GET /version HTTP/1.1\r\nhost: smuggled\r\n\r\n").await;
    let mut rest = String::new();
    let _ = tokio::time::timeout(A_WHILE, socket.read_to_string(&mut rest)).await;
    assert_eq!(rest, "");
}

#[tokio::test]
async fn a_resting_connection_ends_with_its_time_and_with_the_gateway() {
    let sims = sims(1).await;
    let mut gateway = resting_gateway(&sims).await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    socket.write_all(b"GET /version HTTP/1.1\r\nhost: g\r\n\r\n").await.unwrap();
    until(&mut socket, "}").await;
    tokio::time::sleep(A_WHILE).await;
    gateway.signal(warmpath_tests::Signal::TERM);
    let mut rest = String::new();
    socket.read_to_string(&mut rest).await.unwrap();
    assert_eq!((rest.as_str(), gateway.ended().await), ("", Some(0)));
}

/// Reads until `end` stands there.
async fn until(socket: &mut TcpStream, end: &str) -> String {
    let (mut text, mut piece) = (String::new(), [0; 4096]);
    while !text.ends_with(end) {
        let read = tokio::time::timeout(Duration::from_secs(20), socket.read(&mut piece)).await;
        let count = read.unwrap_or_else(|_| panic!("nothing more behind {text:?}")).unwrap();
        assert!(count > 0, "ended behind {text:?}");
        text.push_str(std::str::from_utf8(&piece[..count]).unwrap());
    }
    text
}
