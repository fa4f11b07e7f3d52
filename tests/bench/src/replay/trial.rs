//! One contender at one load, once: what was seen, and whether it may be believed.

use serde::Serialize;

use super::fleet::Work;
use router_agent::replay::drive::Record;
use router_agent::replay::stats::Summary;

/// A trial says nothing about the contender when the generator sent this share of the median TTFT too late (its p99) ...
const LATE_SHARE_MAX: f64 = 0.1;
/// ... or when the machine had no CPU time left.
const HOST_CPU_BUSY_MAX: f64 = 0.9;

#[derive(Debug, Clone, Serialize)]
pub(super) struct Trial {
    pub(super) contender: String,
    /// Number of the load, in the order of the run.
    pub(super) load: usize,
    pub(super) repeat: u64,
    pub(super) seed: u64,
    pub(super) wall_s: f64,
    /// Of the router and its children.
    pub(super) router_cpu_ms_per_request: Option<f64>,
    pub(super) workers_cpu_ms_per_request: Option<f64>,
    pub(super) generator_cpu_ms_per_request: Option<f64>,
    pub(super) host_cpu_busy_share: f64,
    /// As counted by each worker; empty where the workers are somebody else's.
    pub(super) work: Vec<Work>,
    pub(super) records: Vec<Record>,
}

impl Trial {
    pub(super) fn good(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.error.is_none())
    }

    pub(super) fn errors(&self) -> usize {
        self.records.len() - self.good().count()
    }

    pub(super) fn ttft(&self) -> Summary {
        Summary::of(self.good().filter_map(|record| record.ttft_s).collect())
    }

    pub(super) fn late(&self) -> Summary {
        Summary::of(self.records.iter().map(|record| record.late_s).collect())
    }

    pub(super) fn cached_share(&self) -> f64 {
        let (cached, prompt) = self
            .good()
            .fold((0, 0), |(cached, prompt), r| (cached + r.cached_tokens, prompt + r.prompt_tokens));
        cached as f64 / prompt as f64
    }

    pub(super) fn output_tokens_per_s(&self) -> f64 {
        let end_s = self.records.iter().map(|record| record.end_s).fold(0.0, f64::max);
        self.good().map(|record| record.output_tokens).sum::<u64>() as f64 / end_s
    }

    /// First tokens per second of trace time while requests arrived: below the offered rate when queues grew.
    pub(super) fn served_per_s(&self) -> f64 {
        let last_s = self.records.last().map_or(0.0, |record| record.intended_s);
        let in_time = |record: &&Record| record.ttft_s.is_some_and(|ttft| record.intended_s + ttft <= last_s);
        self.good().filter(in_time).count() as f64 / last_s
    }

    /// Why the trial measures the generator or the machine and not the contender; empty when it does not.
    pub(super) fn invalid(&self) -> Vec<String> {
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
    pub(super) fn line(&self, load: &str) -> String {
        let ttft = self.ttft();
        let invalid: String =
            self.invalid().into_iter().flat_map(|reason| ["; INVALID: ".to_owned(), reason]).collect();
        format!(
            "{load} {:<14} seed {}: TTFT mean {:.2} s, p50 {:.2} s, cached {:.1} %, {} errors; {:.0} s of wall clock, \
             generator late p99 {:.0} ms, machine {:.0} % busy{invalid}",
            self.contender,
            self.seed,
            ttft.mean,
            ttft.p50,
            100.0 * self.cached_share(),
            self.errors(),
            self.wall_s,
            1e3 * self.late().p99,
            100.0 * self.host_cpu_busy_share
        )
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn record(index: usize, ttft_s: f64, prompt_tokens: u64, cached_tokens: u64) -> Record {
        Record {
            index,
            intended_s: index as f64,
            late_s: 0.0,
            ttft_s: Some(ttft_s),
            itl_s: Some(0.01),
            end_s: 10.0,
            prompt_tokens,
            cached_tokens,
            output_tokens: 50,
            worker: None,
            error: None,
        }
    }

    pub(crate) fn trial(contender: &str, records: Vec<Record>) -> Trial {
        Trial {
            contender: contender.to_owned(),
            load: 0,
            repeat: 0,
            seed: 1,
            wall_s: 10.0,
            router_cpu_ms_per_request: Some(0.5),
            workers_cpu_ms_per_request: None,
            generator_cpu_ms_per_request: None,
            host_cpu_busy_share: 0.5,
            work: Vec::new(),
            records,
        }
    }

    #[test]
    fn a_late_generator_or_a_full_machine_is_invalid() {
        let mut one = trial("warm", vec![record(0, 1.0, 1, 0)]);
        one.records[0].late_s = 0.05;
        assert!(one.invalid().is_empty());
        one.records[0].late_s = 0.2;
        assert!(one.invalid()[0].contains("sent late"));
        one.records[0].late_s = 0.0;
        one.host_cpu_busy_share = 0.97;
        assert_eq!(one.invalid(), ["the machine was 97 % busy"]);
        assert!(one.line("80 %").contains("INVALID: the machine was 97 % busy"));
    }

    #[test]
    fn served_counts_first_tokens_while_requests_arrived() {
        // Arrivals at 0, 1, 2, 3, 4 s; the second and the last two get their first token after the last arrival.
        let records = [0.5, 3.5, 1.0, 2.0, 1.0].iter().enumerate().map(|(i, ttft)| record(i, *ttft, 1, 0));
        let mut growing = trial("warm", records.collect());
        assert!((growing.served_per_s() - 2.0 / 4.0).abs() < 1e-9);
        growing.records[0].error = Some("status 503".to_owned());
        assert!((growing.served_per_s() - 1.0 / 4.0).abs() < 1e-9, "a failure serves nobody");
        assert_eq!(growing.errors(), 1);
    }
}
