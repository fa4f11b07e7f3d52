//! The splice relay under responses of all kinds: each client compares every byte. Sizes, framing, writes, buffers, slow
//! readers, hang-ups and deaths are random from a fixed seed; where the kernel's turns fall is up to the machine.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use fastrand::Rng;
use router_agent::kernel::{
    Flows, Splice,
    flows::Start,
    now_ns,
    relay::{ClientEnd, Clients, Stop, written},
    socket_cookie,
    splice::{Lent, Terms},
};
use router_common::framing::{Framing, OVERHEAD_BYTES_MAX};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};

const SEED: u64 = 0x5eed;
const LANES: u64 = 10;
const RESPONSES: u64 = 250; // of each lane
const SEGMENT_BYTES: u32 = 1448;
/// Longest wait for anything: beyond it, it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// One response, as worker, gateway and client all know it.
struct Response {
    wire: Vec<u8>,
    framing: Framing,
    /// The worker dies after so many bytes.
    dies_after: Option<usize>,
    /// The client leaves after so many.
    leaves_after: Option<usize>,
    write_bytes_max: usize,
    /// The gateway copies so many at least before it lends.
    copied_bytes_min: usize,
}

impl Response {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let exponent = if rng.u8(..64) == 0 { 21 } else { rng.u32(..18) };
        let length = rng.usize(..1 << exponent);
        let body: Vec<u8> = pattern(&mut rng, length);
        let (wire, framing) = if rng.bool() {
            (chunked(&mut rng, &body), Framing::chunked())
        } else {
            (body, Framing::length(length as u64))
        };
        let cut = |rng: &mut Rng, one_in: u32| {
            (rng.u32(..one_in) == 0 && !wire.is_empty()).then(|| rng.usize(..wire.len()))
        };
        let dies_after = cut(&mut rng, 24);
        // Not before the first byte: that would be in the response before.
        let leaves_after = cut(&mut rng, 24).map(|at| at + 1).filter(|_| dies_after.is_none());
        let write_bytes_max = if wire.len() < 200 { 1 + rng.usize(..8) } else { 1 << rng.u32(6..17) };
        let copied_bytes_min = if rng.bool() { 0 } else { rng.usize(..=wire.len() / 2) };
        Self { wire, framing, dies_after, leaves_after, write_bytes_max, copied_bytes_min }
    }
}

fn pattern(rng: &mut Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let stretch = rng.usize(251..1000);
    let mut seed = vec![0; stretch];
    rng.fill(&mut seed);
    // No two stretches are alike, so that no byte can take another's place unseen.
    for (number, stretch) in bytes.chunks_mut(stretch).enumerate() {
        stretch.copy_from_slice(&seed[..stretch.len()]);
        let number = (number as u64).to_le_bytes();
        let count = number.len().min(stretch.len());
        stretch[..count].copy_from_slice(&number[..count]);
    }
    bytes
}

fn chunked(rng: &mut Rng, body: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    let mut left = body;
    let chunk_bytes_max = 1 << rng.u32(if body.len() > 10_000 { 8..16 } else { 0..12 });
    while !left.is_empty() {
        let (chunk, rest) = left.split_at(left.len().min(1 + rng.usize(..chunk_bytes_max)));
        let extension =
            if rng.u8(..8) == 0 && wire.len() < OVERHEAD_BYTES_MAX as usize { ";name=value" } else { "" };
        write!(wire, "{:x}{extension}\r\n", chunk.len()).expect("a Vec takes everything");
        wire.extend([chunk, b"\r\n"].concat());
        left = rest;
    }
    wire.extend(if rng.u8(..8) == 0 { &b"000\r\nTrailer: 1\r\n\r\n"[..] } else { b"0\r\n\r\n" });
    wire
}

#[derive(Default)]
struct Counts {
    complete: AtomicU64,
    broken_off: AtomicU64,
    left: AtomicU64,
    redirected: AtomicU64,
    room: AtomicU64,
    refused: AtomicU64,
    overlaps: AtomicU64,
}

fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Relaxed);
}

