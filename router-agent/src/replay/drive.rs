//! Sends the requests, open loop: each goes out when the schedule says so, whether or not earlier ones are answered,
//! and its latency counts from that intended moment.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::{sync::Semaphore, task::JoinSet};

use super::client::{Answer, Client};
use super::prompt::{PromptBody, TextPool};
use super::trace::Request;

/// What is sent, to whom, and how fast.
pub struct Drive<'a> {
    pub requests: &'a [Request],
    pub pool: &'a TextPool,
    pub model: &'a str,
    /// Taken in turn.
    pub clients: &'a [Arc<Client>],
    /// Wall clock runs so many times faster than the trace's.
    pub speed_up: f64,
    /// Trace time.
    pub timeout: Duration,
    /// Trace time that each request is held before it is sent; counts as latency, not as lateness.
    pub hold: Duration,
    /// Requests under way at once; beyond it one waits, and is late. None: no bound.
    pub concurrency_max: Option<usize>,
    /// Wall clock from which on nothing is sent and nothing is waited for. None: no bound.
    pub time_max: Option<Duration>,
    /// An answer of another length than asked for, or that does not say its length, is an error.
    pub is_strict: bool,
}

/// One request of one trial. Seconds are of trace time; what did not happen is none.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    pub index: usize,
    pub intended_s: f64,
    pub late_s: f64,
    pub ttft_s: Option<f64>,
    pub itl_s: Option<f64>,
    pub end_s: f64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    /// From `x-warmpath-worker`; the address that was asked where nothing says so.
    pub worker: Option<String>,
    pub error: Option<String>,
}

impl Drive<'_> {
    /// Sends every request at its time (trace time since the start) and waits for all answers. Those that are not sent in
    /// time have no record.
    pub async fn run(&self, times: &[Duration]) -> Vec<Record> {
        let (speed_up, timeout) = (self.speed_up, self.timeout.div_f64(self.speed_up));
        let hold = self.hold.div_f64(speed_up);
        let start = Instant::now() + Duration::from_millis(100);
        let end = self.time_max.map(|time| start + time);
        let places = Arc::new(Semaphore::new(self.concurrency_max.unwrap_or(Semaphore::MAX_PERMITS)));
        let is_strict = self.is_strict;
        let mut tasks = JoinSet::new();
        for (index, (request, time)) in self.requests.iter().zip(times).enumerate() {
            let intended = start + time.div_f64(speed_up);
            let turn = async {
                tokio::time::sleep_until((intended + hold).into()).await;
                places.clone().acquire_owned().await
            };
            let Some(Ok(place)) = until(end, turn).await else { break };
            let client = Arc::clone(&self.clients[index % self.clients.len()]);
            let body = PromptBody::new(self.pool, self.model, request);
            let expected = is_strict.then_some(request.output_tokens);
            tasks.spawn(async move {
                let answer = tokio::time::timeout(timeout, client.send(body));
                let answer = until(end, answer).await.and_then(Result::ok);
                drop(place);
                let clock = Clock { start, intended, hold, end: Instant::now(), speed_up };
                clock.record(index, answer, expected)
            });
        }
        let mut records = tasks.join_all().await;
        records.sort_by_key(|record| record.index);
        records
    }
}

/// What `future` gives, unless it takes longer.
async fn until<F: Future>(end: Option<Instant>, future: F) -> Option<F::Output> {
    match end {
        Some(end) => tokio::time::timeout_at(end.into(), future).await.ok(),
        None => Some(future.await),
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

    fn record(&self, index: usize, answer: Option<Answer>, expected_tokens: Option<u64>) -> Record {
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
        record.output_tokens = answer.events; // at least; usage is exact
        if expected_tokens.is_some() && answer.usage.is_none() && record.error.is_none() {
            record.error = Some("no usage".to_owned());
        }
        if let Some(usage) = answer.usage {
            record.prompt_tokens = usage.prompt_tokens;
            record.cached_tokens = usage.cached_tokens();
            record.output_tokens = usage.completion_tokens;
            let is_wrong = expected_tokens.is_some_and(|expected| expected != usage.completion_tokens);
            if is_wrong && record.error.is_none() {
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
