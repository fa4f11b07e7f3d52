//! A client that does not read: the stream comes back from the kernel, and TCP holds the worker back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
    sync::Notify,
};
use warmpath_tests::{PATIENCE, eventually};

use super::{all_by, returns, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_holds_the_worker_back_and_gets_everything_later() {
    for path in ["bypass", "splice"] {
        a_client_that_stops_reading_by(path).await;
    }
}

async fn a_client_that_stops_reading_by(path: &str) {
    // More than all buffers between worker and client can grow to.
    const LENGTH: usize = 64 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let flood = Arc::new(Notify::new());
    let (count, go) = (sent.clone(), flood.clone());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (count, go) = (count.clone(), go.clone());
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let n = socket.read(&mut request).await.unwrap_or(0);
                if !request[..n].starts_with(b"POST /v1/") {
                    let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
                    return;
                }
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {LENGTH}\r\n\r\n"
                );
                socket.write_all(head.as_bytes()).await.unwrap();
                for start in (0..LENGTH).step_by(4096) {
                    let piece: Vec<u8> = (start..start + 4096).map(|i| (i % 251) as u8).collect();
                    if socket.write_all(&piece).await.is_err() {
                        return;
                    }
                    count.fetch_add(4096, Relaxed);
                    if start == 0 {
                        go.notified().await;
                    }
                }
            });
        }
    });
    let Some(gateway) = start(&[format!("http://{address}")], &all_by(path)).await else { return };
    let client = TcpSocket::new_v4().unwrap();
    client.set_recv_buffer_size(64 * 1024).unwrap();
    let mut client = client.connect(gateway.address).await.unwrap();
    let body = "{\"prompt\":\"x\",\"stream\":true}";
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    client.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    while bytes.len() < 4096 {
        let n = tokio::time::timeout(PATIENCE, client.read_buf(&mut bytes))
            .await
            .expect("the first piece")
            .unwrap();
        assert!(n > 0, "ended after {}", bytes.len());
    }
    // Its first piece may have passed the kernel by; then the stream is lent again.
    let before = std::cell::Cell::new(0.0);
    eventually("the stream is the kernel's", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = gateway.metric("warmpath_relay_lent_total").await;
        (now > 0.5 && (now - before.replace(now)).abs() < 0.5).then_some(())
    })
    .await;
    flood.notify_one();
    eventually("the stream comes back from the kernel", || async {
        (returns(&gateway, "room").await > 0.0).then_some(())
    })
    .await;
    // What is on its way fits the buffers; the rest stays with the worker.
    let mut before = usize::MAX;
    eventually("the worker is held back", || {
        let now = sent.load(Relaxed);
        let steady = now == std::mem::replace(&mut before, now);
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            steady.then_some(())
        }
    })
    .await;
    assert!(sent.load(Relaxed) < LENGTH, "{} sent", sent.load(Relaxed));
    loop {
        let n =
            tokio::time::timeout(PATIENCE, client.read_buf(&mut bytes)).await.expect("it goes on").unwrap();
        assert!(n > 0, "ended after {}", bytes.len());
        let end = bytes.windows(4).take(2048).position(|window| window == b"\r\n\r\n");
        if let Some(body) = end.map(|end| &bytes[end + 4..]).filter(|body| body.len() == LENGTH) {
            let piece: Vec<u8> = (0..=250).collect();
            assert!(body.chunks(251).all(|chunk| chunk == &piece[..chunk.len()]));
            break;
        }
    }
    assert!(gateway.metric("warmpath_relay_mismatches_total").await < 0.5);
}
