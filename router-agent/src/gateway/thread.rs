//! One data thread: a runtime, a listener, the connections that it accepted, and the worker connections that they use.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, watch},
    task::LocalSet,
    time::{Instant, MissedTickBehavior},
};

use super::{
    Shared, admission,
    choose::Scratch,
    connection::{self, OpenConnection},
    cut::Cuts,
    hooks::HookClient,
    idlers::Idlers,
    last_words,
    snapshot::{Snapshot, Snapshots},
};
use router_common::limits::CORE_REPORT_EVERY_MS;

use crate::{
    kernel::Core,
    limits,
    privileges::Follower,
    upstream::{Pool, PoolSettings},
};

/// What the gateway is doing, told to all data threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Taking connections.
    Serve,
    /// Taking no more: a successor does. Each connection is served one request more, and told that it is the last.
    HandOver,
    /// Taking no more; finishing what is in flight.
    Drain,
    /// Dropping what is left.
    Stop,
}

/// How often a thread says that it lives; one that is silent for a few of these gets no new connections.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(CORE_REPORT_EVERY_MS);
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a failed accept (no file descriptors left): the backlog waits, the CPU does not burn.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What everything on one data thread shares.
pub(super) struct ThreadContext {
    pub(super) shared: Arc<Shared>,
    pub(super) pool: Pool,
    pub(super) scratch: RefCell<Scratch>,
    snapshots: Snapshots,
    /// Connections to hooks.
    pub(super) hooks: HookClient,
    /// Requests in flight, to be cut off if need be.
    pub(super) cuts: Cuts,
    /// Turns to shake hands.
    pub(super) handshakes: Semaphore,
    /// Who may wait until a refused client has taken that in.
    refusals: Arc<Semaphore>,
    pub(super) idlers: Rc<Idlers>,
    /// Client connections open on this thread, and what else keeps it.
    pub(super) connections: Cell<usize>,
    /// Notified when the last of them has closed.
    pub(super) empty: Notify,
}

impl ThreadContext {
    /// The configuration now.
    pub(super) fn config(&self) -> Rc<Snapshot> {
        self.snapshots.newest(&self.shared.config, &self.pool)
    }
}

/// Keeps a thread from ending, as a connection does.
pub(super) struct Stay(Rc<ThreadContext>);

impl Stay {
    pub(super) fn on(context: &Rc<ThreadContext>) -> Self {
        context.connections.set(context.connections.get() + 1);
        Self(context.clone())
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let Self(context) = self;
        if std::thread::panicking() {
            context.shared.metrics.panics.inc();
        }
        context.connections.set(context.connections.get() - 1);
        if context.connections.get() == 0 {
            context.empty.notify_waiters();
        }
    }
}

/// A running data thread.
#[derive(Debug)]
pub struct DataThread {
    handle: JoinHandle<io::Result<()>>,
}

impl DataThread {
    /// Waits for its end. An error is a runtime that could not be built; a panic is passed on.
    pub fn join(self) -> io::Result<()> {
        self.handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Starts data thread `number` on its listeners. It ends when `phase` says so: at [`Phase::HandOver`] and [`Phase::Drain`]
/// it stops accepting and ends with its last connection, at [`Phase::Stop`] it ends at once.
pub fn start(
    number: usize,
    listeners: Vec<std::net::TcpListener>,
    shared: Arc<Shared>,
    phase: watch::Receiver<Phase>,
    core: Option<Core>,
) -> io::Result<DataThread> {
    let handle = std::thread::Builder::new().name(format!("data-{number}")).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, run(number, listeners, shared, phase, core))
    })?;
    Ok(DataThread { handle })
}

