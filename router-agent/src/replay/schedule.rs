//! When each request is meant to be sent.
//!
//! The trace's clock ticks every three seconds: everything that arrived within a tick carries the same timestamp, and
//! sending it at once would measure bursts that never happened. Each group is spread uniformly at random over the gap
//! to the next one, in the trace's order, the same for the same seed.

use std::time::Duration;

use super::trace::Request;

/// Gap after the last group, and the widest that a group is spread over.
const TICK_MS: u64 = 3_000;

/// Trace time from the first request to the end of the last group, at the trace's own rate.
pub fn span(requests: &[Request]) -> Duration {
    let stamp_ms = |request: Option<&Request>| request.map_or(0, |request| request.timestamp_ms);
    Duration::from_millis(stamp_ms(requests.last()) - stamp_ms(requests.first()) + TICK_MS)
}

/// As [`arrivals`], of a trace whose clock is fine enough as it is.
pub fn exact(requests: &[Request], rate: f64) -> Vec<Duration> {
    let start_ms = requests.first().map_or(0, |request| request.timestamp_ms);
    let time = |request: &Request| Duration::from_millis(request.timestamp_ms - start_ms).div_f64(rate);
    requests.iter().map(time).collect()
}

/// Intended send times in trace time since the start, one per request and not decreasing. `rate` compresses arrivals
/// (2.0 doubles the load).
pub fn arrivals(requests: &[Request], rate: f64, seed: u64) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut times = Vec::with_capacity(requests.len());
    let start_ms = requests.first().map_or(0, |request| request.timestamp_ms);
    let mut rest = requests;
    while let Some(first) = rest.first() {
        let (group, after) =
            rest.split_at(rest.iter().take_while(|r| r.timestamp_ms == first.timestamp_ms).count());
        let gap_ms =
            after.first().map_or(TICK_MS, |next| next.timestamp_ms - first.timestamp_ms).min(TICK_MS);
        let mut offsets: Vec<f64> = group.iter().map(|_| random.f64() * gap_ms as f64).collect();
        offsets.sort_by(f64::total_cmp);
        let base_ms = (first.timestamp_ms - start_ms) as f64;
        times.extend(
            offsets.into_iter().map(|offset| Duration::from_secs_f64((base_ms + offset) / 1e3 / rate)),
        );
        rest = after;
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(timestamps: &[u64]) -> Vec<Request> {
        let request = |&timestamp_ms| Request::of_blocks(timestamp_ms, 1, 1, [1].into());
        timestamps.iter().map(request).collect()
    }

    #[test]
    fn each_group_fills_the_gap_to_the_next() {
        let stamps: Vec<u64> = [9_000; 50].into_iter().chain([12_000; 50]).chain([14_000; 50]).collect();
        let times = arrivals(&requests(&stamps), 1.0, 1);
        assert!(times.is_sorted());
        for (group, range) in [(0, 0..3_000), (1, 3_000..5_000), (2, 5_000..8_000)] {
            let times = &times[group * 50..][..50];
            assert!(
                times.iter().all(|t| range.contains(&(t.as_millis() as u64))),
                "group {group}: {times:?}"
            );
            let width = times[49].saturating_sub(times[0]).as_millis() as u64;
            assert!(width > (range.end - range.start) / 2, "group {group} is bunched: {width} ms");
        }
    }

    #[test]
    fn the_seed_decides_and_the_rate_compresses() {
        let requests = requests(&[0, 0, 0, 3_000, 3_000]);
        let times = arrivals(&requests, 1.0, 7);
        assert_eq!(times, arrivals(&requests, 1.0, 7));
        assert_ne!(times, arrivals(&requests, 1.0, 8));
        for (slow, fast) in times.iter().zip(arrivals(&requests, 2.0, 7)) {
            assert!(slow.abs_diff(fast * 2) < Duration::from_nanos(10));
        }
        assert_eq!(span(&requests), Duration::from_secs(6));
    }
}
