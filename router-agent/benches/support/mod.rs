//! A stopwatch: every call is timed by itself, so that the tail is seen, not only the mean.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// Sorted times of single calls.
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// `share` in per cent.
    pub(crate) fn at(&self, share: f64) -> Duration {
        let place = (self.0.len() as f64 * share / 100.0) as usize;
        self.0[place.min(self.0.len() - 1)]
    }
}

/// Calls `call` for about `for_ms`, after a tenth of that to warm up, and prints a line.
pub(crate) fn time<T>(name: &str, for_ms: u64, mut call: impl FnMut() -> T) -> Times {
    let run = |limit: Duration, call: &mut dyn FnMut() -> T| {
        let (start, mut times) = (Instant::now(), Vec::new());
        while start.elapsed() < limit {
            let begin = Instant::now();
            black_box(call());
            times.push(begin.elapsed());
        }
        times
    };
    run(Duration::from_millis(for_ms / 10), &mut call);
    let times = Times::new(run(Duration::from_millis(for_ms), &mut call));
    let us = |share| times.at(share).as_nanos() as f64 / 1000.0;
    println!(
        "{name:<58} min {:>9.2}  p50 {:>9.2}  p99 {:>9.2} us  ({} calls)",
        us(0.0),
        us(50.0),
        us(99.0),
        times.0.len()
    );
    times
}
