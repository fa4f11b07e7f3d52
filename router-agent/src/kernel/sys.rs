//! The system calls that neither std nor aya makes safe: a shared mapping of a BPF array, and the kernel's clock.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64},
};

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of `bpf_ktime_get_ns`, which `std::time::Instant` does not reveal.
pub(super) fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to; this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A `BPF_F_MMAPABLE` array mapped into this process, shared with the kernel's programs (Linux 5.5).
///
/// Only whole, aligned `u32`s and `u64`s are ever touched, as atomics, because the kernel and other threads read
/// and write them meanwhile.
pub(super) struct SharedArray {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the struct until it is dropped, and all access is through atomics.
unsafe impl Send for SharedArray {}
// SAFETY: as above.
unsafe impl Sync for SharedArray {}

impl SharedArray {
    /// Maps the first `length` bytes of the array behind `map`.
    pub(super) fn map(map: impl AsFd, length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing of ours is replaced.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).expect("mmap returns an address or MAP_FAILED");
        Ok(Self { base, length })
    }

    /// The `u32` at byte `offset`. Panics out of bounds or unaligned: offsets come from `offset_of!`.
    pub(super) fn u32(&self, offset: usize) -> &AtomicU32 {
        self.check(offset, align_of::<AtomicU32>(), size_of::<AtomicU32>());
        // SAFETY: in bounds and aligned (just checked); mapped as long as `self` lives; only atomics touch it.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// The `u64` at byte `offset`; as [`Self::u32`].
    pub(super) fn u64(&self, offset: usize) -> &AtomicU64 {
        self.check(offset, align_of::<AtomicU64>(), size_of::<AtomicU64>());
        // SAFETY: as for `u32`.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    fn check(&self, offset: usize, align: usize, size: usize) {
        assert!(
            offset.is_multiple_of(align) && offset + size <= self.length,
            "offset {offset} outside the array"
        );
    }
}

impl Drop for SharedArray {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of this length; `&mut self` says that no reference into it is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}
