//! The splice: what a worker on another host sends goes from our socket to it straight into the client's socket, without
//! waking this process. `BPF_PROG_TYPE_SK_SKB`, as a verdict without a parser; Linux 5.17 (`bpf_loop`).
//!
//! Runs in the softirq that delivers a segment, under the lock of our socket. The protocol is told in
//! `router_common::splice`. What the kernel does, and what follows from it:
//!
//! * It hands segments over whole, even where they bring bytes again that were delivered before (retransmits in other
//!   cuts), be the verdict to redirect or to pass. So each segment is cut to what is new. Its sequence number is in the
//!   control block, of which TCP's part begins with it and which this type of program may read as `cb`; the loader
//!   checks both against the kernel's BTF.
//! * It queues what is redirected without limit, and opens the worker's window meanwhile. So beyond a backlog the stream
//!   goes back to user space, where TCP holds the worker back.
//! * A segment in which the body ends before its last byte, or breaks, is not redirected at all.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        __sk_buff,
        sk_action::{SK_DROP, SK_PASS},
    },
    helpers::generated::{
        bpf_get_socket_cookie, bpf_loop, bpf_map_lookup_elem, bpf_sk_release, bpf_skb_adjust_room,
        bpf_skb_load_bytes,
    },
    macros::stream_verdict,
    programs::SkBuffContext,
};
use router_common::{
    framing::DATA,
    relay::{
        EVENT_FIRST, Event, STOP_END, STOP_ERROR_EVENT, STOP_FAILED, STOP_FAST, STOP_FRAMING, STOP_ROOM,
    },
    splice::{BACKLOG_BYTES_MAX, Order, State},
};

use crate::{
    atomic::{fetch_u64, publish_u64},
    event::{self, Begins, TAIL_AT},
    field::{get, get_framing, set, set_framing},
    maps::{RELAY_CLIENTS, SPLICE_EVENTS, SPLICE_ORDERS, SPLICE_SLOTS, SPLICE_STATES},
    tcp::TcpSock,
    timing,
};

/// Most steps through one segment: more framing than this (chunks of a byte or two) goes to user space.
const STEPS_MAX: u32 = 1 << 16;
/// What one call cuts; the helper takes no more than 4095.
const CUT_BYTES: u32 = 4032;
/// Most calls for one segment: enough for the longest there is (GSO segments of 512 KiB).
const CUTS_MAX: u32 = 256;
/// Where no window is: further from every position than a window is long.
const NO_WINDOW: u32 = u32::MAX - 8;

/// `SK_PASS` also for what is redirected, which the kernel knows from the helper; `SK_DROP` for what came before.
#[stream_verdict]
pub(crate) fn splice_segment(ctx: SkBuffContext) -> u32 {
    // SAFETY: the context of this run.
    unsafe { verdict(&ctx) }
}

/// # Safety
/// `ctx` is the context of this run.
#[inline(always)]
unsafe fn verdict(ctx: &SkBuffContext) -> u32 {
    let skb = ctx.skb.skb;
    // SAFETY (all of this function): fields of the context and of map values; helpers given the context.
    unsafe {
        let length = (*skb).len;
        if length == 0 {
            return SK_PASS; // the end of the connection
        }
        let Some(slot) = SPLICE_SLOTS.get_ptr(bpf_get_socket_cookie(skb.cast())) else { return SK_PASS };
        let slot = *slot;
        let (Some(order), Some(state)) = (SPLICE_ORDERS.get_ptr_mut(slot), SPLICE_STATES.get_ptr_mut(slot))
        else {
            return SK_PASS;
        };
        if get!(state, lost) != 0 {
            return SK_DROP;
        }
        let Some(new) = cut(skb, order, state, length) else {
            set!(state, lost = 1);
            stop(state, slot, STOP_FAILED);
            return SK_DROP;
        };
        if new == 0 {
            return SK_DROP; // nothing is left of it
        }
        relay(ctx, order, state, slot, new);
    }
    SK_PASS
}