async fn run(
    number: usize,
    listeners: Vec<std::net::TcpListener>,
    shared: Arc<Shared>,
    mut phase: watch::Receiver<Phase>,
    core: Option<Core>,
) -> io::Result<()> {
    let pool = Pool::new(PoolSettings { connect_timeout: shared.config().timeouts.connect });
    let snapshots = Snapshots::new(&shared.config);
    let context = Rc::new(ThreadContext {
        shared,
        pool,
        scratch: RefCell::default(),
        snapshots,
        hooks: HookClient::new(),
        cuts: Cuts::default(),
        handshakes: Semaphore::new(limits::HANDSHAKES_MAX),
        refusals: Arc::new(Semaphore::new(limits::REFUSALS_MAX)),
        idlers: Rc::default(),
        connections: Cell::new(0),
        empty: Notify::new(),
    });
    tokio::task::spawn_local(sweep(context.clone()));
    tokio::task::spawn_local(look_for_places(context.clone()));
    tokio::task::spawn_local(cut_off(context.clone()));
    let pulses = context.shared.pulses.clone();
    tokio::task::spawn_local(async move { pulses.beat(number).await });
    if let Some(core) = core.clone() {
        tokio::task::spawn_local(beat(context.clone(), core));
    }

    let listeners = listeners.into_iter().map(TcpListener::from_std).collect::<io::Result<Vec<_>>>()?;
    let spawn = |stream: TcpStream, client: SocketAddr, phase: &watch::Receiver<Phase>| {
        if let Some(core) = &core {
            core.accepted();
        }
        accept(&context, stream, client, phase);
    };
    let mut changed = phase.clone();
    loop {
        tokio::select! {
            biased;
            _ = changed.wait_for(|phase| *phase != Phase::Serve) => break,
            accepted = poll_fn(|cx| poll_accept(&listeners, cx)) => match accepted {
                Ok((stream, client)) => spawn(stream, client, &phase),
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    for listener in listeners {
        let listener = listener.into_std()?;
        // What the kernel has accepted already would be reset with the listener, unless a successor has it, too: take it
        // along.
        while *phase.borrow() != Phase::HandOver
            && let Ok((stream, client)) = listener.accept()
        {
            stream.set_nonblocking(true)?;
            spawn(TcpStream::from_std(stream)?, client, &phase);
        }
    }

    loop {
        let empty = context.empty.notified();
        if context.connections.get() == 0 {
            return Ok(());
        }
        tokio::select! {
            () = empty => {}
            _ = phase.wait_for(|phase| *phase == Phase::Stop) => return Ok(()),
        }
    }
}

/// The next connection of any listener.
fn poll_accept(listeners: &[TcpListener], cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
    let ready = listeners.iter().map(|listener| listener.poll_accept(cx)).find(Poll::is_ready);
    ready.unwrap_or(Poll::Pending)
}

fn accept(
    context: &Rc<ThreadContext>,
    stream: TcpStream,
    client: SocketAddr,
    phase: &watch::Receiver<Phase>,
) {
    context.shared.metrics.accepted.inc();
    if !context.shared.enter() {
        context.shared.metrics.refused.inc();
        // In clear text it would be no TLS.
        if context.shared.tls.is_none() {
            refuse(context, stream);
        }
        return;
    }
    let open = OpenConnection::count(context.clone());
    tokio::task::spawn_local(connection::serve(open, stream, client, phase.clone()));
}

/// Tells a client that there is no place for it.
fn refuse(context: &Rc<ThreadContext>, stream: TcpStream) {
    let Ok(turn) = context.refusals.clone().try_acquire_owned() else {
        // Of a crowd, who has sent a request already may see a reset.
        let _ = stream.try_write(last_words::TOO_MANY_CONNECTIONS);
        return;
    };
    tokio::task::spawn_local(async move {
        let _turn = turn;
        last_words::say(&stream, last_words::TOO_MANY_CONNECTIONS).await;
    });
}

/// Errors of accept(2) that concern the connection that was being accepted, not the listener.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

async fn sweep(context: Rc<ThreadContext>) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // A successor's threads are started before it gives its privileges up.
    let mut privileges = Follower::default();
    loop {
        ticks.tick().await;
        privileges.follow();
        context.pool.sweep();
    }
}

/// Finds places for those who wait that became free without an event: a worker is well again, a breaker's time is over.
async fn look_for_places(context: Rc<ThreadContext>) {
    loop {
        tokio::time::sleep(admission::LOOK_EVERY).await;
        context.shared.admission.freed(&context.shared);
    }
}

/// Cuts off the requests on workers that are dismissed.
async fn cut_off(context: Rc<ThreadContext>) {
    let mut cuts = context.shared.fleet.cuts();
    while cuts.changed().await.is_ok() {
        context.cuts.wake();
    }
}

/// Tells the steering program how late this thread's event loop runs and how many connections it has.
async fn beat(context: Rc<ThreadContext>, core: Core) {
    loop {
        let due = Instant::now() + HEARTBEAT_INTERVAL;
        tokio::time::sleep_until(due).await;
        let lag_us = u32::try_from(due.elapsed().as_micros()).unwrap_or(u32::MAX);
        core.report(lag_us, context.connections.get() as u32);
    }
}
