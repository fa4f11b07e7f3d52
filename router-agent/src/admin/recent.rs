//! What happened lately: a look at the counters once a second, kept for rates and charts. The data path pays nothing for
//! it; it costs about a microsecond a worker and second here, and some 7 KB of memory each.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use prometheus::{IntCounterVec, core::Collector};
use router_common::latency::{BUCKETS, LatencyKind};

use super::histogram::{self, Buckets, Percentiles};
use crate::{
    fleet::{Worker, WorkerId},
    gateway::Shared,
    limits::HISTORY_SECONDS,
    routing::Reason,
    window::Window,
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// What a look at the last minute takes.
const LOOKS: usize = 61;
/// Over which the percentiles of one chart point are taken: a second alone has too few requests.
const POINT_SPAN: Duration = Duration::from_secs(10);
/// What is known of one worker.
const MINUTE: Duration = Duration::from_mins(1);
/// Requests, then the buckets of both times.
const WORKER_SUMS: usize = 1 + 2 * BUCKETS;

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// Requests answered.
    pub(super) requests: u64,
    /// Of these, with a status of 4xx (499 included).
    pub(super) client_errors: u64,
    /// Of these, with a status of 5xx.
    pub(super) server_errors: u64,
    /// Further tries.
    pub(super) retries: u64,
    /// Prompt tokens routed by prefix.
    pub(super) prompt_tokens: u64,
    /// Of these, expected in the chosen worker's cache.
    pub(super) matched_tokens: u64,
    /// Events of streams; with vLLM about one a token.
    pub(super) events: u64,
}

/// All counters at one moment.
#[derive(Debug, Clone)]
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) counts: Counts,
    /// As [`Reason::ALL`].
    pub(super) reasons: [u64; Reason::ALL.len()],
    pub(super) first_byte: Buckets,
    pub(super) gap: Buckets,
}

/// One second of the charts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    /// Unix time, milliseconds.
    pub(super) at_ms: u64,
    pub(super) requests_per_second: f64,
    pub(super) errors_per_second: f64,
    /// Share of the prompt tokens of the last ten seconds; none without any.
    pub(super) hit_rate: Option<f64>,
    /// Of the last ten seconds.
    pub(super) first_byte: Percentiles,
    /// Of the last ten seconds.
    pub(super) gap: Percentiles,
}

/// What one worker did in the last minute.
#[derive(Debug, Clone)]
pub(super) struct WorkerMinute {
    pub(super) requests_per_second: f64,
    pub(super) first_byte: Percentiles,
    pub(super) gap: Percentiles,
}

struct WorkerLooks {
    requests: u64,
    first_byte: Buckets,
    gap: Buckets,
    since: Instant,
    minute: Window<WORKER_SUMS>,
}

#[derive(Default)]
struct Inner {
    looks: VecDeque<Look>,
    points: VecDeque<Point>,
    workers: HashMap<WorkerId, WorkerLooks>,
}

/// See the module.
#[derive(Default)]
pub struct Recent(Mutex<Inner>);

impl Recent {
    /// Looks once a second, for ever.
    pub async fn watch(self: Arc<Self>, shared: Arc<Shared>) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            self.look(&shared, Instant::now());
        }
    }

    fn look(&self, shared: &Shared, now: Instant) {
        let mut inner = self.0.lock();
        let workers = shared.fleet.workers();
        let (mut first_byte, mut gap) = match inner.looks.back() {
            Some(last) => (last.first_byte, last.gap),
            None => ([0; BUCKETS], [0; BUCKETS]),
        };
        inner.workers.retain(|id, _| workers.iter().any(|worker| worker.id == *id));
        for worker in workers.iter() {
            let seen = inner.workers.entry(worker.id).or_insert_with(|| WorkerLooks::new(now));
            let (new_first, new_gap) = seen.look(worker, shared, now);
            first_byte = histogram::plus(&first_byte, &new_first);
            gap = histogram::plus(&gap, &new_gap);
        }
        let counts = counts(shared, &first_byte, &gap);
        let reasons = shared.decisions_by_reason();
        inner.looks.push_back(Look { at: now, counts, reasons, first_byte, gap });
        if inner.looks.len() > LOOKS {
            inner.looks.pop_front();
        }
        let point = inner.point();
        inner.points.push_back(point);
        if inner.points.len() > HISTORY_SECONDS {
            inner.points.pop_front();
        }
    }

    /// The newest look, and one that is `span` older, or the oldest there is.
    pub(super) fn over(&self, span: Duration) -> Option<(Look, Look)> {
        self.0.lock().over(span)
    }

    /// The points since `after_ms` (Unix time), the oldest first.
    pub(super) fn points(&self, after_ms: u64) -> Vec<Point> {
        self.0.lock().points.iter().filter(|point| point.at_ms > after_ms).copied().collect()
    }

    /// What a worker did in the last minute; none before the first look at it.
    pub(super) fn worker(&self, id: WorkerId, now: Instant) -> Option<WorkerMinute> {
        self.0.lock().workers.get_mut(&id).map(|looks| looks.minute(now))
    }
}

impl Inner {
    fn over(&self, span: Duration) -> Option<(Look, Look)> {
        let newest = self.looks.back()?;
        let slack = INTERVAL / 2;
        let is_within = |look: &&Look| newest.at.duration_since(look.at) <= span + slack;
        let oldest = self.looks.iter().find(is_within)?;
        Some((oldest.clone(), newest.clone()))
    }

