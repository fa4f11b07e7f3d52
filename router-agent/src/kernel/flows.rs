//! Streams under way and when their bytes come: user space's half of the maps `flows` and `latency`.
//!
//! The kernel programs stamp what they move; this stamps what user space moves, into the same memory and by the same
//! rules (`router_common::{flows, latency}`). Both are stores and atomic additions, no system call, about 0.1 µs an
//! event with the clock. Where the kernel gives no maps, the memory is this process's own, and the metrics are the same.

use std::{
    collections::VecDeque,
    mem::offset_of,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use aya::maps::Map;
use parking_lot::Mutex;
use router_common::{
    flows::{EVENT_PREFIX, FLOWS_MAX, FlowState, FlowValue},
    latency::{self, BUCKETS, LATENCIES, LatencyKind, LatencyValue},
    limits::WORKERS_MAX,
    names,
};

use super::{
    error::KernelError,
    octets,
    sys::{SharedArray, monotonic_ns},
};

/// A kernel program may be in the middle of a run on a flow that was just taken from it; a run takes microseconds.
const REST: Duration = Duration::from_secs(1);

/// All flows of this gateway. Cheap to clone, for every thread.
#[derive(Clone)]
pub struct Flows {
    shared: Arc<Shared>,
}

struct Shared {
    flows: SharedArray,
    latency: SharedArray,
    /// With the time since when each is free, if it was lent; the longest free first.
    free: Mutex<VecDeque<(u32, Option<Instant>)>>,
}

impl Flows {
    /// Over the maps.
    pub(super) fn over(flows: &Map, latency: &Map) -> Result<Self, KernelError> {
        Ok(Self::new(
            share(flows, names::FLOWS, FLOWS_BYTES)?,
            share(latency, names::LATENCY, LATENCY_BYTES)?,
        ))
    }

    /// Over memory of this process.
    pub(super) fn private() -> Result<Self, KernelError> {
        let own = |name, length| {
            SharedArray::anonymous(length).map_err(|source| KernelError::SharedMemory { name, source })
        };
        Ok(Self::new(own(names::FLOWS, FLOWS_BYTES)?, own(names::LATENCY, LATENCY_BYTES)?))
    }

    fn new(flows: SharedArray, latency: SharedArray) -> Self {
        for worker in 0..WORKERS_MAX {
            for kind in [LatencyKind::TimeToFirstByte, LatencyKind::EventGap] {
                let at = latency::key(worker, kind) as usize * size_of::<LatencyValue>();
                latency.u32(at + offset_of!(LatencyValue, worker)).store(worker, Relaxed);
                latency.u32(at + offset_of!(LatencyValue, kind)).store(kind as u32, Relaxed);
            }
        }
        let free = Mutex::new((0..FLOWS_MAX).map(|slot| (slot, None)).collect());
        Self { shared: Arc::new(Shared { flows, latency, free }) }
    }

    /// A response of `worker` to the client whose socket is `cookie`; its request was sent at `started_ns`. `None` where
    /// there are too many.
    pub fn start(&self, worker: u32, client: SocketAddr, cookie: u64, start: Start) -> Option<Flow> {
        let slot = {
            let mut free = self.shared.free.lock();
            let (_, since) = free.front()?;
            if since.is_some_and(|since| since.elapsed() < REST) {
                return None;
            }
            free.pop_front()?.0
        };
        let flow = Flow {
            entry: Arc::new(Entry {
                shared: self.shared.clone(),
                slot,
                worker,
                lent: AtomicBool::new(false),
            }),
        };
        let entry = &flow.entry;
        for (word, bytes) in octets(client.ip()).chunks_exact(4).enumerate() {
            let bytes = u32::from_ne_bytes(bytes.try_into().expect("4 bytes"));
            entry.u32(offset_of!(FlowValue, client) + 4 * word).store(bytes, Relaxed);
        }
        entry.u64(offset_of!(FlowValue, cookie)).store(cookie, Relaxed);
        entry.u32(offset_of!(FlowValue, client_port)).store(u32::from(client.port()), Relaxed);
        entry.u32(offset_of!(FlowValue, worker)).store(worker, Relaxed);
        entry.u64(offset_of!(FlowValue, started_ns)).store(start.sent_ns, Relaxed);
        for field in [
            offset_of!(FlowValue, first_byte_ns),
            offset_of!(FlowValue, last_event_ns),
            offset_of!(FlowValue, bytes),
            offset_of!(FlowValue, events),
        ] {
            entry.u64(field).store(0, Relaxed);
        }
        entry.u32(offset_of!(FlowValue, paced)).store(0, Relaxed);
        entry.u32(offset_of!(FlowValue, is_event_stream)).store(u32::from(start.is_event_stream), Relaxed);
        flow.moved_by(FlowState::Copy);
        Some(flow)
    }

    /// A response of nobody, for the start-up tests: no histogram has its times.
    pub(super) fn unnamed(&self) -> Option<Flow> {
        let client = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        self.start(u32::MAX, client, 0, Start { sent_ns: 0, is_event_stream: false })
    }

    /// The responses under way: those that one reader saw while it read, each field as it was at that moment.
    pub fn under_way(&self) -> Vec<FlowValue> {
        let read = |slot: u32| {
            let at = slot as usize * size_of::<FlowValue>();
            let u32 = |offset: usize| self.shared.flows.u32(at + offset).load(Relaxed);
            let u64 = |offset: usize| self.shared.flows.u64(at + offset).load(Relaxed);
            let state = match u32(offset_of!(FlowValue, state)) {
                state if state == FlowState::Copy as u32 => FlowState::Copy,
                state if state == FlowState::Bypass as u32 => FlowState::Bypass,
                state if state == FlowState::Splice as u32 => FlowState::Splice,
                _ => return None,
            };
            let mut client = [0; 16];
            for (word, bytes) in client.chunks_exact_mut(4).enumerate() {
                bytes.copy_from_slice(&u32(offset_of!(FlowValue, client) + 4 * word).to_ne_bytes());
            }
            Some(FlowValue {
                cookie: u64(offset_of!(FlowValue, cookie)),
                client,
                client_port: u32(offset_of!(FlowValue, client_port)),
                worker: u32(offset_of!(FlowValue, worker)),
                started_ns: u64(offset_of!(FlowValue, started_ns)),
                first_byte_ns: u64(offset_of!(FlowValue, first_byte_ns)),
                last_event_ns: u64(offset_of!(FlowValue, last_event_ns)),
                bytes: u64(offset_of!(FlowValue, bytes)),
                events: u64(offset_of!(FlowValue, events)),
                state,
                is_event_stream: u32(offset_of!(FlowValue, is_event_stream)),
                paced: u32(offset_of!(FlowValue, paced)),
                padding: 0,
                pace_since_ns: u64(offset_of!(FlowValue, pace_since_ns)),
            })
        };
        (0..FLOWS_MAX).filter_map(read).collect()
    }

    /// The index has another worker from now on: its histograms begin anew.
    pub fn forget(&self, worker: u32) {
        if worker >= WORKERS_MAX {
            return;
        }
        for kind in [LatencyKind::TimeToFirstByte, LatencyKind::EventGap] {
            let at = latency::key(worker, kind) as usize * size_of::<LatencyValue>();
            let fields = [offset_of!(LatencyValue, count), offset_of!(LatencyValue, sum_ns)];
            let buckets = (0..BUCKETS).map(|i| offset_of!(LatencyValue, buckets) + 8 * i);
            for field in fields.into_iter().chain(buckets) {
                self.shared.latency.u64(at + field).store(0, Relaxed);
            }
        }
    }

    /// A worker's histogram.
    pub fn latency(&self, worker: u32, kind: LatencyKind) -> Option<LatencyValue> {
        if worker >= WORKERS_MAX {
            return None;
        }
        let at = latency::key(worker, kind) as usize * size_of::<LatencyValue>();
        let u64 = |offset: usize| self.shared.latency.u64(at + offset).load(Relaxed);
        let mut buckets = [0; BUCKETS];
        for (i, bucket) in buckets.iter_mut().enumerate() {
            *bucket = u64(offset_of!(LatencyValue, buckets) + 8 * i);
        }
        Some(LatencyValue {
            worker,
            kind,
            count: u64(offset_of!(LatencyValue, count)),
            sum_ns: u64(offset_of!(LatencyValue, sum_ns)),
            buckets,
        })
    }
}

/// An array of the kernel's as memory of this process too.
pub(super) fn share(map: &Map, name: &'static str, length: usize) -> Result<SharedArray, KernelError> {
    let Map::Array(map) = map else { return Err(KernelError::Missing { what: "array", name }) };
    SharedArray::map(map.fd(), length).map_err(|source| KernelError::SharedMemory { name, source })
}

const FLOWS_BYTES: usize = size_of::<FlowValue>() * FLOWS_MAX as usize;
const LATENCY_BYTES: usize = size_of::<LatencyValue>() * LATENCIES as usize;

/// How a flow begins.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// [`super::now_ns`] when the request was sent to the worker.
    pub sent_ns: u64,
    /// Its times are noted.
    pub is_event_stream: bool,
}

