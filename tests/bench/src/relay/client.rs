//! The client of the benchmark: opens its connections, checks every byte, and counts. Told `mark` on its standard input,
//! it answers with what came since the last mark; it says `ready` once everything flows.

use std::{
    cell::RefCell,
    io::{BufRead, Write},
    net::SocketAddr,
    rc::Rc,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use warmpath_tests::stress::Decoder;

use super::{
    http,
    load::{Load, Pattern, STRETCH_BYTES_MAX, Workload, now_ns},
};
use router_agent::replay::stats::Summary;

const EVENT_READ_BYTES: usize = 32 * 1024;
const BODY_READ_BYTES: usize = 256 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    address: SocketAddr,
    /// A [`Load`] as JSON
    #[arg(long)]
    load: String,
}

/// What came between two marks.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) events: u64,
    /// Of content.
    pub(super) bytes: u64,
    pub(super) responses: u64,
    /// From the worker's stamp to the client's read, microseconds.
    pub(super) lateness_p50_us: Option<f64>,
    pub(super) lateness_p99_us: Option<f64>,
}

#[derive(Default)]
struct Shared {
    counts: Counts,
    lateness_us: Vec<f64>,
    /// Connections over which something has come.
    flowing: usize,
}

/// Runs until standard input ends or something is wrong.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let load: Load = serde_json::from_str(&args.load).context("--load is not a load")?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(tokio::task::LocalSet::new().run_until(drive(args.address, load)))?;
    Ok(true)
}

async fn drive(address: SocketAddr, load: Load) -> Result<()> {
    let shared = Rc::new(RefCell::new(Shared::default()));
    let pattern = Rc::new(Pattern::new());
    let (ended, mut endings) = mpsc::unbounded_channel();
    for number in 0..load.connections {
        let (shared, pattern, ended) = (shared.clone(), pattern.clone(), ended.clone());
        tokio::task::spawn_local(async move {
            let result = if load.workload.has_events() {
                events(address, load, number, &pattern, &shared).await
            } else {
                bodies(address, load, number, &pattern, &shared).await
            };
            let _ = ended.send(result.with_context(|| format!("connection {number}"))); // the end has come anyway
        });
    }
    let (mark, mut marks) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if line.is_err() || mark.send(()).is_err() {
                return;
            }
        }
    });
    let mut is_ready = false;
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(10));
    loop {
        tokio::select! {
            ending = endings.recv() => {
                ending.context("every connection reports")??;
                bail!("a connection ended by itself");
            }
            marked = marks.recv() => {
                if marked.is_none() {
                    return Ok(());
                }
                let mut shared = shared.borrow_mut();
                let counts = take(&mut shared);
                println!("{}", serde_json::to_string(&counts)?);
                std::io::stdout().flush()?;
            }
            _ = tick.tick(), if !is_ready => {
                if shared.borrow().flowing == load.connections {
                    is_ready = true;
                    println!("ready");
                    std::io::stdout().flush()?;
                }
            }
        }
    }
}

fn take(shared: &mut Shared) -> Counts {
    let mut counts = std::mem::take(&mut shared.counts);
    let lateness = std::mem::take(&mut shared.lateness_us);
    if !lateness.is_empty() {
        let summary = Summary::of(lateness);
        (counts.lateness_p50_us, counts.lateness_p99_us) = (Some(summary.p50), Some(summary.p99));
    }
    counts
}

async fn ask(socket: &mut TcpStream, load: Load, number: usize) -> Result<()> {
    const BODY: &str = "{\"prompt\":\"bench\",\"stream\":true}";
    let request = format!(
        "POST {} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
        load.target(number),
        BODY.len()
    );
    Ok(socket.write_all(request.as_bytes()).await?)
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// One stream without end.
async fn events(
    address: SocketAddr,
    load: Load,
    number: usize,
    pattern: &Pattern,
    shared: &RefCell<Shared>,
) -> Result<()> {
    let mut socket = connect(address).await?;
    ask(&mut socket, load, number).await?;
    let mut bytes = Vec::with_capacity(EVENT_READ_BYTES);
    let head = http::read_head(&mut socket, &mut bytes).await?.context("closed before the head")?;
    ensure!(http::status(&bytes) == Some(200), "{}", String::from_utf8_lossy(&bytes[..head]));
    bytes.drain(..head);
    let mut decoder = Decoder::chunked();
    let mut content: Vec<u8> = Vec::with_capacity(2 * EVENT_READ_BYTES);
    let mut next = 0_u32;
    loop {
        let now = now_ns();
        decoder.feed(&bytes, |data| content.extend(data)).map_err(anyhow::Error::msg)?;
        bytes.clear();
        count_events(&mut content, load.bytes, now, &mut next, pattern, &mut shared.borrow_mut())?;
        ensure!(socket.read_buf(&mut bytes).await? > 0, "the stream ended after {next} events");
    }
}

/// Takes the whole events out of `content`: checks and counts them.
fn count_events(
    content: &mut Vec<u8>,
    length: usize,
    now: u64,
    next: &mut u32,
    pattern: &Pattern,
    shared: &mut Shared,
) -> Result<()> {
    let whole = content.len() - content.len() % length;
    for event in content[..whole].chunks_exact(length) {
        let stamp = pattern
            .check(event, *next)
            .with_context(|| format!("this is not event {next}: {:?}", String::from_utf8_lossy(event)))?;
        shared.lateness_us.push(now.saturating_sub(stamp) as f64 / 1000.0);
        shared.flowing += usize::from(*next == 0);
        *next += 1;
    }
    shared.counts.events += (whole / length) as u64;
    shared.counts.bytes += whole as u64;
    content.drain(..whole);
    Ok(())
}

/// One body after the other.
async fn bodies(
    address: SocketAddr,
    load: Load,
    number: usize,
    pattern: &Pattern,
    shared: &RefCell<Shared>,
) -> Result<()> {
    let mut socket = connect(address).await?;
    let read_bytes = if load.workload == Workload::Bulk { BODY_READ_BYTES } else { 4096 };
    let mut bytes = Vec::with_capacity(read_bytes.min(STRETCH_BYTES_MAX));
    for response in 0.. {
        let start = number * 1_000_003 + response * 31;
        ask(&mut socket, load, start).await?;
        let head = http::read_head(&mut socket, &mut bytes).await?.context("closed before the head")?;
        ensure!(http::status(&bytes) == Some(200), "{}", String::from_utf8_lossy(&bytes[..head]));
        let length = http::content_length(&bytes[..head]).context("no content-length")? as usize;
        ensure!(length == load.bytes, "{length} bytes, not {}", load.bytes);
        bytes.drain(..head);
        let mut at = 0;
        loop {
            let right = pattern.stretch(start + at, bytes.len());
            if bytes != right {
                let same = bytes.iter().zip(right).take_while(|(a, b)| a == b).count();
                bail!("byte {} of response {response} is wrong", at + same);
            }
            at += bytes.len();
            shared.borrow_mut().counts.bytes += bytes.len() as u64;
            bytes.clear();
            ensure!(at <= length, "bytes behind the end");
            if at == length {
                break;
            }
            ensure!(socket.read_buf(&mut bytes).await? > 0, "broke off after {at} of {length} bytes");
        }
        let mut shared = shared.borrow_mut();
        shared.counts.responses += 1;
        shared.flowing += usize::from(response == 0);
    }
    Ok(())
}
