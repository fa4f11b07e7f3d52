//! Lends a stream to the kernel: puts the worker's end of a connection into the socket map that has the `sk_msg` program.
//! `BPF_PROG_TYPE_SCHED_CLS`, attached nowhere: user space runs it by `BPF_PROG_TEST_RUN`, as a system call that the
//! kernel lacks. Linux 5.11.
//!
//! A socket in a socket map is a little different from any other (it answers `FIONREAD` with 0, for one), and the
//! worker's end belongs to another process. So it is there only while one of our streams is lent; sockets that are not
//! ours to relay, and ours between two streams, are never touched. Only sockets of this process's network namespace are
//! found.
//!
//! Position 0 is the byte that user space will read next: our own end's `copied_seq`, which is a sequence number of the
//! worker's, since nothing stands between the two.
//!
//! Cost: one system call of about 3 µs for each lent stream.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple},
    helpers::generated::{
        bpf_map_lookup_elem, bpf_map_update_elem, bpf_sk_lookup_tcp, bpf_sk_release, bpf_skb_load_bytes,
    },
    macros::classifier,
    programs::TcContext,
};
use router_common::relay::{LEND_NO_CLIENT, LEND_NO_WORKER, LEND_REFUSED, LENT, Lend};

use crate::{
    maps::{RELAY_CLIENTS, RELAY_ORDERS, RELAY_WORKERS},
    tcp::{TcpSock, slot_of},
};

/// `state` of a socket on which data flows both ways.
const ESTABLISHED: u32 = 1;
/// Most bytes that a worker can have written and this gateway not read: far more than any buffers.
const UNREAD_BYTES_MAX: u32 = 1 << 30;

#[classifier]
pub(crate) fn lend_stream(ctx: TcContext) -> i32 {
    let mut lend = Lend::default();
    // SAFETY: the helper fills the struct or fails; any bytes are a valid one.
    let read =
        unsafe { bpf_skb_load_bytes(ctx.as_ptr(), 0, (&raw mut lend).cast(), size_of::<Lend>() as u32) };
    if read != 0 {
        return LEND_REFUSED as i32;
    }
    // SAFETY: the context of this run.
    let answer = unsafe {
        match lookup(&ctx, &lend.worker, lend.worker_port, &lend.gateway, lend.gateway_port) {
            None => LEND_NO_WORKER,
            Some(worker) => {
                let answer =
                    match lookup(&ctx, &lend.gateway, lend.gateway_port, &lend.worker, lend.worker_port) {
                        None => LEND_NO_WORKER,
                        Some(gateway) => {
                            let answer = lend_socket(&lend, worker, gateway);
                            bpf_sk_release(gateway.cast());
                            answer
                        }
                    };
                bpf_sk_release(worker.cast());
                answer
            }
        }
    };
    answer as i32
}

/// # Safety
/// Both are sockets that the verifier knows.
#[inline(always)]
unsafe fn lend_socket(lend: &Lend, worker: *mut bpf_sock, gateway: *mut bpf_sock) -> u32 {
    // SAFETY (all of this function): fields of sockets that the verifier knows, and of map values.
    unsafe {
        // A look-up without a connection finds the listener.
        if (*worker).state != ESTABLISHED || (*gateway).state != ESTABLISHED {
            return LEND_NO_WORKER;
        }
        let (Some(worker_tcp), Some(gateway_tcp)) = (TcpSock::of(worker), TcpSock::of(gateway)) else {
            return LEND_NO_WORKER;
        };
        let first_seq = gateway_tcp.copied_seq();
        if worker_tcp.write_seq().wrapping_sub(first_seq) > UNREAD_BYTES_MAX {
            return LEND_NO_WORKER;
        }
        let Some(order) = RELAY_ORDERS.get_ptr_mut(lend.slot) else { return LEND_REFUSED };
        let Some(client) = client_address(lend.target) else { return LEND_NO_CLIENT };
        (&raw mut (*order).first_seq).write_volatile(first_seq);
        (&raw mut (*order).target_address).write_volatile(client);

        let mut slot = lend.slot;
        let Some(noted) = slot_of(worker, Some(&mut slot)) else { return LEND_REFUSED };
        noted.write_volatile(lend.slot);
        let result = bpf_map_update_elem(
            (&raw const RELAY_WORKERS).cast_mut().cast(),
            (&raw const slot).cast(),
            worker.cast(),
            0,
        );
        if result == 0 { LENT } else { LEND_REFUSED }
    }
}

/// The kernel's address of a client's socket.
#[inline(always)]
unsafe fn client_address(cookie: u64) -> Option<u64> {
    // SAFETY: a key on the stack; the socket that was found is released.
    unsafe {
        let client: *mut bpf_sock =
            bpf_map_lookup_elem((&raw const RELAY_CLIENTS).cast_mut().cast(), (&raw const cookie).cast())
                .cast();
        if client.is_null() {
            return None;
        }
        let address = TcpSock::of(client).map(TcpSock::address);
        bpf_sk_release(client.cast());
        address
    }
}

/// The TCP socket with these ends, the first of them its own. To be released.
///
/// # Safety
/// `ctx` is the context of this run.
#[inline(always)]
unsafe fn lookup(
    ctx: &TcContext,
    local: &[u8; 16],
    local_port: u16,
    remote: &[u8; 16],
    remote_port: u16,
) -> Option<*mut bpf_sock> {
    const V4_BYTES: u32 = 12;
    const V6_BYTES: u32 = 36;
    // The helper's tuple is that of a packet on its way to the socket.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if is_mapped(local) && is_mapped(remote) {
        let ipv4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        ipv4.saddr = word(remote, 12);
        ipv4.daddr = word(local, 12);
        ipv4.sport = remote_port.to_be();
        ipv4.dport = local_port.to_be();
        V4_BYTES
    } else {
        let ipv6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        ipv6.saddr = [word(remote, 0), word(remote, 4), word(remote, 8), word(remote, 12)];
        ipv6.daddr = [word(local, 0), word(local, 4), word(local, 8), word(local, 12)];
        ipv6.sport = remote_port.to_be();
        ipv6.dport = local_port.to_be();
        V6_BYTES
    };
    // SAFETY: the caller's promise; the tuple is as long as it says.
    let sk = unsafe {
        if size == V4_BYTES {
            bpf_sk_lookup_tcp(ctx.as_ptr().cast(), &raw mut tuple, V4_BYTES, BPF_F_CURRENT_NETNS as u64, 0)
        } else {
            bpf_sk_lookup_tcp(ctx.as_ptr().cast(), &raw mut tuple, V6_BYTES, BPF_F_CURRENT_NETNS as u64, 0)
        }
    };
    (!sk.is_null()).then_some(sk)
}

#[inline(always)]
fn is_mapped(address: &[u8; 16]) -> bool {
    word(address, 0) == 0 && word(address, 4) == 0 && word(address, 8) == 0xffff_u32.to_be()
}

#[inline(always)]
fn word(address: &[u8; 16], at: usize) -> u32 {
    u32::from_ne_bytes([address[at], address[at + 1], address[at + 2], address[at + 3]])
}
