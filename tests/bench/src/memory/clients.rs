//! Clients as bytes on sockets: nothing that a well-behaved library would do.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// Longer than any answer here may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections to one address from one source, below the number of ephemeral ports.
const PER_SOURCE: usize = 20_000;
/// Of a socket that nobody reads: the least that Linux gives.
const SMALL_BUFFER: u32 = 2_304;

/// Connects; the `number` decides from which loopback address, so that ports do not run out.
pub(super) async fn connect(to: SocketAddr, number: usize) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let source = Ipv4Addr::new(127, 0, 1, 1 + u8::try_from(number / PER_SOURCE).unwrap_or(u8::MAX - 1));
    socket.bind(SocketAddrV4::new(source, 0).into())?;
    socket.connect(to).await
}

/// Asks, and does not read more than the head.
pub(super) async fn slow_reader(to: SocketAddr, number: usize, target: &str) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(SMALL_BUFFER)?;
    socket.bind(SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, 1 + (number / PER_SOURCE) as u8), 0).into())?;
    let mut stream = socket.connect(to).await?;
    stream.write_all(request(target, "{\"prompt\":\"x\",\"stream\":true}").as_bytes()).await?;
    let mut status = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut status)).await.context("no head in time")??;
    anyhow::ensure!(&status == b"HTTP/1.1 200", "{:?}", String::from_utf8_lossy(&status));
    Ok(stream)
}

/// A completion request with a body.
pub(super) fn request(target: &str, body: &str) -> String {
    format!(
        "POST {target} HTTP/1.1\r\nhost: memory\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sends `bytes` as far as the other side takes them, and returns the status of what it answers, if it does.
pub(super) async fn status_of(stream: &mut TcpStream, bytes: &[u8]) -> Option<u16> {
    let _ = timeout(PATIENCE, stream.write_all(bytes)).await;
    read_status(stream).await
}

/// The status of the next answer; none if the connection ends or nothing comes.
pub(super) async fn read_status(stream: &mut TcpStream) -> Option<u16> {
    let mut status = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut status)).await.ok()?.ok()?;
    std::str::from_utf8(&status[9..]).ok()?.parse().ok()
}
