//! Steering: which data thread gets a new connection. `BPF_PROG_TYPE_SK_REUSEPORT` with attach type
//! `BPF_SK_REUSEPORT_SELECT_OR_MIGRATE`: Linux 5.14.
//!
//! Runs once per connection (on its SYN), and once more for a connection that waits on a listener being closed,
//! which then moves to another thread instead of being reset. Two passes over the data threads: the least lag of
//! the live ones, then the least rank of those within the lag limit (`router_common::cores`). Whatever goes wrong
//! is `SK_PASS` without a choice, and the kernel's own hash places the connection: no connection is ever refused
//! here.
//!
//! Cost: two inlined array look-ups per data thread; see `docs/kernel.md` for nanoseconds.

use aya_ebpf::{
    bindings::sk_action::SK_PASS, helpers::bpf_ktime_get_ns, macros::sk_reuseport,
    programs::SkReuseportContext,
};
use router_common::{
    cores::{CoreValue, NOBODY, SteeringCounts, is_live, lag_limit_us, rank, thread_of},
    limits::CORES_MAX,
};

use crate::{
    atomic::add_u64,
    maps::{CORES, LISTENERS, SCRATCH, STEERING, Scratch},
};

#[sk_reuseport(migrate)]
pub(crate) fn select_core(ctx: SkReuseportContext) -> u32 {
    if let (Some(counts), Some(scratch)) = (STEERING.get_ptr_mut(0), SCRATCH.get_ptr_mut(0)) {
        // SAFETY: this CPU's entries, and programs of this type do not nest on one CPU.
        unsafe { steer(&ctx, &mut *counts, scratch) };
    }
    SK_PASS
}

/// # Safety
/// `scratch` is this CPU's entry.
#[inline(always)]
unsafe fn steer(ctx: &SkReuseportContext, counts: &mut SteeringCounts, scratch: *mut Scratch) {
    counts.total += 1;
    if ctx.migrating_sk().is_some() {
        counts.migrated += 1;
    }
    // SAFETY: the caller's promise.
    let best = unsafe { best_rank(ctx.hash(), counts, scratch) };
    if best == NOBODY {
        counts.fallback_no_core += 1;
        return;
    }
    let thread = thread_of(best);
    // The map loses a listener's socket when it is closed; the helper refuses a socket that no longer listens.
    if LISTENERS.select_reuseport(ctx, thread).is_err() {
        counts.fallback_refused += 1;
        return;
    }
    counts.selected += 1;
    if let Some(core) = CORES.get_ptr_mut(thread) {
        // SAFETY: in bounds of a map value; other CPUs add to it as well.
        unsafe { add_u64(&raw mut (*core).assigned, 1) };
    }
}

/// The rank of the thread that gets the connection with this hash, or `NOBODY`.
///
/// # Safety
/// `scratch` is this CPU's entry.
#[inline(always)]
unsafe fn best_rank(hash: u32, counts: &mut SteeringCounts, scratch: *mut Scratch) -> u64 {
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY (all three): within this CPU's entry, by the caller's promise.
    let (least_lag_us, lag_limit, best) = unsafe {
        (
            Slot(&raw mut (*scratch).least_lag_us),
            Slot(&raw mut (*scratch).lag_limit_us),
            Slot(&raw mut (*scratch).best),
        )
    };

    least_lag_us.set(u64::MAX);
    for thread in 0..CORES_MAX {
        // The map has as many entries as there are data threads.
        let Some(core) = CORES.get_ptr(thread) else { break };
        let core = Report::of(core);
        if !is_live(core.last_seen_ns, now_ns) {
            counts.skipped_stalled += 1;
        } else if u64::from(core.lag_us) < least_lag_us.get() {
            least_lag_us.set(u64::from(core.lag_us));
        }
    }

    lag_limit.set(lag_limit_us(least_lag_us.get() as u32));
    best.set(NOBODY);
    for thread in 0..CORES_MAX {
        let Some(core) = CORES.get_ptr(thread) else { break };
        let core = Report::of(core);
        if !is_live(core.last_seen_ns, now_ns) {
            continue;
        }
        if u64::from(core.lag_us) > lag_limit.get() {
            counts.skipped_lag += 1;
            continue;
        }
        let rank = rank(core.connections, core.assigned, core.settled, hash, thread);
        if rank < best.get() {
            best.set(rank);
        }
    }
    best.get()
}

/// A number in [`Scratch`]: volatile, or the compiler would keep it in a register.
#[derive(Clone, Copy)]
struct Slot(*mut u64);

impl Slot {
    #[inline(always)]
    fn get(self) -> u64 {
        // SAFETY: in bounds of a map value (the verifier checks it again).
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn set(self, value: u64) {
        // SAFETY: as above.
        unsafe { self.0.write_volatile(value) }
    }
}

/// One read of a [`CoreValue`] that its thread may be writing.
struct Report {
    lag_us: u32,
    connections: u32,
    assigned: u64,
    settled: u64,
    last_seen_ns: u64,
}

impl Report {
    #[inline(always)]
    fn of(core: *const CoreValue) -> Self {
        // SAFETY: in bounds of a map value; each field is read once, and any number in it is valid. `settled` before
        // `assigned`, so that it is never seen ahead of it.
        unsafe {
            let settled = (&raw const (*core).settled).read_volatile();
            Self {
                lag_us: (&raw const (*core).lag_us).read_volatile(),
                connections: (&raw const (*core).connections).read_volatile(),
                assigned: (&raw const (*core).assigned).read_volatile(),
                settled,
                last_seen_ns: (&raw const (*core).last_seen_ns).read_volatile(),
            }
        }
    }
}
