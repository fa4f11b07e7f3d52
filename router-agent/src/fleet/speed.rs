//! The learned speeds ([`crate::routing::speed`]), shared by all threads: written at first tokens and scrapes, read at
//! every decision without a lock.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use parking_lot::Mutex;

use super::Worker;
use crate::routing::{
    Speed,
    handoff::Handoff,
    speed::{FleetPrefill, WorkerDecode, WorkerPrefill},
};

/// A figure that is replaced as a whole.
#[derive(Debug, Default)]
struct Figure(AtomicU64);

impl Figure {
    fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }

    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }
}

/// What is learned of all workers together.
#[derive(Debug, Default)]
pub struct FleetSpeed {
    prefill: Mutex<FleetPrefill>,
    handoff: Mutex<Handoff>,
    fixed_s: Figure,
    /// 0 while too little is known.
    token_s: Figure,
}

impl FleetSpeed {
    fn publish(&self, prefill: &FleetPrefill) {
        if let Some((fixed, token)) = prefill.fit() {
            self.fixed_s.set(fixed);
            self.token_s.set(token);
        }
    }

    /// A prompt of which so many tokens had been prefilled elsewhere took so long from the decode worker's request to its
    /// first token.
    pub fn handed_over(&self, tokens: u32, seconds: f64) {
        self.handoff.lock().observe(f64::from(tokens), seconds);
    }

    /// Uncached tokens from which on a prompt is better prefilled apart ([`Handoff`]). Asked for prompts only that may be.
    pub fn handoff_tokens_min(&self) -> u32 {
        let token_s = Some(self.token_s.get()).filter(|token_s| *token_s > 0.0);
        self.handoff.lock().tokens_min(token_s)
    }
}

/// Finds the median worker anew and forgets what was not seen again. Now and then, off the data threads.
pub(super) fn level(workers: &[Arc<Worker>]) {
    let Some(fleet) = workers.first().map(|worker| worker.speed.fleet.clone()) else { return };
    // Every worker's lock before the fleet's, as at a first token.
    let mut learned: Vec<_> = workers.iter().map(|worker| worker.speed.learned.lock()).collect();
    let mut prefill = fleet.prefill.lock();
    prefill.level(learned.iter_mut().map(|learned| &mut learned.prefill));
    fleet.publish(&prefill);
    for (worker, learned) in workers.iter().zip(&learned) {
        worker.speed.factor.set(learned.prefill.factor(&prefill));
    }
}

/// What is learned of one worker.
#[derive(Debug)]
pub struct WorkerSpeed {
    fleet: Arc<FleetSpeed>,
    learned: Mutex<Learned>,
    /// Times that it takes longer than an average worker.
    factor: Figure,
    decode_slope_s: Figure,
    batch_s: Figure,
}

#[derive(Debug, Default)]
struct Learned {
    prefill: WorkerPrefill,
    decode: WorkerDecode,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    last_first_token_ns: u64,
}

impl WorkerSpeed {
    pub(super) fn new(fleet: Arc<FleetSpeed>) -> Self {
        let factor = Figure::default();
        factor.set(1.0);
        let (decode_slope_s, batch_s) = Default::default();
        Self { fleet, learned: Mutex::default(), factor, decode_slope_s, batch_s }
    }

    /// The first token of a request that had `tokens` to prefill is here. Times are `CLOCK_MONOTONIC`, nanoseconds.
    pub(super) fn first_token(&self, tokens: u64, sent_ns: u64, first_ns: u64) {
        let mut learned = self.learned.lock();
        let begun_ns = sent_ns.max(learned.last_first_token_ns);
        learned.last_first_token_ns = learned.last_first_token_ns.max(first_ns);
        let (tokens, seconds) = (tokens as f64, first_ns.saturating_sub(begun_ns) as f64 / 1e9);
        let mut fleet = self.fleet.prefill.lock();
        fleet.observe(&mut learned.prefill, tokens, seconds);
        self.fleet.publish(&fleet);
        self.factor.set(learned.prefill.factor(&fleet));
    }

    /// The mean gap between two events of its streams over the last while, with the requests that ran meanwhile and the
    /// mean number of events of a stream.
    pub(super) fn decoded(&self, running: f64, gap_s: f64, events_per_stream: f64) {
        let mut learned = self.learned.lock();
        learned.decode.observe(running, gap_s);
        self.decode_slope_s.set(learned.decode.slope());
        self.batch_s.set(learned.decode.slope() * events_per_stream);
    }

    /// What a decision may go by; none while the fleet is not known.
    pub fn get(&self) -> Option<Speed> {
        let fleet_token_s = self.fleet.token_s.get();
        (fleet_token_s > 0.0).then(|| Speed {
            token_s: fleet_token_s * self.factor.get(),
            fleet_token_s,
            fixed_s: self.fleet.fixed_s.get(),
            batch_s: self.batch_s.get(),
        })
    }

    /// Seconds that one more running request adds to each token of the others; 0 while not known.
    pub fn decode_slope_s(&self) -> f64 {
        self.decode_slope_s.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn waiting_behind_others_is_not_slowness() {
        let fleet = Arc::new(FleetSpeed::default());
        let worker = WorkerSpeed::new(fleet);
        assert_eq!(worker.get(), None);
        // All sent at once; each takes a second, one after the other.
        for i in 1..=20 {
            worker.first_token(7_000, 0, i * SECOND);
        }
        let speed = worker.get().expect("twenty are enough");
        assert!((1.0 / speed.token_s - 7_000.0).abs() < 1.0, "{speed:?}");
    }

    #[test]
    fn a_slow_worker_differs_and_the_others_are_alike() {
        let fleet = Arc::new(FleetSpeed::default());
        let workers: Vec<_> =
            (0..8).map(|_| Worker::for_tests_in("http://127.0.0.1:1", fleet.clone())).collect();
        for i in 0..6 {
            for (number, worker) in workers.iter().enumerate() {
                let takes = if number == 0 { 4 } else { 1 };
                worker.speed.first_token(7_000, i * 100 * SECOND, (i * 100 + takes) * SECOND);
            }
        }
        level(&workers);
        let speed = |worker: &Arc<Worker>| worker.speed.get().expect("they have been seen").token_s;
        let speeds: Vec<f64> = workers.iter().map(speed).collect();
        assert!(speeds[0] > 2.0 * speeds[1], "{speeds:?}");
        assert!(speeds[1..].iter().all(|speed| speed.to_bits() == speeds[1].to_bits()), "{speeds:?}");
    }

    #[test]
    fn a_bigger_batch_costs_what_the_gaps_say() {
        let worker = WorkerSpeed::new(Arc::default());
        (0..8).for_each(|i| worker.first_token(1_000, i * SECOND, i * SECOND + SECOND / 7));
        for running in [2.0, 9.0, 30.0, 17.0] {
            worker.decoded(running, 0.02 + 0.0002 * running, 350.0);
        }
        assert!((worker.decode_slope_s() - 0.0002).abs() < 1e-6);
        assert!((worker.get().expect("eight are enough").batch_s - 0.07).abs() < 1e-3);
    }
}
