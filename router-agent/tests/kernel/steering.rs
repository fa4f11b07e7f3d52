//! Steering, with real listeners and connections on loopback. The data threads here do what the gateway's do:
//! accept what is there, then report.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use router_agent::kernel::{Core, DEFAULT_ROOT, Kernel, PinnedMaps, Steering, now_ns};
use router_common::{
    cores::CoreValue,
    limits::{CORE_LAG_FLOOR_US, CORE_STALLED_AFTER_MS},
    names,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{instance, open};

/// `count` listeners on one port of loopback, non-blocking.
fn listeners(count: usize) -> Vec<TcpListener> {
    let mut address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    (0..count)
        .map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("socket");
            socket.set_reuse_port(true).expect("SO_REUSEPORT");
            socket.bind(&address.into()).expect("bind");
            socket.listen(1024).expect("listen");
            socket.set_nonblocking(true).expect("non-blocking");
            let listener = TcpListener::from(socket);
            address = listener.local_addr().expect("bound");
            listener
        })
        .collect()
}

fn connect(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| TcpStream::connect(address).expect("connect")).collect()
}

/// Connects while only `thread` reports, each time just before, so that no pause of this process makes it look dead.
fn connect_to(steering: &Steering, thread: u32, address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connect = |_| {
        steering.report(thread, 0, 0);
        TcpStream::connect(address).expect("connect")
    };
    (0..count).map(connect).collect()
}

/// What the data threads' reports say, as another process reads them.
fn cores(test: &str) -> Vec<CoreValue> {
    let maps = PinnedMaps::open(Path::new(DEFAULT_ROOT), Some(&instance(test))).expect("pinned");
    maps.rows(names::CORES).expect("readable").into_iter().map(|row| row.value).collect()
}

fn accept_all(listener: &TcpListener) -> Vec<TcpStream> {
    std::iter::from_fn(|| listener.accept().ok().map(|(stream, _)| stream)).collect()
}

