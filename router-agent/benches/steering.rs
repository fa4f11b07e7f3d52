//! Steering, with the program and with the kernel's hash: how evenly connections spread over four data threads, what
//! placing one costs its client, and what becomes of connections when a data thread blocks. Figures of
//! `docs/kernel.md`; `cargo xtask bench steering`. Needs root.
//!
//! The data threads here have the gateway's event loop and reports but serve nothing: what is measured is who gets a
//! connection, and when. Both ways are run in turn, each time on a new port. On loopback connect(2) returns when the
//! listener has the connection, so its time contains the program's.

use std::{
    cell::Cell,
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use router_agent::kernel::{Core, Kernel, Options, Steering};
use router_common::limits::CORE_REPORT_EVERY_MS;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::AsyncReadExt;

#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod support;
use support::Times;

const THREADS: usize = 4;
const ROUNDS: usize = 6;
const CONNECTIONS: usize = 10_000;
/// Client threads: one, and enough to keep two cores busy with clients alone. Each has some connections open, which it
/// closes together.
const CLIENTS: [usize; 2] = [1, 4];
const KEPT_OPEN: usize = 16;

/// How often one data thread blocks, per way; for how long; and what comes in meanwhile.
const BLOCKS: usize = 25;
const BLOCK: Duration = Duration::from_millis(400);
const PAUSE_BETWEEN_CONNECTIONS: Duration = Duration::from_micros(500);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    Program,
    Hash,
}

impl Way {
    const ALL: [Self; 2] = [Self::Program, Self::Hash];

    fn name(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Hash => "hash",
        }
    }
}

/// Who accepted which client port, and when.
type Log = Arc<Mutex<Vec<(usize, u16, Instant)>>>;

/// Four data threads on one port.
struct Group {
    address: SocketAddr,
    log: Log,
    /// Per thread: block when seen.
    block: Vec<Arc<AtomicBool>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _kernel: Kernel,
}

impl Group {
    fn start(way: Way) -> Option<Self> {
        let (mut kernel, capabilities) = Kernel::open(&Options {
            instance: Some("bench-steering".to_owned()),
            threads: THREADS as u32,
            ..Options::default()
        });
        if !capabilities.steering.is_available() {
            println!("skipped: {}", capabilities.steering);
            return None;
        }
        let listeners = listeners();
        let address = listeners[0].local_addr().expect("bound");
        let steering =
            (way == Way::Program).then(|| kernel.attach_steering(&listeners).expect("the program attaches"));
        let (log, stop) = (Log::default(), Arc::new(AtomicBool::new(false)));
        let block: Vec<_> = (0..THREADS).map(|_| Arc::new(AtomicBool::new(false))).collect();
        let thread = |(number, listener)| {
            let core = steering.as_ref().map(|steering: &Steering| steering.core(number as u32));
            let (log, stop, block) = (Arc::clone(&log), Arc::clone(&stop), Arc::clone(&block[number]));
            std::thread::spawn(move || data_thread(number, listener, core.as_ref(), &log, &block, &stop))
        };
        let threads = listeners.into_iter().enumerate().map(thread).collect();
        // All have reported.
        std::thread::sleep(Duration::from_millis(3 * CORE_REPORT_EVERY_MS));
        Some(Self { address, log, block, stop, threads, _kernel: kernel })
    }

    fn connect(&self) -> (TcpStream, Duration) {
        let began = Instant::now();
        let stream = TcpStream::connect(self.address).expect("connects");
        let took = began.elapsed();
        // With a reset at its end, so that no thousands of ports stay behind in TIME_WAIT.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        (stream, took)
    }

    fn end(mut self) -> Vec<(usize, u16, Instant)> {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().expect("a data thread ends");
        }
        std::mem::take(&mut *self.log.lock().expect("nobody panics holding it"))
    }
}

fn listeners() -> Vec<TcpListener> {
    let mut address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("socket");
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
        socket.bind(&address.into()).expect("bind");
        socket.listen(4096).expect("listen");
        socket.set_nonblocking(true).expect("non-blocking");
        let listener = TcpListener::from(socket);
        address = listener.local_addr().expect("bound");
        listener
    };
    (0..THREADS).map(listener).collect()
}

/// Accepts, reports, and blocks its event loop when told to.
fn data_thread(
    number: usize,
    listener: TcpListener,
    core: Option<&Core>,
    log: &Log,
    block: &AtomicBool,
    stop: &AtomicBool,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("registered");
        let open = Rc::new(Cell::new(0));
        let mut due = tokio::time::Instant::now();
        while !stop.load(SeqCst) {
            tokio::select! {
                accepted = listener.accept() => {
                    let (mut stream, peer) = accepted.expect("accepts");
                    if let Some(core) = core {
                        core.accepted();
                    }
                    log.lock().expect("nobody panics holding it").push((number, peer.port(), Instant::now()));
                    let open = Rc::clone(&open);
                    open.set(open.get() + 1);
                    tokio::task::spawn_local(async move {
                        let _ = stream.read(&mut [0]).await; // until the client leaves
                        open.set(open.get() - 1);
                    });
                }
                () = tokio::time::sleep_until(due) => {
                    if let Some(core) = core {
                        core.report(due.elapsed().as_micros() as u32, open.get());
                    }
                    due = tokio::time::Instant::now() + Duration::from_millis(CORE_REPORT_EVERY_MS);
                    if block.swap(false, SeqCst) {
                        std::thread::sleep(BLOCK);
                    }
                }
            }
        }
    });
}

