//! Steering's user-space half: the data threads' reports, and attaching the `sk_reuseport` program to their
//! listeners. The rule by which the program chooses is in `router_common::cores`.
//!
//! A report is a few plain stores into memory shared with the kernel (0.1 µs): no system call, no lock. A thread that stops
//! reporting gets no new connection after [`CORE_STALLED_AFTER_MS`]; if all stop, or their listeners are gone, the
//! kernel's own hash places connections, as it does without the program. A listener that is closed while others of
//! its group are open loses nothing: what waited on it moves to them.
//!
//! [`CORE_STALLED_AFTER_MS`]: router_common::limits::CORE_STALLED_AFTER_MS

use std::{
    mem::offset_of,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use aya::{
    maps::{Map, MapData, MapError, PerCpuArray, ReusePortSockArray},
    programs::SkReuseport,
};
use parking_lot::Mutex;
use router_common::{
    MapValue,
    cores::{CoreValue, SteeringCounts},
    names,
};

use super::{
    PROGRAM,
    error::KernelError,
    sys::{SharedArray, monotonic_ns},
};

/// Steering, attached. Cheap to clone, for every thread.
#[derive(Clone)]
pub struct Steering {
    shared: Arc<Shared>,
}

struct Shared {
    /// The `cores` map.
    cores: SharedArray,
    /// Per thread, `assigned` as of its last report.
    assigned_before: Box<[AtomicU64]>,
    counts: PerCpuArray<MapData, <SteeringCounts as MapValue>::Bytes>,
    /// The `listeners` array.
    sockets: Mutex<ReusePortSockArray<MapData>>,
}

impl Steering {
    pub(super) fn new(cores: &MapData, counts: Map, sockets: Map, threads: u32) -> Result<Self, KernelError> {
        let length = size_of::<CoreValue>() * threads as usize;
        let cores = SharedArray::map(cores.fd(), length)
            .map_err(|source| KernelError::SharedMemory { name: names::CORES, source })?;
        let counts = PerCpuArray::try_from(counts)
            .map_err(|source| KernelError::Map { name: names::STEERING.to_owned(), source })?;
        let sockets = ReusePortSockArray::try_from(sockets).map_err(listeners_error)?;
        let sockets = Mutex::new(sockets);
        let assigned_before = (0..threads).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { shared: Arc::new(Shared { cores, assigned_before, counts, sockets }) })
    }

    /// Fills the socket array and attaches the program to the group of `listeners`: all listen on one address with
    /// `SO_REUSEPORT`, and stand in the order of the data threads.
    pub(super) fn attach(&self, program: &SkReuseport, listeners: &[impl AsFd]) -> Result<(), KernelError> {
        let mut sockets = self.shared.sockets.lock();
        for (thread, listener) in (0..).zip(listeners) {
            sockets.set(thread, &listener.as_fd(), 0).map_err(listeners_error)?;
        }
        let Some(any) = listeners.first() else { return Ok(()) };
        program.attach(any).map_err(|source| KernelError::Program { name: PROGRAM, source })
    }

    /// Lets go of the listeners, so that a successor can have them. Until it does, the kernel's hash places connections.
    pub(super) fn release(&self) {
        let mut sockets = self.shared.sockets.lock();
        for thread in 0..self.threads() {
            let _ = sockets.clear_index(&thread); // it may not be there
        }
    }

    /// Gives the group of `listener` back to the kernel's hash.
    pub fn detach(&self, listener: impl AsFd) -> Result<(), KernelError> {
        SkReuseport::detach(listener).map_err(|source| KernelError::Program { name: PROGRAM, source })
    }

    /// Data threads, each with a [`Core`].
    pub fn threads(&self) -> u32 {
        self.shared.assigned_before.len() as u32
    }

    /// The reporting end of data thread `thread`, from 0. Panics if there is no such thread.
    pub fn core(&self, thread: u32) -> Core {
        assert!(thread < self.threads(), "data thread {thread} of {}", self.threads());
        Core { shared: Arc::clone(&self.shared), thread: thread as usize }
    }

    /// As [`Core::report`], by thread number.
    pub fn report(&self, thread: u32, lag_us: u32, connections: u32) {
        self.core(thread).report(lag_us, connections);
    }

    /// What the program has decided so far, over all CPUs. One system call.
    pub fn stats(&self) -> Result<SteeringCounts, KernelError> {
        let values = self
            .shared
            .counts
            .get(&0, 0)
            .map_err(|source| KernelError::Map { name: names::STEERING.to_owned(), source })?;
        values.iter().try_fold(SteeringCounts::ZERO, |sum, bytes| {
            let one = SteeringCounts::from_bytes(bytes)
                .ok_or_else(|| KernelError::Entry { name: names::STEERING.to_owned() })?;
            Ok(sum.plus(&one))
        })
    }
}

fn listeners_error(source: MapError) -> KernelError {
    KernelError::Map { name: names::LISTENERS.to_owned(), source }
}

/// What one data thread says of itself. Every method is for that thread alone: two threads reporting as one would
/// lose each other's updates (nothing worse).
#[derive(Clone)]
pub struct Core {
    shared: Arc<Shared>,
    thread: usize,
}

impl Core {
    /// The heartbeat, to be called at least every
    /// [`CORE_REPORT_EVERY_MS`](router_common::limits::CORE_REPORT_EVERY_MS): how late the event loop ran its last
    /// timer, and the connections open now.
    pub fn report(&self, lag_us: u32, connections: u32) {
        let (cores, at) = (&self.shared.cores, self.offset());
        // What was assigned before the last report and has not been accepted by now never will be (the client gave
        // up, or the "connection" was a stray segment): without this the thread would look busier for ever.
        let assigned = cores.u64(at + offset_of!(CoreValue, assigned)).load(Relaxed);
        let before = self.shared.assigned_before[self.thread].swap(assigned, Relaxed);
        let settled = cores.u64(at + offset_of!(CoreValue, settled));
        if settled.load(Relaxed) < before {
            settled.store(before, Relaxed);
        }
        cores.u32(at + offset_of!(CoreValue, lag_us)).store(lag_us, Relaxed);
        cores.u32(at + offset_of!(CoreValue, connections)).store(connections, Relaxed);
        cores.u64(at + offset_of!(CoreValue, last_seen_ns)).store(monotonic_ns(), Relaxed);
    }

    /// One connection accepted: the program knows at once that it has arrived, and counts it as open until the next
    /// report says what is.
    pub fn accepted(&self) {
        let (cores, at) = (&self.shared.cores, self.offset());
        cores.u64(at + offset_of!(CoreValue, accepted)).fetch_add(1, Relaxed);
        cores.u32(at + offset_of!(CoreValue, connections)).fetch_add(1, Relaxed);
        let assigned = cores.u64(at + offset_of!(CoreValue, assigned)).load(Relaxed);
        let settled = cores.u64(at + offset_of!(CoreValue, settled));
        // A connection that the hash placed was never assigned.
        let now = settled.load(Relaxed).saturating_add(1).min(assigned);
        settled.store(now, Relaxed);
    }

    fn offset(&self) -> usize {
        self.thread * size_of::<CoreValue>()
    }
}
