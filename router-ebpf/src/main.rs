//! Warmpath's kernel programs: one file per program, named by the kernel's term for its type. What they share with
//! user space is in `router-common`; how the object is built, and the lowest kernel for each program, in
//! `docs/kernel.md`.
//!
//! `core::sync::atomic` has no read-modify-write operations on this target, panics do not pass the verifier, and
//! the stack is 512 bytes: see `atomic`, and use `get`, masks and `checked_*` instead of `[i]` and `/`.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod event;
#[cfg(target_arch = "bpf")]
mod field;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod sched_cls;
#[cfg(target_arch = "bpf")]
mod sk_msg;
#[cfg(target_arch = "bpf")]
mod sk_reuseport;
#[cfg(target_arch = "bpf")]
mod sk_skb;
#[cfg(target_arch = "bpf")]
mod tcp;
#[cfg(target_arch = "bpf")]
mod timing;
#[cfg(target_arch = "bpf")]
mod xdp;

/// The helpers that the programs call are exported to GPL-compatible programs only. The source is
/// Apache-2.0 OR MIT; the object, which the kernel links with its own, declares itself dual-licensed.
#[cfg(target_arch = "bpf")]
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program from which it could be.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
