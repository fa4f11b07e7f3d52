//! Connections are kept and used again, on both sides.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use warmpath_tests::{Gateway, SimConfig, sim, urls};

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
