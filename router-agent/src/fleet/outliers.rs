//! Passive outlier detection: a worker that stands out from the others is left out for a while.
//!
//! Once a second the workers' last while is compared, in two figures: the share of requests that a worker failed, and how
//! much longer its first tokens took than had been predicted for them (so that a worker which is slow, and known to be, is
//! none: routing has reckoned with it). Each is set against the median of the *others*; who is far above it is ejected,
//! for a time that doubles at each repetition. At most a share of the fleet is out at once, the farthest first. Where
//! nobody else could take a request, the ejected are asked all the same (`gateway/choose.rs`): better than nobody.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::Worker;
use crate::{config::Outliers as Settings, window::Window};

/// How long first tokens are remembered.
const PACE_SPAN: Duration = Duration::from_secs(30);
/// A worker that is late by less than this, on average, is not slow, whatever the ratio.
const LATE_MIN_S: f64 = 0.5;
/// Doublings of the time out: more would be the maximum anyway.
const DOUBLINGS_MAX: u32 = 16;

/// Why a worker stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standout {
    /// It fails more of its requests than the others.
    Errors,
    /// Its first tokens come later than was to be expected.
    Slow,
}

impl Standout {
    /// Every reason, for metrics.
    pub const ALL: [Self; 2] = [Self::Errors, Self::Slow];

    /// The name in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Errors => "errors",
            Self::Slow => "slow",
        }
    }
}

/// One worker's last while.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Figures {
    requests: u64,
    faults: u64,
    first_tokens: u64,
    observed_s: f64,
    predicted_s: f64,
}

/// What one worker's first tokens took, and whether it is ejected.
#[derive(Debug)]
pub struct Record {
    /// Read for every candidate of every decision.
    is_ejected: AtomicBool,
    /// First tokens; microseconds that they took and that were predicted.
    pace: Mutex<Window<3>>,
    ejection: Mutex<Ejection>,
}

#[derive(Debug, Default)]
struct Ejection {
    until: Option<Instant>,
    ended_at: Option<Instant>,
    /// In a row: how often it was ejected without a long good time in between.
    times: u32,
}

impl Default for Record {
    fn default() -> Self {
        let pace = Mutex::new(Window::new(PACE_SPAN, Instant::now()));
        Self { is_ejected: AtomicBool::new(false), pace, ejection: Mutex::default() }
    }
}

impl Record {
    /// Whether it is left out now.
    pub fn is_ejected(&self) -> bool {
        self.is_ejected.load(Relaxed)
    }

    /// A first token took `observed_s`, and `predicted_s` had been expected.
    pub fn first_token(&self, now: Instant, observed_s: f64, predicted_s: f64) {
        self.pace.lock().add(now, [1, (observed_s * 1e6) as u64, (predicted_s * 1e6) as u64]);
    }

    /// Ends an ejection whose time is over.
    fn end_if_over(&self, now: Instant, settings: &Settings) -> bool {
        let mut ejection = self.ejection.lock();
        match (ejection.until, ejection.ended_at) {
            (Some(until), _) if now >= until => {
                self.pace.lock().clear();
                (ejection.until, ejection.ended_at) = (None, Some(now));
                self.is_ejected.store(false, Relaxed);
                true
            }
            (None, Some(ended)) if now.duration_since(ended) >= settings.eject_max => {
                *ejection = Ejection::default();
                false
            }
            _ => false,
        }
    }

    /// Leaves it out; for how long.
    fn eject(&self, now: Instant, settings: &Settings) -> Duration {
        let mut ejection = self.ejection.lock();
        let doubled = settings.eject_for.saturating_mul(1 << ejection.times.min(DOUBLINGS_MAX));
        let out_for = doubled.min(settings.eject_max);
        ejection.until = Some(now + out_for);
        ejection.times = ejection.times.saturating_add(1);
        self.is_ejected.store(true, Relaxed);
        out_for
    }
}

/// Ends ejections whose time is over, and ejects who stands out. Called once a second, off the data threads.
pub(super) fn sweep(workers: &[Arc<Worker>], settings: &Settings, now: Instant) {
    for worker in workers {
        if worker.record.end_if_over(now, settings) {
            tracing::info!(worker = %worker.name, "worker is no longer left out as an outlier");
        }
    }
    let out = workers.iter().filter(|worker| worker.record.is_ejected()).count();
    let allowed = (workers.len() as f64 * settings.share_max) as usize;
    let figures: Vec<Figures> = workers.iter().map(|worker| figures(worker, now)).collect();
    for (at, why) in standouts(&figures, settings).into_iter().take(allowed.saturating_sub(out)) {
        let worker = &workers[at];
        let out_for = worker.record.eject(now, settings);
        worker.metrics.faults.ejected(why);
        tracing::warn!(worker = %worker.name, reason = why.label(), ?out_for, "worker stands out: it is left out");
    }
}

/// Of a worker that is out already: nothing.
fn figures(worker: &Worker, now: Instant) -> Figures {
    if worker.record.is_ejected() {
        return Figures::default();
    }
    let (requests, faults) = worker.breaker.counts(now);
    let [first_tokens, observed_us, predicted_us] = worker.record.pace.lock().sums(now);
    let seconds = |us: u64| us as f64 / 1e6;
    Figures {
        requests,
        faults,
        first_tokens,
        observed_s: seconds(observed_us),
        predicted_s: seconds(predicted_us),
    }
}

