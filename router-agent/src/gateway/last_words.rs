//! What a client is told before its connection is closed, without a request having been read.
//!
//! A socket that is closed with bytes in it that nobody has read resets the connection, and the client may never see what
//! was written before (RFC 9112 section 9.6). So the sending side is closed first, and what comes is read for a while.

use std::{io, net::Shutdown, time::Duration};

use socket2::SockRef;
use tokio::net::TcpStream;

/// At the limit of client connections.
pub(super) const TOO_MANY_CONNECTIONS: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
    content-length: 145\r\nretry-after: 1\r\nconnection: close\r\n\r\n\
    {\"error\":{\"message\":\"this gateway has reached its limit of client connections\",\"type\":\"server_error\",\
    \"param\":null,\"code\":\"too_many_connections\"}}";
/// A head that took too long.
pub(super) const HEAD_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\n\
    content-length: 158\r\nconnection: close\r\n\r\n\
    {\"error\":{\"message\":\"the request head was not complete within its time (timeouts.head)\",\
    \"type\":\"invalid_request_error\",\"param\":null,\"code\":\"request_timeout\"}}";

/// How long a client has to take them in.
const PATIENCE: Duration = Duration::from_secs(1);
/// Of what it goes on sending.
const BYTES_MAX: usize = 256 * 1024;

/// Says `words`, and waits until the client has closed, has sent too much, or a second is over.
pub(super) async fn say(stream: &TcpStream, words: &[u8]) {
    let listen = async {
        if stream.try_write(words).is_err() {
            return;
        }
        let _ = SockRef::from(stream).shutdown(Shutdown::Write);
        let mut bytes = 0;
        while bytes < BYTES_MAX && stream.readable().await.is_ok() {
            let mut piece = [0; 1024]; // in here, so that who waits does not hold it
            match stream.try_read(&mut piece) {
                Ok(0) => return,
                Ok(count) => bytes += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(PATIENCE, listen).await; // it had its time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_as_long_as_they_say() {
        for words in [TOO_MANY_CONNECTIONS, HEAD_TIMEOUT] {
            let text = std::str::from_utf8(words).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}: {text}", body.len());
            serde_json::from_str::<serde_json::Value>(body).unwrap();
        }
    }
}
