//! Atomic read-modify-write operations, which `core::sync::atomic` lacks on this target (`atomic-cas: false`).

use core::arch::asm;

/// Adds `value` to `*pointer` for all CPUs to see; no order with other accesses.
///
/// # Safety
/// `pointer` is aligned and points into a map value.
#[inline(always)]
pub(crate) unsafe fn add_u64(pointer: *mut u64, value: u64) {
    // SAFETY: the caller's promise; the verifier checks it again.
    unsafe { asm!("lock *(u64 *)({p} + 0) += {v}", p = in(reg) pointer, v = in(reg) value) }
}

/// Adds `value` to `*pointer`, with a full barrier: all that this program wrote before is seen by whoever sees the sum.
///
/// # Safety
/// As for [`add_u64`].
#[inline(always)]
pub(crate) unsafe fn publish_u64(pointer: *mut u64, value: u64) {
    // SAFETY: as above. Atomics that fetch are fully ordered in BPF's memory model, those that do not are relaxed.
    unsafe {
        asm!("{v} = atomic_fetch_add((u64 *)({p} + 0), {v})", p = in(reg) pointer, v = inout(reg) value => _);
    }
}

/// Reads `*pointer` after everything that this program wrote before (and that user space wrote before what it reads).
///
/// # Safety
/// As for [`add_u64`].
#[inline(always)]
pub(crate) unsafe fn fetch_u64(pointer: *mut u64) -> u64 {
    let value: u64;
    // SAFETY: as above.
    unsafe {
        asm!("{v} = atomic_fetch_add((u64 *)({p} + 0), {v})", p = in(reg) pointer, v = inout(reg) 0_u64 => value);
    }
    value
}

/// Stores `new` in `*pointer` if `old` is there; what was there. A full barrier. Linux 5.12.
///
/// # Safety
/// As for [`add_u64`].
#[inline(always)]
pub(crate) unsafe fn compare_exchange_u64(pointer: *mut u64, old: u64, new: u64) -> u64 {
    let found: u64;
    // SAFETY: as above.
    unsafe {
        asm!("r0 = cmpxchg_64({p} + 0, r0, {n})", p = in(reg) pointer, n = in(reg) new, inout("r0") old => found);
    }
    found
}
