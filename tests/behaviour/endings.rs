//! How responses end whose worker did not end them: over each way that a body can take, the client can tell, and the worker
//! is to blame.

use std::net::SocketAddr;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use warmpath_tests::{Gateway, PATIENCE, Stream, open};

/// What a worker's response is, and how much of it comes; then it closes the connection.
#[derive(Clone, Copy)]
struct Script {
    head: &'static str,
    /// Written with a pause between each two, so that the kernel has a stream in between.
    pieces: &'static [&'static str],
    by_reset: bool,
}

/// A worker that answers every inference call by the script, and everything else with an empty 200.
async fn worker(script: Script) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, script));
        }
    });
    address
}

async fn serve(mut socket: TcpStream, script: Script) -> Option<()> {
    let _ = socket.set_nodelay(true);
    let mut request = Vec::new();
    loop {
        request.clear();
        while !request.ends_with(b"}") && !request.ends_with(b"\r\n\r\n") {
            if socket.read_buf(&mut request).await.ok()? == 0 {
                return None;
            }
        }
        if !request.starts_with(b"POST /v1/") {
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.ok()?;
            continue;
        }
        socket.write_all(script.head.as_bytes()).await.ok()?;
        for piece in script.pieces {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            socket.write_all(piece.as_bytes()).await.ok()?;
        }
        if script.by_reset {
            socket.set_zero_linger().ok()?;
        }
        return None;
    }
}

/// Nothing interferes, one worker is all there is, and no response is copied by way of sample.
async fn gateway(script: Script, relay: &str) -> Gateway {
    let worker = worker(script).await;
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    let config = format!("relay: {{{relay}, sample: 0}}\nhealth: {{interval: 1h}}\nscrape_interval: 1h\n");
    std::fs::write(file.path(), config).unwrap();
    Gateway::start(&[format!("http://{worker}")], &["--config", file.path().to_str().unwrap()]).await
}

async fn ask(gateway: &Gateway) -> Stream {
    let body = json!({"messages": [{"role": "user", "content": "x"}], "stream": true}).to_string();
    let headers = [("content-type", "application/json")];
    open(gateway.address, "POST", "/v1/chat/completions", &headers, body).await
}

async fn failed(gateway: &Gateway, kind: &str) {
    gateway.idle().await;
    let worker = &gateway.workers().await[0];
    assert_eq!((&worker["requests_failed"], &worker["requests_completed"]), (&json!(1), &json!(0)), "{kind}");
    let series = format!("warmpath_errors_total{{kind=\"{kind}\",source=\"worker\"}}");
    assert!((gateway.metric(&series).await - 1.0).abs() < f64::EPSILON, "{kind}");
}

/// The ways of a body, by what switches the others off. Where the kernel does not allow one, the body is copied.
const WAYS: [&str; 3] = ["bypass: off, splice: off", "bypass: on, splice: off", "bypass: off, splice: on"];

const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
const EVENT: &str = "f\r\ndata: {\"a\":1}\n\n\r\n";

#[tokio::test]
async fn a_chunked_stream_that_breaks_off_ends_with_an_error_event_wherever_it_breaks() {
    let cases: [&[&str]; 4] = [
        &[EVENT, EVENT],
        &[EVENT, "f\r\ndata: {\"a"],
        &[EVENT, EVENT, "f"],
        &[EVENT, "f\r\ndata: {\"a\":1}\n\n\r"],
    ];
    for way in WAYS {
        for (pieces, by_reset) in cases.iter().flat_map(|pieces| [(pieces, false), (pieces, true)]) {
            let gateway = gateway(Script { head: CHUNKED, pieces, by_reset }, way).await;
            let mut stream = ask(&gateway).await;
            assert_eq!(stream.status, 200);
            let (text, ended) = stream.rest().await;
            // In the middle of a chunk's size nothing can be said; then the connection ends unfinished.
            let says_so = text.contains("data: {\"error\":{") && text.ends_with("data: [DONE]\n\n");
            assert!(!ended || says_so, "{way}, {pieces:?}, reset: {by_reset}: looks complete: {text:?}");
            if pieces.last() != Some(&"f") {
                assert!(ended, "{way}, {pieces:?}, reset: {by_reset}: the client could be told: {text:?}");
            }
            failed(&gateway, "broken_stream").await;
        }
    }
}

#[tokio::test]
async fn a_body_with_a_length_is_never_shortened_silently() {
    const HEADS: [&str; 2] = [
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 400000\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 400000\r\n\r\n",
    ];
    for way in WAYS {
        for (head, by_reset) in HEADS.iter().flat_map(|head| [(head, false), (head, true)]) {
            let script = Script { head, pieces: &["data: {\"a\":1}\n\n", "data: {\"a\":2}\n\n"], by_reset };
            let gateway = gateway(script, way).await;
            let mut stream = ask(&gateway).await;
            let (text, ended) = stream.rest().await;
            assert!(!ended, "{way}, {head}: {text:?} looks complete");
            assert!(!text.contains("error"), "{way}: what is there is the worker's own: {text:?}");
            failed(&gateway, "broken_stream").await;
        }
    }
}

#[tokio::test]
async fn a_stream_without_its_last_event_is_a_fault_and_the_client_is_told() {
    // One event, and the end of the chunks: in user space on every way, as what comes first is.
    let script =
        Script { head: CHUNKED, pieces: &["f\r\ndata: {\"a\":1}\n\n\r\n0\r\n\r\n"], by_reset: false };
    for way in WAYS {
        let gateway = gateway(script, way).await;
        let (text, ended) = ask(&gateway).await.rest().await;
        assert!(ended && text.starts_with("data: {\"a\":1}\n\n"), "{way}: {text:?}");
        assert!(text.contains("data: {\"error\":{") && text.ends_with("data: [DONE]\n\n"), "{way}: {text:?}");
        failed(&gateway, "unfinished_stream").await;
    }
}

#[tokio::test]
async fn a_client_that_knows_no_chunks_sees_a_reset_where_an_end_would_look_like_the_end() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n";
    let script = Script { head, pieces: &["3\r\nabc\r\n", "3\r\nde"], by_reset: false };
    let gateway = gateway(script, WAYS[0]).await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let body = "{\"prompt\": \"x\"}";
    let head = format!("POST /v1/completions HTTP/1.0\r\nhost: g\r\ncontent-length: {}\r\n\r\n", body.len());
    socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut bytes)).await.expect("it ends");
    let error = ended.expect_err("a FIN would say that this is all");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}
