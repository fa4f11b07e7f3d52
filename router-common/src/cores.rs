//! The `cores` map (what each data thread says of itself) and the choice that `sk_reuseport` makes from it.
//!
//! The scheme is that of Hermes (Alibaba, SIGCOMM 2025): threads report, the kernel filters out those that are
//! stalled or late, and places the connection among the rest. Here the rest is not picked by hash alone but by
//! fewest connections, which is possible without a herd because the kernel adds its own placements (`assigned`)
//! to what the thread last said. The hash breaks ties.
//!
//! The arithmetic lives here, and not in the program, so that it is tested on the host.

use crate::bytes::map_value;
use crate::limits::{CORE_LAG_FLOOR_US, CORE_STALLED_AFTER_MS};

map_value! {
    /// One data thread. All fields but `assigned` are written by the thread, through shared memory; each is read
    /// and written whole, but not all of them at one instant: a choice made in between is off by one report.
    pub struct CoreValue {
        /// How late the thread's event loop ran its last timer, microseconds.
        pub lag_us: u32,
        /// Connections open on the thread.
        pub connections: u32,
        /// Connections accepted since the start.
        pub accepted: u64,
        /// Connections that the program placed here since the start; written by the kernel.
        pub assigned: u64,
        /// How many of `assigned` are accounted for: accepted, or given up by their client.
        pub settled: u64,
        /// `CLOCK_MONOTONIC` of the last report, nanoseconds; 0 before the first.
        pub last_seen_ns: u64,
    }
}

map_value! {
    /// What the steering program decided, per CPU.
    pub struct SteeringCounts {
        /// Decisions.
        pub total: u64,
        /// Placed on a thread that the program chose.
        pub selected: u64,
        /// Left to the kernel's hash: no thread has reported within the stall limit.
        pub fallback_no_core: u64,
        /// Left to the kernel's hash: the chosen thread's listener is gone.
        pub fallback_refused: u64,
        /// Of `total`, connections moved here from a listener that was closed.
        pub migrated: u64,
        /// Threads passed over because they were silent (one decision can pass over several).
        pub skipped_stalled: u64,
        /// Threads passed over because they lagged behind the others.
        pub skipped_lag: u64,
    }
}

impl SteeringCounts {
    pub const ZERO: Self = Self {
        total: 0,
        selected: 0,
        fallback_no_core: 0,
        fallback_refused: 0,
        migrated: 0,
        skipped_stalled: 0,
        skipped_lag: 0,
    };

    /// The sum of two CPUs' counts.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            total: self.total + other.total,
            selected: self.selected + other.selected,
            fallback_no_core: self.fallback_no_core + other.fallback_no_core,
            fallback_refused: self.fallback_refused + other.fallback_refused,
            migrated: self.migrated + other.migrated,
            skipped_stalled: self.skipped_stalled + other.skipped_stalled,
            skipped_lag: self.skipped_lag + other.skipped_lag,
        }
    }
}

/// Whether a thread last heard of at `last_seen_ns` is alive at `now_ns`. Never reported (0) is not alive; a report
/// from another CPU's clock, a little ahead, is.
#[inline]
pub const fn is_live(last_seen_ns: u64, now_ns: u64) -> bool {
    // One comparison for both directions: every branch here doubles what the verifier walks through.
    const LIMIT_NS: u64 = CORE_STALLED_AFTER_MS * 1_000_000;
    now_ns.wrapping_sub(last_seen_ns).wrapping_add(LIMIT_NS) <= 2 * LIMIT_NS
}

/// The most lag that a thread may have and still get connections, where the least lagging has `least_us`: twice
/// that, and never below the floor, so that noise moves nothing and one busy thread sheds work to idle ones.
#[inline]
pub const fn lag_limit_us(least_us: u32) -> u64 {
    let twice = least_us as u64 * 2;
    if twice > CORE_LAG_FLOOR_US as u64 { twice } else { CORE_LAG_FLOOR_US as u64 }
}

/// The order of candidates, least first: connections open or on their way (32 bits), then the connection's hash,
/// mixed with the thread so that each tie falls evenly over those that are tied (24 bits), then the thread (8 bits).
/// A rank is never [`NOBODY`]: its last byte is a thread below [`CORES_MAX`](crate::limits::CORES_MAX).
#[inline]
pub const fn rank(connections: u32, assigned: u64, settled: u64, hash: u32, thread: u32) -> u64 {
    // `settled` never overtakes `assigned`; wrapping, again, to spare the verifier a branch.
    let load = connections.wrapping_add(assigned.wrapping_sub(settled) as u32);
    // The finalizer of MurmurHash3: neighbouring threads must not get neighbouring ranks.
    let mut tie = hash ^ thread.wrapping_mul(0x9e37_79b9);
    tie ^= tie >> 16;
    tie = tie.wrapping_mul(0x85eb_ca6b);
    tie ^= tie >> 13;
    tie = tie.wrapping_mul(0xc2b2_ae35);
    tie ^= tie >> 16;
    ((load as u64) << 32) | (tie & !0xff) as u64 | (thread & 0xff) as u64
}

/// The rank that is behind all others: no thread can be chosen.
pub const NOBODY: u64 = u64::MAX;

/// The thread that `rank` belongs to.
#[inline]
pub const fn thread_of(rank: u64) -> u32 {
    (rank & 0xff) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const _: () = assert!(crate::limits::CORES_MAX < 0xff);

    #[test]
    fn silence_is_judged_by_the_limit() {
        let now = 1_000 * MS;
        assert!(is_live(now - CORE_STALLED_AFTER_MS * MS, now));
        assert!(!is_live(now - CORE_STALLED_AFTER_MS * MS - 1, now));
        assert!(!is_live(0, now), "a thread that never reported is not alive");
        assert!(is_live(now + 1, now), "another CPU's clock may be ahead");
    }

    #[test]
    fn small_lag_is_no_lag() {
        assert_eq!(lag_limit_us(0), u64::from(CORE_LAG_FLOOR_US));
        assert_eq!(lag_limit_us(CORE_LAG_FLOOR_US), 2 * u64::from(CORE_LAG_FLOOR_US));
        assert_eq!(lag_limit_us(u32::MAX), 2 * u64::from(u32::MAX));
    }

    #[test]
    fn fewer_connections_win_whatever_the_hash() {
        for hash in 0..10_000 {
            assert!(rank(3, 7, 7, hash, 0) < rank(4, 7, 7, hash, 1));
            assert!(rank(3, 8, 7, hash, 0) > rank(3, 7, 7, hash, 1), "one on its way counts");
        }
    }

    #[test]
    fn ties_fall_evenly_over_the_tied() {
        for tied in [&[0, 1][..], &[0, 2, 3], &[1, 5, 6, 31], &[7, 63]] {
            let mut won = [0_u32; 64];
            for hash in (0..40_000_u32).map(|i| i.wrapping_mul(2_654_435_761)) {
                let best = tied.iter().map(|&thread| rank(5, 0, 0, hash, thread)).min().expect("not empty");
                assert_ne!(best, NOBODY);
                won[thread_of(best) as usize] += 1;
            }
            let fair = 40_000 / u32::try_from(tied.len()).expect("few");
            for &thread in tied {
                let share = won[thread as usize];
                assert!(share.abs_diff(fair) < fair / 20, "{tied:?}: thread {thread} won {share} of {fair}");
            }
        }
    }
}