/// Who stands out, by its place in the list, the farthest first.
fn standouts(figures: &[Figures], settings: &Settings) -> Vec<(usize, Standout)> {
    let volume = u64::from(settings.volume.max(1));
    let error_share = |f: &Figures| (f.requests >= volume).then(|| f.faults as f64 / f.requests as f64);
    let slowness =
        |f: &Figures| (f.first_tokens >= volume && f.predicted_s > 0.0).then(|| f.observed_s / f.predicted_s);
    let mut found: Vec<(usize, Standout, f64)> = Vec::new();
    for (at, own) in figures.iter().enumerate() {
        let others = |figure: &dyn Fn(&Figures) -> Option<f64>| {
            let rest = figures.iter().enumerate().filter(|(other, _)| *other != at);
            median(rest.filter_map(|(_, figures)| figure(figures)))
        };
        if let (Some(share), Some(usual)) = (error_share(own), others(&error_share))
            && share - usual >= settings.errors
        {
            found.push((at, Standout::Errors, (share - usual) / settings.errors));
            continue;
        }
        if let (Some(ratio), Some(usual)) = (slowness(own), others(&slowness)) {
            let bound = settings.slowness * usual.max(1.0);
            let late_s = (own.observed_s - own.predicted_s) / own.first_tokens as f64;
            if ratio >= bound && late_s >= LATE_MIN_S {
                found.push((at, Standout::Slow, ratio / bound));
            }
        }
    }
    found.sort_by(|a, b| b.2.total_cmp(&a.2));
    found.into_iter().map(|(at, why, _)| (at, why)).collect()
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Outcome, Role};

    fn settings() -> Settings {
        crate::config::Config::default().outliers
    }

    fn failing(requests: u64, faults: u64) -> Figures {
        Figures { requests, faults, ..Figures::default() }
    }

    fn paced(first_tokens: u64, observed_s: f64, predicted_s: f64) -> Figures {
        Figures { first_tokens, observed_s, predicted_s, ..Figures::default() }
    }

    #[test]
    fn who_fails_more_than_the_others_stands_out_and_an_outage_of_all_is_nobodys() {
        let alone = [failing(100, 1), failing(100, 40), failing(100, 0), failing(100, 2)];
        assert_eq!(standouts(&alone, &settings()), [(1, Standout::Errors)]);
        let all = [failing(100, 41), failing(100, 40), failing(100, 45)];
        assert_eq!(standouts(&all, &settings()), []);
        let two = [failing(100, 40), failing(100, 0), failing(100, 90), failing(100, 0), failing(100, 0)];
        let expected = [(2, Standout::Errors), (0, Standout::Errors)];
        assert_eq!(standouts(&two, &settings()), expected, "the farthest first");
    }

    #[test]
    fn too_few_requests_and_a_fleet_of_one_say_nothing() {
        assert_eq!(standouts(&[failing(5, 5), failing(100, 0)], &settings()), []);
        assert_eq!(standouts(&[failing(100, 100)], &settings()), []);
        assert_eq!(standouts(&[failing(100, 100), failing(3, 0)], &settings()), []);
    }

    #[test]
    fn who_is_later_than_predicted_stands_out_and_who_was_known_to_be_slow_does_not() {
        let sudden = [paced(50, 10.0, 9.0), paced(50, 500.0, 10.0), paced(50, 9.0, 10.0)];
        assert_eq!(standouts(&sudden, &settings()), [(1, Standout::Slow)]);
        let known = [paced(50, 10.0, 9.0), paced(50, 500.0, 480.0), paced(50, 9.0, 10.0)];
        assert_eq!(standouts(&known, &settings()), []);
        let milliseconds = [paced(50, 0.1, 0.1), paced(50, 5.0, 0.1), paced(50, 0.1, 0.1)];
        assert_eq!(standouts(&milliseconds, &settings()), [], "a tenth of a second is no reason");
    }

    #[test]
    fn at_most_half_of_the_fleet_is_out_and_each_time_for_longer() {
        let workers: Vec<_> = (0..3).map(|_| Worker::for_tests("http://127.0.0.1:1")).collect();
        let settings = settings();
        let mut now = Instant::now();
        let mut out_for = Vec::new();
        for _ in 0..3 {
            for (at, worker) in workers.iter().enumerate() {
                for request in 0..100 {
                    // Two fail every other one, never several in a row.
                    let fails = at < 2 && request % 2 == 0;
                    let outcome = if fails { Outcome::Fault } else { Outcome::Success };
                    worker.breaker.ended(Role::Ordinary, outcome, now);
                }
            }
            // The middle one of three: half of 2 others is the failing one, so only one can stand out at a time.
            workers[1].record.eject(now, &settings);
            sweep(&workers, &settings, now);
            assert_eq!(workers.iter().filter(|worker| worker.record.is_ejected()).count(), 1);
            let started = now;
            while workers[1].record.is_ejected() {
                now += Duration::from_secs(1);
                sweep(&workers, &settings, now);
            }
            out_for.push(now - started);
        }
        assert_eq!(out_for, [1, 2, 4].map(|times| settings.eject_for * times));
    }
}
