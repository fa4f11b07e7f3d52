//! What a replay prints and writes.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::replay::by_worker;
use crate::stats::{Summary, max_over_mean, mean};

/// A trial says nothing about the policy when the generator sent this share of the median TTFT too late (its p99) ...
const LATE_SHARE_MAX: f64 = 0.1;
/// ... or when the machine had no CPU time left.
const HOST_CPU_BUSY_MAX: f64 = 0.9;

/// What is replayed, against what.
#[derive(Debug, Serialize)]
pub(crate) struct Setup {
    pub(crate) file: String,
    pub(crate) requests: usize,
    pub(crate) span_s: f64,
    pub(crate) speed_up: f64,
    pub(crate) rate: f64,
    pub(crate) workers: usize,
    pub(crate) prompt_tokens: u64,
    pub(crate) output_tokens: u64,
    /// Of the prompt tokens, in one infinite cache.
    pub(crate) ceiling_share: f64,
    /// The same in one LRU cache of the size of all workers' together; none where the workers are somebody else's.
    pub(crate) ceiling_lru_share: Option<f64>,
    pub(crate) prefill_tokens_per_s: f64,
    pub(crate) itl_base_ms: f64,
    pub(crate) itl_slope_ms: f64,
    pub(crate) kv_blocks: u64,
    /// Prefill of the whole fleet; none where the workers are somebody else's.
    pub(crate) capacity_tokens_per_s: Option<f64>,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offered = self.prompt_tokens as f64 / self.span_s;
        writeln!(
            f,
            "{}: {} requests in {:.0} s of trace time, {:.1} M prompt tokens, {:.0} k output tokens",
            self.file,
            self.requests,
            self.span_s,
            self.prompt_tokens as f64 / 1e6,
            self.output_tokens as f64 / 1e3
        )?;
        writeln!(
            f,
            "ceiling: one infinite cache would serve {:.1} % of the prompt tokens",
            100.0 * self.ceiling_share
        )?;
        if let Some(share) = self.ceiling_lru_share {
            writeln!(f, "         one LRU cache of all workers' size {:.1} %", 100.0 * share)?;
        }
        if let Some(capacity) = self.capacity_tokens_per_s {
            writeln!(
                f,
                "workers: {} x {:.0} prefill tokens/s, {} ms between tokens (+ {} ms per running sequence), {} KV blocks \
                 of 16 tokens",
                self.workers, self.prefill_tokens_per_s, self.itl_base_ms, self.itl_slope_ms, self.kv_blocks
            )?;
            writeln!(
                f,
                "offered load: {offered:.0} prompt tokens/s = {:.0} % of the fleet's prefill capacity if nothing is \
                 cached, {:.0} % at the ceiling",
                100.0 * offered / capacity,
                100.0 * offered * (1.0 - self.ceiling_share) / capacity
            )?;
        }
        writeln!(
            f,
            "speed-up {}: arrivals and the workers' clocks run that much faster; all times below are trace time \
             (measured x {}), the gateway's own time included\n",
            self.speed_up, self.speed_up
        )
    }
}

/// One request of one trial. Seconds are of trace time; what did not happen is none.
#[derive(Debug, Serialize)]
pub(crate) struct Record {
    pub(crate) index: usize,
    pub(crate) intended_s: f64,
    pub(crate) late_s: f64,
    pub(crate) ttft_s: Option<f64>,
    pub(crate) itl_s: Option<f64>,
    pub(crate) end_s: f64,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) worker: Option<String>,
    pub(crate) error: Option<String>,
}

/// One policy, once.
#[derive(Debug, Serialize)]
pub(crate) struct Trial {
    pub(crate) policy: String,
    pub(crate) repeat: u64,
    pub(crate) seed: u64,
    pub(crate) wall_s: f64,
    pub(crate) gateway_cpu_ms_per_request: Option<f64>,
    pub(crate) workers_cpu_ms_per_request: Option<f64>,
    pub(crate) generator_cpu_ms_per_request: Option<f64>,
    pub(crate) host_cpu_busy_share: f64,
    pub(crate) records: Vec<Record>,
}

