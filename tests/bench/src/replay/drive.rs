//! Sends the requests, open loop: each goes out when the schedule says so, whether or not earlier ones are answered,
//! and its latency counts from that intended moment.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use super::client::{Answer, Client};
use super::prompt::{PromptBody, TextPool};
use super::trace::Request;

/// What is sent, to whom, and how fast.
pub(super) struct Drive<'a> {
    pub(super) requests: &'a [Request],
    pub(super) pool: &'a TextPool,
    pub(super) model: &'a str,
    /// Taken in turn.
    pub(super) addresses: &'a [SocketAddr],
    /// Wall clock runs so many times faster than the trace's.
    pub(super) speed_up: f64,
    /// Trace time.
    pub(super) timeout: Duration,
    /// Trace time that each request is held before it is sent; counts as latency, not as lateness.
    pub(super) hold: Duration,
}

/// One request of one trial. Seconds are of trace time; what did not happen is none.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Record {
    pub(super) index: usize,
    pub(super) intended_s: f64,
    pub(super) late_s: f64,
    pub(super) ttft_s: Option<f64>,
    pub(super) itl_s: Option<f64>,
    pub(super) end_s: f64,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) output_tokens: u64,
    /// From `x-warmpath-worker`; the address that was asked where nothing says so.
    pub(super) worker: Option<String>,
    pub(super) error: Option<String>,
}

impl Drive<'_> {
    /// Sends every request at its time (trace time since the start) and waits for all answers.
    pub(super) async fn run(&self, times: &[Duration]) -> Vec<Record> {
        let clients: Vec<_> = self.addresses.iter().map(|address| Arc::new(Client::new(*address))).collect();
        let (speed_up, timeout) = (self.speed_up, self.timeout.div_f64(self.speed_up));
        let hold = self.hold.div_f64(speed_up);
        let start = Instant::now() + Duration::from_millis(100);
        let mut tasks = JoinSet::new();
        for (index, (request, time)) in self.requests.iter().zip(times).enumerate() {
            let intended = start + time.div_f64(speed_up);
            tokio::time::sleep_until((intended + hold).into()).await;
            let client = Arc::clone(&clients[index % clients.len()]);
            let body = PromptBody::new(self.pool, self.model, request);
            let expected_tokens = request.output_tokens;
            tasks.spawn(async move {
                let answer = tokio::time::timeout(timeout, client.send(body)).await.ok();
                let clock = Clock { start, intended, hold, end: Instant::now(), speed_up };
                clock.record(index, answer, expected_tokens)
            });
        }
        let mut records = tasks.join_all().await;
        records.sort_by_key(|record| record.index);
        records
    }
}

/// The moments of one request, wall clock, and how to read them as trace time.
struct Clock {
    start: Instant,
    intended: Instant,
    hold: Duration,
    end: Instant,
    speed_up: f64,
}

impl Clock {
    fn seconds(&self, from: Instant, to: Instant) -> f64 {
        to.saturating_duration_since(from).as_secs_f64() * self.speed_up
    }

    fn record(&self, index: usize, answer: Option<Answer>, expected_tokens: u64) -> Record {
        let mut record = Record {
            index,
            intended_s: self.seconds(self.start, self.intended),
            late_s: 0.0,
            ttft_s: None,
            itl_s: None,
            end_s: self.seconds(self.start, self.end),
            prompt_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            worker: None,
            error: None,
        };
        let Some(answer) = answer else {
            record.error = Some("timeout".to_owned());
            return record;
        };
        record.late_s = self.seconds(self.intended + self.hold, answer.begun);
        record.worker = Some(answer.worker);
        record.error = answer.error;
        if let Some(usage) = answer.usage {
            record.prompt_tokens = usage.prompt_tokens;
            record.cached_tokens = usage.cached_tokens();
            record.output_tokens = usage.completion_tokens;
            if usage.completion_tokens != expected_tokens && record.error.is_none() {
                record.error = Some("another number of tokens than asked for".to_owned());
            }
        }
        record.ttft_s = answer.first_token.map(|first| self.seconds(self.intended, first));
        if let (Some(first), Some(last)) = (answer.first_token, answer.last_token)
            && record.output_tokens > 1
        {
            record.itl_s = Some(self.seconds(first, last) / (record.output_tokens - 1) as f64);
        }
        record
    }
}
