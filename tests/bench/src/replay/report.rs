//! What a replay prints and writes: how it was set up, a table per load, and who was faster than whom.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::bootstrap::{CONFIDENCE, Draws, Estimate, STATISTICS, draw};
use super::capacity::Capacity;
use super::fleet::{FleetArgs, prefill_imbalance, request_imbalance};
use super::provenance::Provenance;
use super::table::{Table, with_interval};
use super::trial::Trial;
use crate::stats::mean;

/// One offered load. Trace time.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Load {
    /// Arrivals, relative to the trace's own.
    pub(super) rate: f64,
    pub(super) requests_per_s: f64,
    /// Of the fleet's capacity; none where the workers are somebody else's.
    pub(super) share: Option<f64>,
}

impl Load {
    pub(super) fn label(&self) -> String {
        self.share.map_or_else(
            || format!("{:.2} requests/s", self.requests_per_s),
            |share| format!("{:.0} %", 100.0 * share),
        )
    }
}

/// What is replayed, against what.
#[derive(Debug, Serialize)]
pub(super) struct Setup {
    pub(super) file: String,
    pub(super) requests: usize,
    pub(super) span_s: f64,
    pub(super) prompt_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) speed_up: f64,
    pub(super) seeds: Vec<u64>,
    /// None where the workers are somebody else's.
    pub(super) fleet: Option<(FleetArgs, Capacity)>,
    pub(super) loads: Vec<Load>,
    pub(super) provenance: Provenance,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "- Trace: {}, {} requests in {:.0} s, {:.1} M prompt tokens, {:.0} k output tokens",
            self.file,
            self.requests,
            self.span_s,
            self.prompt_tokens as f64 / 1e6,
            self.output_tokens as f64 / 1e3
        )?;
        if let Some((fleet, capacity)) = &self.fleet {
            writeln!(
                f,
                "- Ceiling: one infinite cache would serve {:.1} % of the prompt tokens, one LRU cache of all workers' size \
                 {:.1} %",
                100.0 * capacity.ceiling_infinite_share,
                100.0 * capacity.ceiling_lru_share
            )?;
            writeln!(
                f,
                "- Workers: {} simulated, each {:.0} prefill tokens/s, {} ms between tokens + {} ms per running \
                 sequence, {} KV blocks of 16 tokens",
                fleet.workers, fleet.prefill_tokens_per_s, fleet.itl_base_ms, fleet.itl_slope_ms, fleet.kv_blocks
            )?;
            writeln!(
                f,
                "- Capacity: {:.2} requests/s, where workers that waste nothing are busy all the time: a request costs \
                 {:.2} s of a worker for prefill at the LRU ceiling, {:.2} s for its output in batches of {:.0}",
                capacity.requests_per_s,
                capacity.prefill_s_per_request,
                capacity.decode_s_per_request,
                capacity.batch
            )?;
        }
        let seeds: Vec<_> = self.seeds.iter().map(u64::to_string).collect();
        writeln!(
            f,
            "- Clock: {} times as fast as the trace's; all times are trace time (measured × {}), the router's own \
             time included. Seeds: {}. Intervals: {:.0} %, paired block bootstrap",
            self.speed_up,
            self.speed_up,
            seeds.join(", "),
            100.0 * CONFIDENCE
        )?;
        let provenance = &self.provenance;
        writeln!(f, "- {}, commit {}, {}", provenance.date, provenance.commit, provenance.machine)?;
        writeln!(f, "- `{}`", provenance.command)?;
        writeln!(f, "- {}", provenance.lines().join("; "))
    }
}

/// One contender at one load, over all seeds.
#[derive(Debug, Serialize)]
struct Row {
    load: usize,
    contender: String,
    /// By statistic, seconds.
    ttft: BTreeMap<&'static str, Estimate>,
    /// The first contender's TTFT over this one's: below 1, the first is faster.
    first_over_this: BTreeMap<&'static str, Estimate>,
    itl_mean_s: f64,
    cached_share: f64,
    output_tokens_per_s: f64,
    served_per_s: f64,
    requests_max_over_mean: Option<f64>,
    prefill_max_over_mean: Option<f64>,
    preemptions: u64,
    errors: usize,
    router_cpu_ms_per_request: Option<f64>,
    late_p99_s: f64,
    host_cpu_busy_share_max: f64,
}

