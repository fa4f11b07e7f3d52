//! A circuit breaker: a worker that fails too often is left alone for a while, then tried with one request.
//!
//! ```text
//! closed ── faults in a row, or too large a share of the last requests ──▶ open
//! open ── its time is over, and a request comes ──▶ half-open: that request is the probe
//! half-open ── the probe's first body byte or its end ──▶ closed;  its fault ──▶ open;  no verdict ──▶ the next probe
//! ```
//!
//! Only a worker's own doing counts, as success or fault ([`Outcome`]): a client that hangs up, a 4xx, a 429 or a 503 says
//! nothing about its health. While the breaker is not closed nobody but the probe is listened to: requests that were sent
//! before it opened are late news. A probe that closes it by its first byte is on trial: the next fault opens it again.
//! The states and the single probe follow the pattern's usual description (M. Nygard, *Release It!*).

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Instant,
};

use parking_lot::Mutex;

use crate::{config::Breaker as Settings, window::Window};

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

/// What a request is to the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// One of many.
    Ordinary,
    /// It decides.
    Probe,
}

/// How a request ended, as far as it speaks of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The worker did its part.
    Success,
    /// The worker failed.
    Fault,
    /// Nothing is known: the client left or was wrong, or the worker has too much to do.
    NoVerdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    /// After `until` another probe may go: a long answer is no verdict.
    HalfOpen {
        until: Instant,
    },
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    state: State,
    /// Requests with a verdict, and faults.
    window: Window<2>,
    faults_in_a_row: u32,
}

/// One worker's breaker.
#[derive(Debug)]
pub struct Breaker {
    /// Read for every candidate of every decision, without the lock.
    is_closed: AtomicBool,
    inner: Mutex<Inner>,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(settings: Settings) -> Self {
        let window = Window::new(settings.window, Instant::now());
        let inner = Inner { settings, state: State::Closed, window, faults_in_a_row: 0 };
        Self { is_closed: AtomicBool::new(true), inner: Mutex::new(inner) }
    }

    /// Goes by other settings from here on; what it remembers of the last while stays unless its length changes.
    pub fn configure(&self, settings: Settings, now: Instant) {
        let mut inner = self.inner.lock();
        if settings.window != inner.settings.window {
            inner.window = Window::new(settings.window, now);
        }
        inner.settings = settings;
    }

    /// Whether a request may be sent now. [`Breaker::begin`] must follow before anybody else asks.
    pub fn admits(&self, now: Instant) -> bool {
        self.is_closed.load(Relaxed)
            || match self.inner.lock().state {
                State::Closed => true,
                State::Open { until } | State::HalfOpen { until } => now >= until,
            }
    }

    /// A request is being sent; on a breaker that is not closed it is the probe.
    pub fn begin(&self, now: Instant) -> Role {
        if self.is_closed.load(Relaxed) {
            return Role::Ordinary;
        }
        let mut inner = self.inner.lock();
        if inner.state == State::Closed {
            return Role::Ordinary;
        }
        let until = now + inner.settings.open_for;
        self.enter(&mut inner, State::HalfOpen { until });
        Role::Probe
    }

    /// The first byte of the answer's body is here: of a probe that is enough to go on, on trial.
    pub fn answering(&self, role: Role) {
        if role == Role::Probe {
            let mut inner = self.inner.lock();
            if matches!(inner.state, State::HalfOpen { .. }) {
                self.close(&mut inner);
                inner.faults_in_a_row = inner.settings.failures.saturating_sub(1);
            }
        }
    }

    /// A request has ended. The state that this led to, if it changed.
    pub fn ended(&self, role: Role, outcome: Outcome, now: Instant) -> Option<BreakerState> {
        let mut inner = self.inner.lock();
        match (inner.state, role, outcome) {
            (State::Closed, _, Outcome::NoVerdict)
            | (State::Open { .. }, ..)
            | (State::HalfOpen { .. }, Role::Ordinary, _) => None,
            (State::Closed, _, Outcome::Success) => {
                inner.faults_in_a_row = 0;
                inner.window.add(now, [1, 0]);
                None
            }
            (State::Closed, _, Outcome::Fault) => {
                inner.faults_in_a_row = inner.faults_in_a_row.saturating_add(1);
                inner.window.add(now, [1, 1]);
                let opens = inner.is_too_much(now);
                opens.then(|| self.open(&mut inner, now))
            }
            (State::HalfOpen { .. }, Role::Probe, Outcome::Success) => {
                self.close(&mut inner);
                Some(BreakerState::Closed)
            }
            (State::HalfOpen { .. }, Role::Probe, Outcome::Fault) => Some(self.open(&mut inner, now)),
            (State::HalfOpen { .. }, Role::Probe, Outcome::NoVerdict) => {
                self.enter(&mut inner, State::Open { until: now });
                None
            }
        }
    }

    /// Requests of the last while that the worker answered or failed, and those that it failed.
    pub fn counts(&self, now: Instant) -> (u64, u64) {
        let [requests, faults] = self.inner.lock().window.sums(now);
        (requests, faults)
    }

