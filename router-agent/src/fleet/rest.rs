//! A worker that has too much to do, and says so (429, 503), is left alone until the time that it names: it answers sooner
//! than any other, and would be the least loaded of all. What it answers meanwhile was sent before, and ends nothing.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Until when a worker is left alone, while others can be asked.
#[derive(Debug)]
pub struct Rest {
    since: Instant,
    /// Nanoseconds from `since`; zero: never.
    until_ns: AtomicU64,
}

impl Default for Rest {
    fn default() -> Self {
        Self { since: Instant::now(), until_ns: AtomicU64::new(0) }
    }
}

impl Rest {
    fn at(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.since).as_nanos()).unwrap_or(u64::MAX)
    }

    /// It has said at `now` that it wants to be left alone for so long.
    pub fn ask(&self, now: Instant, time: Duration) {
        self.until_ns.fetch_max(self.at(now + time), Relaxed);
    }

    /// Whether it is to be left alone at `now`.
    pub fn holds(&self, now: Instant) -> bool {
        let until = self.until_ns.load(Relaxed);
        until != 0 && self.at(now) < until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_until_the_latest_time_named() {
        let (rest, now) = (Rest::default(), Instant::now());
        let later = |ms| now + Duration::from_millis(ms);
        assert!(!rest.holds(now));
        rest.ask(now, Duration::from_millis(500));
        rest.ask(now, Duration::from_millis(100));
        assert!(rest.holds(later(499)) && !rest.holds(later(500)), "the longest that was asked for");
    }
}
