//! The guard: who may open connections to the gateway, and how fast. `BPF_PROG_TYPE_XDP`, attached by a BPF link:
//! Linux 5.12 (compare-and-exchange; the link itself 5.9).
//!
//! Runs for every frame that an interface receives. Whatever is not TCP to the gateway's port passes after its headers
//! were read, before any map is touched. Of the rest, the rule with the longest prefix that holds the source decides:
//! denied is dropped, allowed passes. Where no rule holds it, only the rate of SYNs is limited; segments of open
//! connections pass. `router_common::guard` has the maps and the arithmetic, `docs/guard.md` the reasons, the limits
//! and the cost per packet.
//!
//! What cannot be parsed up to the port passes: the kernel's own IP looks at it again, and knows better. Dropped are
//! the two forms that would go past the guard and still arrive: a first fragment that hides the SYN flag, and an IPv6
//! packet whose port lies behind more extension headers than are followed.

use aya_ebpf::{
    Global,
    bindings::{
        BPF_NOEXIST,
        xdp_action::{XDP_DROP, XDP_PASS},
    },
    btf_maps::lpm_trie::Key,
    helpers::bpf_ktime_get_ns,
    macros::xdp,
    programs::XdpContext,
};
use aya_log_ebpf::info;
use router_common::guard::{
    Action, Counts, Family, KEY_BITS, LOG_LINES_PER_SECOND, RuleKey, Settings, Source, SourceKey, take_token,
};

use crate::{
    atomic::{add_u64, compare_exchange_u64},
    maps::{GUARD_HITS, GUARD_LOG, GUARD_RULES, GUARD_SETTINGS, GUARD_SRC, GUARD_STATS},
    packet::{self, Found, Packet, Segment},
};

/// The gateway's port, host byte order; 0 (no TCP segment has it) where there is no guard.
#[unsafe(no_mangle)]
static GUARD_PORT: Global<u16> = Global::new(0);

const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;

/// Tries to take a token while other CPUs take tokens of the same source. Who loses them all is dropped: the limit is
/// never exceeded, and a client sends its SYN again.
const TRIES: u32 = 8;

const LOG_INTERVAL_NS: u64 = 1_000_000_000 / LOG_LINES_PER_SECOND;
const LOG_WINDOW_NS: u64 = 1_000_000_000;

#[xdp]
pub(crate) fn guard(ctx: XdpContext) -> u32 {
    let packet = Packet { start: ctx.data(), end: ctx.data_end() };
    let segment = match packet::find(packet) {
        Found::Tcp(segment) => segment,
        Found::Other => return XDP_PASS,
        Found::TooManyHeaders => {
            if let Some(counts) = GUARD_STATS.get_ptr_mut(0) {
                // SAFETY: this CPU's entry; a program of this type does not nest on one CPU.
                unsafe { (*counts).dropped_headers += 1 };
            }
            return XDP_DROP;
        }
    };
    let Some((source_port, port)) = segment.ports(packet) else { return XDP_PASS };
    if port != GUARD_PORT.load() {
        return XDP_PASS;
    }
    let (Some(counts), Some(settings)) = (GUARD_STATS.get_ptr_mut(0), GUARD_SETTINGS.get_ptr(0)) else {
        return XDP_PASS;
    };
    // SAFETY: this CPU's entry, as above.
    let counts = unsafe { &mut *counts };
    let dropped = match judge(&segment, packet, counts, settings) {
        Ok(()) => return XDP_PASS,
        Err(dropped) => dropped,
    };
    log(&ctx, &segment, source_port, dropped, counts);
    XDP_DROP
}

/// Why a packet to the gateway's port is dropped.
#[derive(Clone, Copy)]
enum Dropped {
    DenyRule,
    SynRate,
    Malformed,
}

/// Decides on a packet to the gateway's port, and counts it.
#[inline(always)]
fn judge(
    segment: &Segment,
    packet: Packet,
    counts: &mut Counts,
    settings: *const Settings,
) -> Result<(), Dropped> {
    match rule(segment, settings) {
        Some(Action::Allow) => {
            counts.passed_allow_rule += 1;
            return Ok(());
        }
        Some(Action::Deny) => {
            counts.dropped_deny_rule += 1;
            return Err(Dropped::DenyRule);
        }
        None => {}
    }
    let Ok(header) = segment.header(packet) else {
        counts.dropped_malformed += 1;
        return Err(Dropped::Malformed);
    };
    if header.flags & (TCP_SYN | TCP_ACK) != TCP_SYN {
        counts.passed_no_rule += 1;
        return Ok(());
    }
    if may_connect(segment, settings) {
        counts.passed_syn += 1;
        Ok(())
    } else {
        counts.dropped_syn_rate += 1;
        Err(Dropped::SynRate)
    }
}