    /// The state now.
    pub fn state(&self) -> BreakerState {
        match self.inner.lock().state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    fn enter(&self, inner: &mut Inner, state: State) {
        inner.state = state;
        self.is_closed.store(state == State::Closed, Relaxed);
    }

    fn open(&self, inner: &mut Inner, now: Instant) -> BreakerState {
        let until = now + inner.settings.open_for;
        self.enter(inner, State::Open { until });
        BreakerState::Open
    }

    /// With a clean slate.
    fn close(&self, inner: &mut Inner) {
        inner.faults_in_a_row = 0;
        inner.window.clear();
        self.enter(inner, State::Closed);
    }
}

impl Inner {
    fn is_too_much(&mut self, now: Instant) -> bool {
        let Settings { failures, volume, error_share, .. } = self.settings;
        let [requests, faults] = self.window.sums(now);
        self.faults_in_a_row >= failures.max(1)
            || (requests >= u64::from(volume) && faults as f64 >= error_share * requests as f64)
    }
}

/// Breakers for unit tests: three faults in a row, or half of at least ten requests.
#[cfg(test)]
pub(crate) fn settings_for_tests() -> Settings {
    let seconds = std::time::Duration::from_secs;
    Settings { failures: 3, window: seconds(10), volume: 10, error_share: 0.5, open_for: seconds(5) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use Outcome::{Fault, NoVerdict, Success};

    const OPEN_FOR: Duration = Duration::from_secs(5);

    fn breaker() -> (Breaker, Instant) {
        (Breaker::new(settings_for_tests()), Instant::now())
    }

    fn opened() -> (Breaker, Instant) {
        let (breaker, now) = breaker();
        for _ in 0..2 {
            assert_eq!(breaker.ended(Role::Ordinary, Fault, now), None);
        }
        assert_eq!(breaker.ended(Role::Ordinary, Fault, now), Some(BreakerState::Open));
        (breaker, now)
    }

    #[test]
    fn opens_after_faults_in_a_row_and_refuses() {
        let (breaker, now) = opened();
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(!breaker.admits(now + Duration::from_millis(4_999)));
        assert!(breaker.admits(now + OPEN_FOR));
    }

    #[test]
    fn opens_at_a_share_of_the_last_requests_once_there_are_enough_of_them() {
        let (breaker, now) = breaker();
        // Every other one fails: never three in a row.
        let mut opened_after = None;
        for request in 1..=30 {
            let outcome = if request % 2 == 0 { Fault } else { Success };
            if breaker.ended(Role::Ordinary, outcome, now) == Some(BreakerState::Open) {
                opened_after = Some(request);
                break;
            }
        }
        assert_eq!(opened_after, Some(10), "the tenth is the fifth fault of ten");
    }

    #[test]
    fn faults_of_long_ago_do_not_count() {
        let (breaker, start) = breaker();
        for i in 0..200 {
            // A fault each 3 s among 3 successes: a quarter of what is remembered.
            let now = start + Duration::from_secs(3 * i);
            assert_eq!(breaker.ended(Role::Ordinary, Fault, now), None);
            (0..3).for_each(|_| assert_eq!(breaker.ended(Role::Ordinary, Success, now), None));
        }
        assert_eq!(breaker.counts(start + Duration::from_secs(3 * 199)), (16, 4));
    }

    #[test]
    fn what_says_nothing_of_the_worker_never_counts() {
        let (breaker, now) = breaker();
        for _ in 0..2 {
            assert_eq!(breaker.ended(Role::Ordinary, Fault, now), None);
        }
        (0..1_000).for_each(|_| assert_eq!(breaker.ended(Role::Ordinary, NoVerdict, now), None));
        assert_eq!(breaker.counts(now), (2, 2));
        assert_eq!(breaker.ended(Role::Ordinary, Fault, now), Some(BreakerState::Open), "still in a row");
    }

    #[test]
    fn a_success_in_between_starts_the_row_again() {
        let (breaker, now) = breaker();
        for second in 0..100 {
            let now = now + Duration::from_secs(second * 10);
            for outcome in [Fault, Fault, Success, Success] {
                breaker.ended(Role::Ordinary, outcome, now);
            }
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn half_open_lets_exactly_one_probe_through() {
        let (breaker, now) = opened();
        let later = now + OPEN_FOR;
        assert!(breaker.admits(later));
        assert_eq!(breaker.begin(later), Role::Probe);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(!breaker.admits(later), "the probe is under way");
    }

    #[test]
    fn the_probe_decides_and_nobody_else() {
        let (breaker, now) = opened();
        let later = now + OPEN_FOR;
        breaker.begin(later);
        for outcome in [Success, Fault, NoVerdict] {
            assert_eq!(breaker.ended(Role::Ordinary, outcome, later), None, "sent before it opened");
        }
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert_eq!(breaker.ended(Role::Probe, Fault, later), Some(BreakerState::Open));
        assert!(!breaker.admits(later), "open again");
        breaker.begin(later + OPEN_FOR);
        assert_eq!(breaker.ended(Role::Probe, Success, later + OPEN_FOR), Some(BreakerState::Closed));
        assert_eq!(breaker.counts(later + OPEN_FOR), (0, 0), "with a clean slate");
    }

    #[test]
    fn a_probe_without_a_verdict_is_followed_by_the_next_at_once() {
        let (breaker, now) = opened();
        let later = now + OPEN_FOR;
        breaker.begin(later);
        breaker.ended(Role::Probe, NoVerdict, later);
        assert!(breaker.admits(later));
    }

    #[test]
    fn a_probe_that_begins_to_answer_closes_it_on_trial() {
        let (breaker, now) = opened();
        let later = now + OPEN_FOR;
        breaker.begin(later);
        breaker.answering(Role::Ordinary);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        breaker.answering(Role::Probe);
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert_eq!(breaker.ended(Role::Probe, Fault, later), Some(BreakerState::Open), "one fault is enough");
    }

    #[test]
    fn other_settings_hold_from_the_next_fault_on() {
        let (breaker, now) = breaker();
        breaker.configure(Settings { failures: 1, ..settings_for_tests() }, now);
        assert_eq!(breaker.ended(Role::Ordinary, Fault, now), Some(BreakerState::Open));
    }
}