impl Row {
    fn new(trials: &[&Trial], own: &Draws, first: &Draws) -> Self {
        let over = |value: &dyn Fn(&Trial) -> f64| {
            mean(&trials.iter().map(|trial| value(trial)).collect::<Vec<_>>())
        };
        let most = |value: &dyn Fn(&Trial) -> f64| trials.iter().map(|trial| value(trial)).fold(0.0, f64::max);
        let has_work = trials.iter().all(|trial| !trial.work.is_empty());
        let itl = trials.iter().flat_map(|trial| trial.good()).filter_map(|record| record.itl_s);
        Self {
            load: trials[0].load,
            contender: trials[0].contender.clone(),
            ttft: STATISTICS.iter().map(|(name, of)| (*name, own.estimate(*of))).collect(),
            first_over_this: STATISTICS.iter().map(|(name, of)| (*name, first.ratio(own, *of))).collect(),
            itl_mean_s: mean(&itl.collect::<Vec<_>>()),
            cached_share: over(&Trial::cached_share),
            output_tokens_per_s: over(&Trial::output_tokens_per_s),
            served_per_s: over(&Trial::served_per_s),
            requests_max_over_mean: has_work.then(|| over(&|trial| request_imbalance(&trial.work))),
            prefill_max_over_mean: has_work.then(|| over(&|trial| prefill_imbalance(&trial.work))),
            preemptions: trials.iter().flat_map(|trial| &trial.work).map(|work| work.preemptions).sum(),
            errors: trials.iter().map(|trial| trial.errors()).sum(),
            router_cpu_ms_per_request: trials
                .iter()
                .map(|trial| trial.router_cpu_ms_per_request)
                .sum::<Option<f64>>()
                .map(|sum| sum / trials.len() as f64),
            late_p99_s: most(&|trial| trial.late().p99),
            host_cpu_busy_share_max: most(&|trial| trial.host_cpu_busy_share),
        }
    }

    fn cells(&self, capacity: Option<f64>) -> Vec<String> {
        let dash = || "–".to_owned();
        let mut cells = vec![self.contender.clone()];
        cells.extend(STATISTICS.iter().map(|(name, _)| with_interval(self.ttft[name], 2)));
        cells.extend([
            format!("{:.1} %", 100.0 * self.cached_share),
            self.prefill_max_over_mean.map_or_else(dash, |value| format!("{value:.2}")),
            format!("{:.1}", 1e3 * self.itl_mean_s),
            format!("{:.0}", self.output_tokens_per_s),
            capacity.map_or_else(dash, |capacity| format!("{:.0} %", 100.0 * self.served_per_s / capacity)),
            self.errors.to_string(),
            self.router_cpu_ms_per_request.map_or_else(dash, |ms| format!("{ms:.2}")),
        ]);
        cells
    }
}

const COLUMNS: [&str; 12] = [
    "contender",
    "TTFT mean, s",
    "p50",
    "p90",
    "p99",
    "cached",
    "prefill max/mean",
    "ITL, ms",
    "output tok/s",
    "served",
    "errors",
    "router CPU/request, ms",
];

/// Everything, for people (`Display`, which is Markdown) and for programs (JSON).
#[derive(Debug, Serialize)]
pub(super) struct Report {
    setup: Setup,
    rows: Vec<Row>,
    /// Who could not take part, and why.
    skipped: BTreeMap<String, String>,
    /// Problems of the trials in the table, as printed.
    invalid: Vec<String>,
    /// Problems of trials that were repeated, and are not in the table.
    repeated: Vec<String>,
    /// Count by kind of error, over all trials.
    errors: BTreeMap<String, usize>,
    trials: Vec<Trial>,
}

