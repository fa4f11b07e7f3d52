//! The simulated workers of one trial: started fresh, and asked at the end how much each of them has done.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::processes::{Process, free_ports, get, sibling};
use router_agent::replay::stats::max_over_mean;

/// Tokens per KV block of the simulated workers.
const KV_BLOCK_TOKENS: u64 = 16;
/// Sequences that a worker runs at once (vLLM's `--max-num-seqs`).
pub(super) const SEQUENCES_MAX: u64 = 256;

/// How many workers, and how fast and large each is. Times are of the trace's clock.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(super) struct FleetArgs {
    /// Simulated workers
    #[arg(long, default_value_t = 8)]
    pub(super) workers: u16,
    /// Prefill rate of one worker, tokens per second of trace time
    #[arg(long, default_value_t = 7_000.0)]
    pub(super) prefill_tokens_per_s: f64,
    /// Inter-token latency of one worker with nothing else to do, milliseconds of trace time
    #[arg(long, default_value_t = 20.0)]
    pub(super) itl_base_ms: f64,
    /// What each running sequence adds to it, milliseconds of trace time
    #[arg(long, default_value_t = 0.2)]
    pub(super) itl_slope_ms: f64,
    /// KV cache of one worker, blocks of 16 tokens
    #[arg(long, default_value_t = 32_768)]
    pub(super) kv_blocks: u64,
    /// Another argument for vllm-sim (repeatable)
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(super) sim_arg: Vec<String>,
}

impl FleetArgs {
    /// KV cache of one worker.
    pub(super) fn kv_tokens(&self) -> u64 {
        self.kv_blocks * KV_BLOCK_TOKENS
    }

    pub(super) fn check(&self) -> Result<()> {
        ensure!(self.workers > 0, "--workers must be above 0");
        ensure!(self.prefill_tokens_per_s > 0.0, "--prefill-tokens-per-s must be above 0");
        ensure!(self.itl_base_ms >= 0.0 && self.itl_slope_ms >= 0.0, "--itl-… must not be negative");
        ensure!(self.kv_blocks > 0, "--kv-blocks must be above 0");
        Ok(())
    }
}

/// Running workers, all in one process.
pub(super) struct Fleet {
    process: Process,
    pub(super) addresses: Vec<SocketAddr>,
}

impl Fleet {
    pub(super) fn start(
        args: &FleetArgs,
        model: &str,
        speed_up: f64,
        seed: u64,
        log: PathBuf,
    ) -> Result<Self> {
        let port = free_ports(args.workers)?;
        let mut sim_args: Vec<String> = [
            ("--port", port.to_string()),
            ("--count", args.workers.to_string()),
            ("--served-model-name", model.to_owned()),
            ("--prefill-tokens-per-s", args.prefill_tokens_per_s.to_string()),
            ("--itl-base-ms", args.itl_base_ms.to_string()),
            ("--itl-slope-ms", args.itl_slope_ms.to_string()),
            ("--num-gpu-blocks", args.kv_blocks.to_string()),
            ("--max-num-seqs", SEQUENCES_MAX.to_string()),
            // The cheapest of vLLM's: with SHA-256 the simulation would spend a third of its CPU time on hashes.
            ("--prefix-caching-hash-algo", "xxhash_cbor".to_owned()),
            ("--time-scale", speed_up.to_string()),
            ("--seed", seed.to_string()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect();
        sim_args.extend(args.sim_arg.iter().cloned());
        let mut process = Process::start(&sibling("vllm-sim")?, &sim_args, log)?;
        let addresses: Vec<_> =
            (0..args.workers).map(|i| SocketAddr::from((Ipv4Addr::LOCALHOST, port + i))).collect();
        for address in &addresses {
            process.await_ready(*address, "/health")?;
        }
        Ok(Self { process, addresses })
    }

    /// User and system time so far.
    pub(super) fn cpu(&self) -> Duration {
        self.process.cpu()
    }

    /// What each worker says that it has done since its start.
    pub(super) fn work(&self) -> Result<Vec<Work>> {
        self.addresses
            .iter()
            .map(|address| {
                let (status, body) = get(*address, "/sim/stats")?;
                ensure!(status == 200, "{address}/sim/stats: status {status}");
                serde_json::from_str(&body).with_context(|| format!("{address}/sim/stats"))
            })
            .collect()
    }
}

/// One worker's own count, so that it is the same for every router in front of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Work {
    /// Requests answered to the end.
    pub(super) finished: u64,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) preemptions: u64,
}

/// The most prefilled tokens (not found in the cache) of a worker over the mean: 1 is even.
pub(super) fn prefill_imbalance(work: &[Work]) -> f64 {
    max_over_mean(work.iter().map(|worker| worker.prompt_tokens - worker.cached_tokens), work.len())
}

/// The same of requests.
pub(super) fn request_imbalance(work: &[Work]) -> f64 {
    max_over_mean(work.iter().map(|worker| worker.finished), work.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_counts_what_was_computed() {
        let work = |finished, prompt_tokens, cached_tokens| Work {
            finished,
            prompt_tokens,
            cached_tokens,
            preemptions: 0,
        };
        let fleet = [work(3, 4_000, 1_000), work(1, 1_000, 0), work(0, 0, 0), work(0, 0, 0)];
        assert!((prefill_imbalance(&fleet) - 3.0).abs() < 1e-9);
        assert!((request_imbalance(&fleet) - 3.0).abs() < 1e-9);
    }
}
