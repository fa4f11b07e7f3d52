//! Event streams at and beyond an engine's pace: the kernel keeps the ones and gives the others back.

use std::time::Duration;

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

use super::{Client, all_by, read_request, returns, start};

/// More than the 256 by which the kernel judges the pace.
const EVENTS: usize = 600;
const EVENT: &[u8] = b"data: x\n\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_faster_than_any_engine_is_copied_and_an_engine_s_is_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            socket.set_nodelay(true).unwrap();
            tokio::spawn(worker(socket));
        }
    });
    for path in ["bypass", "splice"] {
        let Some(gateway) = start(&[format!("http://{address}")], &all_by(path)).await else { return };
        let mut client = Client::new(gateway.address);
        assert_eq!(client.get("/v1/completions?pause_ms=2").await, EVENT.repeat(EVENTS));
        assert!(returns(&gateway, "fast").await < 0.5, "{path}: 500 events a second are an engine's pace");
        // However busy this machine is, it sends 256 events within a quarter of a second some time.
        for _ in 0..50 {
            assert_eq!(client.get("/v1/completions?pause_ms=0").await, EVENT.repeat(EVENTS));
            if returns(&gateway, "fast").await > 0.5 {
                break;
            }
        }
        assert!(returns(&gateway, "fast").await > 0.5, "{path}: the stream stayed with the kernel");
        assert!(gateway.metric("warmpath_relay_mismatches_total").await < 0.5);
    }
}

/// Answers every completion with [`EVENTS`] events, one write each, with the pause that the request asks for between
/// them. The first ones come slowly, so that the stream is lent.
async fn worker(mut socket: TcpStream) -> Option<()> {
    let mut request = Vec::new();
    loop {
        read_request(&mut socket, &mut request).await?;
        let head = String::from_utf8_lossy(&request).into_owned();
        let pause = head.split_once("pause_ms=").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        let Some(pause) = pause.map(Duration::from_millis) else {
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.ok()?;
            continue;
        };
        let head =
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        socket.write_all(head).await.ok()?;
        for number in 0..EVENTS {
            let pause = if number < 5 { Duration::from_millis(10) } else { pause };
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let chunk = [format!("{:x}\r\n", EVENT.len()).as_bytes(), EVENT, b"\r\n"].concat();
            socket.write_all(&chunk).await.ok()?;
        }
        socket.write_all(b"0\r\n\r\n").await.ok()?;
    }
}
