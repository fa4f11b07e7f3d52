//! What another configuration would have made of recorded decisions.
//!
//! Both sides are simulated by the same model of the workers, so that they can be compared: *before* is the fleet of the log
//! with the workers that were chosen then, *after* the fleet and the policy of the new configuration. What was really
//! observed is told beside them: it says how far to believe the model.
//!
//! A worker's prefill rate is the last one that the gateway had learned of it, by its name; a worker that the log does not
//! know is as fast as the median of those that it does ([`PREFILL_TOKENS_PER_S`] where nothing was learned). KV caches have
//! the configured `index.worker_capacity_tokens`. A request goes to workers that were ever a candidate for its model, and
//! to those that the log does not know.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    engine::Request,
    simulation::{Chooser, Outcome, Wishes, Worker, run},
    stats::{Summary, max_over_mean},
    table::Table,
    trace::{OUTPUT_TOKENS, TraceError, decisions::output_tokens},
};
use crate::{
    config::Config,
    index::WORKERS_MAX,
    records::DecisionRecord,
    routing::{Policy, Settings},
};

/// Of a worker of which nothing is known: roughly a 70 B model on four large GPUs.
pub const PREFILL_TOKENS_PER_S: f64 = 7_000.0;

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum WhatIfError {
    /// The log cannot be used.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// More workers than a fleet can have.
    #[error("the log has {0} workers, at most {WORKERS_MAX} are possible: replay a part of it")]
    TooManyWorkers(usize),
}

/// Figures of one side.
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    /// Arrival to first token, seconds.
    pub time_to_first_token_seconds: Summary,
    /// Prompt tokens found in a cache, of all.
    pub hit_rate: f64,
    /// The most that any worker has to prefill, over the mean.
    pub prefill_max_over_mean: f64,
    /// By worker.
    pub workers: BTreeMap<String, Share>,
}

/// One worker's part.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Share {
    pub requests: u64,
    pub prefilled_tokens: u64,
}

/// Everything, for people (`Display`) and for programs (JSON).
#[derive(Debug, Serialize)]
pub struct Report {
    /// Decisions that were replayed.
    pub requests: usize,
    pub span_seconds: f64,
    /// Of the log, the most frequent.
    pub policy_before: String,
    pub policy_after: String,
    /// Share of the requests that would go to another worker.
    pub moved_share: f64,
    /// Simulated, with the workers that were chosen.
    pub before: Side,
    /// Simulated, as configured.
    pub after: Side,
    /// Observed at the time, of streams.
    pub observed_time_to_first_token_seconds: Summary,
    /// What the gateway had expected then.
    pub predicted_time_to_first_token_seconds: Summary,
}

/// What the log says of the workers.
struct Known {
    names: Vec<String>,
    rates: Vec<f64>,
    /// Candidates by model.
    serve: HashMap<Option<String>, HashSet<String>>,
}