/// What the rules in use say of the sender.
#[inline(always)]
fn rule(segment: &Segment, settings: *const Settings) -> Option<Action> {
    // SAFETY (both): in bounds of a map value that user space may be writing; each is read once. A set is complete
    // before its number is stored, and stays until no packet can have read the number before.
    let (set, rules) = unsafe {
        ((&raw const (*settings).set).read_volatile(), (&raw const (*settings).rules).read_volatile())
    };
    if rules == 0 {
        return None;
    }
    let bits = match segment.family {
        Family::Ipv4 => 32,
        Family::Ipv6 => 128,
    };
    let key = RuleKey { set, family: segment.family, address: segment.source };
    let rule = GUARD_RULES.get(&Key::new(KEY_BITS + bits, key))?;
    if let Some(hits) = GUARD_HITS.get_ptr_mut(rule.id) {
        // SAFETY: this CPU's entry.
        unsafe { (*hits).packets += 1 };
    }
    Some(rule.action)
}

/// Takes a token of the sender's bucket for a SYN.
#[inline(always)]
fn may_connect(segment: &Segment, settings: *const Settings) -> bool {
    // SAFETY (both): in bounds of a map value, each read once. A change of the limit may be seen half for one packet.
    let (interval_ns, window_ns) = unsafe {
        (
            (&raw const (*settings).syn_interval_ns).read_volatile(),
            (&raw const (*settings).syn_window_ns).read_volatile(),
        )
    };
    if interval_ns == 0 {
        return true;
    }
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let key = source_key(segment);
    if let Some(source) = GUARD_SRC.get_ptr_mut(&key) {
        return take(source, now_ns, interval_ns, window_ns);
    }
    let new = Source { full_at_ns: now_ns + interval_ns, passed: 1, dropped: 0 };
    if GUARD_SRC.insert(&key, &new, u64::from(BPF_NOEXIST)).is_ok() {
        return true;
    }
    // Another CPU was first. (Or memory is short: then nobody is turned away for it.)
    GUARD_SRC.get_ptr_mut(&key).is_none_or(|source| take(source, now_ns, interval_ns, window_ns))
}

#[inline(always)]
fn take(source: *mut Source, now_ns: u64, interval_ns: u64, window_ns: u64) -> bool {
    // SAFETY (all): in bounds of a map value that other CPUs work on as well; atomics but for the first read, which
    // the exchange checks.
    unsafe {
        let full_at = &raw mut (*source).full_at_ns;
        let mut seen = full_at.read_volatile();
        for _ in 0..TRIES {
            let Some(next) = take_token(seen, now_ns, interval_ns, window_ns) else { break };
            let found = compare_exchange_u64(full_at, seen, next);
            if found == seen {
                add_u64(&raw mut (*source).passed, 1);
                return true;
            }
            seen = found;
        }
        add_u64(&raw mut (*source).dropped, 1);
    }
    false
}

/// The bucket that the sender has a share in.
#[inline(always)]
fn source_key(segment: &Segment) -> SourceKey {
    let mut address = [0; 16];
    match segment.family {
        Family::Ipv4 => {
            address[10] = 0xff;
            address[11] = 0xff;
            address[12..].copy_from_slice(&segment.source[..4]);
        }
        Family::Ipv6 => address[..8].copy_from_slice(&segment.source[..8]),
    }
    SourceKey { address }
}

/// Writes a line about a drop, unless there have been too many: a flood of packets is not to become one of lines.
#[inline(always)]
fn log(ctx: &XdpContext, segment: &Segment, source_port: u16, dropped: Dropped, counts: &mut Counts) {
    if !may_log() {
        counts.not_logged += 1;
        return;
    }
    counts.logged += 1;
    let why = match dropped {
        Dropped::DenyRule => "a deny rule",
        Dropped::SynRate => "too many new connections",
        Dropped::Malformed => "a malformed TCP header",
    };
    match segment.family {
        Family::Ipv4 => {
            let s = &segment.source;
            info!(ctx, "dropped a packet of {:i}, port {}: {}", [s[0], s[1], s[2], s[3]], source_port, why);
        }
        Family::Ipv6 => info!(ctx, "dropped a packet of {:i}, port {}: {}", segment.source, source_port, why),
    }
}

/// Takes a token of the log's own bucket.
#[inline(always)]
fn may_log() -> bool {
    let Some(full_at) = GUARD_LOG.get_ptr_mut(0) else { return false };
    // SAFETY (all): a helper without arguments; a map value that other CPUs work on as well.
    unsafe {
        let now_ns = bpf_ktime_get_ns();
        let seen = full_at.read_volatile();
        let Some(next) = take_token(seen, now_ns, LOG_INTERVAL_NS, LOG_WINDOW_NS) else { return false };
        compare_exchange_u64(full_at, seen, next) == seen
    }
}
