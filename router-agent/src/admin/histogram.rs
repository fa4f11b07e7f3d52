//! Percentiles out of histograms whose buckets double (`router_common::latency`).

use router_common::latency::BUCKETS;
use serde::Serialize;
use utoipa::ToSchema;

/// Counts by bucket: bucket `i` has times of 2^i up to 2^(i+1) nanoseconds.
pub(crate) type Buckets = [u64; BUCKETS];

/// Of a time, in seconds. Estimates: a bucket is as wide as its lower end, and times are taken to lie in it evenly on a
/// logarithmic scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub(crate) struct Percentiles {
    /// How many times were measured.
    pub(crate) count: u64,
    /// Half of them are shorter; not there without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50: Option<f64>,
    /// Nine of ten are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p90: Option<f64>,
    /// 99 of a hundred are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99: Option<f64>,
}

impl Percentiles {
    pub(crate) fn of(buckets: &Buckets) -> Self {
        let at = |share| quantile(buckets, share);
        Self { count: buckets.iter().sum(), p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    }
}

/// The time that `share` of all are not longer than, seconds.
fn quantile(buckets: &Buckets, share: f64) -> Option<f64> {
    let all: u64 = buckets.iter().sum();
    let wanted = all as f64 * share;
    let mut before = 0;
    let (at, count) = buckets.iter().enumerate().find(|(_, count)| {
        before += **count;
        **count > 0 && before as f64 >= wanted
    })?;
    let within = 1.0 - (before as f64 - wanted) / *count as f64;
    Some((at as f64 + within).exp2() / 1e9)
}

/// What came between two looks at one histogram; all of the later, where it was begun anew in between.
pub(crate) fn between(earlier: &Buckets, later: &Buckets) -> Buckets {
    if earlier.iter().zip(later).any(|(earlier, later)| earlier > later) {
        return *later;
    }
    std::array::from_fn(|i| later[i] - earlier[i])
}

/// Both together.
pub(crate) fn plus(one: &Buckets, other: &Buckets) -> Buckets {
    std::array::from_fn(|i| one[i] + other[i])
}

#[cfg(test)]
mod tests {
    use router_common::latency::bucket;

    use super::*;

    fn of(times_ns: impl IntoIterator<Item = u64>) -> Buckets {
        let mut buckets = [0; BUCKETS];
        for time in times_ns {
            buckets[bucket(time)] += 1;
        }
        buckets
    }

    #[test]
    fn percentiles_are_right_to_within_their_bucket() {
        let times = (1..=1000).map(|i| i * 100_000); // 0.1 ms to 100 ms
        let Percentiles { count, p50, p90, p99 } = Percentiles::of(&of(times));
        assert_eq!(count, 1000);
        for (estimate, truth) in [(p50, 0.050), (p90, 0.090), (p99, 0.099)] {
            let ratio = estimate.expect("there are times") / truth;
            assert!((0.7..1.4).contains(&ratio), "{estimate:?} for {truth}");
        }
        assert!(p50 < p90 && p90 < p99);
    }

    #[test]
    fn without_times_there_are_no_percentiles() {
        let none = Percentiles { count: 0, p50: None, p90: None, p99: None };
        assert_eq!(Percentiles::of(&[0; BUCKETS]), none);
    }

    #[test]
    fn a_histogram_that_began_anew_counts_from_nothing() {
        let (early, late) = (of([5, 5, 1 << 20]), of([5, 5, 5, 1 << 20]));
        assert_eq!(between(&early, &late), of([5]));
        assert_eq!(between(&late, &of([7])), of([7]));
        assert_eq!(plus(&early, &of([5])), late);
    }
}
