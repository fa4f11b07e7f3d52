//! The system calls that neither std nor aya makes safe: a shared mapping of a BPF array, the kernel's clock, options
//! of sockets, and a program's test run without allocations.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64},
};

use aya::programs::ProgramFd;
use router_common::relay::Lend;

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
        Self::new(length, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, map.as_fd().as_raw_fd())
    }

    /// The same for a reader: a store to it ends the process.
    pub(super) fn map_read_only(map: impl AsFd, length: usize) -> io::Result<Self> {
        Self::new(length, libc::PROT_READ, libc::MAP_SHARED, map.as_fd().as_raw_fd())
    }

    /// Memory of this process alone, zeroed, where there is no map.
    pub(super) fn anonymous(length: usize) -> io::Result<Self> {
        Self::new(length, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    fn new(length: usize, protection: libc::c_int, flags: libc::c_int, file: i32) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing of ours is replaced.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, file, 0) };
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

/// A program that is run by `BPF_PROG_TEST_RUN` (Linux 4.12), for what it does and what it answers.
///
/// aya offers this as well, but on the program itself, which is the loader's; this is a descriptor of its own, for
/// every thread.
pub(super) struct TestRun(ProgramFd);

impl TestRun {
    pub(super) fn of(program: ProgramFd) -> Self {
        Self(program)
    }

    /// Runs it once on `packet`; its return value.
    pub(super) fn run(&self, packet: &Lend) -> io::Result<u32> {
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        /// The first fields of `union bpf_attr`'s `test`; the kernel takes what is not given as 0.
        #[repr(C)]
        struct Attributes {
            prog_fd: u32,
            retval: u32,
            data_size_in: u32,
            data_size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
        }
        let mut attributes = Attributes {
            prog_fd: self.0.as_fd().as_raw_fd() as u32,
            retval: 0,
            data_size_in: size_of::<Lend>() as u32,
            data_size_out: 0,
            data_in: std::ptr::from_ref(packet).expose_provenance() as u64,
            data_out: 0,
            repeat: 1,
            duration: 0,
        };
        // SAFETY: the attributes are as long as said, and `packet` is readable for its own length. It has no padding.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<Attributes>())
        };
        if result == 0 { Ok(attributes.retval) } else { Err(io::Error::last_os_error()) }
    }
}

/// `SO_COOKIE`, Linux 4.6: a number that no other socket has had or will have.
pub(super) fn socket_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut bytes = [0; 8];
    get_socket_option(socket, libc::SOL_SOCKET, libc::SO_COOKIE, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// `tcpi_bytes_acked` of `TCP_INFO` (Linux 4.1): bytes that the peer has acknowledged.
pub(super) fn bytes_acknowledged(socket: &impl AsFd) -> io::Result<u64> {
    const OFFSET: usize = 120; // in `struct tcp_info`, which only ever grows at its end
    let mut info = [0; OFFSET + 8];
    let length = get_socket_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    match info.get(OFFSET..length).and_then(|bytes| bytes.try_into().ok()) {
        Some(bytes) => Ok(u64::from_ne_bytes(bytes)),
        None => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Whether TCP is in a state in which it takes data (`tcpi_state`: ESTABLISHED or CLOSE_WAIT).
pub(super) fn is_writable_connection(socket: &impl AsFd) -> bool {
    const ESTABLISHED: u8 = 1;
    const CLOSE_WAIT: u8 = 8;
    let mut state = [0];
    get_socket_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state)
        .is_ok_and(|_| matches!(state[0], ESTABLISHED | CLOSE_WAIT))
}

/// `SIOCOUTQ`: bytes written and not acknowledged.
pub(super) fn bytes_outstanding(socket: &impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { Ok(bytes.max(0) as u32) } else { Err(io::Error::last_os_error()) }
}

/// `FIONREAD`: bytes that can be read.
pub(super) fn bytes_to_read(socket: &impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if result == 0 { Ok(bytes.max(0) as u32) } else { Err(io::Error::last_os_error()) }
}

/// Whether the peer has closed its side, or the connection broke (`POLLRDHUP`, Linux 2.6.17).
pub(super) fn is_closed_by_peer(socket: &impl AsFd) -> bool {
    let ends = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
    let mut poll = libc::pollfd { fd: socket.as_fd().as_raw_fd(), events: ends, revents: 0 };
    // SAFETY: one valid pollfd; does not wait.
    unsafe { libc::poll(&raw mut poll, 1, 0) };
    poll.revents & ends != 0
}

/// Sets an option that has no safe name.
pub(super) fn set_socket_option(
    socket: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    bytes: &[u8],
) -> io::Result<()> {
    let length = bytes.len() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes.
    let result =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, bytes.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until no BPF program runs that had begun before: a packet's program is an RCU reader, and
/// `membarrier(MEMBARRIER_CMD_GLOBAL)` (Linux 4.3) is the one system call that is nothing but `synchronize_rcu()`.
pub(super) fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: a system call of three integers that touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // It is refused where CPUs run without a tick (`nohz_full`). A packet's program runs for less than a microsecond.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// Fills `bytes`, at most, and says how much of it.
pub(super) fn get_socket_option(
    socket: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    bytes: &mut [u8],
) -> io::Result<usize> {
    let mut length = bytes.len() as libc::socklen_t;
    // SAFETY: `bytes` may be written for `length` bytes, and the kernel writes no more.
    let result = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, bytes.as_mut_ptr().cast(), &raw mut length)
    };
    if result == 0 { Ok(length as usize) } else { Err(io::Error::last_os_error()) }
}
