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

use super::Worker;

/// In-flight figures of one worker, as this gateway knows them.
#[derive(Debug, Default)]
pub struct Load {
    in_flight: AtomicU32,
    pending: AtomicU32,
    queued_prefill_tokens: AtomicU64,
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
}

/// One request on one worker.
#[derive(Debug)]
pub struct Flight {
    worker: Arc<Worker>,
    /// Counted in the worker's queue; none once prefill is over.
    prefill_tokens: Option<u64>,
    /// The breaker was told how it went.
    reported: bool,
}

impl Flight {
    /// Counts a request with this much prefill work. Call under the lock of the decision that chose it.
    pub fn begin(worker: Arc<Worker>, prefill_tokens: u64) -> Self {
        worker.load.in_flight.fetch_add(1, Relaxed);
        worker.load.pending.fetch_add(1, Relaxed);
        worker.load.queued_prefill_tokens.fetch_add(prefill_tokens, Relaxed);
        worker.breaker.begin(Instant::now());
        Self { worker, prefill_tokens: Some(prefill_tokens), reported: false }
    }

    /// The worker that it is on.
    pub fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// Prefill is over: the first body byte is here.
    pub fn prefilled(&mut self) {
        if let Some(tokens) = self.prefill_tokens.take() {
            self.worker.load.pending.fetch_sub(1, Relaxed);
            self.worker.load.queued_prefill_tokens.fetch_sub(tokens, Relaxed);
        }
    }

    /// As [`Flight::prefilled`], where that byte is the first token: its time says how fast the worker is. Times are
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub fn first_token(&mut self, sent_ns: u64, first_ns: u64) {
        if let Some(tokens) = self.prefill_tokens {
            self.worker.speed.first_token(tokens, sent_ns, first_ns);
        }
        self.prefilled();
    }

    /// The worker did its part.
    pub fn succeeded(&mut self) {
        if !std::mem::replace(&mut self.reported, true) {
            self.worker.breaker.succeeded();
        }
    }

    /// The worker failed.
    pub fn failed(&mut self) {
        if !std::mem::replace(&mut self.reported, true) && self.worker.breaker.failed(Instant::now()) {
            tracing::warn!(worker = %self.worker.name, "circuit breaker opened");
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.prefilled();
        self.worker.load.in_flight.fetch_sub(1, Relaxed);
        if !self.reported {
            self.worker.breaker.abandoned(Instant::now());
        }
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
