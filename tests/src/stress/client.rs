//! One client connection of the storm: sends requests, judges what comes back.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use xxhash_rust::xxh3::Xxh3;

use super::{
    content::{Random, first_difference},
    decode::Decoder,
    script::{Death, Framing, Profile, Script},
};

/// Receive buffer of a slow reader, bytes: the sender is held back soon. Not below a segment of the loopback interface
/// (64 KiB): the sender would wait for its timer before each piece.
const SLOW_BUFFER_BYTES: u32 = 64 * 1024;
/// Longest response head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// What is kept of a body behind its first wrong byte: the filler of an open chunk and an error event.
const TAIL_BYTES_MAX: usize = 128 * 1024;
/// What ends a stream in order when the worker has died.
const ERROR_EVENT: &str = "data: {\"error\"";
const LAST_EVENT: &str = "data: [DONE]\n\n";

/// How a response went, as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Every byte is right and the end is where it should be.
    Whole,
    /// The worker died, and that can be seen.
    Broken,
    /// The client hung up.
    HungUp,
}

/// How it should not.
#[derive(Debug)]
pub(super) enum Failure {
    Difference(String),
    Hang(String),
}

/// What this client does with one response; a function of its seed as the response is.
#[derive(Debug)]
struct Manners {
    /// Over the route that the gateway always copies.
    copied: bool,
    /// Hangs up when it has read so much content; none at all: before the head.
    hangs_up_at: Option<u64>,
    by_reset: bool,
    /// Reads nothing for a while when it has so much content.
    stalls_at: Option<(u64, Duration)>,
}

impl Manners {
    fn of(script: &Script, hang_ups: bool) -> Self {
        let mut random = Random::new(!script.seed);
        let hangs_up = random.one_in(10);
        let hangs_up_at = if random.one_in(5) { 0 } else { random.below(script.length + 1) };
        let stalls = random.one_in(20);
        let stalls_at = (random.below(script.length + 1), Duration::from_millis(20 + random.below(300)));
        Self {
            copied: random.one_in(3),
            hangs_up_at: (hang_ups && hangs_up).then_some(hangs_up_at),
            by_reset: random.one_in(2),
            stalls_at: stalls.then_some(stalls_at),
        }
    }
}

/// Where a client connects, and how long it waits for anything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Habits {
    pub(super) gateway: SocketAddr,
    pub(super) patience: Duration,
    pub(super) profile: Profile,
    pub(super) hang_ups: bool,
    /// Reads little at a time, with pauses, through a small buffer.
    pub(super) slow: bool,
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: TcpStream,
    /// Read and not yet looked at.
    bytes: Vec<u8>,
    used: u64,
}

