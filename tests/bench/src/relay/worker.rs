//! The worker of the benchmark: one thread that answers, one that keeps time. It does as little as a worker can, so that
//! what is between it and the client shows.
//!
//! Paced streams are written by one thread in turn, a write an event, as a server does that goes over its batch after
//! each step; its clock is absolute, so a late event does not delay the next.

use std::{
    io,
    net::SocketAddr,
    num::NonZeroU64,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    net::{SendFlags, send},
    thread::{clock_nanosleep_absolute, set_current_timer_slack},
    time::{ClockId, Timespec},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use super::{
    http,
    load::{Pattern, is_event_length, now_ns},
};

/// How late the timer may fire beyond its moment, nanoseconds; the kernel's default is fifty microseconds.
const TIMER_SLACK_NS: u64 = 1_000;
/// Behind by more than this, the pacer starts over instead of catching up.
const BEHIND_NS_MAX: u64 = 50_000_000;
/// Of a body, in one write.
const WRITE_BYTES: usize = 256 * 1024;
const STREAM_HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    listen: SocketAddr,
}

/// Serves until it is killed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let (add, added) = mpsc::channel();
    std::thread::Builder::new().name("pacer".to_owned()).spawn(move || pace(&added))?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(args.listen)
            .await
            .with_context(|| format!("cannot listen at {}", args.listen))?;
        let pattern = Rc::new(Pattern::new());
        tokio::task::LocalSet::new()
            .run_until(async {
                loop {
                    let (socket, _) = listener.accept().await?;
                    let (pattern, add) = (pattern.clone(), add.clone());
                    tokio::task::spawn_local(async move { connection(socket, &pattern, &add).await });
                }
            })
            .await
    })
}

/// Ends with an error when the other side closes.
async fn connection(mut socket: TcpStream, pattern: &Pattern, pacer: &mpsc::Sender<Paced>) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut bytes = Vec::with_capacity(4096);
    while let Some(end) = http::read_head(&mut socket, &mut bytes).await? {
        let target = http::target(&bytes[..end]).context("no request line")?.to_owned();
        let total = end + http::content_length(&bytes[..end]).unwrap_or(0) as usize;
        while bytes.len() < total {
            ensure!(socket.read_buf(&mut bytes).await? > 0, "a request broke off");
        }
        bytes.drain(..total);
        let value = |key: &str| {
            let pairs = target.split_once('?').map_or("", |(_, query)| query).split('&');
            pairs
                .filter_map(|pair| pair.split_once('='))
                .find(|(name, _)| *name == key)
                .map(|(_, value)| value)
        };
        let number = |key: &str| value(key).and_then(|value| value.parse::<usize>().ok()).unwrap_or(0);
        let (length, rate) = (number("bytes"), number("rate"));
        match value("kind") {
            Some("paced") if is_event_length(length) && rate > 0 => {
                socket.write_all(STREAM_HEAD).await?;
                let (done, ended) = oneshot::channel();
                let gap = Duration::from_secs(1) / rate as u32;
                let socket = socket.as_fd().try_clone_to_owned()?;
                pacer.send(Paced { socket, length, gap, number: 0, _done: done })?;
                let _ = ended.await; // an error is how the pacer says that it has dropped the stream
                return Ok(());
            }
            Some("saturated") if is_event_length(length) => {
                socket.write_all(STREAM_HEAD).await?;
                let mut chunk = String::new();
                for number in 0.. {
                    event_chunk(pattern, number, length, &mut chunk);
                    socket.write_all(chunk.as_bytes()).await?;
                }
            }
            Some("body") => body(&mut socket, pattern, length, number("number")).await?,
            _ => socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?,
        }
    }
    Ok(())
}

async fn body(socket: &mut TcpStream, pattern: &Pattern, length: usize, start: usize) -> io::Result<()> {
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    if length <= WRITE_BYTES {
        let all = [head.as_bytes(), pattern.stretch(start, length)].concat();
        return socket.write_all(&all).await;
    }
    socket.write_all(head.as_bytes()).await?;
    let mut at = 0;
    while at < length {
        let count = WRITE_BYTES.min(length - at);
        socket.write_all(pattern.stretch(start + at, count)).await?;
        at += count;
    }
    Ok(())
}

/// One event in a chunk of its own, as vLLM sends it.
fn event_chunk(pattern: &Pattern, number: u32, length: usize, chunk: &mut String) {
    chunk.clear();
    std::fmt::Write::write_fmt(chunk, format_args!("{length:x}\r\n")).expect("a String takes everything");
    pattern.event(number, length, now_ns(), chunk);
    chunk.push_str("\r\n");
}

/// A stream that the pacer writes to. Dropping it tells the task that waits for its end.
struct Paced {
    socket: OwnedFd,
    length: usize,
    gap: Duration,
    number: u32,
    _done: oneshot::Sender<()>,
}

/// Writes to each stream in turn, evenly over the gap between two events of one.
fn pace(added: &mpsc::Receiver<Paced>) {
    if let Err(error) = set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS)) {
        eprintln!("timer slack stays as it is: {error}");
    }
    let pattern = Pattern::new();
    let mut chunk = String::new();
    let mut streams: Vec<Paced> = Vec::new();
    let mut turn = 0;
    let mut due = now_ns();
    loop {
        if streams.is_empty() {
            let Ok(stream) = added.recv() else { return };
            streams.push(stream);
            due = now_ns();
        }
        streams.extend(added.try_iter());
        turn %= streams.len();
        due += streams[turn].gap.as_nanos() as u64 / streams.len() as u64;
        let now = now_ns();
        if due > now {
            let moment = Timespec {
                tv_sec: (due / 1_000_000_000).cast_signed(),
                tv_nsec: (due % 1_000_000_000).cast_signed(),
            };
            let _ = clock_nanosleep_absolute(ClockId::Monotonic, &moment); // interrupted: an event comes early
        } else if now - due > BEHIND_NS_MAX {
            due = now;
        }
        let stream = &mut streams[turn];
        event_chunk(&pattern, stream.number, stream.length, &mut chunk);
        stream.number += 1;
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match send(&stream.socket, chunk.as_bytes(), flags) {
            Ok(count) if count == chunk.len() => turn += 1,
            // The client has gone, or is so far behind that there is no pace to keep.
            _ => drop(streams.swap_remove(turn)),
        }
    }
}
