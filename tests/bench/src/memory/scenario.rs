//! What clients do, and what must become of them.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::Instant};

use super::{
    Args,
    clients::{connect, read_status, request, slow_reader, status_of},
};
use crate::{gateway::Gateway, processes::resident_kib};

/// So many times more connections than the limit.
pub(super) const CROWD_OVER: usize = 10;
/// How long slow clients stay, so that all buffers are full.
const STAY: Duration = Duration::from_secs(8);
/// How long connections are idle: longer than it takes until they rest.
const IDLE: Duration = Duration::from_secs(20);
/// A body that nobody may send, bytes.
const HUGE: u64 = 1 << 30;
const PIECE: usize = 1 << 20;
/// Bytes of a head just within the limit of 64 KiB, and beyond it.
const LONG_HEAD: usize = 60_000;
const TOO_LONG_HEAD: usize = 70_000;
/// Connections that send such heads.
const LONG_HEADS: usize = 500;
/// Announced by a slow sender, bytes; and sent at once.
const SLOW_BODY: usize = 8 << 20;
const SLOW_BODY_BEGIN: usize = 256 << 10;
/// Endless events, as fast as they are taken.
const STREAM: &str = "/v1/completions?kind=saturated&bytes=220";
const PLAIN: &str = "/v1/completions";

/// A way to wear a gateway out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Scenario {
    Idle,
    Readers,
    CopiedReaders,
    SlowHeads,
    SlowBodies,
    HugeBody,
    LongHeads,
    Crowd,
}

/// What was seen.
pub(super) struct Seen {
    /// RSS with all clients there.
    pub(super) held_kib: u64,
    pub(super) outcome: String,
    pub(super) findings: Vec<String>,
}

impl std::fmt::Display for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use clap::ValueEnum as _;
        f.write_str(self.to_possible_value().expect("none is skipped").get_name())
    }
}

impl Scenario {
    pub(super) const ALL: [Self; 8] = [
        Self::Idle,
        Self::Readers,
        Self::CopiedReaders,
        Self::SlowHeads,
        Self::SlowBodies,
        Self::HugeBody,
        Self::LongHeads,
        Self::Crowd,
    ];

    pub(super) fn title(self, args: &Args) -> String {
        let Args { readers, senders, crowd, .. } = args;
        match self {
            Self::Idle => format!("{} idle, each had one answer", idle(args)),
            Self::Readers => format!("{readers} streams that nobody reads, the kernel may move them"),
            Self::CopiedReaders => format!("{readers} streams that nobody reads, copied"),
            Self::SlowHeads => format!("{senders} send a head, a byte a second"),
            Self::SlowBodies => {
                format!("{senders} send a body of 8 MiB: 256 KiB, then a byte a second")
            }
            Self::HugeBody => "2 send a body of 1 GiB, one with its length, one in chunks".to_owned(),
            Self::LongHeads => format!("{LONG_HEADS} send a head of 60 KB, {LONG_HEADS} one of 70 KB"),
            Self::Crowd => format!("{crowd} connections at a limit of {}", crowd / CROWD_OVER),
        }
    }

    pub(super) fn config(self, worker: SocketAddr, args: &Args) -> String {
        let of_scenario = match self {
            Self::CopiedReaders => "splice: off\n".to_owned(),
            Self::Crowd => format!("limits: {{connections: {}}}\n", args.crowd / CROWD_OVER),
            _ => String::new(),
        };
        format!("workers: [\"http://{worker}\"]\nkv_events: {{mode: off}}\n{of_scenario}")
    }

    pub(super) async fn run(self, gateway: &Gateway, args: &Args) -> Result<Seen> {
        let mut seen = match self {
            Self::Idle => idle_connections(gateway, idle(args)).await?,
            Self::Readers | Self::CopiedReaders => readers(gateway, args.readers).await?,
            Self::SlowHeads => slow_heads(gateway, args.senders).await?,
            Self::SlowBodies => slow_bodies(gateway, args.senders).await?,
            Self::HugeBody => huge_bodies(gateway).await?,
            Self::LongHeads => long_heads(gateway).await?,
            Self::Crowd => crowd(gateway, args.crowd).await?,
        };
        let mut another = connect(gateway.address, 0).await?;
        if status_of(&mut another, request(PLAIN, "{\"prompt\":\"x\"}").as_bytes()).await != Some(200) {
            seen.findings.push("another client was not served afterwards".to_owned());
        }
        Ok(seen)
    }
}