/// Opens [`CONNECTIONS`] and says how many each thread got, and how long each connect(2) took.
fn spread(way: Way, clients: usize) -> Option<(Vec<usize>, Vec<Duration>)> {
    let group = Group::start(way)?;
    let left = AtomicU64::new(CONNECTIONS as u64);
    let took = std::thread::scope(|scope| {
        let client = || {
            let (mut took, mut open) = (Vec::new(), Vec::new());
            while left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
                let (stream, time) = group.connect();
                took.push(time);
                open.push(stream);
                if open.len() == KEPT_OPEN {
                    open.clear();
                }
            }
            took
        };
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client ends")).collect()
    });
    let began = Instant::now();
    while group.log.lock().expect("nobody panics holding it").len() < CONNECTIONS {
        assert!(began.elapsed() < Duration::from_secs(10), "connections are missing");
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut got = vec![0; THREADS];
    group.end().iter().for_each(|(thread, ..)| got[*thread] += 1);
    Some((got, took))
}

/// What one blocked thread did to the connections that came meanwhile.
struct Blocked {
    /// From the moment that it blocked to the last connection that it was given before it came back.
    last_after: Duration,
    /// Connections that it was given while it was blocked, of all that came.
    stuck: usize,
    came: usize,
    /// The longest that one of all waited for being accepted.
    longest_wait: Duration,
}

fn block_one(way: Way) -> Option<Blocked> {
    let group = Group::start(way)?;
    let mut connected: HashMap<u16, Instant> = HashMap::new();
    let mut open = Vec::new();
    let began = Instant::now();
    let mut blocked_at = None;
    let lead_in = Duration::from_millis(100);
    while began.elapsed() < lead_in + BLOCK + lead_in {
        if blocked_at.is_none() && began.elapsed() > lead_in {
            group.block[0].store(true, SeqCst);
            // It blocks at its next report at the latest; what comes before that is not counted.
            while group.block[0].load(SeqCst) {
                std::thread::yield_now();
            }
            blocked_at = Some(Instant::now());
        }
        let at = Instant::now();
        let (stream, _) = group.connect();
        connected.insert(stream.local_addr().expect("connected").port(), at);
        open.push(stream);
        std::thread::sleep(PAUSE_BETWEEN_CONNECTIONS);
    }
    std::thread::sleep(Duration::from_millis(50));
    let (from, log) = (blocked_at.expect("it has blocked"), group.end());
    let until = from + BLOCK;
    let during = || log.iter().filter(|(_, port, _)| (from..until).contains(&connected[port]));
    let stuck: Vec<Instant> =
        during().filter(|(thread, ..)| *thread == 0).map(|(_, port, _)| connected[port]).collect();
    Some(Blocked {
        last_after: stuck.iter().max().map_or(Duration::ZERO, |last| *last - from),
        stuck: stuck.len(),
        came: during().count(),
        longest_wait: during().map(|(_, port, accepted)| *accepted - connected[port]).max()?,
    })
}

fn main() {
    println!("{CONNECTIONS} connections over {THREADS} data threads, {ROUNDS} rounds each");
    for clients in CLIENTS {
        let mut spreads: HashMap<Way, (Vec<Vec<usize>>, Vec<Duration>)> = HashMap::new();
        for _ in 0..ROUNDS {
            for way in Way::ALL {
                let Some((got, took)) = spread(way, clients) else { return };
                let (all, times) = spreads.entry(way).or_default();
                all.push(got);
                times.extend(took);
            }
        }
        for way in Way::ALL {
            let (got, times) = spreads.remove(&way).expect("it was run");
            print_spread(way, clients, &got, &Times::new(times));
        }
    }

    let mut blocks: HashMap<Way, Vec<Blocked>> = HashMap::new();
    for _ in 0..BLOCKS {
        for way in Way::ALL {
            let Some(blocked) = block_one(way) else { return };
            blocks.entry(way).or_default().push(blocked);
        }
    }
    println!("\none of {THREADS} data threads blocks for {BLOCK:?}, {BLOCKS} times each");
    for way in Way::ALL {
        let blocks = blocks.remove(&way).expect("it was run");
        let last = Times::new(blocks.iter().map(|blocked| blocked.last_after).collect());
        let waits = Times::new(blocks.iter().map(|blocked| blocked.longest_wait).collect());
        let sum = |of: fn(&Blocked) -> usize| blocks.iter().map(of).sum::<usize>();
        println!(
            "{:<8} last connection given to it p50 {:.0} max {:.0} ms after; {} of {} stuck; longest wait p50 {:.0} max {:.0} ms",
            way.name(),
            last.at(50.0).as_secs_f64() * 1e3,
            last.at(100.0).as_secs_f64() * 1e3,
            sum(|blocked| blocked.stuck),
            sum(|blocked| blocked.came),
            waits.at(50.0).as_secs_f64() * 1e3,
            waits.at(100.0).as_secs_f64() * 1e3,
        );
    }
}

fn print_spread(way: Way, clients: usize, got: &[Vec<usize>], times: &Times) {
    let mean = CONNECTIONS / THREADS;
    let us = |share| times.at(share).as_nanos() as f64 / 1000.0;
    let farthest = got.iter().flatten().map(|got| got.abs_diff(mean)).max().unwrap_or(0);
    println!(
        "{:<8} {clients} clients: per thread min {} mean {mean} max {} (within {:.1} %); connect p50 {:.1} p99 {:.1} us",
        way.name(),
        got.iter().flatten().min().expect("rounds"),
        got.iter().flatten().max().expect("rounds"),
        farthest as f64 * 100.0 / mean as f64,
        us(50.0),
        us(99.0),
    );
}