/// Cuts off what came before, and says how much is left. `None`: it could not be cut, or the bytes before it are missing.
///
/// # Safety
/// `skb` is the context of this run; `order` and `state` are map values.
#[inline(always)]
unsafe fn cut(skb: *mut __sk_buff, order: *mut Order, state: *mut State, length: u32) -> Option<u32> {
    // SAFETY (all of this function): the caller's promise.
    unsafe {
        let seq = (&raw const (*skb).cb).cast::<u32>().read_volatile();
        if get!(state, has_next_seq) == 0 {
            // The first segment since the connection was lent: user space may have read a part of it.
            let ours = TcpSock::of((*skb).__bindgen_anon_2.sk)?;
            set!(state, next_seq = ours.copied_seq());
            set!(state, has_next_seq = 1);
        }
        let old = get!(state, next_seq).wrapping_sub(seq);
        let mut left = length;
        if old != 0 {
            if old > i32::MAX as u32 {
                return None;
            }
            set!(state, overlaps = get!(state, overlaps).wrapping_add(1));
            if get!(order, keep_overlaps) == 0 {
                let old = if old < length { old } else { length };
                let mut cut = Cut { skb, bytes: old, failed: 0 };
                bpf_loop(CUTS_MAX, cut_some as *mut c_void, (&raw mut cut).cast(), 0);
                if cut.bytes != 0 || cut.failed != 0 {
                    return None;
                }
                left = length - old;
            }
        }
        if left != 0 {
            set!(state, next_seq = seq.wrapping_add(length));
        }
        Some(left)
    }
}

#[repr(C)]
struct Cut {
    skb: *mut __sk_buff,
    bytes: u32,
    failed: u32,
}

unsafe extern "C" fn cut_some(_index: u32, cut: *mut Cut) -> i64 {
    // SAFETY: `bpf_loop` hands on the pointer that it was given.
    unsafe {
        let cut = &mut *cut;
        if cut.bytes == 0 {
            return 1;
        }
        let bytes = if cut.bytes < CUT_BYTES { cut.bytes } else { CUT_BYTES };
        if bpf_skb_adjust_room(cut.skb, -(bytes as i32), 0, 0) != 0 {
            cut.failed = 1;
            return 1;
        }
        cut.bytes -= bytes;
        0
    }
}

/// Redirects the segment, or leaves it to user space.
///
/// # Safety
/// As for [`cut`].
#[inline(always)]
unsafe fn relay(ctx: &SkBuffContext, order: *mut Order, state: *mut State, slot: u32, length: u32) {
    // SAFETY (all of this function): the caller's promise.
    unsafe {
        let position = get!(state, position);
        publish_u64(&raw mut (*state).position, u64::from(length));
        let takes_over = get!(state, turn) & 1 == 0;
        if takes_over {
            if fetch_u64(&raw mut (*order).arm_at) != position {
                return;
            }
            set!(state, target = get!(order, target));
            set!(state, since = 0);
            set!(state, framing.remaining = get!(order, remaining));
            set!(state, framing.state = get!(order, state));
            set!(state, framing.overhead = get!(order, overhead));
            publish_u64(&raw mut (*state).turn, 1);
        }
        let target = get!(state, target);
        let Some(taken_seq) = write_seq_of(target) else {
            return stop(state, slot, STOP_FAILED);
        };
        if takes_over {
            set!(state, target_seq = taken_seq);
        }
        let taken = taken_seq.wrapping_sub(get!(state, target_seq));
        let backlog = get!(state, since).wrapping_sub(taken);
        // What was redirected before the take-over may still be on its way: then it is less than none.
        if backlog != 0 && backlog <= i32::MAX as u32 && backlog.wrapping_add(length) > BACKLOG_BYTES_MAX {
            return stop(state, slot, STOP_ROOM);
        }

        set_framing!(state, scan = get_framing!(state, framing));
        set!(state, scan_at = 0);
        set!(state, scan_events = 0);
        set!(state, window_at = NO_WINDOW);
        let is_event_stream = get!(order, is_event_stream);
        let mut scan = Scan { skb: ctx.skb.skb, state, length, is_event_stream, has_error: 0, padding: 0 };
        bpf_loop(STEPS_MAX, step as *mut c_void, (&raw mut scan).cast(), 0);
        let end = get_framing!(state, scan);
        if scan.has_error != 0 {
            return stop(state, slot, STOP_ERROR_EVENT);
        }
        if get!(state, scan_at) != length || end.is_broken() {
            return stop(state, slot, STOP_FRAMING);
        }

        if RELAY_CLIENTS.redirect_skb(SkBuffContext::new(ctx.skb.skb), target, 0) != i64::from(SK_PASS) {
            return stop(state, slot, STOP_FAILED); // not in the map any more: nothing was redirected
        }
        set_framing!(state, framing = end);
        set!(state, segments = get!(state, segments) + 1);
        set!(state, redirected = get!(state, redirected) + u64::from(length));
        set!(state, since = get!(state, since).wrapping_add(length));
        let seen = timing::moved(slot, length, get!(state, scan_events), is_event_stream != 0);
        if seen.first {
            let _ = SPLICE_EVENTS.output(Event { slot, what: EVENT_FIRST }, 0);
        }
        if end.is_done() {
            stop(state, slot, STOP_END);
        } else if seen.fast {
            stop(state, slot, STOP_FAST);
        }
    }
}

