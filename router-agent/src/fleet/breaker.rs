//! A circuit breaker: a worker that fails again and again is left alone for a while, then tried with one request.
//!
//! Closed → (n faults in a row) → open → (`open_for` over) → half-open with one probe → closed, or open again.
//! Only worker faults count: a client that hangs up, a 4xx, a 429 or a 503 says nothing about the worker's health.
//! The states and the single probe follow the pattern's usual description (M. Nygard, *Release It!*).

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// What a breaker lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Everything.
    Closed,
    /// Nothing.
    Open,
    /// One request, the probe, which is under way.
    HalfOpen,
}

impl BreakerState {
    /// The name in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

#[derive(Debug)]
enum Inner {
    Closed,
    Open { until: Instant },
    HalfOpen { until: Instant },
}

/// One worker's breaker.
#[derive(Debug)]
pub struct Breaker {
    failures_max: AtomicU32,
    open_for_ms: AtomicU64,
    /// Faults in a row. Alone on the hot path: a success on a closed breaker reads this and nothing else.
    failures: AtomicU32,
    inner: Mutex<Inner>,
}

impl Breaker {
    /// Opens after `failures_max` faults in a row, for `open_for`.
    pub fn new(failures_max: u32, open_for: Duration) -> Self {
        Self {
            failures_max: AtomicU32::new(failures_max.max(1)),
            open_for_ms: AtomicU64::new(millis(open_for)),
            failures: AtomicU32::new(0),
            inner: Mutex::new(Inner::Closed),
        }
    }

    /// As in [`Breaker::new`], from the next fault on; an open one stays open for as long as it was to be.
    pub fn configure(&self, failures_max: u32, open_for: Duration) {
        self.failures_max.store(failures_max.max(1), Relaxed);
        self.open_for_ms.store(millis(open_for), Relaxed);
    }

    fn failures_max(&self) -> u32 {
        self.failures_max.load(Relaxed)
    }

    fn open_for(&self) -> Duration {
        Duration::from_millis(self.open_for_ms.load(Relaxed))
    }

    /// Whether a request may be sent now. Where the answer is a probe, [`Breaker::begin`] must follow.
    pub fn admits(&self, now: Instant) -> bool {
        if self.failures.load(Relaxed) < self.failures_max() {
            return true;
        }
        match *self.inner.lock() {
            Inner::Closed => true,
            // A probe that never reports back (its task was lost) must not keep the worker out for ever.
            Inner::Open { until } | Inner::HalfOpen { until } => now >= until,
        }
    }

    /// Notes that a request is being sent; on an open breaker whose time is over, it is the probe.
    pub fn begin(&self, now: Instant) {
        if self.failures.load(Relaxed) < self.failures_max() {
            return;
        }
        let mut inner = self.inner.lock();
        if matches!(*inner, Inner::Open { .. } | Inner::HalfOpen { .. }) {
            *inner = Inner::HalfOpen { until: now + self.open_for() };
        }
    }

    /// The worker did its part.
    pub fn succeeded(&self) {
        if self.failures.load(Relaxed) != 0 {
            let mut inner = self.inner.lock();
            self.failures.store(0, Relaxed);
            *inner = Inner::Closed;
        }
    }

    /// The worker failed. Says whether this opened the breaker.
    pub fn failed(&self, now: Instant) -> bool {
        let mut inner = self.inner.lock();
        let failures = self.failures.load(Relaxed).saturating_add(1);
        self.failures.store(failures, Relaxed);
        let opens = match *inner {
            Inner::Closed => failures >= self.failures_max(),
            Inner::HalfOpen { .. } => true,
            Inner::Open { .. } => false,
        };
        if opens {
            *inner = Inner::Open { until: now + self.open_for() };
        }
        opens
    }

    /// The request ended without saying anything about the worker (the client left): a probe must be tried again.
    pub fn abandoned(&self, now: Instant) {
        if self.failures.load(Relaxed) < self.failures_max() {
            return;
        }
        let mut inner = self.inner.lock();
        if matches!(*inner, Inner::HalfOpen { .. }) {
            *inner = Inner::Open { until: now };
        }
    }

    /// The state now.
    pub fn state(&self) -> BreakerState {
        match *self.inner.lock() {
            Inner::Closed => BreakerState::Closed,
            Inner::Open { .. } => BreakerState::Open,
            Inner::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN_FOR: Duration = Duration::from_secs(5);

    fn opened() -> (Breaker, Instant) {
        let now = Instant::now();
        let breaker = Breaker::new(3, OPEN_FOR);
        assert!(!breaker.failed(now) && !breaker.failed(now));
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert!(breaker.failed(now), "the third fault in a row opens it");
        (breaker, now)
    }

    #[test]
    fn opens_after_faults_in_a_row_and_refuses() {
        let (breaker, now) = opened();
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(!breaker.admits(now + Duration::from_millis(4_999)));
    }

    #[test]
    fn a_success_in_between_starts_the_count_again() {
        let now = Instant::now();
        let breaker = Breaker::new(3, OPEN_FOR);
        for _ in 0..10 {
            breaker.failed(now);
            breaker.failed(now);
            breaker.succeeded();
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert!(breaker.admits(now));
    }

    #[test]
    fn half_open_lets_exactly_one_probe_through() {
        let (breaker, now) = opened();
        let later = now + OPEN_FOR;
        assert!(breaker.admits(later));
        breaker.begin(later);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(!breaker.admits(later), "the probe is under way");
    }

    #[test]
    fn the_probe_decides() {
        let (breaker, now) = opened();
        let later = now + OPEN_FOR;
        breaker.begin(later);
        assert!(breaker.failed(later));
        assert!(!breaker.admits(later), "open again");
        breaker.begin(later + OPEN_FOR);
        breaker.succeeded();
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert!(breaker.admits(later + OPEN_FOR));
    }

    #[test]
    fn an_abandoned_probe_is_tried_again_at_once() {
        let (breaker, now) = opened();
        let later = now + OPEN_FOR;
        breaker.begin(later);
        breaker.abandoned(later);
        assert!(breaker.admits(later));
    }
}
