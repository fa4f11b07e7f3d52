//! A token bucket that may go into debt: what an answer costs is known only when it is there.
//!
//! It is filled by time, or by leases: where several gateways share their limits there is one bucket for all of them
//! ([`crate::shared`]), and what this one holds was taken out of that.

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

/// What a bucket is filled by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Source {
    /// Time: this share of the rate.
    Time { share: f64 },
    /// Leases of the bucket that all gateways have together.
    Leases,
}

impl Source {
    /// Of a gateway that is alone.
    pub const ALONE: Self = Self::Time { share: 1.0 };
}

/// There is less than was to be taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Short {
    /// By so much.
    pub(super) missing: f64,
    /// When there will be enough. None: never, it is more than a full bucket.
    pub(super) after: Option<Duration>,
}

/// How long a lease may be used: what a gateway does not need by then is lost, and comes back with time.
const LEASE_TTL: Duration = Duration::from_secs(1);

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
    source: Source,
    /// When the last lease came.
    leased: Instant,
    /// What the bucket of all gateways held then.
    elsewhere: f64,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(now: Instant) -> Self {
        let (amount, source) = (f64::INFINITY, Source::ALONE);
        Self { level: Mutex::new(Level { amount, at: now, source, leased: now, elsewhere: 0.0 }) }
    }

    /// Takes `amount`, if there is so much; else says when there will be.
    pub(super) fn take(&self, rate: Rate, amount: f64, source: Source, now: Instant) -> Result<(), Short> {
        let mut level = self.level.lock();
        level.turn_to(source);
        level.fill(rate, now);
        if level.amount >= amount {
            level.amount -= amount;
            return Ok(());
        }
        let (fits, missing) = (amount <= rate.capacity, amount - level.amount);
        Err(Short { missing, after: fits.then(|| seconds(missing / rate.per_second)) })
    }

    /// A lease has come, which leaves `elsewhere` in the bucket of all gateways.
    pub(super) fn grant(&self, amount: f64, elsewhere: f64, now: Instant) {
        let mut level = self.level.lock();
        if level.source == Source::Leases {
            level.amount += amount;
            (level.leased, level.elsewhere) = (now, elsewhere);
        }
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
        let left = match level.source {
            Source::Time { .. } => level.amount,
            Source::Leases => level.amount + level.elsewhere,
        };
        Standing {
            limit: rate.capacity as u64,
            remaining: left.max(0.0) as u64,
            reset: seconds((rate.capacity - left) / rate.per_second),
        }
    }
}

impl Level {
    /// Goes on with another source. A debt stays; what came by time is not to be spent beside leases.
    fn turn_to(&mut self, source: Source) {
        if source == Source::Leases && self.source != Source::Leases {
            self.amount = self.amount.min(0.0);
        }
        self.source = source;
    }

    fn fill(&mut self, rate: Rate, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        match self.source {
            Source::Time { share } => self.amount += elapsed * rate.per_second * share,
            Source::Leases if now.saturating_duration_since(self.leased) > LEASE_TTL => {
                self.amount = self.amount.min(0.0);
            }
            Source::Leases => {}
        }
        self.amount = self.amount.min(rate.capacity);
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
        let take = |amount, at| bucket.take(RATE, amount, Source::ALONE, at).map_err(|short| short.after);
        assert_eq!(take(10.0, start), Ok(()));
        assert_eq!(take(3.0, start), Err(Some(Duration::from_millis(1500))));
        assert_eq!(take(3.0, start + Duration::from_millis(1500)), Ok(()));
        assert_eq!(take(10.5, start), Err(None), "more than it ever holds");
        assert_eq!(remaining(&bucket, start + Duration::from_hours(1)), 10, "and no more than it holds");
    }

    #[test]
    fn what_was_used_beyond_it_is_waited_for_and_what_was_not_used_comes_back() {
        let start = Instant::now();
        let bucket = Bucket::new(start);
        bucket.settle(RATE, 14.0, start);
        assert_eq!(remaining(&bucket, start), 0);
        let short = bucket.take(RATE, 1.0, Source::ALONE, start).unwrap_err();
        assert_eq!(short.after, Some(Duration::from_millis(2500)));
        bucket.settle(RATE, -9.0, start);
        assert_eq!(remaining(&bucket, start), 5);
        bucket.settle(RATE, -100.0, start);
        assert_eq!(remaining(&bucket, start), 10);
    }

    #[test]
    fn leases_are_all_that_there_is_and_are_used_within_a_second() {
        let start = Instant::now();
        let bucket = Bucket::new(start);
        let take = |at| bucket.take(RATE, 1.0, Source::Leases, at).map_err(|short| short.missing);
        assert_eq!(take(start), Err(1.0), "what came by time is not counted");
        bucket.grant(2.0, 7.0, start);
        assert_eq!(bucket.standing(RATE, start).remaining, 9);
        assert_eq!((take(start), take(start), take(start)), (Ok(()), Ok(()), Err(1.0)));
        assert_eq!(take(start + Duration::from_hours(1)), Err(1.0), "and nothing comes by time");
        bucket.grant(5.0, 0.0, start);
        assert_eq!(take(start + LEASE_TTL), Ok(()));
        assert_eq!(take(start + LEASE_TTL * 2), Err(1.0), "the rest of the lease is lost");
        bucket.settle(RATE, 4.0, start);
        assert_eq!(take(start), Err(5.0), "a debt is paid by the next lease");
    }

    #[test]
    fn several_gateways_that_lose_each_other_have_a_share_each() {
        let start = Instant::now();
        let bucket = Bucket::new(start);
        assert!(bucket.take(RATE, 1.0, Source::Leases, start).is_err());
        let half = Source::Time { share: 0.5 };
        let take = |at| bucket.take(RATE, 1.0, half, at).is_ok();
        assert!(!take(start));
        assert!(take(start + Duration::from_secs(1)), "one of two each second");
        assert!(!take(start + Duration::from_millis(1_500)));
    }

    #[test]
    fn a_smaller_bucket_holds_less_at_once() {
        let start = Instant::now();
        let bucket = Bucket::new(start);
        let smaller = Rate { capacity: 4.0, per_second: 1.0 };
        assert_eq!(bucket.standing(smaller, start).remaining, 4);
        let never = Rate { capacity: 1.0, per_second: 1e-300 };
        bucket.settle(never, 1.0, start);
        let short = bucket.take(never, 1.0, Source::ALONE, start).unwrap_err();
        assert_eq!(short.after, Some(Duration::MAX), "it does not overflow");
    }
}
