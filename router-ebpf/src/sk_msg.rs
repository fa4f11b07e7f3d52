//! The bypass: what a worker on this host sends goes from its `sendmsg` straight into the client's socket.
//! `BPF_PROG_TYPE_SK_MSG`; Linux 5.17 (`bpf_loop`).
//!
//! Runs in the worker's system call, once for each message, under that socket's lock. The protocol is told in
//! `router_common::relay`, the argument for it and the kernel's habits that it respects in `docs/relay.md`. In short:
//!
//! * The position of a message is what the socket's own TCP has taken plus what was redirected. Counting messages
//!   would be wrong: the program sees one before the kernel knows how much of it fits.
//! * Only what fits the client's send buffer whole is redirected; the rest is the ordinary way's, with its
//!   back-pressure.
//! * A message in which the body ends before its last byte, or breaks, is not redirected at all.
//! * Never `SK_DROP`: the verdict would stick to the worker's socket.
//!
//! Cost: about 0.6 µs for an SSE event, against two wake-ups and two system calls of a copy.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{sk_action::SK_PASS, sk_msg_md},
    helpers::generated::{bpf_loop, bpf_msg_pull_data},
    macros::sk_msg,
    programs::SkMsgContext,
};
use router_common::{
    flows::EVENT_PREFIX,
    framing::DATA,
    relay::{
        BACKLOG_BYTES_MAX, DISARMED, ERROR_EVENT, EVENT_FIRST, Event, Order, STOP_END, STOP_ERROR_EVENT,
        STOP_FAILED, STOP_FAST, STOP_FRAMING, STOP_ROOM, State,
    },
};

use crate::{
    atomic::{fetch_u64, publish_u64},
    event::{self, Begins, TAIL_AT},
    field::{get, get_framing, set, set_framing},
    maps::{RELAY_CLIENTS, RELAY_EVENTS, RELAY_ORDERS, RELAY_STATES},
    tcp::{SendSide, TcpSock, slot_of},
    timing,
};

/// Most steps through one message: more framing than this (chunks of a byte or two) goes to user space.
const STEPS_MAX: u32 = 1 << 16;
/// Beside the data itself, what the kernel may need of the client's send buffer.
const ROOM_SPARE_BYTES: i64 = 8192;

#[sk_msg]
pub(crate) fn relay_message(ctx: SkMsgContext) -> u32 {
    // SAFETY: the context of this run.
    unsafe { relay(&ctx) };
    // Redirected or not, which the kernel knows from the helper.
    SK_PASS
}

/// `None`: the message goes its ordinary way.
///
/// # Safety
/// `ctx` is the context of this run.
#[inline(always)]
unsafe fn relay(ctx: &SkMsgContext) -> Option<()> {
    let message = ctx.msg;
    // SAFETY (all of this function): fields of the context, of map values, and of sockets that the verifier knows.
    unsafe {
        let length = (*message).size;
        let worker = TcpSock::of((*message).__bindgen_anon_3.sk)?;
        let slot = *slot_of((*message).__bindgen_anon_3.sk.cast(), None)?;
        let order: *mut Order = RELAY_ORDERS.get_ptr_mut(slot)?;
        let state: *mut State = RELAY_STATES.get_ptr_mut(slot)?;

        let relaying = get!(state, turn) & 1 != 0;
        if !relaying {
            let taken = worker.write_seq().wrapping_sub(get!(order, first_seq));
            let position = taken.wrapping_add(get!(state, redirected) as u32);
            if fetch_u64(&raw mut (*order).arm_at) != u64::from(position) {
                return None;
            }
        }
        // User space changes neither while the stream is lent.
        let target = get!(order, target);
        let Some(client) = SendSide::of(get!(order, target_address), target) else {
            if relaying {
                stop(state, slot, STOP_FAILED);
            }
            return None;
        };
        if !relaying {
            // One take-over for each order: a message that is then refused comes again at the same position.
            set!(order, arm_at = DISARMED);
            set!(state, target_seq = client.write_seq);
            set!(state, since = 0);
            set!(state, is_event_stream = get!(order, is_event_stream));
            set!(state, framing.remaining = get!(order, remaining));
            set!(state, framing.state = get!(order, state));
            set!(state, framing.overhead = get!(order, overhead));
            publish_u64(&raw mut (*state).turn, 1);
        } else if client.write_seq.wrapping_sub(get!(state, target_seq)) != get!(state, since) {
            // The client's socket was closed under the last message, or took a part of it only.
            stop(state, slot, STOP_FAILED);
            return None;
        }

        let need = 2 * i64::from(length) + ROOM_SPARE_BYTES;
        let room = i64::from(client.limit) - i64::from(client.queued);
        if room < need || client.queued > BACKLOG_BYTES_MAX as i32 {
            stop(state, slot, STOP_ROOM);
            return None;
        }

        set_framing!(state, scan = get_framing!(state, framing));
        // Counted there and not in `Scan`: of a number in a map the verifier knows nothing, so that one turn of the loop
        // looks to it like any other.
        set!(state, scan_events = 0);
        let is_event_stream = get!(state, is_event_stream);
        let mut scan = Scan { message, state, at: 0, length, is_event_stream, has_error: 0 };
        bpf_loop(STEPS_MAX, step as *mut c_void, (&raw mut scan).cast(), 0);
        let end = get_framing!(state, scan);
        if scan.has_error != 0 {
            stop(state, slot, STOP_ERROR_EVENT);
            return None;
        }
        if scan.at != length || end.is_broken() {
            stop(state, slot, STOP_FRAMING);
            return None;
        }

        let verdict = RELAY_CLIENTS.redirect_msg(SkMsgContext::new(message), target, 0);
        if verdict != i64::from(SK_PASS) {
            stop(state, slot, STOP_FAILED); // not in the map any more: nothing was redirected
            return None;
        }
        set_framing!(state, framing = end);
        set!(state, messages = get!(state, messages) + 1);
        set!(state, redirected = get!(state, redirected) + u64::from(length));
        set!(state, since = get!(state, since).wrapping_add(length));
        let seen = timing::moved(slot, length, get!(state, scan_events), is_event_stream != 0);
        if seen.first {
            let _ = RELAY_EVENTS.output(Event { slot, what: EVENT_FIRST }, 0);
        }
        if end.is_done() {
            stop(state, slot, STOP_END);
        } else if seen.fast {
            stop(state, slot, STOP_FAST);
        }
    }
    Some(())
}