/// Gives the stream back to user space if the kernel has it, and says so.
///
/// # Safety
/// `state` is a map value.
#[inline(always)]
unsafe fn stop(state: *mut State, slot: u32, stop: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        set!(state, stop = stop);
        publish_u64(&raw mut (*state).turn, get!(state, turn) & 1);
    }
    // It cannot be full: see `EVENTS_BYTES`. Were it, user space would still see the turn when next it looks.
    let _ = SPLICE_EVENTS.output(Event { slot, what: stop }, 0);
}

/// Up to where the TCP of the client's socket has taken what it was given.
#[inline(always)]
fn write_seq_of(mut cookie: u64) -> Option<u32> {
    // SAFETY: a socket hash and a key on the stack; the socket is released, and not used afterwards.
    unsafe {
        let map = (&raw const RELAY_CLIENTS).cast_mut().cast::<c_void>();
        let socket = bpf_map_lookup_elem(map, (&raw mut cookie).cast::<c_void>());
        if socket.is_null() {
            return None;
        }
        let write_seq = TcpSock::of(socket).map(TcpSock::write_seq);
        bpf_sk_release(socket);
        write_seq
    }
}

/// One run of the scanner over a segment.
///
/// What it counts is in [`State`] and not here: of a number that comes from a map the verifier knows nothing, so that
/// all turns of the loop look alike to it. Counters on the stack it follows one by one, and gives up.
#[repr(C)]
struct Scan {
    skb: *mut __sk_buff,
    state: *mut State,
    length: u32,
    is_event_stream: u32,
    has_error: u32,
    padding: u32,
}

/// Passes over data, or takes one byte of framing. Stops after the last byte of the body.
unsafe extern "C" fn step(_index: u32, scan: *mut Scan) -> i64 {
    // SAFETY: `bpf_loop` hands on the pointer that it was given; `state` is a map value.
    unsafe {
        let scan = &mut *scan;
        let state = scan.state;
        let at = get!(state, scan_at);
        if at >= scan.length {
            return 1;
        }
        let mut framing = get_framing!(state, scan);
        if framing.is_over() {
            return 1;
        }
        let left = u64::from(scan.length - at);
        let data = framing.skippable();
        if data > 0 {
            let here = if data < left { data } else { left };
            framing.skip(here);
            set!(state, scan_at = at.wrapping_add(here as u32));
        } else {
            let Some(byte) = byte(scan.skb, state, at, left) else { return 1 };
            framing.step(byte);
            set!(state, scan_at = at.wrapping_add(1));
            if framing.state == DATA && scan.is_event_stream != 0 {
                match begins(scan.skb, at.wrapping_add(1)) {
                    Begins::Error => {
                        scan.has_error = 1;
                        return 1;
                    }
                    Begins::Event => set!(state, scan_events = get!(state, scan_events).wrapping_add(1)),
                    Begins::Other => {}
                }
            }
        }
        set_framing!(state, scan = framing);
        0
    }
}

/// The byte at `at`, with `left` from there to the segment's end; eight are loaded at a time.
///
/// # Safety
/// `skb` is the context of this run; `state` is a map value.
#[inline(always)]
unsafe fn byte(skb: *mut __sk_buff, state: *mut State, at: u32, left: u64) -> Option<u8> {
    // SAFETY: the caller's promise; the helper fails where the segment is shorter.
    unsafe {
        let mut offset = at.wrapping_sub(get!(state, window_at));
        if offset >= 8 {
            if left < 8 {
                let mut byte = 0_u8;
                let result = bpf_skb_load_bytes(skb.cast(), at, (&raw mut byte).cast(), 1);
                return (result == 0).then_some(byte);
            }
            if bpf_skb_load_bytes(skb.cast(), at, (&raw mut (*state).window).cast(), 8) != 0 {
                return None;
            }
            set!(state, window_at = at);
            offset = 0;
        }
        Some((u64::from_le(get!(state, window)) >> (8 * (offset & 7))) as u8)
    }
}

/// What begins at `at`. An event in pieces is looked at no further.
///
/// # Safety
/// `skb` is the context of this run.
#[inline(always)]
unsafe fn begins(skb: *mut __sk_buff, at: u32) -> Begins {
    let word = |at| {
        let mut bytes = 0_u64;
        // SAFETY: the helper fails where the segment is shorter; `bytes` has the length that it is told.
        let result = unsafe { bpf_skb_load_bytes(skb.cast(), at, (&raw mut bytes).cast(), 8) };
        (result == 0).then_some(bytes)
    };
    let Some(head) = word(at) else { return Begins::Other };
    event::begins(head, || word(at.wrapping_add(TAIL_AT as u32)))
}
