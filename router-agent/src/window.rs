//! Sums over the last while: a ring of buckets, each a tenth of it.
//!
//! A sum covers between nine and ten tenths of the span: the bucket under way and the nine before it. Time goes forward
//! only by what callers say; nothing runs in the background.

use std::time::{Duration, Instant};

const BUCKETS: usize = 10;

/// `N` sums that are counted together.
#[derive(Debug, Clone)]
pub struct Window<const N: usize> {
    bucket: Duration,
    origin: Instant,
    buckets: [[u64; N]; BUCKETS],
    /// The bucket under way, counted from `origin`.
    newest: u64,
}

impl<const N: usize> Window<N> {
    /// Nothing yet, over `span` from `now` on.
    pub fn new(span: Duration, now: Instant) -> Self {
        let bucket = (span / BUCKETS as u32).max(Duration::from_millis(1));
        Self { bucket, origin: now, buckets: [[0; N]; BUCKETS], newest: 0 }
    }

    /// How long it remembers.
    pub fn span(&self) -> Duration {
        self.bucket * BUCKETS as u32
    }

    /// Adds to the bucket of `now`.
    pub fn add(&mut self, now: Instant, values: [u64; N]) {
        self.advance(now);
        let bucket = &mut self.buckets[(self.newest % BUCKETS as u64) as usize];
        for (sum, value) in bucket.iter_mut().zip(values) {
            *sum = sum.saturating_add(value);
        }
    }

    /// The sums of the last while.
    pub fn sums(&mut self, now: Instant) -> [u64; N] {
        self.advance(now);
        let mut sums = [0_u64; N];
        for bucket in &self.buckets {
            for (sum, value) in sums.iter_mut().zip(bucket) {
                *sum = sum.saturating_add(*value);
            }
        }
        sums
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buckets = [[0; N]; BUCKETS];
    }

    /// Empties the buckets whose time is over. A time before the newest bucket counts as that bucket's.
    fn advance(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.origin);
        let at = (elapsed.as_nanos() / self.bucket.as_nanos()) as u64;
        let over = at.saturating_sub(self.newest).min(BUCKETS as u64);
        for step in 1..=over {
            self.buckets[((self.newest + step) % BUCKETS as u64) as usize] = [0; N];
        }
        if at > self.newest {
            // A long pause empties them all, whichever place the newest has then.
            self.newest = at;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPAN: Duration = Duration::from_secs(10);

    #[test]
    fn what_is_older_than_the_span_is_forgotten() {
        let start = Instant::now();
        let mut window = Window::new(SPAN, start);
        window.add(start, [1, 5]);
        window.add(start + Duration::from_millis(9_999), [2, 0]);
        assert_eq!(window.sums(start + Duration::from_millis(9_999)), [3, 5]);
        assert_eq!(window.sums(start + Duration::from_secs(10)), [2, 0]);
        assert_eq!(window.sums(start + Duration::from_secs(1_000)), [0, 0]);
        window.add(start + Duration::from_secs(1_003), [7, 7]);
        assert_eq!(window.sums(start + Duration::from_secs(1_003)), [7, 7]);
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_buckets_in_the_span(steps in proptest::collection::vec((0_u64..4_000, 0_u64..100), 1..200)) {
            let start = Instant::now();
            let mut window = Window::new(SPAN, start);
            let mut added: Vec<(u64, u64)> = Vec::new();
            let mut now_ms = 0;
            for (pause_ms, value) in steps {
                now_ms += pause_ms;
                window.add(start + Duration::from_millis(now_ms), [value]);
                added.push((now_ms / 1_000, value));
                let oldest = (now_ms / 1_000).saturating_sub(9);
                let expected: u64 = added.iter().filter(|(at, _)| *at >= oldest).map(|(_, value)| value).sum();
                prop_assert_eq!(window.sums(start + Duration::from_millis(now_ms)), [expected]);
            }
        }
    }
}
