//! Relayed and copied responses on one connection of a client and one of a worker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

use super::{Client, all_by, read_request, returns, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_relayed_and_copied_responses_take_turns_on_one_pair_of_connections() {
    for path in ["bypass", "splice"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                tokio::spawn(count_up(socket, count.clone()));
            }
        });
        let config = format!("{}threads: 1\n", all_by(path));
        let Some(gateway) = start(&[format!("http://{address}")], &config).await else { return };
        let mut client = Client::new(gateway.address);
        for number in 0..500 {
            let uri = format!("/v1/completions?number={number}");
            let body = client.get(&uri).await;
            assert!(body == events(number).concat(), "{path}, {number}: {body:?}");
            let body = client.get("/tokenize").await;
            assert!(body == b"{}"[..], "{path}, behind {number}: {body:?}");
        }
        let ends = returns(&gateway, "end").await;
        println!("{path}: {ends} of 500 responses ended in the kernel's hands");
        assert!(ends > 50.0, "{path}: {ends}");
        assert_eq!(connections.load(Relaxed), 1, "{path}: connections to the worker that saw a request");
        let accepted = gateway.metric("warmpath_connections_accepted_total").await;
        assert!((accepted - 1.0).abs() < 0.5, "{path}: {accepted} connections of the client");
    }
}

/// The events of a response.
fn events(number: usize) -> Vec<Vec<u8>> {
    (0..=number % 7)
        .map(|i| format!("data: {number}-{i}{}\n\n", "x".repeat(number * 13 % 900)).into_bytes())
        .collect()
}

/// Answers with [`events`], one write each, and counts itself with its first request.
async fn count_up(mut socket: TcpStream, connections: Arc<AtomicUsize>) -> Option<()> {
    let (mut request, mut is_counted) = (Vec::new(), false);
    loop {
        read_request(&mut socket, &mut request).await?;
        let head = String::from_utf8_lossy(&request).into_owned();
        if head.starts_with("POST ") && !std::mem::replace(&mut is_counted, true) {
            connections.fetch_add(1, Relaxed);
        }
        let number = head.split_once("number=").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        let Some(number) = number else {
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.ok()?;
            continue;
        };
        let head =
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        socket.write_all(head).await.ok()?;
        for event in events(number) {
            // Long enough for the gateway to read what came before, and to lend the stream.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let chunk = [format!("{:x}\r\n", event.len()).as_bytes(), &event, b"\r\n"].concat();
            socket.write_all(&chunk).await.ok()?;
        }
        socket.write_all(b"0\r\n\r\n").await.ok()?;
    }
}