impl Trial {
    fn good(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.error.is_none())
    }

    fn errors(&self) -> usize {
        self.records.len() - self.good().count()
    }

    fn ttft(&self) -> Summary {
        Summary::of(self.good().filter_map(|record| record.ttft_s).collect())
    }

    fn late(&self) -> Summary {
        Summary::of(self.records.iter().map(|record| record.late_s).collect())
    }

    fn cached_share(&self) -> f64 {
        let (cached, prompt) = self
            .good()
            .fold((0, 0), |(cached, prompt), r| (cached + r.cached_tokens, prompt + r.prompt_tokens));
        cached as f64 / prompt as f64
    }

    fn output_tokens_per_s(&self) -> f64 {
        let end_s = self.records.iter().map(|record| record.end_s).fold(0.0, f64::max);
        self.good().map(|record| record.output_tokens).sum::<u64>() as f64 / end_s
    }

    /// Why the trial measures the generator or the machine and not the policy; empty when it does not.
    fn invalid(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let (late, ttft) = (self.late(), self.ttft());
        if late.p99 > LATE_SHARE_MAX * ttft.p50 {
            reasons.push(format!(
                "the generator sent late (p99 {:.0} ms, more than {:.0} % of the median TTFT)",
                1e3 * late.p99,
                100.0 * LATE_SHARE_MAX
            ));
        }
        if self.host_cpu_busy_share > HOST_CPU_BUSY_MAX {
            reasons.push(format!("the machine was {:.0} % busy", 100.0 * self.host_cpu_busy_share));
        }
        reasons
    }

    /// One line, as soon as the trial is over.
    pub(crate) fn line(&self) -> String {
        let ttft = self.ttft();
        format!(
            "{:<14} repeat {}: TTFT mean {:.2} s, cached {:.1} %, {} errors; {:.0} s of wall clock, generator late p99 \
             {:.0} ms, machine {:.0} % busy",
            self.policy,
            self.repeat,
            ttft.mean,
            100.0 * self.cached_share(),
            self.errors(),
            self.wall_s,
            1e3 * self.late().p99,
            100.0 * self.host_cpu_busy_share
        )
    }
}

/// One row of the table: a policy over all its repeats.
#[derive(Debug, Serialize)]
struct Row {
    policy: String,
    /// Over the requests of all repeats, seconds.
    ttft: Summary,
    /// Smallest and largest mean TTFT of a repeat.
    ttft_mean_range: (f64, f64),
    itl_mean_s: f64,
    cached_share: f64,
    output_tokens_per_s: f64,
    /// The busiest worker over the mean of all, mean of the repeats.
    requests_max_over_mean: f64,
    prefill_max_over_mean: f64,
    errors: usize,
    gateway_cpu_ms_per_request: Option<f64>,
    late_p99_s: f64,
}

impl Row {
    fn new(policy: &str, trials: &[&Trial], workers: usize) -> Self {
        let over = |value: &dyn Fn(&Trial) -> f64| {
            mean(&trials.iter().map(|trial| value(trial)).collect::<Vec<_>>())
        };
        let means: Vec<f64> = trials.iter().map(|trial| trial.ttft().mean).collect();
        let good = || trials.iter().flat_map(|trial| trial.good());
        Self {
            policy: policy.to_owned(),
            ttft: Summary::of(good().filter_map(|record| record.ttft_s).collect()),
            ttft_mean_range: (
                means.iter().copied().fold(f64::INFINITY, f64::min),
                means.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ),
            itl_mean_s: mean(&good().filter_map(|record| record.itl_s).collect::<Vec<_>>()),
            cached_share: over(&Trial::cached_share),
            output_tokens_per_s: over(&Trial::output_tokens_per_s),
            requests_max_over_mean: over(&|trial| {
                max_over_mean(by_worker(&trial.records).values().map(|worker| worker.0), workers)
            }),
            prefill_max_over_mean: over(&|trial| {
                max_over_mean(by_worker(&trial.records).values().map(|worker| worker.1), workers)
            }),
            errors: trials.iter().map(|trial| trial.errors()).sum(),
            gateway_cpu_ms_per_request: trials
                .iter()
                .map(|trial| trial.gateway_cpu_ms_per_request)
                .sum::<Option<f64>>()
                .map(|sum| sum / trials.len() as f64),
            late_p99_s: trials.iter().map(|trial| trial.late().p99).fold(0.0, f64::max),
        }
    }

    fn cells(&self) -> Vec<String> {
        let seconds = |value: f64| format!("{value:.2} s");
        let (low, high) = self.ttft_mean_range;
        vec![
            self.policy.clone(),
            if high > low {
                format!("{:.2} s ({low:.2}–{high:.2})", self.ttft.mean)
            } else {
                seconds(self.ttft.mean)
            },
            seconds(self.ttft.p50),
            seconds(self.ttft.p90),
            seconds(self.ttft.p99),
            format!("{:.1} %", 100.0 * self.cached_share),
            format!("{:.0}", self.output_tokens_per_s),
            format!("{:.1} ms", 1e3 * self.itl_mean_s),
            format!("{:.2}", self.requests_max_over_mean),
            format!("{:.2}", self.prefill_max_over_mean),
            self.errors.to_string(),
            self.gateway_cpu_ms_per_request.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2} ms")),
            format!("{:.0} ms", 1e3 * self.late_p99_s),
        ]
    }
}

const COLUMNS: [&str; 13] = [
    "policy",
    "TTFT mean",
    "p50",
    "p90",
    "p99",
    "cached",
    "output tok/s",
    "ITL",
    "requests max/mean",
    "prefill max/mean",
    "errors",
    "gateway CPU/request",
    "sent late p99",
];

/// Everything, for people (`Display`) and for programs (JSON).
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    setup: Setup,
    table: Vec<Row>,
    /// Problems by trial, as printed.
    invalid: Vec<String>,
    /// Count by kind of error, over all trials.
    errors: BTreeMap<String, usize>,
    trials: Vec<Trial>,
}