/// One response under way. Its entry is free again when the last clone is dropped.
#[derive(Clone)]
pub struct Flow {
    entry: Arc<Entry>,
}

struct Entry {
    shared: Arc<Shared>,
    slot: u32,
    worker: u32,
    lent: AtomicBool,
}

impl Flow {
    /// The entry's index, for everything that belongs to this response.
    pub(super) fn slot(&self) -> u32 {
        self.entry.slot
    }

    /// The kernel has it from here on, or has given it back.
    pub fn moved_by(&self, who: FlowState) {
        if matches!(who, FlowState::Bypass | FlowState::Splice) {
            self.entry.lent.store(true, Relaxed);
        }
        self.entry.u32(offset_of!(FlowValue, state)).store(who as u32, Relaxed);
    }

    /// When the first body byte was moved; `None` before.
    pub fn first_byte_ns(&self) -> Option<u64> {
        let first = self.entry.u64(offset_of!(FlowValue, first_byte_ns)).load(Relaxed);
        (first != 0).then_some(first)
    }

    /// Events moved so far, by whomever.
    pub fn events(&self) -> u64 {
        self.entry.u64(offset_of!(FlowValue, events)).load(Relaxed)
    }

    /// User space has moved `data`, a chunk of the body or a part of one.
    pub fn data(&self, data: &[u8]) {
        let entry = &self.entry;
        let add = |field, value| {
            // One side writes at a time.
            let field = entry.u64(field);
            field.store(field.load(Relaxed) + value, Relaxed);
        };
        add(offset_of!(FlowValue, bytes), data.len() as u64);
        let begins_event = data.starts_with(EVENT_PREFIX);
        let first = entry.u64(offset_of!(FlowValue, first_byte_ns));
        let is_first = first.load(Relaxed) == 0;
        let is_event_stream = entry.u32(offset_of!(FlowValue, is_event_stream)).load(Relaxed) != 0;
        if !is_event_stream || !(begins_event || is_first) {
            return;
        }
        let now = monotonic_ns();
        if is_first {
            first.store(now, Relaxed);
            let started = entry.u64(offset_of!(FlowValue, started_ns)).load(Relaxed);
            entry.note(LatencyKind::TimeToFirstByte, now.saturating_sub(started));
        }
        if begins_event {
            let last = entry.u64(offset_of!(FlowValue, last_event_ns));
            match last.swap(now, Relaxed) {
                0 => {}
                before => entry.note(LatencyKind::EventGap, now.saturating_sub(before)),
            }
            add(offset_of!(FlowValue, events), 1);
        }
    }
}