#[test]
fn every_byte_arrives_once_and_in_order() {
    let Some((kernel, splice)) = super::splice::open("splice-stress") else { return };
    let flows = kernel.flows().expect("memory");
    let clients = kernel.relays().clients.expect("there is a way");
    let counts = Counts::default();
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let (splice, flows, clients, counts) = (&splice, &flows, &clients, &counts);
            scope.spawn(move || run(splice, flows, clients, lane, counts));
        }
    });
    let of = |counter: &AtomicU64| counter.load(Relaxed);
    println!(
        "{} complete, {} broke off, {} clients left; {} bytes redirected; {} times no room, {} refused, {} overlaps cut",
        of(&counts.complete),
        of(&counts.broken_off),
        of(&counts.left),
        of(&counts.redirected),
        of(&counts.room),
        of(&counts.refused),
        of(&counts.overlaps)
    );
    assert_eq!(of(&counts.complete) + of(&counts.broken_off) + of(&counts.left), LANES * RESPONSES);
    for happened in [&counts.complete, &counts.broken_off, &counts.left, &counts.redirected, &counts.room] {
        assert!(of(happened) > 0, "the load is not what it is meant to be");
    }
}

/// Responses one after the other, on one pair of connections until one of them dies.
fn run(splice: &Splice, flows: &Flows, clients: &Clients, lane: u64, counts: &Counts) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let seed = |number: u64| SEED ^ (lane << 32) ^ number;
    let mut next = 0;
    while next < RESPONSES {
        let first = next;
        std::thread::scope(|scope| {
            let on = |host: IpAddr| TcpListener::bind(SocketAddr::from((host, 0)));
            let listener = if lane.is_multiple_of(2) {
                on(Ipv6Addr::LOCALHOST.into())
            } else {
                on(Ipv4Addr::LOCALHOST.into())
            }
            .or_else(|_| on(Ipv4Addr::LOCALHOST.into()))
            .expect("a port");
            let at = listener.local_addr().expect("bound");
            // As on an Ethernet. With loopback's segments of 64 KiB, small buffers wait for timers.
            SockRef::from(&listener).set_tcp_mss(SEGMENT_BYTES).expect("a size");
            let pair = || {
                let connected = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
                connected.set_tcp_mss(SEGMENT_BYTES)?;
                connected.connect(&at.into())?;
                let connected = std::net::TcpStream::from(connected);
                let (accepted, _) = listener.accept()?;
                for socket in [&connected, &accepted] {
                    socket.set_nodelay(true)?;
                    socket.set_read_timeout(Some(PATIENCE))?;
                    socket.set_write_timeout(Some(PATIENCE))?;
                }
                io::Result::Ok((connected, accepted))
            };
            let ((to_worker, worker), (client, to_client)) =
                (pair().expect("loopback"), pair().expect("loopback"));
            let mut rng = Rng::with_seed(seed(first));
            if rng.bool() {
                SockRef::from(&to_worker).set_recv_buffer_size(4096 << rng.u32(..5)).expect("a buffer");
            }
            if rng.bool() {
                SockRef::from(&to_client).set_send_buffer_size(16 * 1024).expect("a buffer");
                SockRef::from(&client).set_recv_buffer_size(16 * 1024).expect("a buffer");
            }
            let client_end = clients
                .add(&to_client, socket_cookie(&to_client).expect("a socket"))
                .expect("a place in the map");
            scope.spawn(move || work(worker, (first..RESPONSES).map(seed)));
            scope.spawn(move || read(client, (first..RESPONSES).map(seed)));
            next = runtime.block_on(async {
                let mut gateway = Gateway {
                    splice: splice.clone(),
                    flows: flows.clone(),
                    client: TcpStream::from_std(nonblocking(to_client)).expect("a socket"),
                    client_end,
                    client_leaves: false,
                    counts,
                };
                let mut worker = Some(nonblocking(to_worker));
                let mut number = first;
                while let Some(socket) = worker.take() {
                    if number == RESPONSES {
                        break;
                    }
                    worker = gateway.relay(socket, &Response::new(seed(number))).await;
                    number += 1;
                }
                number
            });
        });
    }
}

fn nonblocking(socket: std::net::TcpStream) -> std::net::TcpStream {
    socket.set_nonblocking(true).expect("a socket");
    socket
}

/// The worker: a response for each byte that it reads.
fn work(mut socket: std::net::TcpStream, seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        let response = Response::new(seed);
        if !matches!(socket.read(&mut [0]), Ok(1)) {
            return;
        }
        let mut rng = Rng::with_seed(seed);
        let mut left = &response.wire[..response.dies_after.unwrap_or(response.wire.len())];
        while !left.is_empty() {
            let (write, rest) = left.split_at(left.len().min(1 + rng.usize(..response.write_bytes_max)));
            if socket.write_all(write).is_err() {
                return; // the client has left
            }
            if rng.u8(..4) == 0 {
                std::thread::yield_now();
            }
            left = rest;
        }
        if response.dies_after.is_some() {
            return;
        }
    }
}

