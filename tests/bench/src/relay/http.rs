//! As much HTTP/1.1 as the parts of the benchmark need among themselves.

use std::io;

use tokio::{io::AsyncReadExt, net::TcpStream};

/// Longest head.
const HEAD_BYTES_MAX: usize = 128 * 1024;

/// Reads until `bytes` holds a head; its length. `None` at the end of the connection.
pub(super) async fn read_head(socket: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        if let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") {
            return Ok(Some(end + 4));
        }
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a head without end"));
        }
        if socket.read_buf(bytes).await? == 0 {
            return Ok(None);
        }
    }
}

/// A header's value.
pub(super) fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    std::str::from_utf8(head).ok()?.split("\r\n").skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// The body's length, if the head tells one.
pub(super) fn content_length(head: &[u8]) -> Option<u64> {
    header(head, "content-length")?.parse().ok()
}

/// Status of a response.
pub(super) fn status(head: &[u8]) -> Option<u16> {
    std::str::from_utf8(head.get(9..12)?).ok()?.parse().ok()
}

/// Target of a request.
pub(super) fn target(head: &[u8]) -> Option<&str> {
    std::str::from_utf8(head).ok()?.split(' ').nth(1)
}