impl Known {
    fn of(records: &[(usize, DecisionRecord)]) -> Self {
        let (mut names, mut rates) = (Vec::<String>::new(), HashMap::new());
        let mut serve: HashMap<Option<String>, HashSet<String>> = HashMap::new();
        for (_, record) in records {
            let of_model = serve.entry(record.model.clone()).or_default();
            of_model.insert(record.worker.clone());
            for candidate in &record.candidates {
                of_model.insert(candidate.worker.clone());
                if let Some(speed) = candidate.speed.filter(|speed| speed.token_seconds > 0.0) {
                    rates.insert(candidate.worker.clone(), 1.0 / speed.token_seconds);
                }
            }
            let of_record = record.candidates.iter().map(|candidate| &candidate.worker);
            for name in of_record.chain([&record.worker]) {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
        }
        names.sort();
        let rates = names.iter().map(|name| rates.get(name).copied().unwrap_or(f64::NAN)).collect();
        Self { names, rates, serve }
    }

    fn median_rate(&self) -> f64 {
        let mut known: Vec<f64> = self.rates.iter().copied().filter(|rate| rate.is_finite()).collect();
        known.sort_by(f64::total_cmp);
        known.get(known.len() / 2).copied().unwrap_or(PREFILL_TOKENS_PER_S)
    }

    fn worker(&self, name: &str, capacity_tokens: u64) -> Worker {
        let place = self.names.iter().position(|known| known == name);
        let rate = place.map(|place| self.rates[place]).filter(|rate| rate.is_finite());
        Worker {
            identity: xxh3_64(name.as_bytes()),
            tokens_per_s: rate.unwrap_or_else(|| self.median_rate()),
            capacity_tokens,
        }
    }

    /// Whether the log has nothing against it.
    #[expect(clippy::ref_option, reason = "it is a key of the map")]
    fn may_serve(&self, name: &str, model: &Option<String>) -> bool {
        !self.names.iter().any(|known| known == name)
            || self.serve.get(model).is_some_and(|serve| serve.contains(name))
    }
}

/// Replays the records, which are in the order of their times, through `config`.
pub fn what_if(records: &[(usize, DecisionRecord)], config: &Config) -> Result<Report, WhatIfError> {
    let known = Known::of(records);
    if known.names.len() > WORKERS_MAX {
        return Err(WhatIfError::TooManyWorkers(known.names.len()));
    }
    let requests = requests(records)?;
    let capacity = config.index.worker_capacity_tokens;
    let fleet =
        |names: &[String]| -> Vec<Worker> { names.iter().map(|name| known.worker(name, capacity)).collect() };
    let chosen: Vec<usize> = records
        .iter()
        .map(|(_, record)| known.names.binary_search(&record.worker).expect("all names of the log are there"))
        .collect();
    let before = run(&requests, &fleet(&known.names), Chooser::Known(&chosen), Wishes::default());

    let names: Vec<String> = config.workers.iter().map(|worker| worker.name.clone()).collect();
    let eligible: Vec<Vec<usize>> = records
        .iter()
        .map(|(_, record)| {
            let may = |worker: &usize| known.may_serve(&names[*worker], &record.model);
            (0..names.len()).filter(may).collect()
        })
        .collect();
    let sessions: Vec<_> = records.iter().map(|(_, record)| record.session_hash.map(|hash| hash.0)).collect();
    let settings = simulated(&config.routing.settings);
    let chooser = Chooser::Policy { settings: &settings, learns: true };
    let after = run(&requests, &fleet(&names), chooser, Wishes { sessions: &sessions, eligible: &eligible });

    let moved = after
        .served
        .iter()
        .zip(records)
        .filter(|(served, (_, record))| names[served.worker] != record.worker)
        .count();
    let summary = |figure: &dyn Fn(&DecisionRecord) -> Option<f64>| {
        Summary::of(records.iter().filter_map(|(_, record)| figure(record)).collect())
    };
    Ok(Report {
        requests: requests.len(),
        span_seconds: requests.last().map_or(0.0, |last| last.at_s),
        policy_before: usual_policy(records),
        policy_after: settings.policy.name().to_owned(),
        moved_share: moved as f64 / requests.len() as f64,
        before: Side::of(&before, &requests, &known.names),
        after: Side::of(&after, &requests, &names),
        observed_time_to_first_token_seconds: summary(&|record| {
            record.outcome.as_ref()?.time_to_first_token_seconds
        }),
        predicted_time_to_first_token_seconds: summary(&|record| {
            record.predicted_time_to_first_token_seconds
        }),
    })
}

/// The controller of `lmcache` cannot be asked about the past: `warm` decides, as where it does not answer.
fn simulated(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    if settings.policy == Policy::Lmcache {
        settings.policy = Policy::Warm;
    }
    settings
}

fn usual_policy(records: &[(usize, DecisionRecord)]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, record) in records {
        *counts.entry(record.policy.as_str()).or_default() += 1;
    }
    counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .map_or_else(String::new, |(policy, _)| policy.to_owned())
}

