//! How fast workers are, learned from what is seen of them: pure arithmetic, no clock and no lock.
//!
//! **Prefill.** An observation is a prompt's uncached tokens and the seconds that the worker spent on them: from when it
//! could begin, which is when the request was sent or when the worker's previous first token came, whichever was later
//! (prompts are prefilled first come, first served), to the first token. So waiting is not taken for slowness. All
//! workers' observations together give a line, `seconds = fixed + token × tokens`, by least squares with weights that
//! fall by [`FORGET_FLEET`] per newer observation. A worker is a factor on that line, its observed over its expected
//! seconds with weights that fall by [`FORGET_WORKER`], and counts as an average one until it differs from 1 by two
//! standard errors and a tenth: workers that are alike stay exactly alike, so that ties between them are ties. The
//! average worker is the median one ([`FleetPrefill::level`]), so that one slow worker does not make the others fast. A
//! factor that is not renewed fades with the fleet's observations, so a worker that was found slow is tried again.
//!
//! **Decode.** The mean gap between two events of a stream over a while, against the requests that ran in it: the line's
//! slope is what one more running request costs each of the others per token.

use super::line::Line;

/// Weight that an observation loses to each newer one, over the fleet: the last thousand or so count.
const FORGET_FLEET: f64 = 0.999;
/// The same over one worker: the last thirty or so count.
const FORGET_WORKER: f64 = 0.97;
/// Observations of the whole fleet below which nothing is predicted.
const COLD: u64 = 8;
/// Observations of one worker below which it is an average one.
const UNKNOWN: f64 = 2.5;
/// Standard errors that a difference must exceed to be one.
const SIGNIFICANT: f64 = 2.0;
/// A smaller difference is not worth telling workers apart.
const DIFFERENCE_MIN: f64 = 0.1;

/// What a decision knows of a worker's speed. Seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Prefill of one token on this worker.
    pub token_s: f64,
    /// Prefill of one token on an average worker.
    pub fleet_token_s: f64,
    /// What a prompt takes whatever its length.
    pub fixed_s: f64,
    /// What one more running request costs each of the others until it ends.
    pub batch_s: f64,
}

/// The fleet's prefill.
#[derive(Debug, Clone, Copy)]
pub struct FleetPrefill {
    line: Line,
    fit: (f64, f64),
    /// The median worker's factor on that line.
    median: f64,
    observations: u64,
}

impl Default for FleetPrefill {
    fn default() -> Self {
        Self { line: Line::default(), fit: (0.0, 0.0), median: 1.0, observations: 0 }
    }
}

impl FleetPrefill {
    /// Takes in an observation of `worker`, and into what is known of that worker.
    pub fn observe(&mut self, worker: &mut WorkerPrefill, tokens: f64, seconds: f64) {
        self.line.observe(FORGET_FLEET, tokens, seconds);
        self.fit = self.line.fit();
        self.observations += 1;
        worker.observe(self, tokens, seconds);
    }

    /// Finds the median worker anew, and lets all forget what was not seen again. Now and then.
    pub fn level<'a>(&mut self, workers: impl Iterator<Item = &'a mut WorkerPrefill>) {
        self.median = 1.0;
        let known = workers.filter_map(|worker| {
            worker.fade(self);
            (worker.prompts > UNKNOWN).then(|| worker.mean_factor(self))
        });
        let mut factors: Vec<f64> = known.collect();
        factors.sort_by(f64::total_cmp);
        if let Some(median) = factors.get(factors.len() / 2) {
            self.median = *median;
        }
    }

    /// (seconds whatever the length, seconds per token) of the median worker; none while too little is known.
    pub fn fit(&self) -> Option<(f64, f64)> {
        let (fixed, token) = self.fit;
        (self.observations >= COLD && token > 0.0).then_some((fixed * self.median, token * self.median))
    }

    /// What so many prompts with so many tokens take together, in seconds.
    fn expected(&self, prompts: f64, tokens: f64) -> f64 {
        (self.fit.0 * prompts + self.fit.1 * tokens) * self.median
    }
}

/// One worker's prefill against the fleet's.
#[derive(Debug, Clone, Copy, Default)]
pub struct WorkerPrefill {
    prompts: f64,
    tokens: f64,
    seconds: f64,
    /// Squared differences from what this worker's factor had promised before.
    squares: f64,
    /// The fleet's count when this was last brought up to date.
    seen: u64,
}

impl WorkerPrefill {
    fn sums(&mut self) -> [&mut f64; 4] {
        [&mut self.prompts, &mut self.tokens, &mut self.seconds, &mut self.squares]
    }

    fn observe(&mut self, fleet: &FleetPrefill, tokens: f64, seconds: f64) {
        self.fade(fleet);
        let miss = seconds - self.mean_factor(fleet) * fleet.expected(1.0, tokens);
        for (sum, new) in self.sums().into_iter().zip([1.0, tokens, seconds, miss * miss]) {
            *sum = *sum * FORGET_WORKER + new;
        }
    }

