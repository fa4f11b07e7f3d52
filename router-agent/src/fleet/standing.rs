//! Whether a worker is given requests: it serves, or it is not ready, or it is drained, or it is on its way out of the fleet.
//!
//! Not ready is what a source of workers says (`discovery/`), and only it can take that back; it is seen where nothing else
//! holds.
//!
//! A drained worker stays in the fleet, with its health checks and what is known of its cache, and can be put back. One
//! that leaves is taken out when nothing is in flight on it any more, or when its time is over; then what is in flight is
//! cut off.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Instant,
};

use parking_lot::Mutex;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is given requests.
    Serving,
    /// It is given none, until who told of it says that it is ready.
    Unready {
        /// When that began.
        since: Instant,
        /// Requests that were in flight then.
        in_flight: u32,
    },
    /// It is given none, until somebody says otherwise.
    Draining {
        /// When that began.
        since: Instant,
        /// Requests that were in flight then.
        in_flight: u32,
    },
    /// It is given none, and then it is no worker of this gateway any more.
    Leaving {
        /// When that began.
        since: Instant,
        /// Requests that were in flight then.
        in_flight: u32,
        /// When what is still in flight is cut off; never, if there is no such time.
        until: Option<Instant>,
    },
}

impl Standing {
    /// The names in metrics and on the admin port.
    pub const LABELS: [&str; 4] = ["serving", "unready", "draining", "leaving"];

    /// The name in metrics and on the admin port.
    pub fn label(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Unready { .. } => "unready",
            Self::Draining { .. } => "draining",
            Self::Leaving { .. } => "leaving",
        }
    }

    /// When it was last given a request, at most.
    pub fn since(self) -> Option<Instant> {
        match self {
            Self::Serving => None,
            Self::Unready { since, .. } | Self::Draining { since, .. } | Self::Leaving { since, .. } => {
                Some(since)
            }
        }
    }

    /// Requests that were in flight when it was last given one.
    pub fn in_flight_at_first(self) -> Option<u32> {
        match self {
            Self::Serving => None,
            Self::Unready { in_flight, .. }
            | Self::Draining { in_flight, .. }
            | Self::Leaving { in_flight, .. } => Some(in_flight),
        }
    }
}

/// One worker's standing. Whether it takes requests is one load on the hot path.
#[derive(Debug)]
pub(super) struct StandingCell {
    takes_requests: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// By operators and the configuration; never `Unready`.
    standing: Standing,
    /// Since when it is not ready, and the requests that were in flight then.
    unready: Option<(Instant, u32)>,
}

impl State {
    fn seen(&self) -> Standing {
        match (self.standing, self.unready) {
            (Standing::Serving, Some((since, in_flight))) => Standing::Unready { since, in_flight },
            (standing, _) => standing,
        }
    }
}

impl Default for StandingCell {
    fn default() -> Self {
        let state = State { standing: Standing::Serving, unready: None };
        Self { takes_requests: AtomicBool::new(true), state: Mutex::new(state) }
    }
}

impl StandingCell {
    pub(super) fn takes_requests(&self) -> bool {
        self.takes_requests.load(Relaxed)
    }

    pub(super) fn get(&self) -> Standing {
        self.state.lock().seen()
    }

    pub(super) fn set(&self, new: Standing) {
        self.change(|state| state.standing = new);
    }

    /// Whether that is news.
    pub(super) fn set_ready(&self, is_ready: bool, in_flight: u32) -> bool {
        let mut is_news = false;
        self.change(|state| {
            is_news = state.unready.is_none() != is_ready;
            if is_news {
                state.unready = (!is_ready).then(|| (Instant::now(), in_flight));
            }
        });
        is_news
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        self.takes_requests.store(state.seen() == Standing::Serving, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_and_what_operators_say_are_two_things() {
        let cell = StandingCell::default();
        assert!(cell.set_ready(false, 3) && !cell.takes_requests());
        assert!(!cell.set_ready(false, 4), "no news");
        assert_eq!((cell.get().label(), cell.get().in_flight_at_first()), ("unready", Some(3)));
        cell.set(Standing::Draining { since: Instant::now(), in_flight: 1 });
        assert!(cell.set_ready(true, 0) && !cell.takes_requests(), "it is drained still");
        assert!(cell.set_ready(false, 0));
        cell.set(Standing::Serving);
        assert_eq!((cell.get().label(), cell.takes_requests()), ("unready", false));
        assert!(cell.set_ready(true, 0) && cell.takes_requests());
        assert_eq!(cell.get(), Standing::Serving);
    }
}