/// The client: compares.
fn read(mut socket: std::net::TcpStream, seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        let response = Response::new(seed);
        let mut rng = Rng::with_seed(seed);
        let read_bytes_max = 1 << rng.u32(9..17);
        let mut buffer = vec![0; read_bytes_max];
        let end = response.leaves_after.or(response.dies_after).unwrap_or(response.wire.len());
        let mut at = 0;
        while at < end {
            let wanted = buffer.len().min(end - at);
            let count = socket.read(&mut buffer[..wanted]).expect("bytes in time");
            assert!(count > 0, "response {seed:#x} ends at {at} of {end}");
            assert!(
                buffer[..count] == response.wire[at..at + count],
                "response {seed:#x} differs in {at}..{}",
                at + count
            );
            at += count;
            if rng.u8(..4) == 0 {
                std::thread::yield_now();
            }
        }
        if response.dies_after.is_some() {
            assert_eq!(
                socket.read(&mut buffer).expect("the end in time"),
                0,
                "bytes that the worker never sent"
            );
            return;
        }
        if response.leaves_after.is_some() {
            return;
        }
    }
    assert_eq!(socket.read(&mut [0]).expect("the end in time"), 0, "more bytes than there are");
}

struct Gateway<'a> {
    splice: Splice,
    flows: Flows,
    client: TcpStream,
    client_end: ClientEnd,
    /// In this response, or it did in an earlier one that the sockets' buffers had room for.
    client_leaves: bool,
    counts: &'a Counts,
}

/// Why a response came to no end.
enum Broken {
    Worker,
    Client,
}