/// Gives the stream back to user space, and says so.
///
/// # Safety
/// `state` is a map value.
#[inline(always)]
unsafe fn stop(state: *mut State, slot: u32, stop: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        set!(state, stop = stop);
        publish_u64(&raw mut (*state).turn, 1);
    }
    // It cannot be full: see `EVENTS_BYTES`. Were it, user space would still see the turn when next it looks.
    let _ = RELAY_EVENTS.output(Event { slot, what: stop }, 0);
}

/// One run of the scanner over a message.
#[repr(C)]
struct Scan {
    message: *mut sk_msg_md,
    state: *mut State,
    at: u32,
    length: u32,
    is_event_stream: u32,
    has_error: u32,
}

/// Passes over data, or takes one byte of framing. Stops after the last byte of the body.
unsafe extern "C" fn step(_index: u32, scan: *mut Scan) -> i64 {
    // SAFETY: `bpf_loop` hands on the pointer that it was given; `state` is a map value.
    unsafe {
        let scan = &mut *scan;
        let state = scan.state;
        if scan.at >= scan.length {
            return 1;
        }
        let mut framing = get_framing!(state, scan);
        if framing.is_over() {
            return 1;
        }
        let left = u64::from(scan.length - scan.at);
        let data = framing.skippable();
        if data > 0 {
            let here = if data < left { data } else { left };
            framing.skip(here);
            scan.at += here as u32;
        } else {
            let message = scan.message;
            if bpf_msg_pull_data(message, scan.at, scan.at + 1, 0) != 0 {
                return 1;
            }
            let byte = (*message).__bindgen_anon_1.data.cast::<u8>();
            let end = (*message).__bindgen_anon_2.data_end.cast::<u8>();
            if byte.add(1) > end {
                return 1;
            }
            framing.step(*byte);
            scan.at += 1;
            if framing.state == DATA && scan.is_event_stream != 0 {
                match begins(message, scan.at) {
                    Begins::Error => {
                        scan.has_error = 1;
                        return 1;
                    }
                    Begins::Event => set!(state, scan_events = get!(state, scan_events) + 1),
                    Begins::Other => {}
                }
            }
        }
        set_framing!(state, scan = framing);
        0
    }
}

/// What begins at `at`.
///
/// # Safety
/// `message` is the context of this run.
#[inline(always)]
unsafe fn begins(message: *mut sk_msg_md, at: u32) -> Begins {
    // SAFETY: the caller's promise; the bounds are checked before the bytes are read.
    unsafe {
        // Fails where the message is shorter.
        if bpf_msg_pull_data(message, at, at + ERROR_EVENT.len() as u32, 0) != 0 {
            return begins_short(message, at);
        }
        let data = (*message).__bindgen_anon_1.data.cast::<u8>();
        let end = (*message).__bindgen_anon_2.data_end.cast::<u8>();
        if data.add(ERROR_EVENT.len()) > end {
            return Begins::Other;
        }
        let word = |at| data.add(at).cast::<u64>().read_unaligned();
        event::begins(word(0), || Some(word(TAIL_AT)))
    }
}

/// As [`begins`], where the message ends too soon for an [`ERROR_EVENT`].
///
/// # Safety
/// `message` is the context of this run.
#[inline(always)]
unsafe fn begins_short(message: *mut sk_msg_md, at: u32) -> Begins {
    // SAFETY: the caller's promise; the bounds are checked before the bytes are read.
    unsafe {
        if bpf_msg_pull_data(message, at, at + EVENT_PREFIX.len() as u32, 0) != 0 {
            return Begins::Other;
        }
        let data = (*message).__bindgen_anon_1.data.cast::<u8>();
        let end = (*message).__bindgen_anon_2.data_end.cast::<u8>();
        if data.add(EVENT_PREFIX.len()) > end {
            return Begins::Other;
        }
        if data.cast::<[u8; EVENT_PREFIX.len()]>().read() == *EVENT_PREFIX {
            Begins::Event
        } else {
            Begins::Other
        }
    }
}
