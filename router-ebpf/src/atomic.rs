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