impl Gateway<'_> {
    /// The worker's connection, if it is good for another response.
    async fn relay(
        &mut self,
        mut worker: std::net::TcpStream,
        response: &Response,
    ) -> Option<std::net::TcpStream> {
        self.client_leaves |= response.leaves_after.is_some();
        if worker.write_all(b"?").is_err() {
            unreachable!("one byte fits, and the worker dies in responses only")
        }
        match self.copy_and_lend(worker, response).await {
            Ok(worker) => {
                add(&self.counts.complete, 1);
                worker
            }
            Err(Broken::Worker) => {
                assert!(response.dies_after.is_some(), "the worker lives");
                add(&self.counts.broken_off, 1);
                let _ = self.client.shutdown().await;
                None
            }
            Err(Broken::Client) => {
                assert!(self.client_leaves, "the client is there");
                add(&self.counts.left, 1);
                None
            }
        }
    }

    async fn copy_and_lend(
        &mut self,
        worker: std::net::TcpStream,
        response: &Response,
    ) -> Result<Option<std::net::TcpStream>, Broken> {
        let mut framing = response.framing;
        let mut copied = 0;
        let mut rng = Rng::with_seed(response.wire.len() as u64);
        let worker = TcpStream::from_std(worker).expect("a socket");
        while copied < response.copied_bytes_min && !framing.is_over() {
            let mut buffer = vec![0; 1 + rng.usize(..4096)];
            timeout(PATIENCE, worker.readable()).await.expect("no hang").expect("a socket");
            match worker.try_read(&mut buffer) {
                Ok(0) => return Err(Broken::Worker),
                Ok(count) => {
                    assert_eq!(framing.advance(&buffer[..count]), count);
                    self.write(&buffer[..count]).await?;
                    copied += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(Broken::Worker),
            }
        }
        let worker = worker.into_std().expect("a socket");
        if framing.is_over() {
            return Ok(Some(worker));
        }
        // Before, because what is queued is redirected at once.
        let before = written(&self.client).map_err(|_| Broken::Client)?;
        let terms = Terms { client: self.client_end, framing, is_event_stream: rng.bool() };
        let start = Start { sent_ns: now_ns(), is_event_stream: terms.is_event_stream };
        let client = self.client.peer_addr().map_err(|_| Broken::Client)?;
        let flow = self.flows.start(0, client, 0, start).expect("a free flow");
        match self.splice.lend(&flow, worker, terms) {
            Ok(lent) => self.spliced(lent, before).await,
            Err(refused) => {
                assert_eq!(refused.error.kind(), io::ErrorKind::Unsupported, "{}", refused.error);
                add(&self.counts.refused, 1);
                self.copied(refused.socket, framing).await
            }
        }
    }

    async fn spliced(
        &mut self,
        mut lent: Lent,
        mut expected: u64,
    ) -> Result<Option<std::net::TcpStream>, Broken> {
        let mut counted = 0;
        let mut seen = 0;
        loop {
            // The kernel's turn, until it gives the stream back.
            while lent.turn() < seen + 2 {
                tokio::select! {
                    event = timeout(PATIENCE, lent.event()) => event.expect("no hang: the kernel's wake-up comes"),
                    left = self.client_left() => { left?; }
                }
                if lent.is_closed() && lent.turn() < seen + 2 {
                    break;
                }
            }
            expected += lent.redirected() - counted;
            add(&self.counts.redirected, lent.redirected() - counted);
            counted = lent.redirected();
            self.settle(expected).await?;
            if lent.turn() & 1 != 0 {
                return Err(Broken::Worker);
            }
            let (stop, mut framing) = lent.stopped();
            if lent.turn() == seen {
                assert_eq!(lent.unread(), 0, "nothing passes a stream that is armed");
                return Err(Broken::Worker);
            }
            seen = lent.turn();
            match stop {
                Stop::End => {
                    add(&self.counts.overlaps, u64::from(lent.overlaps()));
                    return Ok(Some(lent.end().expect("an idle connection")));
                }
                Stop::Room => add(&self.counts.room, 1),
                Stop::Failed if !self.client_leaves => panic!("{lent:?}"),
                Stop::Failed => return Err(Broken::Client),
                Stop::Framing | Stop::ErrorEvent | Stop::Fast => {
                    panic!("nothing of that kind is sent: {lent:?}")
                }
            }
            // Ours, until all is read that came meanwhile, and the client has caught up.
            loop {
                expected += self.pass(&mut lent, &mut framing).await?;
                self.settle(expected).await?;
                if framing.is_done() {
                    return Ok(Some(lent.end().expect("an idle connection")));
                }
                if lent.rearm(framing).expect("a socket") {
                    break;
                }
            }
        }
    }

    /// Reads and writes until there is nothing to read.
    async fn pass(&mut self, lent: &mut Lent, framing: &mut Framing) -> Result<u64, Broken> {
        let mut buffer = vec![0; 16 * 1024];
        let mut passed = 0;
        loop {
            match lent.try_read(&mut buffer) {
                Ok(0) => return Err(Broken::Worker),
                Ok(count) => {
                    assert_eq!(framing.advance(&buffer[..count]), count);
                    self.write(&buffer[..count]).await?;
                    passed += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if lent.unread() == 0 {
                        return Ok(passed);
                    }
                    timeout(PATIENCE, lent.readable())
                        .await
                        .expect("no hang: what is passed arrives")
                        .expect("a socket");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn copied(
        &mut self,
        mut worker: std::net::TcpStream,
        mut framing: Framing,
    ) -> Result<Option<std::net::TcpStream>, Broken> {
        // Refused because the worker has closed its side: everything is here.
        let mut rest = Vec::new();
        let _ = worker.read_to_end(&mut rest);
        let _ = worker.shutdown(Shutdown::Both);
        assert_eq!(framing.advance(&rest), rest.len());
        self.write(&rest).await?;
        if framing.is_done() { Ok(None) } else { Err(Broken::Worker) }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        timeout(PATIENCE, self.client.write_all(bytes))
            .await
            .expect("no hang: the client reads")
            .map_err(|_| Broken::Client)
    }

    /// Until the client's socket has all that was redirected.
    async fn settle(&self, expected: u64) -> Result<(), Broken> {
        let settled = async {
            loop {
                let taken = written(&self.client).map_err(|_| Broken::Client)?;
                assert!(taken <= expected, "{taken} bytes, {expected} were redirected");
                if taken == expected {
                    return Ok(());
                }
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(1)) => {}
                    left = self.client_left() => { left?; }
                }
            }
        };
        timeout(PATIENCE, settled).await.expect("no hang: what is redirected arrives")
    }

    /// Clients send nothing, so what can be read is their end.
    async fn client_left(&self) -> Result<(), Broken> {
        let _ = self.client.readable().await;
        match self.client.try_read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            _ => Err(Broken::Client),
        }
    }
}
