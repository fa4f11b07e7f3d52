//! Notes sockets as they are accepted, for the relay: `BPF_PROG_TYPE_SOCK_OPS` on a cgroup that contains the workers and
//! this gateway (the root, unless told otherwise). Linux 5.15 (`bpf_get_netns_cookie`).
//!
//! A worker's socket goes into the socket hash that has the `sk_msg` program; of a client's, the kernel address is
//! noted. Only ports that user space has named, and only in this gateway's network namespace: there, a pair of
//! addresses and ports names one connection, and user space finds the other end of its own by it.
//!
//! Runs on every TCP connection's events; all but one look-up on accept is one comparison.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::{BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, bpf_sock_ops},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::sock_ops,
    programs::SockOpsContext,
};
use router_common::relay::{Accepted, PORT_OF_CLIENTS, PORT_OF_WORKER, Pair};

use crate::{
    maps::{RELAY_ACCEPTED, RELAY_PORTS, RELAY_SOCKETS, RELAY_WORKERS},
    tcp::TcpSock,
};

/// This gateway's network namespace (`SO_NETNS_COOKIE`).
#[unsafe(no_mangle)]
static NETNS_COOKIE: Global<u64> = Global::new(0);

const AF_INET: u32 = 2;

#[sock_ops]
pub(crate) fn note_accepted(ctx: SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        // SAFETY: the context of this run.
        unsafe { note(&ctx) };
    }
    0
}

#[inline(always)]
unsafe fn note(ctx: &SockOpsContext) -> Option<()> {
    let port = ctx.local_port();
    // SAFETY (all of this function): fields of the context, helpers given the context, look-ups with keys on the stack.
    unsafe {
        let role = *RELAY_PORTS.get_ptr(port)?;
        if bpf_get_netns_cookie(ctx.as_ptr()) != NETNS_COOKIE.load() {
            return None;
        }
        let tcp = TcpSock::of((*ctx.ops).__bindgen_anon_2.sk)?;
        let cookie = bpf_get_socket_cookie(ctx.as_ptr());
        if role & PORT_OF_CLIENTS != 0 {
            let _ = RELAY_SOCKETS.insert(cookie, tcp.address(), 0);
        }
        if role & PORT_OF_WORKER != 0 {
            // Nothing has been sent yet: this is position 0.
            let accepted = Accepted { cookie, first_seq: tcp.write_seq(), padding: 0 };
            RELAY_WORKERS.update(cookie, &mut *ctx.ops, 0).ok()?;
            let _ = RELAY_ACCEPTED.insert(pair(ctx.ops, port), accepted, 0);
        }
    }
    Some(())
}

/// # Safety
/// `ops` is the context of this run.
#[inline(always)]
unsafe fn pair(ops: *const bpf_sock_ops, local_port: u32) -> Pair {
    // SAFETY: fields of the context; each by a read of its own, because the verifier allows no wider ones.
    unsafe {
        // Network byte order in 32 bits.
        let remote_port = u32::from_be((&raw const (*ops).remote_port).read_volatile()) & 0xffff;
        if (*ops).family == AF_INET {
            let (local, remote) = ((*ops).local_ip4, (*ops).remote_ip4);
            return Pair { local: mapped(local), remote: mapped(remote), local_port, remote_port };
        }
        let local = (&raw const (*ops).local_ip6).cast::<u32>();
        let remote = (&raw const (*ops).remote_ip6).cast::<u32>();
        let words = |from: *const u32| {
            [
                from.read_volatile(),
                from.add(1).read_volatile(),
                from.add(2).read_volatile(),
                from.add(3).read_volatile(),
            ]
        };
        Pair { local: bytes(words(local)), remote: bytes(words(remote)), local_port, remote_port }
    }
}

#[inline(always)]
fn mapped(address: u32) -> [u8; 16] {
    bytes([0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), address])
}

#[inline(always)]
fn bytes(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: 16 bytes are 16 bytes.
    unsafe { ptr::from_ref(&words).cast::<[u8; 16]>().read() }
}
