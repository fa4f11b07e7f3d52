//! The splice: bodies from a worker on another host go from our socket to it straight into the client's socket, in the
//! softirq that delivers them, without waking this process. The protocol is in `router_common::splice`, the kernel's
//! habits that the program respects in `router-ebpf/src/sk_skb.rs`.
//!
//! A connection is lent for one response, after the head and what came with it were passed on: [`Splice::lend`] takes
//! the socket, [`Lent::end`] gives it back. In between, bytes that the kernel passes are read through [`Lent`] only,
//! which therefore knows when the socket may leave the map. Handing over and taking back cost about ten system calls
//! together, so a body must be worth it.
//!
//! What the caller must see to: the socket is in nobody's epoll while it is lent (it would wake for every segment), and
//! nothing is written to the client's socket before that has taken every redirected byte
//! ([`bypass::written`](super::bypass::written) tells): what was redirected waits in a queue that a write overtakes.
//!
//! Needs Linux 5.17 with BTF; what older kernels of that range do wrong, [`probe`] finds on connections of its own.

mod lent;
mod probe;
mod repair;
mod slots;
mod watch;

use std::{
    io,
    net::TcpStream,
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapError, RingBuf, SockHash, SockMap},
    programs::SkSkb,
};
use parking_lot::Mutex;
use router_common::{framing::Framing, names};

pub use self::{
    lent::Lent,
    probe::{ProbeError, probe, probe_without_cut},
};
use self::{slots::Slots, watch::Watch};
use super::{bypass::ClientEnd, error::KernelError, flows::Flow, vmlinux::Vmlinux};

const PROGRAM: &str = "splice_segment";

/// The splice of one gateway. Cheap to clone, for every thread.
#[derive(Clone)]
pub struct Splice {
    shared: Arc<Shared>,
}

struct Shared {
    on: AtomicBool,
    clients: Mutex<SockHash<MapData, u64>>,
    workers: Mutex<SockMap<MapData>>,
    slots: Slots,
    watch: Watch,
}

/// What a stream is lent with.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Whose socket the bytes go into.
    pub client: ClientEnd,
    /// Where the scanner stands: everything before was read and passed on.
    pub framing: Framing,
    /// Give the stream back before an event that tells of an engine's death, and note its times.
    pub is_event_stream: bool,
}

/// A connection that was not lent, as it was before (but non-blocking).
#[derive(Debug, thiserror::Error)]
#[error("the kernel does not take this connection: {error}")]
pub struct Refused {
    pub socket: TcpStream,
    /// `Unsupported` if the worker has closed its side.
    #[source]
    pub error: io::Error,
}

/// What the program is told of this kernel when it is loaded.
pub(super) struct Constants {
    write_seq: u32,
    copied_seq: u32,
}

impl Constants {
    pub(super) fn read() -> Result<Self, KernelError> {
        let vmlinux = Vmlinux::read()?;
        // The program reads a segment's sequence number through the part of the control block that is open to it.
        let is_open = vmlinux.offset("sk_skb_cb", "data")? == 0 && vmlinux.offset("tcp_skb_cb", "seq")? == 0;
        if !is_open {
            return Err(KernelError::KernelTypes);
        }
        Ok(Self {
            write_seq: vmlinux.offset("tcp_sock", "write_seq")?,
            copied_seq: vmlinux.offset("tcp_sock", "copied_seq")?,
        })
    }

    pub(super) fn give<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader.override_global("TCP_WRITE_SEQ", &self.write_seq, true).override_global(
            "TCP_COPIED_SEQ",
            &self.copied_seq,
            true,
        );
    }
}

impl Splice {
    /// Loads and attaches the program. Before the bypass, whose maps of clients it shares.
    pub(super) fn attach(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let program = |source| KernelError::Program { name: PROGRAM, source };
        // First: a program refers to its maps by file descriptors.
        program_of(ebpf)?.load().map_err(program)?;

        let mapped =
            |name: &'static str| move |source: MapError| KernelError::Map { name: name.to_owned(), source };
        let clients = shared_map(ebpf, names::RELAY_CLIENTS)?;
        let mut take =
            |name: &'static str| ebpf.take_map(name).ok_or(KernelError::Missing { what: "map", name });
        let workers: SockMap<MapData> =
            take(names::SPLICE_WORKERS)?.try_into().map_err(mapped(names::SPLICE_WORKERS))?;
        let events: RingBuf<MapData> =
            take(names::SPLICE_EVENTS)?.try_into().map_err(mapped(names::SPLICE_EVENTS))?;
        let slots = Slots::new(
            take(names::SPLICE_SLOTS)?.try_into().map_err(mapped(names::SPLICE_SLOTS))?,
            take(names::SPLICE_ORDERS)?,
            take(names::SPLICE_STATES)?,
        )?;
        let watch = Watch::start(events)
            .map_err(|source| KernelError::Socket { what: "a thread for splice events", source })?;
        program_of(ebpf)?.attach(workers.fd()).map_err(program)?;
        Ok(Self {
            shared: Arc::new(Shared {
                on: AtomicBool::new(true),
                clients: Mutex::new(clients),
                workers: Mutex::new(workers),
                slots,
                watch,
            }),
        })
    }

    /// Whether it may be used.
    pub fn is_on(&self) -> bool {
        self.shared.on.load(Relaxed)
    }

    /// For good: the kernel did something that it must not do. Streams in its hands end as they can.
    pub fn switch_off(&self) {
        self.shared.on.store(false, Relaxed);
    }

    /// Makes a client's socket, whose cookie this is, one that streams can be redirected into, for the bypass as well. It leaves the map when
    /// it is closed.
    pub fn client(&self, socket: impl AsFd, cookie: u64) -> Option<ClientEnd> {
        let raw = socket.as_fd().as_raw_fd();
        self.shared.clients.lock().insert(cookie, raw, 0).ok()?;
        Some(ClientEnd { cookie })
    }

    /// Lends our connection to a worker, which brings the response of `flow`, to the kernel, from the first byte on that has not been read.
    ///
    /// Everything before must have been written to the client's socket. The socket must be in no epoll instance.
    pub fn lend(&self, flow: &Flow, socket: TcpStream, terms: Terms) -> Result<Lent, Refused> {
        self.lend_with(flow, socket, terms, false)
    }

    fn lend_with(
        &self,
        flow: &Flow,
        socket: TcpStream,
        terms: Terms,
        keep_overlaps: bool,
    ) -> Result<Lent, Refused> {
        Lent::new(&self.shared, flow, socket, terms, keep_overlaps)
    }
}

fn program_of(ebpf: &mut Ebpf) -> Result<&mut SkSkb, KernelError> {
    let program = ebpf.program_mut(PROGRAM).ok_or(KernelError::Missing { what: "program", name: PROGRAM })?;
    program.try_into().map_err(|source| KernelError::Program { name: PROGRAM, source })
}

/// A handle of our own on a socket hash that another part takes from the object.
fn shared_map(ebpf: &Ebpf, name: &'static str) -> Result<SockHash<MapData, u64>, KernelError> {
    let mapped = |source| KernelError::Map { name: name.to_owned(), source };
    let Some(Map::SockHash(data)) = ebpf.map(name) else {
        return Err(KernelError::Missing { what: "socket hash", name });
    };
    let fd = data
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| KernelError::Socket { what: "duplicating a map's descriptor", source })?;
    let map = Map::SockHash(MapData::from_fd(fd).map_err(mapped)?);
    map.try_into().map_err(mapped)
}
