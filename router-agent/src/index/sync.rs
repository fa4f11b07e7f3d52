//! The atomics that readers and the writer share. `tests/schedules` replaces them by shuttle's, which switch threads at
//! every access.

#[cfg(not(shuttle))]
pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(shuttle)]
pub(super) use shuttle::sync::atomic::{AtomicU32, AtomicU64, Ordering};
