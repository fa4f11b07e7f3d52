//! A worker that asks how much there is to read.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::{Client, returns, start};

/// A worker that asks its socket how much there is to read, as nginx does: a socket in a socket map does not tell. So
/// what was lent must be given back before the next request comes, and what is not lent must be as ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_asks_how_much_there_is_to_read_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            tokio::spawn(asks(socket));
        }
    });
    let config =
        "relay: {bypass: auto, sample: 0}\nhealth: {interval: 60s}\nscrape_interval: 60s\nthreads: 1\n";
    let Some(gateway) = start(&[format!("http://{address}")], config).await else { return };
    let mut client = Client::new(gateway.address);
    for _ in 0..20 {
        for path in ["/v1/completions", "/tokenize", "/v1/completions"] {
            let body = client.get(path).await;
            assert!(!body.is_empty(), "{path}");
        }
    }
    assert!(returns(&gateway, "end").await > 3.0, "streams go past the gateway");
}

async fn asks(socket: TcpStream) -> Option<()> {
    let mut request = Vec::new();
    loop {
        // A byte, then as many as there are said to be: zero is taken for "wait for the next readiness".
        let mut first = [0];
        socket.readable().await.ok()?;
        match socket.try_read(&mut first) {
            Ok(1) => request.push(first[0]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            _ => return None,
        }
        let more = rustix::io::ioctl_fionread(&socket).ok()? as usize;
        let mut rest = vec![0; more];
        if more > 0 {
            let n = socket.try_read(&mut rest).ok()?;
            request.extend(&rest[..n]);
        }
        assert!(more > 0, "a request is more than a byte, and it is sent in one piece");
        if !request.windows(4).any(|window| window == b"\r\n\r\n") {
            continue;
        }
        let is_stream = request.starts_with(b"POST /v1/");
        request.clear();
        let socket = &socket;
        let say = async |bytes: &[u8]| {
            socket.writable().await.ok()?;
            (socket.try_write(bytes).ok()? == bytes.len()).then_some(())
        };
        if !is_stream {
            say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await?;
            continue;
        }
        say(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            .await?;
        for _ in 0..10 {
            say(b"9\r\ndata: x\n\n\r\n").await?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        say(b"0\r\n\r\n").await?;
    }
}
