//! What a replay prints and writes: a table per load, and who was faster than whom.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::fleet::{prefill_imbalance, request_imbalance};
use super::setup::Setup;
use super::trial::Trial;
use router_agent::replay::bootstrap::{Draws, Estimate, STATISTICS, draw};
use router_agent::replay::stats::mean;
use router_agent::replay::table::{Table, with_interval};

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
        let most =
            |value: &dyn Fn(&Trial) -> f64| trials.iter().map(|trial| value(trial)).fold(0.0, f64::max);
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
                let name = format!(
                    "{} at {}, seed {}",
                    trial.contender,
                    setup.loads[trial.load].label(),
                    trial.seed
                );
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
        if let Some(first) = self.rows.first().filter(|_| self.rows.len() > self.setup.loads.len()) {
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

#[cfg(test)]
mod tests {
    use super::super::fleet::Work;
    use super::super::provenance::Provenance;
    use super::super::setup::Load;
    use super::super::trial::tests::{record, trial};
    use super::*;

    fn setup() -> Setup {
        Setup {
            file: "trace".to_owned(),
            requests: 4,
            span_s: 10.0,
            prompt_tokens: 4_000,
            output_tokens: 200,
            speed_up: 2.0,
            seeds: vec![1],
            fleet: None,
            loads: vec![Load { rate: 1.0, requests_per_s: 0.4, share: Some(0.8) }],
            provenance: Provenance {
                date: "2026-01-01T00:00:00Z".to_owned(),
                commit: "abc".to_owned(),
                command: "cargo xtask bench replay".to_owned(),
                machine: "2 cores".to_owned(),
                programs: Vec::new(),
            },
        }
    }

    fn report(trials: Vec<Trial>) -> Report {
        Report::new(setup(), &["warm".to_owned(), "nginx".to_owned()], BTreeMap::new(), trials, &[])
    }

    #[test]
    fn a_row_leaves_failures_out_of_the_figures_and_counts_them() {
        let mut records = vec![record(0, 1.0, 1_000, 0), record(1, 3.0, 1_000, 500), record(2, 99.0, 0, 0)];
        records[2].error = Some("status 503".to_owned());
        let mut warm = trial("warm", records);
        let work =
            |finished, prompt_tokens| Work { finished, prompt_tokens, cached_tokens: 0, preemptions: 1 };
        warm.work = vec![work(2, 1_500), work(0, 0)];
        let report = report(vec![warm]);
        let row = &report.rows[0];
        assert!((row.ttft["mean"].value - 2.0).abs() < 1e-9);
        assert!((row.cached_share - 0.25).abs() < 1e-9);
        assert!((row.output_tokens_per_s - 10.0).abs() < 1e-9, "100 tokens in 10 s");
        assert_eq!(row.prefill_max_over_mean, Some(2.0), "an idle worker counts");
        assert_eq!((row.errors, row.preemptions), (1, 2));
        assert!(!report.is_clean());
        let text = report.to_string();
        assert!(text.contains("ERROR 1 × warm: status 503"), "{text}");
        assert!(!text.contains("below 1 it is faster"), "there is nobody to compare with: {text}");
    }

    #[test]
    fn the_first_is_compared_with_each_other_one() {
        let records = |ttft_s| (0..200).map(|index| record(index, ttft_s, 10, 0)).collect();
        let report = report(vec![trial("nginx", records(2.0)), trial("warm", records(1.0))]);
        assert_eq!(report.rows[0].contender, "warm", "in the order asked for");
        assert!((report.rows[1].first_over_this["p50"].value - 0.5).abs() < 1e-9);
        let text = report.to_string();
        assert!(text.contains("| 80 % | nginx   | 0.50 faster |"), "{text}");
        assert!(report.is_clean(), "{text}");
    }

    #[test]
    fn what_was_invalid_is_said_and_what_was_repeated_does_not_count() {
        let mut full = trial("warm", vec![record(0, 1.0, 10, 0)]);
        full.host_cpu_busy_share = 0.97;
        let good = trial("warm", vec![record(0, 1.0, 10, 0)]);
        let contenders = ["warm".to_owned()];
        let kept = Report::new(setup(), &contenders, BTreeMap::new(), vec![full.clone()], &[]);
        assert!(!kept.is_clean());
        assert!(kept.to_string().contains("INVALID warm at 80 %, seed 1: the machine was 97 % busy"));
        let repeated = Report::new(setup(), &contenders, BTreeMap::new(), vec![good], &[full]);
        assert!(repeated.is_clean());
        assert!(repeated.to_string().contains("repeated, because invalid: warm at 80 %"));
        let skipped = BTreeMap::from([("smg".to_owned(), "no network".to_owned())]);
        let good = trial("warm", vec![record(0, 1.0, 10, 0)]);
        let missing = Report::new(setup(), &contenders, skipped, vec![good], &[]);
        assert!(!missing.is_clean() && missing.to_string().contains("SKIPPED smg: no network"));
    }
}
