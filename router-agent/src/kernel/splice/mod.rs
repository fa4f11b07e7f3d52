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
//! ([`relay::written`](super::relay::written) tells): what was redirected waits in a queue that a write overtakes.
//!
//! Needs Linux 5.17 with BTF; what older kernels of that range do wrong, [`probe`] finds on connections of its own.

mod lent;
mod probe;
mod repair;
mod slots;

use std::{io, net::TcpStream, sync::Arc};

use aya::{
    Ebpf,
    maps::{MapData, MapError, RingBuf, SockMap},
    programs::SkSkb,
};
use parking_lot::Mutex;
use router_common::{framing::Framing, names};

use self::slots::Slots;
pub use self::{
    lent::Lent,
    probe::{ProbeError, probe, probe_without_cut},
};
use super::{
    error::KernelError,
    flows::Flow,
    relay::{ClientEnd, Switch},
    watch::Watch,
};

const PROGRAM: &str = "splice_segment";

/// The splice of one gateway. Cheap to clone, for every thread.
#[derive(Clone)]
pub struct Splice {
    shared: Arc<Shared>,
}

struct Shared {
    switch: Switch,
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

impl Splice {
    /// Loads and attaches the program.
    pub(super) fn attach(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let program = |source| KernelError::Program { name: PROGRAM, source };
        // First: a program refers to its maps by file descriptors.
        program_of(ebpf)?.load().map_err(program)?;

        let mapped =
            |name: &'static str| move |source: MapError| KernelError::Map { name: name.to_owned(), source };
        let mut take =
            |name: &'static str| ebpf.take_map(name).ok_or(KernelError::Missing { what: "map", name });
        let workers: SockMap<MapData> =
            take(names::SPLICE_WORKERS)?.try_into().map_err(mapped(names::SPLICE_WORKERS))?;
        let events: RingBuf<MapData> =
            take(names::SPLICE_EVENTS)?.try_into().map_err(mapped(names::SPLICE_EVENTS))?;
        let slots = Slots::new(
            take(names::SPLICE_SLOTS)?.try_into().map_err(mapped(names::SPLICE_SLOTS))?,
            &take(names::SPLICE_ORDERS)?,
            &take(names::SPLICE_STATES)?,
        )?;
        let watch = Watch::start("splice-events", events)
            .map_err(|source| KernelError::Socket { what: "a thread for splice events", source })?;
        program_of(ebpf)?.attach(workers.fd()).map_err(program)?;
        Ok(Self {
            shared: Arc::new(Shared { switch: Switch::on(), workers: Mutex::new(workers), slots, watch }),
        })
    }

    /// Whether it may be used.
    pub fn is_on(&self) -> bool {
        self.shared.switch.is_on()
    }

    /// For good. Streams in the kernel's hands end as they can.
    pub fn switch_off(&self) {
        self.shared.switch.off();
    }

    /// Lends our connection to a worker, which brings the response of `flow`, to the kernel, from the first byte on that
    /// has not been read.
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
