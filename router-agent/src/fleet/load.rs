//! What this gateway has in flight on a worker, counted in guards.
//!
//! [`Flight`] is taken with the decision and given back in `Drop`, whatever way the request goes: nothing resets these
//! figures by timer, and nothing needs to. Its prefill part is given back earlier, at the first body chunk.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use super::{BreakerState, Outcome, Role, Worker};

/// In-flight figures of one worker, as this gateway knows them.
#[derive(Debug, Default)]
pub struct Load {
    in_flight: AtomicU32,
    pending: AtomicU32,
    queued_prefill_tokens: AtomicU64,
    chunks: AtomicU64,
    reserved: AtomicU32,
    reserved_tokens: AtomicU64,
}

impl Load {
    /// Requests sent and not yet ended.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Of these, requests whose first body byte has not come.
    pub fn pending(&self) -> u32 {
        self.pending.load(Relaxed)
    }

    /// Prompt tokens sent that the worker must still prefill: uncached tokens of requests before their first body byte.
    pub fn queued_prefill_tokens(&self) -> u64 {
        self.queued_prefill_tokens.load(Relaxed)
    }

    /// Requests and prompt tokens that are there or have a place there: (in flight and reserved, queued and reserved).
    pub fn taken(&self) -> (u32, u64) {
        (
            self.in_flight().saturating_add(self.reserved.load(Relaxed)),
            self.queued_prefill_tokens().saturating_add(self.reserved_tokens.load(Relaxed)),
        )
    }

    /// Pieces of response bodies that have gone through this process so far.
    pub fn chunks(&self) -> u64 {
        self.chunks.load(Relaxed)
    }
}

/// A place on a worker that nobody else may take, for a request that has not been sent yet.
#[derive(Debug)]
pub struct Reservation {
    worker: Arc<Worker>,
    tokens: u64,
}

impl Reservation {
    /// Takes a place for a request of so many prompt tokens.
    pub fn new(worker: Arc<Worker>, tokens: u64) -> Self {
        worker.load.reserved.fetch_add(1, Relaxed);
        worker.load.reserved_tokens.fetch_add(tokens, Relaxed);
        Self { worker, tokens }
    }

    /// The requests and tokens that it holds on `worker`.
    pub fn on(&self, worker: &Worker) -> Option<(u32, u64)> {
        (self.worker.slot == worker.slot).then_some((1, self.tokens))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.worker.load.reserved.fetch_sub(1, Relaxed);
        self.worker.load.reserved_tokens.fetch_sub(self.tokens, Relaxed);
    }
}

/// One request on one worker.
#[derive(Debug)]
pub struct Flight {
    worker: Arc<Worker>,
    /// Counted in the worker's queue; none once prefill is over.
    prefill_tokens: Option<u64>,
    /// What it is to the breaker.
    role: Role,
    /// The breaker was told how it went.
    reported: bool,
}

impl Flight {
    /// Counts a request with this much prefill work. Call under the lock of the decision that chose it.
    pub fn begin(worker: Arc<Worker>, prefill_tokens: u64) -> Self {
        worker.load.in_flight.fetch_add(1, Relaxed);
        worker.load.pending.fetch_add(1, Relaxed);
        worker.load.queued_prefill_tokens.fetch_add(prefill_tokens, Relaxed);
        let role = worker.breaker.begin(Instant::now());
        Self { worker, prefill_tokens: Some(prefill_tokens), role, reported: false }
    }

    /// The worker that it is on.
    pub fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// A piece of the body is here.
    pub fn said_something(&self) {
        self.worker.load.chunks.fetch_add(1, Relaxed);
    }

    /// Prefill is over: the first body byte is here.
    pub fn prefilled(&mut self) {
        self.worker.breaker.answering(self.role);
        self.release_prefill();
    }

    fn release_prefill(&mut self) {
        if let Some(tokens) = self.prefill_tokens.take() {
            self.worker.load.pending.fetch_sub(1, Relaxed);
            self.worker.load.queued_prefill_tokens.fetch_sub(tokens, Relaxed);
        }
    }

    /// As [`Flight::prefilled`], where that byte is the first token: its time says how fast the worker is, and how far
    /// from what was `predicted_s`. Times are `CLOCK_MONOTONIC`, nanoseconds.
    pub fn first_token(&mut self, sent_ns: u64, first_ns: u64, predicted_s: Option<f64>) {
        if let Some(tokens) = self.prefill_tokens {
            self.worker.speed.first_token(tokens, sent_ns, first_ns);
        }
        if let Some(predicted_s) = predicted_s {
            let observed_s = first_ns.saturating_sub(sent_ns) as f64 / 1e9;
            self.worker.record.first_token(Instant::now(), observed_s, predicted_s);
        }
        self.prefilled();
    }

    /// The worker did its part.
    pub fn succeeded(&mut self) {
        self.report(Outcome::Success);
    }

    /// The worker failed.
    pub fn failed(&mut self) {
        self.report(Outcome::Fault);
    }

    fn report(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        let worker = &self.worker;
        match worker.breaker.ended(self.role, outcome, Instant::now()) {
            Some(BreakerState::Open) => {
                worker.metrics.faults.breaker_opened.inc();
                tracing::warn!(worker = %worker.name, "circuit breaker opened");
            }
            Some(_) => tracing::info!(worker = %worker.name, "circuit breaker closed"),
            None => {}
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.release_prefill();
        self.worker.load.in_flight.fetch_sub(1, Relaxed);
        self.report(Outcome::NoVerdict);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(worker: &Worker) -> (u32, u32, u64) {
        (worker.load.in_flight(), worker.load.pending(), worker.load.queued_prefill_tokens())
    }

    #[test]
    fn prefill_is_given_back_at_the_first_byte_and_the_rest_at_the_end() {
        let worker = Worker::for_tests("http://127.0.0.1:1");
        let mut flight = Flight::begin(worker.clone(), 100);
        let other = Flight::begin(worker.clone(), 7);
        assert_eq!(figures(&worker), (2, 2, 107));
        flight.prefilled();
        flight.prefilled();
        assert_eq!(figures(&worker), (2, 1, 7), "given back once");
        drop(flight);
        assert_eq!(figures(&worker), (1, 1, 7));
        drop(other);
        assert_eq!(figures(&worker), (0, 0, 0));
    }
}
