//! A token bucket that may go into debt: what an answer costs is known only when it is there.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How a bucket fills.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    /// What a full bucket holds.
    pub(super) capacity: f64,
    /// What comes in.
    pub(super) per_second: f64,
}

/// How a bucket stands, as the `x-ratelimit-…` headers tell it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// What a full bucket holds.
    pub limit: u64,
    /// What is there now, in whole units.
    pub remaining: u64,
    /// Until it is full, if nothing is taken.
    pub reset: Duration,
}

/// What is in it. How it fills is said with each call, so that a reload may change that and keep the contents.
#[derive(Debug)]
pub(super) struct Bucket {
    level: Mutex<Level>,
}

#[derive(Debug, Clone, Copy)]
struct Level {
    amount: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(now: Instant) -> Self {
        Self { level: Mutex::new(Level { amount: f64::INFINITY, at: now }) }
    }

    /// Takes `amount`, if there is so much; else says when there will be. None: never, it is more than a full bucket.
    pub(super) fn take(&self, rate: Rate, amount: f64, now: Instant) -> Result<(), Option<Duration>> {
        let mut level = self.level.lock();
        level.fill(rate, now);
        if level.amount >= amount {
            level.amount -= amount;
            return Ok(());
        }
        let fits = amount <= rate.capacity;
        Err(fits.then(|| seconds((amount - level.amount) / rate.per_second)))
    }

    /// Takes `amount` whether it is there or not; a negative one is given back.
    pub(super) fn settle(&self, rate: Rate, amount: f64, now: Instant) {
        let mut level = self.level.lock();
        level.fill(rate, now);
        level.amount = (level.amount - amount).min(rate.capacity);
    }

    pub(super) fn standing(&self, rate: Rate, now: Instant) -> Standing {
        let mut level = self.level.lock();
        level.fill(rate, now);
        Standing {
            limit: rate.capacity as u64,
            remaining: level.amount.max(0.0) as u64,
            reset: seconds((rate.capacity - level.amount) / rate.per_second),
        }
    }
}

impl Level {
    fn fill(&mut self, rate: Rate, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.amount = (self.amount + elapsed * rate.per_second).min(rate.capacity);
    }
}

/// A rate may be so low that it would be longer than there are numbers for.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { capacity: 10.0, per_second: 2.0 };

    fn remaining(bucket: &Bucket, now: Instant) -> u64 {
        bucket.standing(RATE, now).remaining
    }

    #[test]
    fn it_starts_full_and_says_when_there_will_be_enough() {
        let start = Instant::now();
        let bucket = Bucket::new(start);
        assert_eq!(bucket.take(RATE, 10.0, start), Ok(()));
        assert_eq!(bucket.take(RATE, 3.0, start), Err(Some(Duration::from_millis(1500))));
        assert_eq!(bucket.take(RATE, 3.0, start + Duration::from_millis(1500)), Ok(()));
        assert_eq!(bucket.take(RATE, 10.5, start), Err(None), "more than it ever holds");
        assert_eq!(remaining(&bucket, start + Duration::from_hours(1)), 10, "and no more than it holds");
    }

    #[test]
    fn what_was_used_beyond_it_is_waited_for_and_what_was_not_used_comes_back() {
        let start = Instant::now();
        let bucket = Bucket::new(start);
        bucket.settle(RATE, 14.0, start);
        assert_eq!(remaining(&bucket, start), 0);
        assert_eq!(bucket.take(RATE, 1.0, start), Err(Some(Duration::from_millis(2500))));
        bucket.settle(RATE, -9.0, start);
        assert_eq!(remaining(&bucket, start), 5);
        bucket.settle(RATE, -100.0, start);
        assert_eq!(remaining(&bucket, start), 10);
    }

    #[test]
    fn a_smaller_bucket_holds_less_at_once() {
        let start = Instant::now();
        let bucket = Bucket::new(start);
        let smaller = Rate { capacity: 4.0, per_second: 1.0 };
        assert_eq!(bucket.standing(smaller, start).remaining, 4);
        let never = Rate { capacity: 1.0, per_second: 1e-300 };
        bucket.settle(never, 1.0, start);
        assert_eq!(bucket.take(never, 1.0, start), Err(Some(Duration::MAX)), "it does not overflow");
    }
}
