//! How fast the queue moves: what was let through while somebody waited, over the last while.

use std::time::{Duration, Instant};

use crate::window::Window;

/// What is looked back on.
const SPAN: Duration = Duration::from_secs(10);
/// Shorter, and the rate is a matter of chance.
const KNOWN_AFTER: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Drain {
    tokens: Window<1>,
    /// Since when somebody has been waiting.
    busy_since: Option<Instant>,
}

impl Drain {
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: Window::new(SPAN, now), busy_since: None }
    }

    /// Somebody waits, or nobody does any more.
    pub(super) fn waits(&mut self, now: Instant, anybody: bool) {
        match (anybody, self.busy_since) {
            (true, None) => {
                self.busy_since = Some(now);
                self.tokens.clear();
            }
            (false, Some(_)) => self.busy_since = None,
            _ => {}
        }
    }

    /// A request with so many prompt tokens was let through.
    pub(super) fn let_through(&mut self, now: Instant, tokens: u64) {
        self.tokens.add(now, [tokens]);
    }

    /// Prompt tokens per second; `None` while it is not known.
    pub(super) fn rate(&mut self, now: Instant) -> Option<f64> {
        let busy_for = now.saturating_duration_since(self.busy_since?);
        let [tokens] = self.tokens.sums(now);
        (busy_for >= KNOWN_AFTER && tokens > 0).then(|| tokens as f64 / busy_for.min(SPAN).as_secs_f64())
    }

    /// How long what is in front takes; `None` while that is not known.
    pub(super) fn time_for(&mut self, now: Instant, tokens: u64) -> Option<Duration> {
        let seconds = tokens as f64 / self.rate(now)?;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_the_time_that_somebody_waited() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut drain = Drain::new(start);
        drain.let_through(start, 1_000);
        assert_eq!(drain.rate(at(5)), None, "nobody waited");
        drain.waits(at(10), true);
        assert_eq!(drain.rate(at(12)), None, "nothing has moved");
        (10..14).for_each(|second| drain.let_through(at(second), 500));
        let rate = drain.rate(at(14)).expect("four seconds are enough");
        assert!((rate - 500.0).abs() < 1.0, "{rate}");
        assert_eq!(drain.time_for(at(14), 1_000).map(|time| time.as_secs()), Some(2));
        drain.waits(at(15), false);
        assert_eq!(drain.rate(at(16)), None);
    }
}