/// Waits until `condition` holds; panics after ten seconds.
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "never came: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A data thread: accepts and reports every 2 ms until told to stop; can be told to hang.
struct DataThread {
    accepted: Arc<AtomicU32>,
    hang: Arc<AtomicBool>,
    lag_us: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DataThread {
    fn start(core: Core, listener: TcpListener) -> Self {
        let (accepted, lag_us) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (hang, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let mine = (Arc::clone(&accepted), Arc::clone(&lag_us), Arc::clone(&hang), Arc::clone(&stop));
        core.report(0, 0);
        let thread = std::thread::spawn(move || {
            let (accepted, lag_us, hang, stop) = mine;
            let mut open = Vec::new();
            while !stop.load(SeqCst) {
                if !hang.load(SeqCst) {
                    while let Ok((stream, _)) = listener.accept() {
                        core.accepted();
                        open.push(stream);
                    }
                    accepted.store(open.len() as u32, SeqCst);
                    core.report(lag_us.load(SeqCst), open.len() as u32);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self { accepted, hang, lag_us, stop, thread: Some(thread) }
    }

    fn accepted(&self) -> u32 {
        self.accepted.load(SeqCst)
    }
}

impl Drop for DataThread {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let joined = thread.join();
            assert!(joined.is_ok() || std::thread::panicking());
        }
    }
}

/// As many data threads as there are listeners.
fn start(steering: &Steering, listeners: Vec<TcpListener>) -> Vec<DataThread> {
    let cores = (0..).map(|thread| steering.core(thread));
    cores.zip(listeners).map(|(core, listener)| DataThread::start(core, listener)).collect()
}

/// Listeners on one address, and the program over them.
struct Rig {
    kernel: Kernel,
    steering: Steering,
    listeners: Vec<TcpListener>,
    address: SocketAddr,
}

impl Rig {
    /// `None` where this host does not allow it, which is said.
    fn open(instance: &str, threads: usize) -> Option<Self> {
        let (mut kernel, _) = open(instance, threads as u32)?;
        let listeners = listeners(threads);
        let address = listeners[0].local_addr().expect("bound");
        let steering = kernel.attach_steering(&listeners).expect("attach");
        Some(Self { kernel, steering, listeners, address })
    }
}

fn accepted(threads: &[DataThread]) -> Vec<u32> {
    threads.iter().map(DataThread::accepted).collect()
}

fn sum(threads: &[DataThread]) -> u32 {
    threads.iter().map(DataThread::accepted).sum()
}

#[test]
fn connections_spread_evenly_over_the_threads() {
    let Some(Rig { kernel, steering, listeners, address }) = Rig::open("spread", 4) else { return };
    let threads = start(&steering, listeners);

    let clients = connect(address, 400);
    wait_for("all accepted", || sum(&threads) == 400);
    let counts = kernel.steering_stats().expect("attached");
    assert!(counts.total >= 400 && counts.selected + counts.fallback_no_core == counts.total, "{counts:?}");
    // On a busy host a thread may really be late for a moment: each time displaces one connection at most.
    let slack = 10 + counts.skipped_stalled + counts.skipped_lag;
    for got in accepted(&threads) {
        assert!(u64::from(got.abs_diff(100)) <= slack, "{:?} {counts:?}", accepted(&threads));
    }
    drop(clients);
}

/// Ten thousand connections, fifty at a time, kept for a while. One thread plays all four data threads and the
/// client, so whatever else the machine does, either all four have just reported or none has.
#[test]
fn ten_thousand_connections_come_out_within_a_tenth() {
    const THREADS: usize = 4;
    const ROUND: usize = 50;
    const ROUNDS: usize = 200;
    const KEPT: usize = 40;
    let Some(Rig { kernel, steering, listeners, address }) = Rig::open("many", THREADS) else { return };
    let mut got = [0; THREADS];
    let mut open: [Vec<TcpStream>; THREADS] = Default::default();
    let mut clients = Vec::new();
    for round in 0..ROUNDS {
        for (thread, open) in (0..).zip(&open) {
            steering.report(thread, 0, open.len() as u32);
        }
        clients.extend(connect(address, ROUND));
        // All of them, before the next report: connect(2) may be back a moment before the listener has its connection.
        wait_for("all accepted", || {
            for (thread, listener) in listeners.iter().enumerate() {
                let core = steering.core(thread as u32);
                let accepted = accept_all(listener);
                for _ in &accepted {
                    core.accepted();
                }
                got[thread] += accepted.len();
                open[thread].extend(accepted);
            }
            got.iter().sum::<usize>() == ROUND * (round + 1)
        });
        if round % KEPT == KEPT - 1 {
            // With a reset, so that no thousands of ports stay behind in TIME_WAIT.
            for client in clients.drain(..) {
                SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
            }
            open.iter_mut().for_each(Vec::clear);
        }
    }
    let counts = kernel.steering_stats().expect("attached");
    let mean = ROUND * ROUNDS / THREADS;
    assert!(got.iter().all(|got| got.abs_diff(mean) <= mean / 10), "{got:?} {counts:?}");
    // The hash, by which connections are placed if this thread has been off its CPU, comes near that as well. What the
    // program places, it places evenly: half a round off at most.
    let slack = ROUND as u64 / 2 + counts.fallback_no_core + counts.skipped_stalled;
    assert!(got.iter().all(|got| got.abs_diff(mean) as u64 <= slack), "{got:?} {counts:?}");
}

/// The promise is 100 ms after a thread blocked, in which it may have reported just before.
const _: () = assert!(CORE_STALLED_AFTER_MS < 100);

#[test]
fn a_silent_thread_is_passed_over_until_it_reports_again() {
    let Some(Rig { kernel, steering, listeners, address }) = Rig::open("silent", 3) else { return };
    steering.report(1, 0, 0);
    wait_for("thread 1 has been silent for too long", || is_stale(&cores("silent")[1]));
    let mut clients = Vec::new();
    for _ in 0..100 {
        steering.report(0, 0, 1000);
        steering.report(2, 0, 1000);
        clients.extend(connect(address, 1));
    }
    let counts = kernel.steering_stats().expect("attached");
    let got = accept_all(&listeners[1]).len() as u64;
    assert!(got <= counts.fallback_no_core, "{got} though it has fewest connections: {counts:?}");
    assert!(counts.selected + counts.fallback_no_core == 100 && counts.selected > 0, "{counts:?}");

    clients.extend(connect_to(&steering, 1, address, 10));
    let mut back = 0;
    wait_for("it is back, and has the fewest", || {
        back += accept_all(&listeners[1]).len();
        back >= 10
    });
}

#[test]
fn a_thread_that_hangs_gets_no_new_connection() {
    let Some(Rig { kernel, steering, listeners, address }) = Rig::open("hang", 3) else { return };
    let hung = listeners[1].try_clone().expect("dup");
    let threads = start(&steering, listeners);

    let before = connect(address, 30);
    wait_for("all accepted", || sum(&threads) == 30);
    threads[1].hang.store(true, SeqCst);
    // The promise is a time, so it is a time that is waited for; then every connection counts.
    std::thread::sleep(Duration::from_millis(CORE_STALLED_AFTER_MS + 25));
    let (had, counts) = (accepted(&threads)[1], kernel.steering_stats().expect("attached"));
    let during = connect(address, 200);
    let mut strays = Vec::new();
    wait_for("all accepted", || {
        strays.extend(accept_all(&hung));
        sum(&threads) as usize + strays.len() == 230
    });
    assert_eq!(accepted(&threads)[1], had);
    let after = kernel.steering_stats().expect("attached");
    assert!(after.skipped_stalled - counts.skipped_stalled >= 200, "{after:?}");
    // The hash may send it some only if the other two threads were late as well.
    assert!(
        strays.len() as u64 <= after.fallback_no_core - counts.fallback_no_core,
        "{} {after:?}",
        strays.len()
    );

    threads[1].hang.store(false, SeqCst);
    wait_for("it reports again", || cores("hang")[1].last_seen_ns > 0 && !is_stale(&cores("hang")[1]));
    let again = connect(address, 60);
    wait_for("all accepted", || sum(&threads) as usize + strays.len() == 290);
    assert!(accepted(&threads)[1] > had, "it is chosen again, as the one with the fewest connections");
    drop((before, during, again));
}

fn is_stale(core: &CoreValue) -> bool {
    !router_common::cores::is_live(core.last_seen_ns, now_ns())
}

#[test]
fn a_thread_that_lags_sheds_its_share() {
    let Some(Rig { kernel, steering, listeners, address }) = Rig::open("lag", 2) else { return };
    let threads = start(&steering, listeners);
    let lag_us = CORE_LAG_FLOOR_US + 1;
    threads[0].lag_us.store(lag_us, SeqCst);
    wait_for("the report", || cores("lag")[0].lag_us == lag_us);
    let clients = connect(address, 50);
    wait_for("all accepted", || sum(&threads) == 50);
    let counts = kernel.steering_stats().expect("attached");
    // Late is better than dead: if the other thread was silent, this one was right.
    assert!(
        u64::from(accepted(&threads)[0]) <= counts.skipped_stalled,
        "{:?} {counts:?}",
        accepted(&threads)
    );
    assert!(counts.skipped_lag + counts.skipped_stalled >= 50, "{counts:?}");
    drop(clients);
}

#[test]
fn without_reports_the_kernels_hash_places_connections() {
    let Some(Rig { kernel, steering, listeners, address }) = Rig::open("hash", 2) else { return };
    let clients = connect(address, 200);
    let got: Vec<_> = listeners.iter().map(|listener| accept_all(listener).len()).collect();
    assert_eq!(got.iter().sum::<usize>(), 200);
    assert!(got.iter().all(|&got| got > 50), "the hash spreads roughly: {got:?}");
    let counts = kernel.steering_stats().expect("attached");
    assert!(counts.fallback_no_core >= 200 && counts.selected == 0, "{counts:?}");

    steering.detach(&listeners[0]).expect("detach");
    let more = connect(address, 20);
    assert_eq!(kernel.steering_stats().expect("still readable").total, counts.total, "not asked any more");
    drop((clients, more));
}

#[test]
fn a_listener_that_closes_loses_no_connection() {
    let Some(Rig { kernel, steering, mut listeners, address }) = Rig::open("close", 2) else { return };
    // Only thread 0 is alive: all 40 wait on its listener.
    let waiting = connect_to(&steering, 0, address, 40);
    assert_eq!(kernel.steering_stats().expect("attached").selected, 40);
    // Now only thread 1 is, and thread 0's listener closes.
    wait_for("thread 0 is stale", || is_stale(&cores("close")[0]));
    steering.report(1, 0, 0);
    drop(listeners.remove(0));
    assert_eq!(accept_all(&listeners[0]).len(), 40, "they have moved");
    let counts = kernel.steering_stats().expect("attached");
    assert_eq!(counts.migrated, 40, "{counts:?}");

    // A thread that reports but whose listener is gone: the choice is refused, the hash places them.
    wait_for("thread 1 is stale", || is_stale(&cores("close")[1]));
    let late = connect_to(&steering, 0, address, 20);
    assert_eq!(accept_all(&listeners[0]).len(), 20);
    assert_eq!(kernel.steering_stats().expect("attached").fallback_refused, 20);
    drop((waiting, late));
}

#[test]
fn connections_that_never_arrive_are_forgotten() {
    let Some(Rig { kernel: _kernel, steering, listeners: _listeners, address }) = Rig::open("drift", 2)
    else {
        return;
    };
    let underway = || {
        let core = cores("drift")[0];
        core.assigned - core.settled
    };
    let core = steering.core(0);
    core.report(0, 0);
    // 50 connections that their clients give up: they count as on their way for one report, then no longer.
    drop(connect(address, 50));
    let assigned = underway();
    assert!(assigned > 0);
    core.report(0, 0);
    assert_eq!(underway(), assigned, "a report later they may still be accepted");
    core.report(0, 0);
    assert_eq!(underway(), 0);

    // Accepting settles at once, and never more than was assigned.
    drop(connect_to(&steering, 0, address, 1));
    assert_eq!(underway(), 1);
    core.accepted();
    core.accepted();
    let state = cores("drift")[0];
    assert_eq!((state.assigned - state.settled, state.accepted, state.connections), (0, 2, 2));
}

#[test]
fn listeners_must_match_the_threads_and_attach_once() {
    let Some((mut kernel, _)) = open("count", 2) else { return };
    assert!(kernel.attach_steering(&listeners(3)).is_err(), "a third listener would never be chosen");
    assert!(kernel.steering_stats().is_none());
    kernel.attach_steering(&listeners(2)).expect("attach");
    assert!(kernel.attach_steering(&listeners(2)).is_err());
}
