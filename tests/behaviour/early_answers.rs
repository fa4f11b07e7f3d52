//! Answers that come before the request has been read, to the end or at all: the gateway's own, and a worker's.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use warmpath_tests::{Gateway, PATIENCE};

use crate::conformance::Worker;

/// A worker that has read a request's head answers with this, reads no further, and closes or not.
#[derive(Clone, Copy)]
struct Hasty {
    response: &'static str,
    closes: bool,
}

struct HastyWorker {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl HastyWorker {
    async fn start(hasty: Hasty) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(answer(socket, hasty, count.clone()));
            }
        });
        Self { address, connections }
    }
}

async fn answer(mut socket: TcpStream, hasty: Hasty, connections: Arc<AtomicUsize>) {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if socket.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
            continue;
        }
        return;
    }
    if String::from_utf8_lossy(&head).contains("user-agent: warmpath/") {
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
        return;
    }
    connections.fetch_add(1, Relaxed);
    let _ = socket.write_all(hasty.response.as_bytes()).await;
    if !hasty.closes {
        // Reads nothing more, until the other side gives up.
        let _ = timeout(3 * PATIENCE, std::future::pending::<()>()).await;
    }
}

/// Sends a request with a body of `bytes` and returns the status of the answer.
async fn post(gateway: &Gateway, bytes: usize) -> u16 {
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let head =
        format!("POST /v1/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&vec![b'x'; bytes]).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    read.unwrap_or_else(|error| panic!("{error}: {answer}"));
    answer[9..12].parse().unwrap_or_else(|_| panic!("{answer}"))
}

#[tokio::test]
async fn a_worker_that_answers_before_it_has_read_the_body_is_heard_and_its_connection_not_used_again() {
    // The second of them is one that the kernel would relay.
    let answers = [
        (413, "HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno"),
        (
            200,
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
             a\r\ndata: x y\n\r\n1\r\n\n\r\n0\r\n\r\n",
        ),
    ];
    for (status, response) in answers {
        for closes in [false, true] {
            let worker = HastyWorker::start(Hasty { response, closes }).await;
            let gateway = Gateway::start(&[format!("http://{}", worker.address)], &[]).await;
            for requests in 1..=3 {
                // More than both sockets' buffers hold.
                assert_eq!(post(&gateway, 12 << 20).await, status, "closes: {closes}");
                assert_eq!(worker.connections.load(Relaxed), requests, "{status}, closes: {closes}");
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_is_refused_early_gets_its_answer_and_its_connection_is_not_read_further() {
    let worker = Worker::start("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), "limits: {body_bytes: 1KiB}\n").unwrap();
    let gateway = Gateway::start(&[worker.url()], &["--config", file.path().to_str().unwrap()]).await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let body = "x".repeat(2000);
    let request =
        format!("POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len() + 50);
    socket.write_all(request.as_bytes()).await.unwrap();
    // Behind an undrained body nothing can be a request, whatever it looks like.
    let _ = socket.write_all(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("the end");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert_eq!(worker.take(), Vec::<String>::new());
}

#[tokio::test]
async fn an_upgrade_is_refused_on_either_side() {
    let worker = Worker::start(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nbytes",
    )
    .await;
    let gateway = worker.gateway().await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    // Sent before any 101: of the next request, or of nothing.
    socket.write_all(b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ =
        timeout(PATIENCE + Duration::from_secs(5), socket.read_to_end(&mut answer)).await.expect("the end");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(!answer.contains("101 Switching"), "{answer}");
    for request in worker.take() {
        assert!(!request.to_lowercase().contains("upgrade"), "{request}");
    }
}