impl Report {
    pub(crate) fn new(setup: Setup, policies: &[String], trials: Vec<Trial>) -> Self {
        let table = policies
            .iter()
            .map(|policy| {
                let own: Vec<&Trial> = trials.iter().filter(|trial| trial.policy == *policy).collect();
                Row::new(policy, &own, setup.workers)
            })
            .collect();
        let invalid = trials
            .iter()
            .flat_map(|trial| {
                let name = format!("{}, repeat {}", trial.policy, trial.repeat);
                trial.invalid().into_iter().map(move |reason| format!("{name}: {reason}"))
            })
            .collect();
        let mut errors = BTreeMap::new();
        for trial in &trials {
            for error in trial.records.iter().filter_map(|record| record.error.as_ref()) {
                *errors.entry(format!("{}: {error}", trial.policy)).or_insert(0) += 1;
            }
        }
        Self { setup, table, invalid, errors, trials }
    }

    /// No error, no invalid trial.
    pub(crate) fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.invalid.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![COLUMNS.map(str::to_owned).to_vec()];
        rows.extend(self.table.iter().map(Row::cells));
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
        writeln!(f)?;
        for (index, row) in rows.iter().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                write!(f, "| {cell:<width$} ")?;
            }
            writeln!(f, "|")?;
            if index == 0 {
                for width in &widths {
                    write!(f, "|-{:-<width$}-", "")?;
                }
                writeln!(f, "|")?;
            }
        }
        for (error, count) in &self.errors {
            writeln!(f, "ERROR {count} x {error}")?;
        }
        for reason in &self.invalid {
            writeln!(f, "INVALID {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ttft_s: f64, late_s: f64, worker: &str, prompt_tokens: u64, cached_tokens: u64) -> Record {
        Record {
            index: 0,
            intended_s: 0.0,
            late_s,
            ttft_s: Some(ttft_s),
            itl_s: Some(0.01),
            end_s: 10.0,
            prompt_tokens,
            cached_tokens,
            output_tokens: 50,
            worker: Some(worker.to_owned()),
            error: None,
        }
    }

    fn trial(policy: &str, records: Vec<Record>) -> Trial {
        Trial {
            policy: policy.to_owned(),
            repeat: 0,
            seed: 1,
            wall_s: 10.0,
            gateway_cpu_ms_per_request: Some(0.5),
            workers_cpu_ms_per_request: None,
            generator_cpu_ms_per_request: None,
            host_cpu_busy_share: 0.5,
            records,
        }
    }

    fn setup() -> Setup {
        Setup {
            file: "trace".to_owned(),
            requests: 4,
            span_s: 10.0,
            speed_up: 2.0,
            rate: 1.0,
            workers: 4,
            prompt_tokens: 4_000,
            output_tokens: 200,
            ceiling_share: 0.5,
            ceiling_lru_share: Some(0.25),
            prefill_tokens_per_s: 100.0,
            itl_base_ms: 20.0,
            itl_slope_ms: 0.2,
            kv_blocks: 10,
            capacity_tokens_per_s: Some(400.0),
        }
    }

    #[test]
    fn a_row_counts_idle_workers_and_leaves_failures_out_of_the_figures() {
        let mut failed = record(99.0, 0.0, "a", 0, 0);
        failed.error = Some("status 503".to_owned());
        let records = vec![record(1.0, 0.0, "a", 1_000, 0), record(3.0, 0.0, "b", 1_000, 500), failed];
        let report = Report::new(setup(), &["warm".to_owned()], vec![trial("warm", records)]);
        let row = &report.table[0];
        assert!((row.ttft.mean - 2.0).abs() < 1e-9);
        assert!((row.cached_share - 0.25).abs() < 1e-9);
        assert!((row.output_tokens_per_s - 10.0).abs() < 1e-9, "100 tokens in 10 s");
        assert!(
            (row.requests_max_over_mean - 2.0 / 0.75).abs() < 1e-9,
            "2 of 3 requests on one of 4 workers"
        );
        assert!((row.prefill_max_over_mean - 1_000.0 / 375.0).abs() < 1e-9);
        assert_eq!(row.errors, 1);
        assert!(!report.is_clean());
        assert!(report.to_string().contains("ERROR 1 x warm: status 503"), "{report}");
    }

    #[test]
    fn a_late_generator_or_a_full_machine_is_invalid() {
        let good = trial("warm", vec![record(1.0, 0.05, "a", 1, 0)]);
        assert!(good.invalid().is_empty());
        let late = trial("warm", vec![record(1.0, 0.2, "a", 1, 0)]);
        assert!(late.invalid()[0].contains("sent late"));
        let mut full = good;
        full.host_cpu_busy_share = 0.97;
        assert_eq!(full.invalid(), ["the machine was 97 % busy"]);
        let report = Report::new(setup(), &["warm".to_owned()], vec![full]);
        assert!(!report.is_clean() && report.to_string().contains("INVALID warm, repeat 0"));
    }

    #[test]
    fn the_load_is_printed_as_a_share_of_capacity() {
        let text = setup().to_string();
        assert!(text.contains("400 prompt tokens/s = 100 % of"), "{text}");
        assert!(text.contains("50 % at the ceiling"), "{text}");
    }
}