    /// Forgets as much as the fleet has seen since.
    fn fade(&mut self, fleet: &FleetPrefill) {
        let missed = fleet.observations.saturating_sub(self.seen);
        self.seen = fleet.observations;
        let keep = FORGET_FLEET.powi(i32::try_from(missed).unwrap_or(i32::MAX));
        for sum in self.sums() {
            *sum *= keep;
        }
    }

    fn mean_factor(&self, fleet: &FleetPrefill) -> f64 {
        let expected = fleet.expected(self.prompts, self.tokens);
        if expected > 0.0 { self.seconds / expected } else { 1.0 }
    }

    /// How many times longer than an average worker it takes; exactly 1 unless it is known to differ.
    pub fn factor(&self, fleet: &FleetPrefill) -> f64 {
        let factor = self.mean_factor(fleet);
        let error = self.squares.sqrt() / fleet.expected(self.prompts, self.tokens);
        let difference = (factor - 1.0).abs();
        let differs = difference > DIFFERENCE_MIN && difference > SIGNIFICANT * error;
        if self.prompts > UNKNOWN && differs { factor.max(0.01) } else { 1.0 }
    }
}

/// One worker's gap between tokens against the requests that run.
#[derive(Debug, Clone, Copy, Default)]
pub struct WorkerDecode(Line);

impl WorkerDecode {
    /// Takes in the mean gap of a while, in seconds, and the requests that ran in it.
    pub fn observe(&mut self, running: f64, gap_s: f64) {
        self.0.observe(FORGET_WORKER, running, gap_s);
    }

    /// Seconds per token and running request; 0 while it cannot be told.
    pub fn slope(&self) -> f64 {
        let (base, slope) = self.0.fit();
        if base > 0.0 { slope } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(figure: f64, exactly: f64) -> bool {
        figure.to_bits() == exactly.to_bits()
    }

    fn noise(random: &mut fastrand::Rng) -> f64 {
        0.7 + 0.6 * random.f64()
    }

    /// Eight workers, the last one `slowness` times slower; each has seen `each` prompts.
    fn fleet(slowness: f64, each: usize) -> (FleetPrefill, [WorkerPrefill; 8]) {
        let (mut fleet, mut workers) = (FleetPrefill::default(), [WorkerPrefill::default(); 8]);
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..each {
            for (i, worker) in workers.iter_mut().enumerate() {
                let tokens = random.f64() * 20_000.0;
                let times = if i == 7 { slowness } else { 1.0 };
                let seconds = (0.02 + tokens / 7_000.0) * times * noise(&mut random);
                fleet.observe(worker, tokens, seconds);
            }
            fleet.level(workers.iter_mut());
        }
        (fleet, workers)
    }

    #[test]
    fn the_rate_is_learned_from_noisy_times() {
        let (fleet, _) = fleet(1.0, 50);
        let (fixed, token) = fleet.fit().expect("it has seen enough");
        assert!((6_300.0..7_700.0).contains(&(1.0 / token)), "{}", 1.0 / token);
        assert!(fixed < 0.2, "{fixed}");
    }

    #[test]
    fn little_is_no_reason_to_predict() {
        let (fleet, workers) = fleet(4.0, 0);
        assert_eq!(fleet.fit(), None);
        assert!(workers.iter().all(|worker| is(worker.factor(&fleet), 1.0)));
    }

    #[test]
    fn a_slow_worker_is_told_within_six_prompts_of_its_own() {
        let (fleet, workers) = fleet(4.0, 6);
        let slow = workers[7].factor(&fleet);
        assert!((2.0..6.0).contains(&slow), "{slow}");
        let alike = workers[..7].iter().filter(|worker| is(worker.factor(&fleet), 1.0)).count();
        assert!(alike >= 5, "{alike} of 7 are average");
    }

    #[test]
    fn a_factor_that_is_not_renewed_fades() {
        let (mut fleet, mut workers) = fleet(4.0, 20);
        assert!(workers[7].factor(&fleet) > 2.0);
        for _ in 0..5_000 {
            fleet.observe(&mut workers[0], 7_000.0, 1.0);
        }
        fleet.level(workers.iter_mut());
        assert!(is(workers[7].factor(&fleet), 1.0), "it is tried again");
    }

    #[test]
    fn prompts_of_one_length_give_a_rate_and_no_fixed_part() {
        let (mut fleet, mut worker) = (FleetPrefill::default(), WorkerPrefill::default());
        (0..20).for_each(|_| fleet.observe(&mut worker, 16.0, 0.025));
        let (fixed, token) = fleet.fit().expect("it has seen enough");
        assert!(is(fixed, 0.0) && (token * 16.0 - 0.025).abs() < 1e-9);
    }

    #[test]
    fn the_decode_slope_is_that_of_the_gaps() {
        let mut decode = WorkerDecode::default();
        assert!(is(decode.slope(), 0.0));
        for running in [1.0, 8.0, 30.0, 12.0, 5.0] {
            decode.observe(running, 0.020 + 0.0002 * running);
        }
        assert!((decode.slope() - 0.0002).abs() < 1e-6, "{}", decode.slope());
        let mut alike = WorkerDecode::default();
        (0..9).for_each(|_| alike.observe(8.0, 0.03));
        assert!(is(alike.slope(), 0.0), "one batch size says nothing of another");
    }
}
