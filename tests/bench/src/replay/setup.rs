//! What is replayed against what: trace, workers, loads, clock. The head of every report.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use super::Args;
use super::capacity::Capacity;
use super::fleet::FleetArgs;
use super::provenance::{Program, Provenance};
use router_agent::replay::bootstrap::CONFIDENCE;
use router_agent::replay::schedule;
use router_agent::replay::trace::Request;

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

impl Setup {
    pub(super) fn new(args: &Args, requests: &[Request], programs: Vec<Program>) -> Result<Self> {
        let span_s = schedule::span(requests).as_secs_f64();
        let own_rate = requests.len() as f64 / span_s;
        let fleet = args.direct.is_none().then(|| (args.fleet.clone(), Capacity::new(requests, &args.fleet)));
        let capacity = fleet.as_ref().map(|(_, capacity)| capacity.requests_per_s);
        let shares = args.loads.iter().map(|percent| percent / 100.0);
        let rates: Vec<f64> = match (args.rate, capacity) {
            (None, Some(capacity)) => shares.map(|share| share * capacity / own_rate).collect(),
            (rate, _) => vec![rate.unwrap_or(1.0)],
        };
        let load = |rate| {
            let requests_per_s = rate * own_rate;
            Load { rate, requests_per_s, share: capacity.map(|capacity| requests_per_s / capacity) }
        };
        let repeat = args.repeat.unwrap_or(if args.full { 3 } else { 2 });
        Ok(Self {
            file: args.file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            requests: requests.len(),
            span_s,
            prompt_tokens: requests.iter().map(|request| request.input_tokens).sum(),
            output_tokens: requests.iter().map(|request| request.output_tokens).sum(),
            speed_up: args.speed_up,
            seeds: (args.seed..args.seed + repeat).collect(),
            fleet,
            loads: rates.into_iter().map(load).collect(),
            provenance: Provenance::new(programs)?,
        })
    }

    /// Of one contender.
    pub(super) fn trials_each(&self) -> usize {
        self.loads.len() * self.seeds.len()
    }

    /// Roughly how long the run takes: all arrivals, and starting, draining and stopping as it was seen.
    pub(super) fn wall_s(&self, contenders: usize) -> f64 {
        const BESIDE_ARRIVALS_S: f64 = 5.0;
        let arrivals_s = |load: &Load| self.requests as f64 / load.requests_per_s / self.speed_up;
        let round_s: f64 = self.loads.iter().map(|load| arrivals_s(load) + BESIDE_ARRIVALS_S).sum();
        round_s * (contenders * self.seeds.len()) as f64
    }
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
                fleet.workers,
                fleet.prefill_tokens_per_s,
                fleet.itl_base_ms,
                fleet.itl_slope_ms,
                fleet.kv_blocks
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
