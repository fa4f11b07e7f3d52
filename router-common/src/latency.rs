//! The `latency` map: when event streams' bytes come, per worker, as histograms whose buckets double.
//!
//! Whoever moves the bytes stamps them: the kernel programs in their own run, user space when it has read them. Both add
//! atomically. What arrives together shares a stamp, so bytes that carry several events are one gap.

use crate::{
    bytes::{map_enum, map_value},
    limits::WORKERS_MAX,
};

/// Buckets of a histogram. Bucket `i` counts times of 2^i up to 2^(i+1) nanoseconds, the last one longer times as well: 9
/// minutes and more.
pub const BUCKETS: usize = 40;
/// Entries of the map: see [`key`].
pub const LATENCIES: u32 = WORKERS_MAX * 2;

map_enum! {
    /// Which time a histogram is of.
    pub enum LatencyKind {
        /// Request sent to first body byte.
        TimeToFirstByte = 0,
        /// One event to the next of the same stream.
        EventGap = 1,
    }
}

map_value! {
    /// One histogram of one worker.
    pub struct LatencyValue {
        pub worker: u32,
        pub kind: LatencyKind,
        pub count: u64,
        /// Sum of all times, nanoseconds.
        pub sum_ns: u64,
        pub buckets: [u64; BUCKETS],
    }
}

/// The map's key of a worker's histogram. Keys beyond the map's end (workers beyond its limit) have no entry.
#[inline]
pub const fn key(worker: u32, kind: LatencyKind) -> u32 {
    worker.wrapping_mul(2).wrapping_add(kind as u32)
}

/// The bucket of a time.
#[inline]
pub const fn bucket(ns: u64) -> usize {
    // Written without a branch: the kernel's verifier walks every one.
    let log2 = (ns | 1).ilog2() as usize;
    if log2 < BUCKETS { log2 } else { BUCKETS - 1 }
}

/// Where a bucket ends, in seconds: the `le` of Prometheus. The last one has no end.
#[cfg(not(target_arch = "bpf"))]
pub fn bucket_end_seconds(bucket: usize) -> f64 {
    if bucket + 1 < BUCKETS { (1_u64 << (bucket + 1)) as f64 / 1e9 } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_bucket_that_ends_behind_it() {
        for ns in [0, 1, 2, 3, 4, 1023, 1024, 20_000_000, 1 << 39, u64::MAX] {
            let bucket = bucket(ns);
            assert!(ns as f64 / 1e9 <= bucket_end_seconds(bucket), "{ns}");
            if bucket > 0 {
                assert!(ns as f64 / 1e9 >= bucket_end_seconds(bucket - 1), "{ns}");
            }
        }
        assert_eq!(bucket(20_000_000), 24);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn each_histogram_has_a_key_of_its_own() {
        let mut keys: [u32; 4] = core::array::from_fn(|i| {
            key(i as u32 / 2, if i % 2 == 0 { LatencyKind::TimeToFirstByte } else { LatencyKind::EventGap })
        });
        keys.sort_unstable();
        assert_eq!(keys, [0, 1, 2, 3]);
    }
}