impl Connection {
    pub(super) async fn open(habits: &Habits) -> io::Result<Self> {
        let socket = match habits.gateway {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if habits.slow {
            socket.set_recv_buffer_size(SLOW_BUFFER_BYTES)?;
        }
        let socket = timeout(habits.patience, socket.connect(habits.gateway)).await??;
        socket.set_nodelay(true)?;
        Ok(Self { socket, bytes: Vec::new(), used: 0 })
    }

    /// Port of our end, for whoever looks into the kernel's tables.
    pub(super) fn port(&self) -> u16 {
        self.socket.local_addr().map_or(0, |address| address.port())
    }

    /// Responses that were read to their end.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// One request and its response; whether the connection can be used again, and how much content came.
    pub(super) async fn exchange(
        &mut self,
        habits: &Habits,
        script: &Script,
    ) -> Result<(Outcome, bool, u64), Failure> {
        let manners = Manners::of(script, habits.hang_ups);
        self.send(habits, script, &manners).await?;
        if manners.hangs_up_at == Some(0) {
            self.hang_up(&manners);
            return Ok((Outcome::HungUp, false, 0));
        }
        let Some(head) = self.head(habits, script).await? else { return Ok((Outcome::Broken, false, 0)) };
        if head.status != 200 {
            return self.error_reply(habits, script, &head).await;
        }
        if head.content_type != script.media_type() || head.digest.is_none() {
            return Err(Failure::Difference(format!("another response's head: {head:?}")));
        }
        let mut body = Body::new(script, &head)?;
        let mut pauses = Random::new(script.seed ^ 1);
        let mut stall = manners.stalls_at;
        let ended = loop {
            let count = body.take(&self.bytes)?;
            if body.decoder.is_done() {
                self.bytes.drain(..count);
                break true;
            }
            self.bytes.clear();
            if manners.hangs_up_at.is_some_and(|at| body.received >= at) {
                self.hang_up(&manners);
                return Ok((Outcome::HungUp, false, body.received));
            }
            if let Some((at, pause)) = stall
                && body.received >= at
            {
                stall = None;
                tokio::time::sleep(pause).await;
            }
            if habits.slow && pauses.one_in(8) {
                tokio::time::sleep(Duration::from_micros(pauses.below(3_000))).await;
            }
            match self.read(habits).await {
                Ok(0) => break false,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(Failure::Hang(format!("in the body, {}", body.progress())));
                }
                Err(_) => break false, // a reset
            }
        };
        let outcome = body.verdict(ended, &head)?;
        if ended && !self.bytes.is_empty() {
            let shown = String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(100)]).into_owned();
            return Err(Failure::Difference(format!("bytes behind the end: {shown:?}")));
        }
        self.used += u64::from(ended);
        Ok((outcome, ended && !head.closes, body.received))
    }

    async fn send(&mut self, habits: &Habits, script: &Script, manners: &Manners) -> Result<(), Failure> {
        if self.used > 0 {
            match self.socket.try_read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return Err(self.closed("before a request")),
                Ok(_) => return Err(Failure::Difference("a byte that nobody asked for".to_owned())),
            }
        }
        let query = habits.profile.query(script.seed);
        let request = if manners.copied {
            format!("GET /copied?{query} HTTP/1.1\r\nhost: stress\r\n\r\n")
        } else {
            const BODY: &str = "{\"prompt\":\"storm\",\"stream\":true}";
            format!(
                "POST /v1/completions?{query} HTTP/1.1\r\nhost: stress\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\n\r\n{BODY}",
                BODY.len()
            )
        };
        match timeout(habits.patience, self.socket.write_all(request.as_bytes())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(self.closed("while a request was sent")),
            Err(_) => Err(Failure::Hang("the request cannot be sent".to_owned())),
        }
    }

    /// The gateway never closes a connection that it has not said it would close.
    fn closed(&self, when: &str) -> Failure {
        Failure::Difference(format!(
            "the gateway closed the connection {when}, after {} responses",
            self.used
        ))
    }

    /// The response's head; `None` if the gateway closed instead because the worker had died.
    async fn head(&mut self, habits: &Habits, script: &Script) -> Result<Option<Head>, Failure> {
        let end = loop {
            if let Some(end) = self.bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if self.bytes.len() > HEAD_BYTES_MAX {
                return Err(Failure::Difference("a head without end".to_owned()));
            }
            match self.read(habits).await {
                Ok(count) if count > 0 => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    let what = format!("no response head, {} bytes of it", self.bytes.len());
                    return Err(Failure::Hang(what));
                }
                _ if script.death.is_some() && self.bytes.is_empty() => return Ok(None),
                _ => return Err(self.closed("before the response head")),
            }
        };
        let head = Head::parse(&self.bytes[..end]);
        self.bytes.drain(..end);
        head.map(Some).map_err(Failure::Difference)
    }

    /// A reply that is not the worker's: only for a worker that died before its head was complete, or was reset behind it,
    /// or ended a stream there (its head waits for the first byte).
    async fn error_reply(
        &mut self,
        habits: &Habits,
        script: &Script,
        head: &Head,
    ) -> Result<(Outcome, bool, u64), Failure> {
        let mut decoder = head.decoder().map_err(Failure::Difference)?;
        let mut text = Vec::new();
        loop {
            let count = decoder.feed(&self.bytes, |data| text.extend(data)).map_err(Failure::Difference)?;
            self.bytes.drain(..count);
            if decoder.is_done() {
                break;
            }
            match self.read(habits).await {
                Ok(count) if count > 0 => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(Failure::Hang(format!("in the error reply, status {}", head.status)));
                }
                _ => return Err(self.closed("in an error reply")),
            }
        }
        let text = String::from_utf8_lossy(&text);
        let may_be = match script.death {
            Some(Death::InHead) => true,
            Some(Death::InBody) => {
                script.by_reset || (script.is_event_stream && script.dies_behind_its_head())
            }
            None => false,
        };
        if may_be && head.status == 502 && text.contains("\"error\"") {
            self.used += 1;
            return Ok((Outcome::Broken, !head.closes, 0));
        }
        Err(Failure::Difference(format!("status {}, {:?}: {text}", head.status, script.death)))
    }

    /// More bytes; none at the end of the connection; `TimedOut` when nothing comes.
    async fn read(&mut self, habits: &Habits) -> io::Result<usize> {
        self.bytes.reserve(if habits.slow { 4 * 1024 } else { 128 * 1024 });
        match timeout(habits.patience, self.socket.read_buf(&mut self.bytes)).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Takes effect when the connection is dropped.
    fn hang_up(&self, manners: &Manners) {
        if manners.by_reset {
            let _ = self.socket.set_zero_linger(); // it may be closed already
        }
    }
}

