//! Which HTTP a client speaks, by its first bytes.
//!
//! Over TLS the two sides agree on it (ALPN, RFC 7301). Without, a client that knows that this gateway speaks HTTP/2 begins
//! with the preface (RFC 9113 section 3.3), whose first four bytes no HTTP/1 request begins with. They are looked at and
//! stay in the socket.

use std::{io, time::Duration};

use tokio::{io::ReadBuf, net::TcpStream};

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// What the data port offers by ALPN, the best first.
pub const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

impl Protocol {
    /// As agreed in a TLS handshake; a client without ALPN speaks HTTP/1.1.
    pub(super) fn agreed(alpn: Option<&[u8]>) -> Self {
        if alpn == Some(b"h2") { Self::Http2 } else { Self::Http1 }
    }

    /// Waits for the first bytes of a connection without TLS; `None` if it ends before them.
    pub(super) async fn spoken(stream: &TcpStream) -> io::Result<Option<Self>> {
        loop {
            let mut bytes = [0; BEGINNING.len()];
            let mut seen = ReadBuf::new(&mut bytes);
            std::future::poll_fn(|cx| stream.poll_peek(cx, &mut seen)).await?;
            match seen.filled() {
                [] => return Ok(None),
                BEGINNING => return Ok(Some(Self::Http2)),
                // The socket is readable with these already: nothing wakes us when there are more.
                some if BEGINNING.starts_with(some) => tokio::time::sleep(REST_PAUSE).await,
                _ => return Ok(Some(Self::Http1)),
            }
        }
    }
}

/// Of the preface `PRI * HTTP/2.0`.
const BEGINNING: &[u8] = b"PRI ";
/// Between two looks at a beginning that came in pieces.
const REST_PAUSE: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    async fn spoken(pieces: &[&[u8]]) -> Option<Protocol> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let write = async {
            for piece in pieces {
                client.write_all(piece).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            drop(client);
        };
        tokio::join!(Protocol::spoken(&server), write).0.unwrap()
    }

    #[tokio::test]
    async fn http_2_begins_with_its_preface_and_http_1_with_anything_else() {
        assert_eq!(spoken(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]).await, Some(Protocol::Http2));
        assert_eq!(spoken(&[b"P", b"R", b"I ", b"*"]).await, Some(Protocol::Http2));
        assert_eq!(spoken(&[b"GET / HTTP/1.1\r\n"]).await, Some(Protocol::Http1));
        assert_eq!(spoken(&[b"P", b"OST / HTTP/1.1\r\n"]).await, Some(Protocol::Http1));
        assert_eq!(
            spoken(&[b"\x16\x03\x01"]).await,
            Some(Protocol::Http1),
            "TLS: hyper says that it is no HTTP"
        );
        assert_eq!(spoken(&[]).await, None);
    }
}