fn idle(args: &Args) -> usize {
    args.crowd / CROWD_OVER
}

/// RSS now.
fn held(gateway: &Gateway) -> u64 {
    resident_kib(gateway.process.id())
}

/// Asks once more over a connection of its own.
async fn is_served(gateway: &Gateway) -> bool {
    let Ok(mut stream) = connect(gateway.address, 0).await else { return false };
    status_of(&mut stream, request(PLAIN, "{\"prompt\":\"x\"}").as_bytes()).await == Some(200)
}

fn unless(right: bool, finding: impl Into<String>) -> Vec<String> {
    if right { Vec::new() } else { vec![finding.into()] }
}

async fn idle_connections(gateway: &Gateway, count: usize) -> Result<Seen> {
    let mut open = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = connect(gateway.address, number).await?;
        let status = status_of(&mut stream, request(PLAIN, "{\"prompt\":\"x\"}").as_bytes()).await;
        ensure!(status == Some(200), "connection {number} was answered {status:?}");
        open.push(stream);
    }
    tokio::time::sleep(IDLE).await;
    let held_kib = held(gateway);
    let mut again = 0;
    for stream in &mut open {
        again += usize::from(answered_again(stream).await);
    }
    Ok(Seen {
        held_kib,
        outcome: format!("after {IDLE:?} {again} were answered again"),
        findings: unless(again == count, format!("{} were not answered again", count - again)),
    })
}

/// Asks once more over a connection whose first answer was read as far as its status.
async fn answered_again(stream: &mut TcpStream) -> bool {
    let mut piece = [0; 4096];
    while stream.try_read(&mut piece).is_ok_and(|count| count > 0) {}
    status_of(stream, request(PLAIN, "{\"prompt\":\"x\"}").as_bytes()).await == Some(200)
}

async fn readers(gateway: &Gateway, count: usize) -> Result<Seen> {
    let mut open = Vec::with_capacity(count);
    for number in 0..count {
        open.push(slow_reader(gateway.address, number, STREAM).await?);
    }
    tokio::time::sleep(STAY).await;
    let held_kib = held(gateway);
    let served = is_served(gateway).await;
    Ok(Seen {
        held_kib,
        outcome: "all began; another client was served beside them".to_owned(),
        findings: unless(served, "another client was not served beside them"),
    })
}

async fn slow_heads(gateway: &Gateway, count: usize) -> Result<Seen> {
    let mut open = Vec::with_capacity(count);
    for number in 0..count {
        open.push(connect(gateway.address, number).await?);
    }
    let began = Instant::now();
    let head = "GET /v1/models HTTP/1.1\r\nx-slow: ".bytes().chain(std::iter::repeat(b'x'));
    for (byte, second) in head.zip(0..).take(STAY.as_secs() as usize) {
        for stream in &mut open {
            stream.write_all(&[byte]).await?;
        }
        tokio::time::sleep_until(began + Duration::from_secs(second + 1)).await;
    }
    let held_kib = held(gateway);
    let served = is_served(gateway).await;
    let mut told = 0;
    for stream in &mut open {
        told += usize::from(read_status(stream).await == Some(408));
    }
    Ok(Seen {
        held_kib,
        outcome: format!("{told} got 408 after `timeouts.head`; another client was served beside them"),
        findings: [
            unless(served, "another client was not served beside them"),
            unless(told == count, format!("{} were not told", count - told)),
        ]
        .concat(),
    })
}

async fn slow_bodies(gateway: &Gateway, count: usize) -> Result<Seen> {
    let head = format!("POST {PLAIN} HTTP/1.1\r\nhost: memory\r\ncontent-length: {SLOW_BODY}\r\n\r\n");
    let begin = [head.as_bytes(), b"{\"prompt\":\"", &vec![b'x'; SLOW_BODY_BEGIN]].concat();
    let mut open = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = connect(gateway.address, number).await?;
        stream.write_all(&begin).await?;
        open.push(stream);
    }
    let began = Instant::now();
    for second in 0..STAY.as_secs() {
        for stream in &mut open {
            stream.write_all(b"x").await?;
        }
        tokio::time::sleep_until(began + Duration::from_secs(second + 1)).await;
    }
    let held_kib = held(gateway);
    let served = is_served(gateway).await;
    Ok(Seen {
        held_kib,
        outcome: "all waited for; another client was served beside them".to_owned(),
        findings: unless(served, "another client was not served beside them"),
    })
}