/// What a response head says.
#[derive(Debug)]
struct Head {
    status: u16,
    content_type: String,
    length: Option<u64>,
    chunked: bool,
    closes: bool,
    digest: Option<u64>,
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| format!("a head that is no text: {bytes:?}"))?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| format!("no HTTP/1.1 status line: {text:?}"))?;
        let mut head = Self {
            status,
            content_type: String::new(),
            length: None,
            chunked: false,
            closes: false,
            digest: None,
        };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-type" => value.clone_into(&mut head.content_type),
                "content-length" => head.length = value.parse().ok(),
                "transfer-encoding" => head.chunked = value.eq_ignore_ascii_case("chunked"),
                "connection" => head.closes = value.eq_ignore_ascii_case("close"),
                "x-content-xxh3" => head.digest = u64::from_str_radix(value, 16).ok(),
                _ => {}
            }
        }
        Ok(head)
    }

    fn decoder(&self) -> Result<Decoder, String> {
        match (self.length, self.chunked) {
            (Some(length), false) => Ok(Decoder::length(length)),
            (None, true) => Ok(Decoder::chunked()),
            _ => Err(format!("a body of unclear length: {self:?}")),
        }
    }
}

/// A body as it comes, compared with what it should be.
struct Body<'a> {
    script: &'a Script,
    decoder: Decoder,
    hasher: Xxh3,
    /// Content bytes so far.
    received: u64,
    /// The first that is wrong, and what came from there on.
    wrong_at: Option<u64>,
    tail: Vec<u8>,
}

impl<'a> Body<'a> {
    fn new(script: &'a Script, head: &Head) -> Result<Self, Failure> {
        let decoder = head.decoder().map_err(Failure::Difference)?;
        let of_length = script.framing == Framing::Length;
        if head.length.is_some_and(|length| !of_length || length != script.length) {
            return Err(Failure::Difference(format!("not the worker's length: {head:?}")));
        }
        Ok(Self { script, decoder, hasher: Xxh3::new(), received: 0, wrong_at: None, tail: Vec::new() })
    }

    /// Takes what belongs to the body; how many bytes.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, Failure> {
        let Self { script, decoder, hasher, received, wrong_at, tail } = self;
        let fed = decoder.feed(bytes, |data| {
            hasher.update(data);
            let mut rest = data;
            if wrong_at.is_none() {
                let within = (script.length - (*received).min(script.length)).min(data.len() as u64) as usize;
                let right = first_difference(script.seed, *received, &data[..within]).unwrap_or(within);
                rest = &data[right..];
                if !rest.is_empty() {
                    *wrong_at = Some(*received + right as u64);
                }
            }
            if wrong_at.is_some() {
                tail.extend(&rest[..rest.len().min(TAIL_BYTES_MAX - tail.len())]);
            }
            *received += data.len() as u64;
        });
        let count = fed.map_err(|error| {
            let progress = self.progress();
            Failure::Difference(format!("broken framing, {progress}: {error}"))
        })?;
        if self.wrong_at.is_some() && !self.may_end_with_error_event() {
            return Err(self.wrong());
        }
        Ok(count)
    }

    /// A worker that dies under an event stream is told of in the stream.
    fn may_end_with_error_event(&self) -> bool {
        self.script.is_event_stream && self.script.death == Some(Death::InBody)
    }

    fn verdict(&self, ended: bool, head: &Head) -> Result<Outcome, Failure> {
        let Self { script, received, .. } = self;
        if self.wrong_at.is_some() {
            // Filler up to the end of an open chunk, then the event. A first byte of it may be right by chance.
            let tail = String::from_utf8_lossy(&self.tail);
            let event = tail.trim_start_matches([' ', '\n']);
            let begins = event.starts_with(&ERROR_EVENT[1..]) || event.starts_with(ERROR_EVENT);
            let is_part = ERROR_EVENT.starts_with(event);
            return match ended {
                true if begins && event.ends_with(LAST_EVENT) => Ok(Outcome::Broken),
                false if begins || is_part => Ok(Outcome::Broken),
                _ => Err(self.wrong()),
            };
        }
        if !ended {
            return match script.death {
                Some(_) => Ok(Outcome::Broken),
                None => {
                    Err(Failure::Difference(format!("broke off, {}, with a worker alive", self.progress())))
                }
            };
        }
        if *received != script.length {
            return Err(Failure::Difference(format!("ended early as if complete, {}", self.progress())));
        }
        if head.digest != Some(self.hasher.digest()) {
            return Err(Failure::Difference("the worker has hashed something else".to_owned()));
        }
        if script.death.is_some() {
            return Err(Failure::Difference("ended as if complete, and the worker had died".to_owned()));
        }
        Ok(Outcome::Whole)
    }

    fn wrong(&self) -> Failure {
        let shown = &self.tail[..self.tail.len().min(64)];
        Failure::Difference(format!(
            "byte {} of {} is wrong, {}: {:?}",
            self.wrong_at.unwrap_or_default(),
            self.script.length,
            self.progress(),
            String::from_utf8_lossy(shown)
        ))
    }

    fn progress(&self) -> String {
        let Self { received, script, decoder, .. } = self;
        format!("{received} of {} content bytes, decoder {decoder:?}", script.length)
    }
}
