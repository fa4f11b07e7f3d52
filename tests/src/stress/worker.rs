//! A worker that plays scripts. The request's query says which; anything else (health checks, metrics) is answered with
//! an empty 200.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{Profile, Script};

/// Longest request head. Requests are the storm's own and the gateway's checks.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Starts a worker on a free loopback port; it lives as long as the runtime.
pub async fn start_worker() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(serve(listener));
    Ok(address)
}

/// Serves connections until the listener fails.
pub async fn serve(listener: TcpListener) -> io::Error {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                tokio::spawn(connection(socket));
            }
            Err(error) => return error,
        }
    }
}

/// Ends with an error when the other side closes, which is how every connection ends but those of scripts that close.
async fn connection(mut socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut bytes = Vec::new();
    loop {
        let target = request(&mut socket, &mut bytes).await?;
        let script = target
            .split_once('?')
            .and_then(|(_, query)| Profile::parse(query))
            .map(|(seed, profile)| Script::of(seed, profile));
        let Some(script) = script else {
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
            continue;
        };
        if !play(&mut socket, &script).await? || script.closes {
            return Ok(());
        }
    }
}

/// Reads one request, body and all; its target. `bytes` keeps what came behind it.
async fn request(socket: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<String> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(invalid());
        }
        if socket.read_buf(bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| invalid())?;
    let target = head.split(' ').nth(1).ok_or_else(invalid)?.to_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let total = end + length.unwrap_or(0);
    while bytes.len() < total {
        if socket.read_buf(bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    bytes.drain(..total);
    Ok(target)
}

/// Writes a response as its script says; whether the worker has survived it.
async fn play(socket: &mut TcpStream, script: &Script) -> io::Result<bool> {
    let wire = script.wire();
    let mut at = 0;
    for (size, pause) in wire.writes {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let end = wire.dies_at.map_or(at + size, |dies| dies.min(at + size));
        socket.write_all(&wire.bytes[at..end]).await?;
        if wire.dies_at == Some(end) {
            if script.by_reset {
                socket.set_zero_linger()?;
            }
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}
