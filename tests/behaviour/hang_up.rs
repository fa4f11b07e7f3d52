//! A client that leaves: the worker is told at once, and nothing stays counted.

use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use vllm_sim::{Fault, FaultKind};
use warmpath_tests::{Gateway, SimHandle, eventually, sims, urls};

async fn aborted(sim: &SimHandle) {
    eventually("the worker gives up the request", || async {
        let stats = sim.stats();
        (stats.aborts == 1 && stats.generating == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn in_the_middle_of_a_stream() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let mut stream = gateway.stream("tell me everything", 100_000).await;
    stream.next().await.unwrap().unwrap();
    assert_eq!(gateway.workers().await[0]["in_flight_requests"], 1);
    drop(stream);
    aborted(&sims[0]).await;
    gateway.idle().await;
    let worker = &gateway.workers().await[0];
    assert_eq!(worker["requests_cancelled"], 1);
    assert_eq!(
        (&worker["requests_failed"], &worker["breaker"]),
        (&json!(0), &json!("closed")),
        "no fault of the worker"
    );
    let left = gateway.metric("warmpath_requests_total{route=\"chat\",status=\"499\"}").await;
    assert!((left - 1.0).abs() < f64::EPSILON);
}

/// Sends a whole request on a raw socket.
async fn send(gateway: &Gateway, max_tokens: u32, stream: bool) -> TcpStream {
    let body =
        json!({"prompt": "x", "max_tokens": max_tokens, "ignore_eos": true, "stream": stream}).to_string();
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    socket
}

async fn generating(sim: &SimHandle) {
    eventually("the worker has the request", || async { (sim.stats().generating == 1).then_some(()) }).await;
}

#[tokio::test]
async fn before_there_is_a_response_head() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let socket = send(&gateway, 100_000, false).await;
    generating(&sims[0]).await;
    drop(socket);
    aborted(&sims[0]).await;
    gateway.idle().await;
    assert_eq!(gateway.workers().await[0]["requests_cancelled"], 1);
}

#[tokio::test]
async fn by_half_closing_as_vllm_itself_would_take_it() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let mut socket = send(&gateway, 100_000, true).await;
    generating(&sims[0]).await;
    socket.shutdown().await.unwrap();
    aborted(&sims[0]).await;
    gateway.idle().await;
}

#[tokio::test]
async fn by_a_reset() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let socket = send(&gateway, 100_000, true).await;
    generating(&sims[0]).await;
    socket.set_zero_linger().unwrap();
    drop(socket);
    aborted(&sims[0]).await;
    gateway.idle().await;
}

#[tokio::test]
async fn while_the_worker_hangs() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    sims[0].set_fault(Fault::always(FaultKind::Hang));
    let socket = send(&gateway, 4, true).await;
    eventually("in flight", || async {
        (gateway.workers().await[0]["in_flight_requests"] == 1).then_some(())
    })
    .await;
    drop(socket);
    gateway.idle().await;
    eventually("the connection is closed", || async { (sims[0].stats().generating == 0).then_some(()) })
        .await;
}