    fn point(&self) -> Point {
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let rate = |count: fn(&Counts) -> u64| {
            self.over(INTERVAL).map_or(0.0, |(old, new)| per_second(&old, &new, count))
        };
        let (old, new) = self.over(POINT_SPAN).expect("a look was just taken");
        Point {
            at_ms,
            requests_per_second: rate(|counts| counts.requests),
            errors_per_second: rate(|counts| counts.server_errors),
            hit_rate: hit_rate(&old, &new),
            first_byte: Percentiles::of(&histogram::between(&old.first_byte, &new.first_byte)),
            gap: Percentiles::of(&histogram::between(&old.gap, &new.gap)),
        }
    }
}

impl WorkerLooks {
    fn new(now: Instant) -> Self {
        Self {
            requests: 0,
            first_byte: [0; BUCKETS],
            gap: [0; BUCKETS],
            since: now,
            minute: Window::new(MINUTE, now),
        }
    }

    /// Takes in what is new since the last look; the times that are.
    fn look(&mut self, worker: &Worker, shared: &Shared, now: Instant) -> (Buckets, Buckets) {
        let metrics = &worker.metrics;
        let ended = [&metrics.completed, &metrics.failed, &metrics.rejected, &metrics.cancelled];
        let requests: u64 = ended.iter().map(|counter| counter.get()).sum();
        let buckets = |kind| {
            let value = shared.flows.latency(u32::from(worker.slot.0), kind);
            value.map_or([0; BUCKETS], |value| value.buckets)
        };
        let (first_byte, gap) = (buckets(LatencyKind::TimeToFirstByte), buckets(LatencyKind::EventGap));
        let new_first = histogram::between(&self.first_byte, &first_byte);
        let new_gap = histogram::between(&self.gap, &gap);
        let mut sums = [0; WORKER_SUMS];
        sums[0] = requests.saturating_sub(self.requests);
        sums[1..=BUCKETS].copy_from_slice(&new_first);
        sums[1 + BUCKETS..].copy_from_slice(&new_gap);
        self.minute.add(now, sums);
        (self.requests, self.first_byte, self.gap) = (requests, first_byte, gap);
        (new_first, new_gap)
    }

    fn minute(&mut self, now: Instant) -> WorkerMinute {
        let sums = self.minute.sums(now);
        let span = now.duration_since(self.since).clamp(INTERVAL, MINUTE);
        let buckets = |from: usize| Percentiles::of(&std::array::from_fn(|i| sums[from + i]));
        WorkerMinute {
            requests_per_second: sums[0] as f64 / span.as_secs_f64(),
            first_byte: buckets(1),
            gap: buckets(1 + BUCKETS),
        }
    }
}

/// What a counter gained per second between two looks; 0 where there was only one.
pub(super) fn per_second(old: &Look, new: &Look, count: fn(&Counts) -> u64) -> f64 {
    let seconds = new.at.duration_since(old.at).as_secs_f64();
    if seconds <= 0.0 {
        return 0.0;
    }
    count(&new.counts).saturating_sub(count(&old.counts)) as f64 / seconds
}

/// The share of the prompt tokens between two looks that was expected in a cache; none without any.
pub(super) fn hit_rate(old: &Look, new: &Look) -> Option<f64> {
    let prompt = new.counts.prompt_tokens.saturating_sub(old.counts.prompt_tokens);
    let matched = new.counts.matched_tokens.saturating_sub(old.counts.matched_tokens);
    (prompt > 0).then(|| (matched as f64 / prompt as f64).min(1.0))
}

fn counts(shared: &Shared, first_byte: &Buckets, gap: &Buckets) -> Counts {
    let metrics = &shared.metrics;
    let mut counts = Counts {
        retries: sum(&metrics.retries),
        prompt_tokens: metrics.prompt_tokens.get(),
        matched_tokens: metrics.matched_tokens.get(),
        events: first_byte.iter().chain(gap).sum(),
        ..Counts::default()
    };
    for family in metrics.requests.collect() {
        for metric in family.get_metric() {
            let count = metric.get_counter().get_value() as u64;
            let status = metric.get_label().iter().find(|label| label.name() == "status");
            counts.requests += count;
            match status.and_then(|status| status.value().bytes().next()) {
                Some(b'4') => counts.client_errors += count,
                Some(b'5') => counts.server_errors += count,
                _ => {}
            }
        }
    }
    counts
}

fn sum(counters: &IntCounterVec) -> u64 {
    let families = counters.collect();
    let metrics = families.iter().flat_map(prometheus::proto::MetricFamily::get_metric);
    metrics.map(|metric| metric.get_counter().get_value() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at: Instant, requests: u64, prompt_tokens: u64, matched_tokens: u64) -> Look {
        Look {
            at,
            counts: Counts { requests, prompt_tokens, matched_tokens, ..Counts::default() },
            reasons: [0; Reason::ALL.len()],
            first_byte: [0; BUCKETS],
            gap: [0; BUCKETS],
        }
    }

    #[test]
    fn rates_are_over_the_time_between_looks_whatever_it_was() {
        let start = Instant::now();
        let mut inner = Inner::default();
        assert!(inner.over(MINUTE).is_none());
        for second in 0..=30_u64 {
            let at = start + Duration::from_millis(second * 1003);
            inner.looks.push_back(look(at, second * 5, second * 100, second * 25));
        }
        for (span, expected) in [(1, 1), (10, 10), (60, 30)] {
            let (old, new) = inner.over(Duration::from_secs(span)).expect("looks");
            assert_eq!(new.counts.requests - old.counts.requests, 5 * expected, "{span}");
            let rate = per_second(&old, &new, |counts| counts.requests);
            assert!((rate - 5.0 / 1.003).abs() < 1e-9, "{rate}");
            assert_eq!(hit_rate(&old, &new), Some(0.25));
        }
        let (_, new) = inner.over(INTERVAL).expect("looks");
        assert_eq!((per_second(&new, &new, |counts| counts.requests), hit_rate(&new, &new)), (0.0, None));
    }
}
