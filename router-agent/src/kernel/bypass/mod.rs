//! The bypass: bodies from a worker on this host go from its `sendmsg` straight into the client's socket, past
//! loopback and past this process. The protocol is in `router_common::relay`, its argument in `docs/relay.md`.
//!
//! [`Bypass`] knows sockets and slots; what a response is and when it is worth it, the gateway knows. Nothing here
//! blocks: lending a stream is two system calls, taking it back one; in between, stores into shared memory and loads.
//!
//! Needs Linux 5.17 with BTF. [`probe`] tries everything on connections of its own before the first response is
//! trusted to it.

mod events;
mod probe;
mod slots;

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, MapError, RingBuf, SockHash, SockMap},
    programs::{SchedClassifier, SkMsg},
};
use parking_lot::Mutex;
use router_common::{
    framing::Framing,
    names,
    relay::{LEND_NO_CLIENT, LEND_NO_WORKER, LENT, Lend},
};

use self::{events::Waiters, slots::Slots};
pub use self::{
    probe::{ProbeError, probe},
    slots::{Lent, Stop},
};
use super::{error::KernelError, flows::Flow, octets, sys, vmlinux::Vmlinux};

const LEND: &str = "lend_stream";
const RELAY: &str = "relay_message";

/// The bypass of one gateway. Cheap to clone, for every thread.
#[derive(Clone)]
pub struct Bypass {
    shared: Arc<Shared>,
}

struct Shared {
    on: AtomicBool,
    lend: sys::TestRun,
    workers: Mutex<SockMap<MapData>>,
    clients: Mutex<SockHash<MapData, u64>>,
    slots: Slots,
}

/// The two ends of a connection to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The worker's.
    pub worker: SocketAddr,
    /// This gateway's.
    pub gateway: SocketAddr,
}

impl Ends {
    /// Whether both are on this host, as far as addresses tell. A container's address is not; it is on this host, but in
    /// another network namespace.
    pub fn are_local(&self) -> bool {
        let worker = self.worker.ip().to_canonical();
        worker.is_loopback() || worker == self.gateway.ip().to_canonical()
    }
}

/// Why a stream was not lent. None of them is a fault: the stream is user space's, as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LendError {
    /// Nor will it be, on this connection.
    #[error("the worker's end of the connection is not in this network namespace")]
    NoWorker,
    /// It was closed.
    #[error("the client's socket is gone")]
    NoClient,
    /// Nor will it be, on this connection.
    #[error("the kernel does not take the worker's socket into a socket map")]
    Refused,
}

/// A client's socket that a stream can be redirected into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientEnd {
    pub(super) cookie: u64,
}

/// What the programs are told of this kernel when they are loaded.
pub(super) struct Constants {
    write_seq: u32,
    wmem_queued: u32,
    sndbuf: u32,
    cookie: u32,
    copied_seq: u32,
}

impl Constants {
    pub(super) fn read() -> Result<Self, KernelError> {
        let vmlinux = Vmlinux::read()?;
        Ok(Self {
            write_seq: vmlinux.offset("tcp_sock", "write_seq")?,
            wmem_queued: vmlinux.offset("sock", "sk_wmem_queued")?,
            sndbuf: vmlinux.offset("sock", "sk_sndbuf")?,
            cookie: vmlinux.offset("sock_common", "skc_cookie")?,
            copied_seq: vmlinux.offset("tcp_sock", "copied_seq")?,
        })
    }

    pub(super) fn give<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global("TCP_WRITE_SEQ", &self.write_seq, true)
            .override_global("SOCK_WMEM_QUEUED", &self.wmem_queued, true)
            .override_global("SOCK_SNDBUF", &self.sndbuf, true)
            .override_global("SOCK_COOKIE", &self.cookie, true)
            .override_global("TCP_COPIED_SEQ", &self.copied_seq, true);
    }
}

