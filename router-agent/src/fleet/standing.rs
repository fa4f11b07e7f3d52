//! Whether a worker is given requests: it serves, or it is drained, or it is on its way out of the fleet.
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
    pub const LABELS: [&str; 3] = ["serving", "draining", "leaving"];

    /// The name in metrics and on the admin port.
    pub fn label(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining { .. } => "draining",
            Self::Leaving { .. } => "leaving",
        }
    }

    /// When it was last given a request, at most.
    pub fn since(self) -> Option<Instant> {
        match self {
            Self::Serving => None,
            Self::Draining { since, .. } | Self::Leaving { since, .. } => Some(since),
        }
    }

    /// Requests that were in flight when it was last given one.
    pub fn in_flight_at_first(self) -> Option<u32> {
        match self {
            Self::Serving => None,
            Self::Draining { in_flight, .. } | Self::Leaving { in_flight, .. } => Some(in_flight),
        }
    }
}

/// One worker's standing. Whether it takes requests is one load on the hot path.
#[derive(Debug)]
pub(super) struct StandingCell {
    takes_requests: AtomicBool,
    standing: Mutex<Standing>,
}

impl Default for StandingCell {
    fn default() -> Self {
        Self { takes_requests: AtomicBool::new(true), standing: Mutex::new(Standing::Serving) }
    }
}

impl StandingCell {
    pub(super) fn takes_requests(&self) -> bool {
        self.takes_requests.load(Relaxed)
    }

    pub(super) fn get(&self) -> Standing {
        *self.standing.lock()
    }

    pub(super) fn set(&self, new: Standing) {
        let mut standing = self.standing.lock();
        self.takes_requests.store(new == Standing::Serving, Relaxed);
        *standing = new;
    }
}
