//! A trace in Mooncake's form, as requests with times.

use router_agent::replay::engine::Request;
use serde::Deserialize;

/// Tokens that one id stands for.
const BLOCK_TOKENS: usize = 512;
/// The trace's clock ticks every three seconds.
const TICK_MS: u64 = 3_000;

#[derive(Deserialize)]
struct Line {
    timestamp: u64,
    input_length: usize,
    output_length: usize,
    hash_ids: Vec<u64>,
}

/// The whole trace.
pub(crate) struct Trace(Vec<Line>);

impl Trace {
    pub(crate) fn read(path: &str) -> Self {
        let text = std::fs::read_to_string(path).expect("the trace can be read");
        Self(text.lines().map(|line| serde_json::from_str(line).expect("a request per line")).collect())
    }

    /// Prompt tokens per second.
    pub(crate) fn tokens_per_s(&self) -> f64 {
        let tokens: usize = self.0.iter().map(|line| line.input_length).sum();
        let span_ms = self.0.last().map_or(1, |last| last.timestamp - self.0[0].timestamp);
        tokens as f64 / (span_ms as f64 / 1e3)
    }

    /// The requests, `rate` times faster, each tick's at random over the gap to the next, as in `tests/bench`.
    pub(crate) fn requests(&self, rate: f64, seed: u64) -> Vec<Request> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut rest = self.0.as_slice();
        let start = rest.first().map_or(0, |first| first.timestamp);
        let mut requests = Vec::with_capacity(rest.len());
        while let Some(first) = rest.first() {
            let (group, after) =
                rest.split_at(rest.partition_point(|line| line.timestamp == first.timestamp));
            let gap_ms = after.first().map_or(TICK_MS, |next| next.timestamp - first.timestamp).min(TICK_MS);
            let mut offsets: Vec<f64> = group.iter().map(|_| random.f64() * gap_ms as f64).collect();
            offsets.sort_by(f64::total_cmp);
            requests.extend(group.iter().zip(offsets).map(|(line, offset)| Request {
                at_s: ((first.timestamp - start) as f64 + offset) / 1e3 / rate,
                input: line.input_length,
                output: line.output_length.max(1),
                ids: line.hash_ids.as_slice().into(),
                block_tokens: BLOCK_TOKENS,
            }));
            rest = after;
        }
        requests
    }
}