impl Entry {
    fn u32(&self, field: usize) -> &std::sync::atomic::AtomicU32 {
        self.shared.flows.u32(self.slot as usize * size_of::<FlowValue>() + field)
    }

    fn u64(&self, field: usize) -> &std::sync::atomic::AtomicU64 {
        self.shared.flows.u64(self.slot as usize * size_of::<FlowValue>() + field)
    }

    fn note(&self, kind: LatencyKind, ns: u64) {
        if self.worker >= WORKERS_MAX {
            return;
        }
        let at = latency::key(self.worker, kind) as usize * size_of::<LatencyValue>();
        let add = |offset: usize, value| self.shared.latency.u64(at + offset).fetch_add(value, Relaxed);
        add(offset_of!(LatencyValue, count), 1);
        add(offset_of!(LatencyValue, sum_ns), ns);
        add(offset_of!(LatencyValue, buckets) + 8 * latency::bucket(ns), 1);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.u32(offset_of!(FlowValue, state)).store(FlowState::Free as u32, Relaxed);
        let mut free = self.shared.free.lock();
        if self.lent.load(Relaxed) {
            free.push_back((self.slot, Some(Instant::now())));
        } else {
            free.push_front((self.slot, None)); // nobody else knows it: the next one finds its memory warm
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(flows: &Flows, is_event_stream: bool) -> Flow {
        let sent_ns = monotonic_ns() - 50_000_000;
        let client = "192.0.2.1:5".parse().expect("an address");
        flows.start(3, client, 7, Start { sent_ns, is_event_stream }).expect("there is room")
    }

    fn counts(flows: &Flows) -> [u64; 2] {
        [LatencyKind::TimeToFirstByte, LatencyKind::EventGap]
            .map(|kind| flows.latency(3, kind).expect("it is a worker").count)
    }

    #[test]
    fn the_first_byte_and_the_gaps_are_noted() {
        let flows = Flows::private().expect("memory");
        let flow = start(&flows, true);
        assert_eq!(flow.first_byte_ns(), None);
        for data in [&b"data: 1\n\n"[..], b"data: 2", b"\n\n", b"data: 3\n\n"] {
            flow.data(data);
        }
        assert_eq!(counts(&flows), [1, 2], "a part of an event is no event");
        let first = flows.latency(3, LatencyKind::TimeToFirstByte).expect("it is a worker");
        assert!(first.sum_ns >= 50_000_000, "{first:?}");
        assert_eq!(first.buckets[latency::bucket(first.sum_ns)], 1);
        assert_eq!(flows.latency(4, LatencyKind::EventGap).expect("a worker").count, 0);
        assert_eq!(flow.entry.u64(offset_of!(FlowValue, bytes)).load(Relaxed), 27);
        assert_eq!(flow.events(), 3);
    }

    #[test]
    fn those_under_way_are_listed_and_no_others() {
        let flows = Flows::private().expect("memory");
        assert!(flows.under_way().is_empty());
        let flow = start(&flows, true);
        flow.data(b"data: 1\n\n");
        flow.moved_by(FlowState::Splice);
        let list = flows.under_way();
        assert_eq!(list.len(), 1);
        let FlowValue { client, client_port, worker, bytes, events, state, .. } = list[0];
        assert_eq!((client_port, worker, bytes, events, state), (5, 3, 9, 1, FlowState::Splice));
        assert!(client.ends_with(&[192, 0, 2, 1]) && list[0].first_byte_ns > list[0].started_ns);
        drop(flow);
        assert!(flows.under_way().is_empty());
    }

    #[test]
    fn a_forgotten_worker_s_histograms_are_empty() {
        let flows = Flows::private().expect("memory");
        start(&flows, true).data(b"data: 1\n\n");
        assert_eq!(counts(&flows), [1, 0]);
        flows.forget(3);
        let empty = flows.latency(3, LatencyKind::TimeToFirstByte).expect("it is a worker");
        assert_eq!((empty.count, empty.sum_ns, empty.buckets.iter().sum::<u64>()), (0, 0, 0));
    }

    #[test]
    fn other_bodies_have_no_times() {
        let flows = Flows::private().expect("memory");
        start(&flows, false).data(b"data: not a stream");
        assert_eq!(counts(&flows), [0, 0]);
    }

    #[test]
    fn an_entry_that_the_kernel_knew_rests_before_it_is_used_again() {
        let flows = Flows::private().expect("memory");
        let slot = start(&flows, true).slot();
        assert_eq!(start(&flows, true).slot(), slot, "only this side knew it");
        let lent = start(&flows, true);
        lent.moved_by(FlowState::Bypass);
        let kept = lent.clone();
        drop(lent);
        let mut all: Vec<Flow> = (1..FLOWS_MAX).map(|_| start(&flows, true)).collect();
        let client = "192.0.2.1:5".parse().expect("an address");
        let another = || flows.start(3, client, 7, Start { sent_ns: 0, is_event_stream: true });
        assert!(another().is_none(), "a clone holds it");
        drop(kept);
        assert!(another().is_none(), "it rests");
        all.pop();
        assert!(another().is_some_and(|flow| flow.slot() != slot), "one that was not lent does not");
    }
}
