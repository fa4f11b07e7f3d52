//! A trace sent for real, and what came of it: open loop, in bounded time.
//!
//! A request goes out when the trace says so, answered or not, and its time to first token counts from that moment. Where
//! more than `concurrency_max` are under way the next one waits, and that counts, too.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc, time::Duration};

use http::HeaderValue;
use serde::Serialize;

use super::{
    bootstrap::{CONFIDENCE, Estimate, STATISTICS, draw},
    client::Client,
    drive::{Drive, Record},
    prompt::TextPool,
    schedule,
    stats::Summary,
    table::{Table, with_interval},
    trace::Trace,
};

/// How a trace is sent.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The server.
    pub address: SocketAddr,
    /// What it is called.
    pub host: HeaderValue,
    /// What it is shown: `Bearer …`.
    pub authorization: Option<HeaderValue>,
    /// For requests whose trace names no model.
    pub model: String,
    /// The trace's clock runs so many times faster.
    pub speed: f64,
    /// Requests under way at once.
    pub concurrency_max: usize,
    /// For one answer.
    pub timeout: Duration,
    /// For all.
    pub time_max: Duration,
    /// Of the times of requests whose trace has a coarse clock.
    pub seed: u64,
}

/// Everything, for people (`Display`) and for programs (JSON). Seconds are wall clock.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Requests of the trace, and those of them that were sent.
    pub requests: usize,
    pub sent: usize,
    pub completed: usize,
    pub duration_seconds: f64,
    /// By statistic, of completed requests.
    pub time_to_first_token_seconds: BTreeMap<&'static str, Estimate>,
    pub inter_token_latency_seconds: BTreeMap<&'static str, Estimate>,
    pub requests_per_second: f64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    pub output_tokens_per_second: f64,
    /// What requests were sent too late, the 99th percentile: what the sender or `concurrency_max` adds.
    pub late_p99_seconds: f64,
    /// Requests by the worker that answered (`x-warmpath-worker`).
    pub workers: BTreeMap<String, usize>,
    /// Failures by cause.
    pub errors: BTreeMap<String, usize>,
    pub records: Vec<Record>,
}

/// Sends the trace.
pub async fn run(trace: &Trace, settings: &Settings) -> Report {
    let requests = &trace.requests;
    let times = if trace.is_coarse {
        schedule::arrivals(requests, settings.speed, settings.seed)
    } else {
        schedule::exact(requests, settings.speed)
    };
    let Settings { address, host, authorization, .. } = settings;
    let drive = Drive {
        requests,
        pool: &TextPool::new(requests),
        model: &settings.model,
        clients: &[Arc::new(Client::new(*address, host.clone(), authorization.clone()))],
        speed_up: 1.0, // `times` are wall clock already
        timeout: settings.timeout,
        hold: Duration::ZERO,
        concurrency_max: Some(settings.concurrency_max),
        time_max: Some(settings.time_max),
        is_strict: false,
    };
    Report::new(requests.len(), drive.run(&times).await)
}

impl Report {
    fn new(requests: usize, records: Vec<Record>) -> Self {
        let estimates = |figure: &dyn Fn(&Record) -> Option<f64>| -> BTreeMap<&'static str, Estimate> {
            let sample = records.iter().map(|record| figure(record).filter(|_| record.error.is_none()));
            let draws = draw(&[vec![sample.collect()]]);
            STATISTICS.iter().map(|(name, of)| (*name, draws[0].estimate(*of))).collect()
        };
        let good: Vec<&Record> = records.iter().filter(|record| record.error.is_none()).collect();
        let sum = |figure: fn(&Record) -> u64| good.iter().map(|record| figure(record)).sum::<u64>();
        let duration_seconds = records.iter().map(|record| record.end_s).fold(0.0, f64::max);
        let (mut workers, mut errors) = (BTreeMap::new(), BTreeMap::new());
        for record in &records {
            match (&record.error, &record.worker) {
                (Some(error), _) => *errors.entry(error.clone()).or_insert(0) += 1,
                (None, Some(worker)) => *workers.entry(worker.clone()).or_insert(0) += 1,
                (None, None) => {}
            }
        }
        let output_tokens = sum(|record| record.output_tokens);
        Self {
            requests,
            sent: records.len(),
            completed: good.len(),
            duration_seconds,
            time_to_first_token_seconds: estimates(&|record| record.ttft_s),
            inter_token_latency_seconds: estimates(&|record| record.itl_s),
            requests_per_second: good.len() as f64 / duration_seconds,
            prompt_tokens: sum(|record| record.prompt_tokens),
            cached_tokens: sum(|record| record.cached_tokens),
            output_tokens,
            output_tokens_per_second: output_tokens as f64 / duration_seconds,
            late_p99_seconds: Summary::of(records.iter().map(|record| record.late_s).collect()).p99,
            workers,
            errors,
            records,
        }
    }

    /// Whether every request of the trace was sent and answered.
    pub fn is_complete(&self) -> bool {
        self.completed == self.requests
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} requests: {} sent, {} completed in {:.1} s ({:.2}/s)\n",
            self.requests, self.sent, self.completed, self.duration_seconds, self.requests_per_second
        )?;
        let mut table = Table::new(["", "mean", "p50", "p90", "p99"]);
        for (name, figures, scale) in [
            ("TTFT, s", &self.time_to_first_token_seconds, 1.0),
            ("ITL, ms", &self.inter_token_latency_seconds, 1e3),
        ] {
            let mut cells = vec![name.to_owned()];
            cells.extend(STATISTICS.iter().map(|(name, _)| {
                let Estimate { value, low, high } = figures[name];
                if !value.is_finite() {
                    return "–".to_owned();
                }
                with_interval(Estimate { value: value * scale, low: low * scale, high: high * scale }, 3)
            }));
            table.row(cells);
        }
        writeln!(f, "{table}\nIn brackets: {:.0} % intervals, block bootstrap.\n", 100.0 * CONFIDENCE)?;
        writeln!(
            f,
            "prompt tokens {}, of them cached {} ({:.1} %); output tokens {} ({:.0}/s); sent late p99 {:.0} ms",
            self.prompt_tokens,
            self.cached_tokens,
            100.0 * self.cached_tokens as f64 / (self.prompt_tokens.max(1)) as f64,
            self.output_tokens,
            self.output_tokens_per_second,
            1e3 * self.late_p99_seconds,
        )?;
        for (worker, count) in &self.workers {
            writeln!(f, "- {count} by {worker}")?;
        }
        for (error, count) in &self.errors {
            writeln!(f, "- ERROR {count} × {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(index: usize, ttft_s: f64, error: Option<&str>) -> Record {
        Record {
            index,
            intended_s: index as f64,
            late_s: 0.0,
            ttft_s: Some(ttft_s),
            itl_s: Some(0.01),
            end_s: 10.0,
            prompt_tokens: 100,
            cached_tokens: 50,
            output_tokens: 20,
            worker: Some("gpu0".to_owned()),
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn failures_are_counted_and_left_out_of_the_figures() {
        let records = vec![record(0, 1.0, None), record(1, 3.0, None), record(2, 99.0, Some("status 503"))];
        let report = Report::new(4, records);
        assert!((report.time_to_first_token_seconds["mean"].value - 2.0).abs() < 1e-9);
        assert_eq!((report.sent, report.completed, report.is_complete()), (3, 2, false));
        assert_eq!((report.prompt_tokens, report.cached_tokens, report.output_tokens), (200, 100, 40));
        let text = report.to_string();
        assert!(text.contains("- 2 by gpu0") && text.contains("ERROR 1 × status 503"), "{text}");
    }
}
