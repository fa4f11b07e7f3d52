//! The maps of the XDP guard, and the arithmetic of its SYN limit.
//!
//! **Rules.** One longest-prefix trie, `guard_rules`, holds two sets of rules. Its keys begin with the number of the
//! set and the address family, so that a look-up sees one set and one family only. User space writes a new set
//! beside the one in use, then stores its number in `guard_settings`: from one packet to the next, all rules change.
//!
//! **SYN limit.** A token bucket per source in one `u64` (GCRA, the "virtual scheduling" of ITU-T I.371): the time at
//! which the bucket will be full again. A compare-and-exchange takes a token; there is no lock and nothing to refill.

use crate::bytes::{map_enum, map_value};

map_enum! {
    /// The address family of a rule.
    pub enum Family {
        Ipv4 = 4,
        Ipv6 = 6,
    }
}

map_enum! {
    /// What a rule does with packets to the gateway's port.
    pub enum Action {
        /// They are dropped.
        Deny = 1,
        /// They pass, and SYNs among them whatever their rate.
        Allow = 2,
    }
}

map_value! {
    /// The key of `guard_rules`, behind the trie's own `prefix_len`: that counts [`KEY_BITS`] and the rule's prefix.
    pub struct RuleKey {
        /// 0 or 1: the set in use is named by [`Settings::set`].
        pub set: u32,
        pub family: Family,
        /// Network byte order; an IPv4 address in the first four bytes.
        pub address: [u8; 16],
    }
}

/// Bits of a [`RuleKey`] in front of the address: these always match whole.
pub const KEY_BITS: u32 = 64;

map_value! {
    /// One rule.
    pub struct Rule {
        pub action: Action,
        /// Its entry in `guard_hits`; kept for as long as the rule stays, over reloads.
        pub id: u32,
    }
}

map_value! {
    /// Packets that a rule has decided on, per CPU.
    pub struct Hits {
        pub packets: u64,
    }
}

map_value! {
    /// What the program looks up for each packet; written by user space field by field, through shared memory.
    pub struct Settings {
        /// The set of rules in use.
        pub set: u32,
        /// Rules in it; with 0 the trie is not asked.
        pub rules: u32,
        /// Nanoseconds in which a source earns one SYN; 0: no limit.
        pub syn_interval_ns: u64,
        /// How far a source may run ahead: its burst times the interval.
        pub syn_window_ns: u64,
    }
}

map_value! {
    /// A source of connections: an IPv4 address as IPv4-mapped IPv6 address, or the first 64 bits of an IPv6 address
    /// (what one customer is given; within it, addresses cost nothing).
    pub struct SourceKey {
        /// Network byte order.
        pub address: [u8; 16],
    }
}

map_value! {
    /// One source's bucket.
    pub struct Source {
        /// `CLOCK_MONOTONIC` at which the bucket is full again, nanoseconds ("theoretical arrival time").
        pub full_at_ns: u64,
        /// SYNs passed and dropped since the entry was made; the least recently seen source makes room for a new one.
        pub passed: u64,
        pub dropped: u64,
    }
}

map_value! {
    /// What the guard did with packets to the gateway's port, per CPU. Other traffic is not counted.
    pub struct Counts {
        /// Passed by an allow rule.
        pub passed_allow_rule: u64,
        /// Passed: no rule, and no SYN.
        pub passed_no_rule: u64,
        /// Passed: a SYN within its source's rate.
        pub passed_syn: u64,
        /// Dropped by a deny rule.
        pub dropped_deny_rule: u64,
        /// Dropped: a SYN beyond its source's rate.
        pub dropped_syn_rate: u64,
        /// Dropped: the TCP header is cut off or says that it is shorter than one can be.
        pub dropped_malformed: u64,
        /// Dropped: more IPv6 extension headers than [`EXTENSION_HEADERS_MAX`], whatever the port behind them.
        pub dropped_headers: u64,
        /// Drops that have a line in the log, and those that have none because there are too many.
        pub logged: u64,
        pub not_logged: u64,
    }
}

