//! A raw client: it sends given bytes and notes what comes back, read by read.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use vllm_sim::{EngineConfig, Sim, SimConfig, SimHandle, TimeModel};

/// Nothing in these tests takes longer, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A worker like the recorded one: model "tiny", context 2048, quick.
pub(crate) fn tiny() -> SimConfig {
    SimConfig {
        model: "tiny".to_owned(),
        engine: EngineConfig {
            max_model_len: 2048,
            vocab_size: 2048,
            time: TimeModel {
                prefill_tokens_per_s: 1e6,
                itl_base: Duration::from_millis(2),
                itl_slope: Duration::ZERO,
                time_scale: 1.0,
            },
            ..EngineConfig::default()
        },
        ..SimConfig::default()
    }
}

pub(crate) async fn start(config: SimConfig) -> SimHandle {
    Sim::start(config).await.expect("a worker on a free port")
}

pub(crate) fn fixture(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/vllm").join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn fixture_lines(path: &str) -> Vec<Value> {
    let text = String::from_utf8(fixture(path)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A POST with a JSON body, as bytes.
pub(crate) fn post(path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let len = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: sim\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
    )
    .into_bytes()
}

pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: sim\r\n\r\n").into_bytes()
}

/// A connection that notes its reads.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) started: Instant,
    /// When each read came, and what it held.
    pub(crate) reads: Vec<(Duration, Vec<u8>)>,
    pub(crate) closed: Option<Duration>,
}

impl Client {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.expect("the worker listens");
        stream.set_nodelay(true).unwrap();
        Self { stream, started: Instant::now(), reads: Vec::new(), closed: None }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.started = Instant::now();
        self.stream.write_all(bytes).await.expect("the worker reads");
    }

    /// One more read; false at the end of the stream.
    pub(crate) async fn read(&mut self) -> bool {
        let mut buffer = Vec::with_capacity(64 << 10);
        match timeout(PATIENCE, self.stream.read_buf(&mut buffer)).await.expect("the worker says something") {
            Ok(0) => {
                self.closed = Some(self.started.elapsed());
                false
            }
            Ok(_) => {
                self.reads.push((self.started.elapsed(), buffer));
                true
            }
            Err(error) => panic!("read: {error}"),
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.reads.iter().flat_map(|(_, bytes)| bytes.clone()).collect()
    }

    /// Reads until `count` whole responses have come (interim ones count) or the stream ends.
    pub(crate) async fn responses(&mut self, count: usize, head_only: bool) -> Vec<Response> {
        loop {
            let responses = Response::parse_all(&self.bytes(), head_only);
            if responses.len() >= count || !self.read().await {
                return Response::parse_all(&self.bytes(), head_only);
            }
        }
    }

    /// Reads one response and forgets it.
    pub(crate) async fn response(&mut self) -> Response {
        let response = self.responses(1, false).await.pop().expect("a response");
        self.reads.clear();
        response
    }

    /// Sends a request and reads its response.
    pub(crate) async fn call(&mut self, request: &[u8]) -> Response {
        self.send(request).await;
        self.response().await
    }

    /// True if the worker has closed within `time`; it must not say anything.
    pub(crate) async fn closes_within(&mut self, time: Duration) -> bool {
        let mut byte = [0];
        match timeout(time, self.stream.read(&mut byte)).await {
            Ok(Ok(0)) => true,
            Ok(Ok(_)) => panic!("unexpected bytes"),
            Ok(Err(error)) => panic!("read: {error}"),
            Err(_) => false,
        }
    }
}

/// A response taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status_line: String,
    pub(crate) headers: Vec<(String, String)>,
    /// The body without its framing.
    pub(crate) body: Vec<u8>,
    /// The chunks of a chunked body, the last one excepted.
    pub(crate) chunks: Option<Vec<Vec<u8>>>,
    pub(crate) head_len: usize,
}

impl Response {
    /// The whole responses at the front of `bytes`.
    pub(crate) fn parse_all(mut bytes: &[u8], head_only: bool) -> Vec<Self> {
        let mut responses = Vec::new();
        while let Some((response, len)) = Self::parse(bytes, head_only) {
            responses.push(response);
            bytes = &bytes[len..];
        }
        responses
    }

    fn parse(bytes: &[u8], head_only: bool) -> Option<(Self, usize)> {
        let head_len = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&bytes[..head_len - 4]).expect("heads are text");
        let mut lines = head.split("\r\n");
        let status_line = lines.next()?.to_owned();
        let headers: Vec<_> = lines
            .map(|line| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned())))
            .map(|header| header.expect("a header has a name"))
            .collect();
        let mut response = Self { status_line, headers, body: Vec::new(), chunks: None, head_len };
        let rest = &bytes[head_len..];
        if response.header("transfer-encoding") == Some("chunked") {
            let (chunks, len) = parse_chunks(rest)?;
            response.body = chunks.concat();
            response.chunks = Some(chunks);
            return Some((response, head_len + len));
        }
        let len = response.header("content-length").map_or(0, |len| len.parse().unwrap());
        let len = if head_only { 0 } else { len };
        response.body = rest.get(..len)?.to_vec();
        Some((response, head_len + len))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn status(&self) -> u16 {
        self.status_line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body_text()))
    }

    pub(crate) fn body_text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The text that a stream's events add up to, whatever their number.
    pub(crate) fn text(&self) -> String {
        let choices = self.events().into_iter().filter_map(|event| event["choices"].get(0).cloned());
        choices
            .filter_map(|choice| {
                Some(choice.get("text").or_else(|| choice["delta"].get("content"))?.as_str()?.to_owned())
            })
            .collect()
    }

    /// The JSON of each SSE event's data; `[DONE]` and comments left out.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = self.body_text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

/// The chunks of a whole chunked body, and its length on the wire.
fn parse_chunks(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let mut chunks = Vec::new();
    let mut at = 0;
    loop {
        let line = bytes[at..].windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[at..at + line]).unwrap();
        let size = usize::from_str_radix(size, 16).expect("a chunk begins with its size");
        at += line + 2;
        let data = bytes.get(at..at + size)?;
        assert_eq!(bytes.get(at + size..at + size + 2)?, b"\r\n", "a chunk ends with a line end");
        at += size + 2;
        if size == 0 {
            return Some((chunks, at));
        }
        chunks.push(data.to_vec());
    }
}
