//! What the engine counts.

use tokio::time::Instant;

use super::histogram::Histogram;
use crate::engine::sequence::{Finish, Sequence};

const TOKENS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5];
const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const PARAMS_N: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const PREEMPTIONS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];
const FIRST_TOKEN_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const TOKEN_S: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const REQUEST_S: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];

/// Gauges, counters and histograms of one engine. Units: tokens, seconds, requests.
#[derive(Clone, Debug)]
pub(crate) struct EngineMetrics {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) kv_usage: f64,
    pub(crate) cached_blocks: usize,
    pub(crate) prefix_queries: u64,
    pub(crate) prefix_hits: u64,
    pub(crate) preemptions: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_prompt_tokens: u64,
    pub(crate) generation_tokens: u64,
    pub(crate) finished_stop: u64,
    pub(crate) finished_length: u64,
    pub(crate) rejected: u64,
    pub(crate) iteration_tokens: Histogram,
    pub(crate) request_prompt_tokens: Histogram,
    pub(crate) request_generation_tokens: Histogram,
    pub(crate) request_max_tokens: Histogram,
    pub(crate) request_n: Histogram,
    pub(crate) request_computed_tokens: Histogram,
    pub(crate) request_preemptions: Histogram,
    pub(crate) time_to_first_token: Histogram,
    pub(crate) inter_token_latency: Histogram,
    pub(crate) time_per_output_token: Histogram,
    pub(crate) e2e_latency: Histogram,
    pub(crate) queue_time: Histogram,
    pub(crate) inference_time: Histogram,
    pub(crate) prefill_time: Histogram,
    pub(crate) decode_time: Histogram,
}

impl Default for EngineMetrics {
    fn default() -> Self {
        Self {
            running: 0,
            waiting: 0,
            kv_usage: 0.0,
            cached_blocks: 0,
            prefix_queries: 0,
            prefix_hits: 0,
            preemptions: 0,
            prompt_tokens: 0,
            cached_prompt_tokens: 0,
            generation_tokens: 0,
            finished_stop: 0,
            finished_length: 0,
            rejected: 0,
            iteration_tokens: Histogram::new(STEP_TOKENS),
            request_prompt_tokens: Histogram::new(TOKENS),
            request_generation_tokens: Histogram::new(TOKENS),
            request_max_tokens: Histogram::new(TOKENS),
            request_n: Histogram::new(PARAMS_N),
            request_computed_tokens: Histogram::new(TOKENS),
            request_preemptions: Histogram::new(PREEMPTIONS),
            time_to_first_token: Histogram::new(FIRST_TOKEN_S),
            inter_token_latency: Histogram::new(TOKEN_S),
            time_per_output_token: Histogram::new(TOKEN_S),
            e2e_latency: Histogram::new(REQUEST_S),
            queue_time: Histogram::new(REQUEST_S),
            inference_time: Histogram::new(REQUEST_S),
            prefill_time: Histogram::new(REQUEST_S),
            decode_time: Histogram::new(REQUEST_S),
        }
    }
}

impl EngineMetrics {
    /// A sequence's prefill is over.
    pub(crate) fn first_token(&mut self, sequence: &Sequence, now: Instant) {
        self.prompt_tokens += sequence.prompt_len as u64;
        self.cached_prompt_tokens += sequence.cached.unwrap_or(0) as u64;
        self.time_to_first_token.observe(seconds(sequence.arrived, now));
    }

    /// A sequence has ended by itself. (vLLM counts no aborted ones.)
    pub(crate) fn finished(&mut self, sequence: &Sequence, finish: Finish, now: Instant) {
        match finish {
            Finish::Stop => self.finished_stop += 1,
            Finish::Length => self.finished_length += 1,
            Finish::Abort | Finish::Error => return,
        }
        let started = sequence.started.unwrap_or(now);
        let first_token = sequence.first_token.unwrap_or(now);
        let output_len = sequence.output_len() as f64;
        self.request_prompt_tokens.observe(sequence.prompt_len as f64);
        self.request_generation_tokens.observe(output_len);
        self.request_max_tokens.observe(sequence.max_tokens as f64);
        self.request_n.observe(1.0);
        self.request_computed_tokens.observe((sequence.prompt_len - sequence.cached.unwrap_or(0)) as f64);
        self.request_preemptions.observe(f64::from(sequence.preemptions));
        let decode_s = seconds(first_token, now);
        self.time_per_output_token.observe(decode_s / (output_len - 1.0).max(1.0));
        self.e2e_latency.observe(seconds(sequence.arrived, now));
        self.queue_time.observe(seconds(sequence.arrived, started));
        self.inference_time.observe(seconds(started, now));
        self.prefill_time.observe(seconds(started, first_token));
        self.decode_time.observe(decode_s);
    }
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}