async fn huge_bodies(gateway: &Gateway) -> Result<Seen> {
    let mut announced = connect(gateway.address, 0).await?;
    let head = format!("POST {PLAIN} HTTP/1.1\r\nhost: memory\r\ncontent-length: {HUGE}\r\n\r\n");
    let at_once = status_of(&mut announced, head.as_bytes()).await;

    let mut chunked = connect(gateway.address, 1).await?;
    let head = format!("POST {PLAIN} HTTP/1.1\r\nhost: memory\r\ntransfer-encoding: chunked\r\n\r\n");
    chunked.write_all(head.as_bytes()).await?;
    let piece = [format!("{PIECE:x}\r\n").as_bytes(), &vec![b'x'; PIECE], b"\r\n"].concat();
    let mut sent = 0;
    while sent < HUGE && chunked.write_all(&piece).await.is_ok() {
        sent += PIECE as u64;
    }
    let held_kib = held(gateway);
    let in_chunks = read_status(&mut chunked).await;
    Ok(Seen {
        held_kib,
        outcome: format!("{} at once; {} after {} MiB", shown(at_once), shown(in_chunks), sent >> 20),
        findings: [
            unless(at_once == Some(413), "the announced body was not refused"),
            unless(sent < HUGE, "the body in chunks was taken"),
        ]
        .concat(),
    })
}

/// What came: a status, or the end of the connection.
fn shown(status: Option<u16>) -> String {
    status.map_or_else(|| "closed".to_owned(), |status| status.to_string())
}

async fn long_heads(gateway: &Gateway) -> Result<Seen> {
    let head = |bytes: usize| {
        let (begin, body) = (format!("POST {PLAIN} HTTP/1.1\r\nhost: memory\r\n"), "{\"prompt\":\"x\"}");
        // Many fields: the longest that one may be is less.
        let field = format!("x-{}: {}\r\n", "n".repeat(20), "v".repeat(1_000));
        let fields = field.repeat(bytes / field.len());
        format!("{begin}{fields}content-length: {}\r\n\r\n{body}", body.len())
    };
    let (within, beyond) = (head(LONG_HEAD), head(TOO_LONG_HEAD));
    let (mut open, mut taken, mut refused) = (Vec::<TcpStream>::new(), 0, 0);
    for number in 0..LONG_HEADS {
        let mut stream = connect(gateway.address, number).await?;
        taken += usize::from(status_of(&mut stream, within.as_bytes()).await == Some(200));
        open.push(stream);
        let mut stream = connect(gateway.address, number).await?;
        refused += usize::from(status_of(&mut stream, beyond.as_bytes()).await == Some(431));
        open.push(stream);
    }
    Ok(Seen {
        held_kib: held(gateway),
        outcome: format!("{taken} served, {refused} got 431"),
        findings: [
            unless(taken == LONG_HEADS, format!("{} within the limit were not served", LONG_HEADS - taken)),
            unless(refused == LONG_HEADS, format!("{} beyond it were not told", LONG_HEADS - refused)),
        ]
        .concat(),
    })
}

async fn crowd(gateway: &Gateway, count: usize) -> Result<Seen> {
    let limit = count / CROWD_OVER;
    let (mut open, mut refused, mut silent) = (Vec::with_capacity(limit), 0, 0);
    for number in 0..count {
        let mut stream = connect(gateway.address, number).await?;
        if number < limit {
            open.push(stream);
            continue;
        }
        match read_status(&mut stream).await {
            Some(503) => refused += 1,
            _ => silent += 1,
        }
    }
    let held_kib = held(gateway);
    let mut served = 0;
    for stream in &mut open {
        served += usize::from(
            status_of(stream, request(PLAIN, "{\"prompt\":\"x\"}").as_bytes()).await == Some(200),
        );
    }
    drop(open);
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(Seen {
        held_kib,
        outcome: format!("{refused} got 503; the {served} others were served afterwards"),
        findings: [
            unless(silent == 0, format!("{silent} were refused without a word")),
            unless(served == limit, format!("{} of those within the limit were not served", limit - served)),
        ]
        .concat(),
    })
}
