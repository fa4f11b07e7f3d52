//! Stamps on what the relay's programs move: the `flows` and `latency` maps. User space stamps what it moves itself
//! (`kernel/flows.rs` in router-agent), by the same rules.
//!
//! Cost: about 0.1 µs for a message, most of it the clock.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use router_common::{
    flows::FlowValue,
    latency::{self, LatencyKind, LatencyValue},
    relay::{FAST_MESSAGES, FAST_NS},
};

use crate::{
    atomic::add_u64,
    field::{get, set},
    maps::{FLOWS, LATENCY},
};

/// What [`moved`] has seen.
pub(crate) struct Seen {
    /// The first bytes of an event stream.
    pub(crate) first: bool,
    /// Events come faster than they should be moved one by one: see [`FAST_MESSAGES`].
    pub(crate) fast: bool,
}

/// `bytes` of a response were moved, with the beginnings of `events` in them.
#[inline(always)]
pub(crate) fn moved(slot: u32, bytes: u32, events: u32, is_event_stream: bool) -> Seen {
    const NOTHING: Seen = Seen { first: false, fast: false };
    let Some(flow) = FLOWS.get_ptr_mut(slot) else { return NOTHING };
    let flow: *mut FlowValue = flow;
    // SAFETY: a map value; one side writes to it at a time.
    unsafe {
        set!(flow, bytes = get!(flow, bytes) + u64::from(bytes));
        let is_first = get!(flow, first_byte_ns) == 0;
        if !is_event_stream || (events == 0 && !is_first) {
            return NOTHING;
        }
        let mut fast = false;
        let now = bpf_ktime_get_ns();
        let worker = get!(flow, worker);
        if is_first {
            set!(flow, first_byte_ns = now);
            note(
                latency::key(worker, LatencyKind::TimeToFirstByte),
                now.wrapping_sub(get!(flow, started_ns)),
            );
        }
        if events > 0 {
            let last = get!(flow, last_event_ns);
            if last != 0 {
                let gap = now.wrapping_sub(last);
                note(latency::key(worker, LatencyKind::EventGap), gap);
            }
            fast = is_fast(flow, now);
            set!(flow, last_event_ns = now);
            set!(flow, events = get!(flow, events) + u64::from(events));
        }
        Seen { first: is_first, fast }
    }
}

/// Counts a message with events, and says at every [`FAST_MESSAGES`] of them whether they came within [`FAST_NS`].
#[inline(always)]
unsafe fn is_fast(flow: *mut FlowValue, now: u64) -> bool {
    // SAFETY: by the caller, as in `moved`.
    unsafe {
        let messages = get!(flow, paced) + 1;
        if messages == 1 {
            set!(flow, pace_since_ns = now);
        }
        let is_full = messages >= FAST_MESSAGES;
        set!(flow, paced = if is_full { 0 } else { messages });
        is_full && now.wrapping_sub(get!(flow, pace_since_ns)) < FAST_NS
    }
}

#[inline(always)]
fn note(key: u32, ns: u64) {
    let Some(histogram) = LATENCY.get_ptr_mut(key) else { return };
    let histogram: *mut LatencyValue = histogram;
    // SAFETY: a map value; the bucket is within it, by `latency::bucket`.
    unsafe {
        add_u64(&raw mut (*histogram).count, 1);
        add_u64(&raw mut (*histogram).sum_ns, ns);
        if let Some(bucket) = (&mut (*histogram).buckets).get_mut(latency::bucket(ns)) {
            add_u64(bucket, 1);
        }
    }
}
