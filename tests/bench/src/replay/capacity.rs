//! What the fleet could do at most, so that a load can be given as a share of it.
//!
//! **Definition.** The capacity is the rate of requests at which workers that waste nothing would be busy all the time:
//! every prompt token that one LRU cache of all workers' size would serve is served (the trace's ceiling), every worker
//! has work at every moment, and decode steps are shared by as many sequences as the KV cache holds. Then a request
//! costs, by the simulated worker's own formula (a step takes prefill tokens / prefill rate, plus base + slope × decoding
//! sequences if any decode),
//!
//! ```text
//! prompt × (1 − ceiling) / prefill rate  +  output × (slope + base / batch)      seconds of one worker
//! batch = min(max-num-seqs, KV tokens / (prompt + output / 2))
//! ```
//!
//! over the means of the trace. It depends on no router, and none reaches it: no cache is shared between the workers,
//! sequences take the room of cached blocks, arrivals are not even. At 100 % every router's queues grow.

use serde::Serialize;

use super::fleet::{FleetArgs, SEQUENCES_MAX};
use router_agent::replay::trace::{BLOCK_TOKENS, Request, ceiling};

/// Means of the trace, and what follows from them. Trace time.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Capacity {
    /// Of the whole fleet.
    pub(crate) requests_per_s: f64,
    /// Seconds of one worker for the prefill of a mean request, at the ceiling.
    pub(crate) prefill_s_per_request: f64,
    /// Seconds of one worker for its output, in full batches.
    pub(crate) decode_s_per_request: f64,
    /// Sequences that fit in a worker's KV cache.
    pub(crate) batch: f64,
    /// Share of the prompt tokens that one LRU cache of all workers' size would serve.
    pub(crate) ceiling_lru_share: f64,
    /// The same of one infinite cache.
    pub(crate) ceiling_infinite_share: f64,
}

impl Capacity {
    pub(super) fn new(requests: &[Request], fleet: &FleetArgs) -> Self {
        let count = requests.len() as f64;
        let fleet_tokens = fleet.kv_tokens() * u64::from(fleet.workers);
        let lru = ceiling(requests, (fleet_tokens / BLOCK_TOKENS) as usize);
        let prompt = lru.prompt_tokens as f64 / count;
        let output = requests.iter().map(|request| request.output_tokens).sum::<u64>() as f64 / count;
        let batch = (fleet.kv_tokens() as f64 / (prompt + output / 2.0)).clamp(1.0, SEQUENCES_MAX as f64);
        let prefill_s = prompt * (1.0 - lru.share()) / fleet.prefill_tokens_per_s;
        let decode_s = output * (fleet.itl_slope_ms + fleet.itl_base_ms / batch) / 1e3;
        Self {
            requests_per_s: f64::from(fleet.workers) / (prefill_s + decode_s),
            prefill_s_per_request: prefill_s,
            decode_s_per_request: decode_s,
            batch,
            ceiling_lru_share: lru.share(),
            ceiling_infinite_share: ceiling(requests, usize::MAX).share(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_costs_its_prefill_and_its_share_of_full_batches() {
        // Twice the same prompt of 1,024 tokens: one of two is cached. 10 output tokens.
        let request = Request::of_blocks(0, 1_024, 10, [1, 2].into());
        let mut fleet = FleetArgs {
            workers: 2,
            prefill_tokens_per_s: 1_024.0,
            itl_base_ms: 100.0,
            itl_slope_ms: 1.0,
            kv_blocks: 1_024,
            sim_arg: Vec::new(),
        };
        let capacity = Capacity::new(&[request.clone(), request.clone()], &fleet);
        let batch = 16_384.0 / 1_029.0;
        assert!((capacity.batch - batch).abs() < 1e-9);
        assert!((capacity.prefill_s_per_request - 0.5).abs() < 1e-9);
        assert!((capacity.decode_s_per_request - 10.0 * (0.001 + 0.1 / batch)).abs() < 1e-9);
        let cost_s = capacity.prefill_s_per_request + capacity.decode_s_per_request;
        assert!((capacity.requests_per_s - 2.0 / cost_s).abs() < 1e-9);

        fleet.kv_blocks = 8; // 256 tokens in both workers: not one block of the trace
        let capacity = Capacity::new(&[request.clone(), request], &fleet);
        assert!((capacity.prefill_s_per_request - 1.0).abs() < 1e-9);
        assert!((capacity.batch - 1.0).abs() < 1e-9);
        assert!((capacity.ceiling_infinite_share - 0.5).abs() < 1e-9);
    }
}