impl Counts {
    pub const ZERO: Self = Self {
        passed_allow_rule: 0,
        passed_no_rule: 0,
        passed_syn: 0,
        dropped_deny_rule: 0,
        dropped_syn_rate: 0,
        dropped_malformed: 0,
        dropped_headers: 0,
        logged: 0,
        not_logged: 0,
    };

    /// The sum of two CPUs' counts.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            passed_allow_rule: self.passed_allow_rule + other.passed_allow_rule,
            passed_no_rule: self.passed_no_rule + other.passed_no_rule,
            passed_syn: self.passed_syn + other.passed_syn,
            dropped_deny_rule: self.dropped_deny_rule + other.dropped_deny_rule,
            dropped_syn_rate: self.dropped_syn_rate + other.dropped_syn_rate,
            dropped_malformed: self.dropped_malformed + other.dropped_malformed,
            dropped_headers: self.dropped_headers + other.dropped_headers,
            logged: self.logged + other.logged,
            not_logged: self.not_logged + other.not_logged,
        }
    }
}

/// IPv6 extension headers that are followed to find the TCP header: RFC 8200 section 4.1 has room for these, each
/// once and destination options twice, before TCP.
pub const EXTENSION_HEADERS_MAX: u32 = 6;

/// VLAN tags that are looked behind: a service and a customer tag (IEEE 802.1ad).
pub const VLAN_TAGS_MAX: u32 = 2;

/// Log lines about drops per second, and at once after a pause, over all CPUs.
pub const LOG_LINES_PER_SECOND: u64 = 10;

/// Takes one token at `now_ns` from a bucket that would be full again at `full_at_ns`: when it will be full then, or
/// `None` if it is empty.
#[inline]
pub const fn take_token(full_at_ns: u64, now_ns: u64, interval_ns: u64, window_ns: u64) -> Option<u64> {
    let from = if full_at_ns > now_ns { full_at_ns } else { now_ns };
    let full_at_ns = from.wrapping_add(interval_ns);
    if full_at_ns.wrapping_sub(now_ns) > window_ns { None } else { Some(full_at_ns) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// SYNs that pass of `sent`, one every `gap_ns`, at 10 a second and a burst of 5.
    fn passed(sent: u64, gap_ns: u64) -> u64 {
        let (interval, window) = (SECOND / 10, SECOND / 2);
        let mut full_at = 0;
        let mut passed = 0;
        for now in (0..sent).map(|i| 100 * SECOND + i * gap_ns) {
            if let Some(next) = take_token(full_at, now, interval, window) {
                full_at = next;
                passed += 1;
            }
        }
        passed
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        assert_eq!(passed(100, 0), 5, "all at once: the burst");
        assert_eq!(passed(100, SECOND / 10), 100, "at the rate: all");
        assert_eq!(passed(100, SECOND / 9), 100, "below it: all");
        // Ten seconds at 100 a second: the burst, and what is earned from the first to the last.
        assert_eq!(passed(1000, SECOND / 100), 5 + 99);
    }

    #[test]
    fn what_is_earned_in_a_pause_is_no_more_than_the_burst() {
        let (interval, window) = (SECOND / 10, SECOND / 2);
        let mut full_at = 0;
        for now in [SECOND, 1000 * SECOND] {
            let mut burst = 0;
            while let Some(next) = take_token(full_at, now, interval, window) {
                full_at = next;
                burst += 1;
            }
            assert_eq!(burst, 5);
        }
    }

    #[test]
    fn counts_are_added_field_by_field() {
        let one = Counts { passed_syn: 1, dropped_headers: 2, not_logged: 3, ..Counts::ZERO };
        assert_eq!(one.plus(&Counts::ZERO), one);
        assert_eq!(
            one.plus(&one),
            Counts { passed_syn: 2, dropped_headers: 4, not_logged: 6, ..Counts::ZERO }
        );
    }
}