impl Report {
    /// `contenders` in the order of the table; `repeated` trials count for nothing but are named.
    pub(super) fn new(
        setup: Setup,
        contenders: &[String],
        skipped: BTreeMap<String, String>,
        trials: Vec<Trial>,
        repeated: &[Trial],
    ) -> Self {
        let problems = |trials: &[Trial]| {
            let of = |trial: &Trial| {
                let name = format!("{} at {}, seed {}", trial.contender, setup.loads[trial.load].label(), trial.seed);
                trial.invalid().into_iter().map(move |reason| format!("{name}: {reason}")).collect::<Vec<_>>()
            };
            trials.iter().flat_map(of).collect()
        };
        let mut errors = BTreeMap::new();
        for trial in &trials {
            for error in trial.records.iter().filter_map(|record| record.error.as_ref()) {
                *errors.entry(format!("{}: {error}", trial.contender)).or_insert(0) += 1;
            }
        }
        let rows = (0..setup.loads.len()).flat_map(|load| rows(load, contenders, &trials)).collect();
        let (invalid, repeated) = (problems(&trials), problems(repeated));
        Self { setup, rows, skipped, invalid, repeated, errors, trials }
    }

    /// No error, no invalid trial, nobody missing.
    pub(super) fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.invalid.is_empty() && self.skipped.is_empty()
    }

    fn of_load(&self, load: usize) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.load == load)
    }
}

fn rows(load: usize, contenders: &[String], trials: &[Trial]) -> Vec<Row> {
    let by_contender: Vec<Vec<&Trial>> = contenders
        .iter()
        .map(|name| trials.iter().filter(|trial| trial.load == load && trial.contender == *name).collect())
        .filter(|trials: &Vec<_>| !trials.is_empty())
        .collect();
    let ttft = |trial: &&Trial| {
        trial.records.iter().map(|record| record.ttft_s.filter(|_| record.error.is_none())).collect()
    };
    let samples: Vec<_> = by_contender.iter().map(|trials| trials.iter().map(ttft).collect()).collect();
    let draws = draw(&samples);
    by_contender.iter().zip(&draws).map(|(trials, own)| Row::new(trials, own, &draws[0])).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.setup)?;
        let capacity = self.setup.fleet.as_ref().map(|(_, capacity)| capacity.requests_per_s);
        for (index, load) in self.setup.loads.iter().enumerate() {
            writeln!(f, "\n**{}** of capacity, {:.2} requests/s\n", load.label(), load.requests_per_s)?;
            let mut table = Table::new(COLUMNS);
            self.of_load(index).for_each(|row| table.row(row.cells(capacity)));
            write!(f, "{table}")?;
        }
        if let Some(first) = self.rows.first() {
            writeln!(f, "\nTTFT of `{}` over that of the others; below 1 it is faster:\n", first.contender)?;
            let mut table = Table::new(["load", "against", "mean", "p50", "p90", "p99"]);
            for (index, load) in self.setup.loads.iter().enumerate() {
                for row in self.of_load(index).skip(1) {
                    let mut cells = vec![load.label(), row.contender.clone()];
                    cells.extend(STATISTICS.iter().map(|(name, _)| verdict(row.first_over_this[name])));
                    table.row(cells);
                }
            }
            write!(f, "{table}")?;
        }
        writeln!(f)?;
        for (name, reason) in &self.skipped {
            writeln!(f, "- SKIPPED {name}: {reason}")?;
        }
        for (error, count) in &self.errors {
            writeln!(f, "- ERROR {count} × {error}")?;
        }
        for reason in &self.invalid {
            writeln!(f, "- INVALID {reason}")?;
        }
        for reason in &self.repeated {
            writeln!(f, "- repeated, because invalid: {reason}")?;
        }
        Ok(())
    }
}

/// A ratio, its interval, and a mark where the interval does not contain 1.
fn verdict(ratio: Estimate) -> String {
    let mark = if ratio.high < 1.0 {
        " faster"
    } else if ratio.low > 1.0 {
        " SLOWER"
    } else {
        ""
    };
    format!("{}{mark}", with_interval(ratio, 2))
}