impl Bypass {
    /// Loads both programs and attaches the one that is attached: to the map of worker sockets.
    pub(super) fn attach(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        // First: a program refers to its maps by file descriptors, and some of those close below.
        let program = |name| move |source| KernelError::Program { name, source };
        program_of::<SkMsg>(ebpf, RELAY)?.load().map_err(program(RELAY))?;
        let lend = program_of::<SchedClassifier>(ebpf, LEND)?;
        lend.load().map_err(program(LEND))?;
        let lend = lend.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(program(LEND))?;

        let mut take =
            |name: &'static str| ebpf.take_map(name).ok_or(KernelError::Missing { what: "map", name });
        let mapped =
            |name: &'static str| move |source: MapError| KernelError::Map { name: name.to_owned(), source };
        let workers: SockMap<MapData> =
            take(names::RELAY_WORKERS)?.try_into().map_err(mapped(names::RELAY_WORKERS))?;
        let events: RingBuf<MapData> =
            take(names::RELAY_EVENTS)?.try_into().map_err(mapped(names::RELAY_EVENTS))?;
        let slots = Slots::new(
            take(names::RELAY_ORDERS)?,
            take(names::RELAY_STATES)?,
            Waiters::start(events)
                .map_err(|source| KernelError::Socket { what: "a thread for relay events", source })?,
        )?;
        let clients = take(names::RELAY_CLIENTS)?.try_into().map_err(mapped(names::RELAY_CLIENTS))?;
        program_of::<SkMsg>(ebpf, RELAY)?.attach(workers.fd()).map_err(program(RELAY))?;
        let shared = Shared {
            on: AtomicBool::new(true),
            lend: sys::TestRun::of(lend),
            workers: Mutex::new(workers),
            clients: Mutex::new(clients),
            slots,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Lends the stream of `flow`: from the byte that the caller would read next from its end of the connection, what the worker
    /// sends goes to `client`, until [`Lent::turn`] says that it has come back. Everything before that byte was passed on,
    /// and `framing` stands after it. `is_event_stream`: an engine's death would be told in it, and its times are noted.
    ///
    /// Dropping the [`Lent`] gives the worker's socket back.
    pub fn lend(
        &self,
        flow: &Flow,
        ends: Ends,
        client: ClientEnd,
        framing: Framing,
        is_event_stream: bool,
    ) -> Result<Lent, LendError> {
        let lent = Slots::take(&self.shared, flow.clone());
        lent.arm(0, client, framing, is_event_stream);
        let packet = Lend {
            padding: [0; 16],
            worker: octets(ends.worker.ip()),
            gateway: octets(ends.gateway.ip()),
            target: client.cookie,
            worker_port: ends.worker.port(),
            gateway_port: ends.gateway.port(),
            slot: lent.slot(),
        };
        match self.shared.lend.run(&packet) {
            Ok(LENT) => Ok(lent),
            Ok(LEND_NO_WORKER) => Err(LendError::NoWorker),
            Ok(LEND_NO_CLIENT) => Err(LendError::NoClient),
            Ok(_) => Err(LendError::Refused),
            Err(error) => {
                tracing::debug!(%error, "BPF_PROG_TEST_RUN");
                Err(LendError::Refused)
            }
        }
    }

    /// Whether it may be used.
    pub fn is_on(&self) -> bool {
        self.shared.on.load(Relaxed)
    }

    /// For good: the kernel did something that it must not do. Streams in its hands end as they can.
    pub fn switch_off(&self) {
        self.shared.on.store(false, Relaxed);
    }

    /// Makes a client's socket, whose cookie this is, one that streams can be redirected into. It leaves the map when it
    /// is closed.
    pub fn client(&self, socket: impl AsFd, cookie: u64) -> Option<ClientEnd> {
        let raw = socket.as_fd().as_raw_fd();
        self.shared.clients.lock().insert(cookie, raw, 0).ok()?;
        Some(ClientEnd { cookie })
    }
}

/// Bytes that were ever given to this socket's TCP, by whomever.
pub fn written(socket: impl AsFd) -> io::Result<u64> {
    loop {
        // What is acknowledged between the two readings would be missing from, or be twice in, the sum.
        let acknowledged = sys::bytes_acknowledged(&socket)?;
        let outstanding = sys::bytes_outstanding(&socket)?;
        if sys::bytes_acknowledged(&socket)? == acknowledged {
            return Ok(acknowledged + u64::from(outstanding));
        }
    }
}

/// Bytes that the peer of this socket has not acknowledged yet.
pub fn outstanding(socket: impl AsFd) -> io::Result<u32> {
    sys::bytes_outstanding(&socket)
}

/// Whether the connection of this socket stands, in both directions or in ours.
pub fn is_established(socket: impl AsFd) -> bool {
    sys::is_writable_connection(&socket)
}

fn program_of<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(KernelError::Missing { what: "program", name })?;
    program.try_into().map_err(|source| KernelError::Program { name, source })
}
