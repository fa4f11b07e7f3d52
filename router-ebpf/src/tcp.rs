//! What the relay's programs read of `struct tcp_sock`. Where its fields lie is read from the kernel's own BTF by the
//! loader and put here as constants, which the verifier checks (for pointers that it knows) or the reading helper
//! (for addresses).

use core::ptr;

use aya_ebpf::{
    Global,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{bpf_probe_read_kernel, bpf_sk_storage_get, bpf_skc_to_tcp_sock},
};

use crate::maps::RELAY_SLOTS;

#[unsafe(no_mangle)]
static TCP_WRITE_SEQ: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TCP_COPIED_SEQ: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOCK_WMEM_QUEUED: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOCK_SNDBUF: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOCK_COOKIE: Global<u32> = Global::new(0);

/// A TCP socket that the verifier knows to be one. Linux 5.9.
#[derive(Clone, Copy)]
pub(crate) struct TcpSock(*const u8);

impl TcpSock {
    /// # Safety
    /// `sk` is the socket of a program's context.
    #[inline(always)]
    pub(crate) unsafe fn of<T>(sk: *mut T) -> Option<Self> {
        if sk.is_null() {
            return None;
        }
        // SAFETY: the caller's promise; the helper answers null for what is no TCP socket.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk.cast()) };
        (!tcp.is_null()).then_some(Self(tcp.cast_const().cast()))
    }

    /// The sequence number after the last byte that the application has written and TCP has taken.
    #[inline(always)]
    pub(crate) fn write_seq(self) -> u32 {
        // SAFETY: a field of the socket, by the kernel's BTF; the verifier knows both.
        unsafe { self.0.add(TCP_WRITE_SEQ.load() as usize).cast::<u32>().read() }
    }

    /// The sequence number of the first byte that the application has not read.
    #[inline(always)]
    pub(crate) fn copied_seq(self) -> u32 {
        // SAFETY: as above.
        unsafe { self.0.add(TCP_COPIED_SEQ.load() as usize).cast::<u32>().read() }
    }

    #[inline(always)]
    pub(crate) fn address(self) -> u64 {
        self.0 as u64
    }
}

/// The slot that is noted on a worker's socket. Linux 5.9 in `sk_msg`.
///
/// # Safety
/// `sk` is a socket that the verifier knows to be one.
#[inline(always)]
pub(crate) unsafe fn slot_of(sk: *mut bpf_sock, new: Option<&mut u32>) -> Option<*mut u32> {
    let flags = if new.is_some() { u64::from(BPF_SK_STORAGE_GET_F_CREATE) } else { 0 };
    let new = new.map_or(ptr::null_mut(), ptr::from_mut);
    // SAFETY: the caller's promise; the map is one of this object's. aya-ebpf offers this to other program types only.
    let slot = unsafe {
        bpf_sk_storage_get((&raw const RELAY_SLOTS).cast_mut().cast(), sk.cast(), new.cast(), flags)
    };
    (!slot.is_null()).then_some(slot.cast())
}

/// Another connection's send side.
pub(crate) struct SendSide {
    pub(crate) write_seq: u32,
    /// Memory of bytes that are not acknowledged yet.
    pub(crate) queued: i32,
    /// The limit of that.
    pub(crate) limit: i32,
}

impl SendSide {
    /// Reads the socket at `address` if it still is the one with this cookie.
    ///
    /// `sk_msg` programs may not take a reference to a socket (they cannot release it), hence the address that was
    /// noted when the stream was lent. Sockets of TCP are reused as sockets of TCP only, and a new one has another cookie.
    #[inline(always)]
    pub(crate) fn of(address: u64, cookie: u64) -> Option<Self> {
        if read::<u64>(address, SOCK_COOKIE.load())? != cookie {
            return None;
        }
        Some(Self {
            write_seq: read(address, TCP_WRITE_SEQ.load())?,
            queued: read(address, SOCK_WMEM_QUEUED.load())?,
            limit: read(address, SOCK_SNDBUF.load())?,
        })
    }
}

#[inline(always)]
fn read<T: Copy + Default>(address: u64, offset: u32) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the helper copies if it can and fails if it cannot; `value` has the size that it is told.
    let result = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            ptr::with_exposed_provenance(address.wrapping_add(u64::from(offset)) as usize),
        )
    };
    (result == 0).then_some(value)
}