fn requests(records: &[(usize, DecisionRecord)]) -> Result<Vec<Request>, TraceError> {
    let start = records.first().map(|(_, record)| record.time).ok_or(TraceError::Empty)?;
    let mut lengths: Vec<u64> = records.iter().filter_map(|(_, record)| output_tokens(record)).collect();
    lengths.sort_unstable();
    let usual = lengths.get(lengths.len() / 2).copied().unwrap_or(OUTPUT_TOKENS);
    let request = |(line, record): &(usize, DecisionRecord)| {
        let hashes = record.prompt_hashes.as_ref().ok_or(TraceError::NoHashes { line: *line })?;
        let input = record.prompt_tokens as usize;
        Ok(Request {
            at_s: record.time.duration_since(start).as_secs_f64(),
            input,
            output: output_tokens(record).unwrap_or(usual) as usize,
            ids: hashes.iter().map(|hash| hash.0).collect(),
            // As many as the gateway reckoned a block to have, but for the tail, which has no hash.
            block_tokens: (input / hashes.len().max(1)).max(1),
        })
    };
    records.iter().map(request).collect()
}

impl Side {
    fn of(outcome: &Outcome, requests: &[Request], names: &[String]) -> Self {
        let mut workers: BTreeMap<String, Share> = BTreeMap::new();
        for (name, prefilled_tokens) in names.iter().zip(&outcome.prefilled) {
            workers.insert(name.clone(), Share { requests: 0, prefilled_tokens: *prefilled_tokens });
        }
        for served in &outcome.served {
            workers.entry(names[served.worker].clone()).or_default().requests += 1;
        }
        Self {
            time_to_first_token_seconds: Summary::of(
                outcome.served.iter().map(|served| served.ttft_s).collect(),
            ),
            hit_rate: outcome.cached_share(requests),
            prefill_max_over_mean: max_over_mean(outcome.prefilled.iter().copied(), names.len()),
            workers,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, after, .. } = self;
        writeln!(
            f,
            "{} requests over {:.0} s: {:.1} % would go to another worker ({} with {} workers, then {} with {})\n",
            self.requests,
            self.span_seconds,
            100.0 * self.moved_share,
            self.policy_before,
            before.workers.len(),
            self.policy_after,
            after.workers.len(),
        )?;
        let mut table = Table::new(["", "TTFT mean, s", "p50", "p90", "p99", "hit rate", "prefill max/mean"]);
        let dash = || "–".to_owned();
        let figure = |value: f64| if value.is_finite() { format!("{value:.3}") } else { dash() };
        let mut row = |name: &str, ttft: &Summary, rest: [String; 2]| {
            let mut cells = vec![name.to_owned()];
            cells.extend([ttft.mean, ttft.p50, ttft.p90, ttft.p99].map(figure));
            cells.extend(rest);
            table.row(cells);
        };
        for (name, side) in [("before, simulated", before), ("after, simulated", after)] {
            let rest =
                [format!("{:.1} %", 100.0 * side.hit_rate), format!("{:.2}", side.prefill_max_over_mean)];
            row(name, &side.time_to_first_token_seconds, rest);
        }
        row("observed then", &self.observed_time_to_first_token_seconds, [dash(), dash()]);
        row("predicted then", &self.predicted_time_to_first_token_seconds, [dash(), dash()]);
        writeln!(f, "{table}")?;
        let mut table =
            Table::new(["worker", "requests before", "after", "prefilled tokens before", "after"]);
        let names: std::collections::BTreeSet<_> =
            before.workers.keys().chain(after.workers.keys()).collect();
        for name in names {
            let of = |side: &Side, figure: fn(&Share) -> u64| {
                side.workers.get(name).map_or_else(dash, |share| figure(share).to_string())
            };
            let (requests, prefilled) =
                (|share: &Share| share.requests, |share: &Share| share.prefilled_tokens);
            table.row(vec![
                name.clone(),
                of(before, requests),
                of(after, requests),
                of(before, prefilled),
                of(after, prefilled),
            ]);
        }
        write!(f, "{table}")
    }
}
