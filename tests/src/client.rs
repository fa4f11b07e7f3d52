//! A small HTTP client: one connection per request, whole replies or streams.

use std::{collections::hash_map::RandomState, hash::BuildHasher, net::SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::AbortHandle,
    time::timeout,
};

use crate::PATIENCE;

/// A whole response.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Reply {
    /// A header's value, empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("headers are text"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).expect("the body is text")
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }
}

/// A response under way. Dropping it closes the connection.
#[derive(Debug)]
pub struct Stream {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    body: Incoming,
    connection: AbortHandle,
}

impl Stream {
    /// A header's value, empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("headers are text"))
    }

    /// The next piece of the body; `None` at its proper end, an error if it broke off.
    pub async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match timeout(PATIENCE, self.body.frame()).await.expect("the stream goes on")? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The rest of the body as text, and whether it ended properly.
    pub async fn rest(&mut self) -> (String, bool) {
        let mut text = String::new();
        loop {
            match self.next().await {
                None => return (text, true),
                Some(Err(_)) => return (text, false),
                Some(Ok(data)) => text.push_str(std::str::from_utf8(&data).expect("events are text")),
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Sends a request and reads the response head.
pub async fn open(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Stream {
    let stream = TcpStream::connect(address).await.expect("connects");
    open_over(stream, address, method, path, headers, body).await
}

/// What HTTP can be spoken over.
pub trait Connected: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Connected for T {}

/// As [`open`], over a connection that is there.
pub async fn open_over(
    stream: impl Connected,
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Stream {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("handshake");
    let connection = tokio::spawn(connection).abort_handle();
    let mut request = Request::builder().method(method).uri(path).header("host", address.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.into())).expect("a request");
    let response =
        timeout(PATIENCE, sender.send_request(request)).await.expect("answers").expect("a response");
    let (parts, body) = response.into_parts();
    Stream { status: parts.status.as_u16(), headers: parts.headers, body, connection }
}

/// Sends a request and reads the whole response.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Reply {
    let stream = TcpStream::connect(address).await.expect("connects");
    request_over(stream, address, method, path, headers, body).await
}

/// As [`request`], over a connection that is there.
pub async fn request_over(
    stream: impl Connected,
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Reply {
    let mut stream = open_over(stream, address, method, path, headers, body).await;
    let mut body = Vec::new();
    while let Some(data) = stream.next().await {
        body.extend_from_slice(&data.expect("the body is whole"));
    }
    Reply { status: stream.status, headers: std::mem::take(&mut stream.headers), body: body.into() }
}

/// `GET path`.
pub async fn get(address: SocketAddr, path: &str) -> Reply {
    request(address, "GET", path, &[], Bytes::new()).await
}

/// A number that no other test has.
pub fn random() -> u32 {
    RandomState::new().hash_one(std::process::id()) as u32
}
