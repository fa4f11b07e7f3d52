//! The bypass: bodies from a worker on this host go from its `sendmsg` straight into the client's socket, past
//! loopback and past this process. The protocol is in `router_common::relay`, its argument in `docs/relay.md`.
//!
//! [`Bypass`] knows sockets and slots; what a response is and when it is worth it, the gateway knows. Nothing here
//! blocks: lending a stream is two system calls, taking it back one; in between, stores into shared memory and loads.
//!
//! Needs Linux 5.17 with BTF. [`probe`] tries everything on connections of its own before the first response is
//! trusted to it.

mod probe;
mod slots;

use std::{net::SocketAddr, sync::Arc};

use aya::{
    Ebpf,
    maps::{MapData, MapError, RingBuf, SockMap},
    programs::{SchedClassifier, SkMsg},
};
use parking_lot::Mutex;
use router_common::{
    framing::Framing,
    names,
    relay::{LEND_NO_CLIENT, LEND_NO_WORKER, LENT, Lend},
};

use self::slots::Slots;
pub use self::{
    probe::{ProbeError, probe},
    slots::Lent,
};
use super::{
    error::KernelError,
    flows::Flow,
    octets,
    relay::{ClientEnd, Switch},
    sys,
    watch::Watch,
};

const LEND: &str = "lend_stream";
const RELAY: &str = "relay_message";

/// The bypass of one gateway. Cheap to clone, for every thread.
#[derive(Clone)]
pub struct Bypass {
    shared: Arc<Shared>,
}

struct Shared {
    switch: Switch,
    lend: sys::TestRun,
    workers: Mutex<SockMap<MapData>>,
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
            &take(names::RELAY_ORDERS)?,
            &take(names::RELAY_STATES)?,
            Watch::start("relay-events", events)
                .map_err(|source| KernelError::Socket { what: "a thread for relay events", source })?,
        )?;
        program_of::<SkMsg>(ebpf, RELAY)?.attach(workers.fd()).map_err(program(RELAY))?;
        let shared = Shared {
            switch: Switch::on(),
            lend: sys::TestRun::of(lend),
            workers: Mutex::new(workers),
            slots,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Lends the stream of `flow`: from the byte that the caller would read next from its end of the connection, what the
    /// worker sends goes to `client`, until [`Lent::turn`] says that it has come back. Everything before that byte was
    /// passed on, and `framing` stands after it. `is_event_stream`: an engine's death would be told in it, and its times are noted.
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
        self.shared.switch.is_on()
    }

    /// For good. Streams in the kernel's hands end as they can.
    pub fn switch_off(&self) {
        self.shared.switch.off();
    }
}

fn program_of<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(KernelError::Missing { what: "program", name })?;
    program.try_into().map_err(|source| KernelError::Program { name, source })
}
