//! The load generator's HTTP side: one request, timed. Connections are kept and reused, most recent first, and dropped
//! before the five seconds after which vLLM closes an idle one.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::prompt::PromptBody;
use super::sse::{Stream, Usage};

const IDLE_MAX: Duration = Duration::from_secs(3);

/// One address and the idle connections to it.
pub struct Client {
    address: SocketAddr,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
    idle: Mutex<Vec<(SendRequest<PromptBody>, Instant)>>,
}

/// How one request went. Instants are wall clock.
#[derive(Debug)]
pub struct Answer {
    /// When the generator got round to it: what that is later than intended is the generator's own fault.
    pub begun: Instant,
    pub first_token: Option<Instant>,
    pub last_token: Option<Instant>,
    pub usage: Option<Usage>,
    /// Events with a piece of it.
    pub events: u64,
    /// From `x-warmpath-worker`; the address where nothing says so.
    pub worker: String,
    /// A short class of failure, the same text for the same cause.
    pub error: Option<String>,
}

impl Client {
    /// `host`: what it is called; `authorization`: what it is shown.
    pub fn new(address: SocketAddr, host: HeaderValue, authorization: Option<HeaderValue>) -> Self {
        Self { address, host, authorization, idle: Mutex::default() }
    }

    /// Sends one streamed chat request and reads the answer to its end.
    pub async fn send(&self, body: PromptBody) -> Answer {
        let mut answer = Answer {
            begun: Instant::now(),
            first_token: None,
            last_token: None,
            usage: None,
            events: 0,
            worker: self.address.to_string(),
            error: None,
        };
        if let Err(error) = self.exchange(body, &mut answer).await {
            answer.error = Some(error);
        }
        answer
    }

    async fn exchange(&self, body: PromptBody, answer: &mut Answer) -> Result<(), String> {
        let mut connection = match self.reuse().await {
            Some(connection) => connection,
            None => self.connect().await.map_err(|error| format!("connect: {error}"))?,
        };
        let mut request = hyper::Request::post("/v1/chat/completions")
            .header(HOST, &self.host)
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .expect("a constant request head");
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let mut response =
            connection.send_request(request).await.map_err(|error| format!("before the head: {error}"))?;
        if let Some(worker) = response.headers().get("x-warmpath-worker") {
            answer.worker = String::from_utf8_lossy(worker.as_bytes()).into_owned();
        }
        if response.status() != hyper::StatusCode::OK {
            return Err(format!("status {}", response.status().as_u16()));
        }
        let mut stream = Stream::default();
        let mut cut = None;
        while let Some(frame) = response.frame().await {
            match frame {
                Ok(frame) => {
                    if let Some(chunk) = frame.data_ref() {
                        stream.feed(chunk, Instant::now());
                    }
                }
                Err(error) => {
                    cut = Some(format!("in the stream: {error}"));
                    break;
                }
            }
        }
        answer.first_token = stream.first_token;
        answer.last_token = stream.last_token;
        answer.usage = stream.usage;
        answer.events = stream.events;
        if let Some(error) = cut.or(stream.error) {
            return Err(error);
        }
        if !stream.done || stream.first_token.is_none() {
            return Err("stream ended before its end".to_owned());
        }
        self.keep(connection);
        Ok(())
    }

    async fn reuse(&self) -> Option<SendRequest<PromptBody>> {
        loop {
            let (mut connection, since) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if since.elapsed() < IDLE_MAX && connection.ready().await.is_ok() {
                return Some(connection);
            }
        }
    }

    fn keep(&self, connection: SendRequest<PromptBody>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((connection, Instant::now()));
    }

    async fn connect(&self) -> Result<SendRequest<PromptBody>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
