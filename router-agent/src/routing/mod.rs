//! Which worker gets the request.
//!
//! [`Router::decide`] is a pure choice over the candidates that the caller lists: no clock, no lock, no I/O, no
//! allocation, about a microsecond for 256 workers. It keeps only what ties need (who was chosen last) and a seeded
//! generator for the random policies, so the same calls give the same choices.
//!
//! The default policy, `warm`, takes the worker with the least predicted time to the first token and the least delay for
//! others, by prefill speeds that are learned while it runs ([`speed`]), or, while they are not known, LMetric's product
//! (arXiv 2603.15202), in tokens and requests. [`warm`] has the formula. There is no threshold to set.
//!
//! The caller takes the chosen worker's counts (in flight +1, prefill + [`Decision::new_tokens`]) under the same
//! lock as the decision. Counted later, a burst herds: every request in it sees the same idle worker.

mod decision;
mod explain;
pub mod handoff;
mod line;
mod policy;
mod prefix;
mod session;
#[cfg(test)]
mod simulation;
pub mod speed;
#[cfg(test)]
mod tests;
mod warm;
mod weighted;

use std::sync::Arc;

use fastrand::Rng;

pub use self::{
    decision::{Adapter, Ask, Candidate, Decision, Reason},
    explain::{Score, cost_unit, explain},
    policy::{Policy, Prefix, Session, Settings, UnknownPolicy},
    speed::Speed,
    weighted::{Pick, Scorer, UnknownScorer, Weighted},
};
use crate::index::{WORKERS_MAX, WorkerSlot};

/// A policy and what it remembers between decisions. A clone decides as this one would, and this one does not learn of it.
#[derive(Clone)]
pub struct Router {
    settings: Arc<Settings>,
    random: Rng,
    /// Counts decisions.
    clock: u64,
    /// The decision that last chose the slot; 0 for never.
    last_chosen: Box<[u64; WORKERS_MAX]>,
    /// The slot of the last decision of all, for `round_robin`.
    last_slot: Option<WorkerSlot>,
}

impl Router {
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings: Arc::new(settings),
            random: Rng::with_seed(seed),
            clock: 0,
            last_chosen: Box::new([0; WORKERS_MAX]),
            last_slot: None,
        }
    }

    /// Decides by these from now on. Who was chosen last is remembered.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = Arc::new(settings);
    }

    /// What it decides by, for [`explain`].
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// The configured policy.
    pub fn policy(&self) -> Policy {
        self.settings.policy
    }

    /// Chooses one of the candidates; none only if there are none.
    ///
    /// # Panics
    /// If a candidate's slot is not below [`WORKERS_MAX`].
    pub fn decide(&mut self, ask: &Ask, candidates: &[Candidate]) -> Option<Decision> {
        self.decide_by(self.settings.policy, ask, candidates)
    }

    /// As [`Router::decide`], by another policy than the configured one: where that has nothing to go by.
    ///
    /// # Panics
    /// If a candidate's slot is not below [`WORKERS_MAX`].
    pub fn decide_by(&mut self, policy: Policy, ask: &Ask, candidates: &[Candidate]) -> Option<Decision> {
        if candidates.is_empty() {
            return None;
        }
        // A reason only where the policy has one of its own.
        let (choice, own_reason) = match policy {
            Policy::Warm | Policy::Lmcache => {
                let cost = warm::Cost::of(candidates);
                (self.least(candidates, |candidate| (cost.on(*ask, candidate), 0))?, None)
            }
            Policy::Prefix => self.longest_match(candidates)?,
            Policy::Session => self.of_session(ask.session, candidates)?,
            Policy::Weighted => self.by_score(*ask, candidates)?,
            Policy::LeastLoaded => (self.least_loaded(candidates)?, None),
            Policy::RoundRobin => (self.next_in_turn(candidates)?, None),
            Policy::Random => (self.any(candidates)?, None),
            Policy::PowerOfTwo => (self.better_of_two(candidates)?, None),
        };
        let Choice { at, cost, runner_up, tied } = choice;
        let (runner_up, runner_up_cost) = runner_up.unzip();
        let chosen = &candidates[at];
        self.clock += 1;
        self.last_chosen[usize::from(chosen.slot.0)] = self.clock;
        self.last_slot = Some(chosen.slot);
        let best_match = candidates.iter().map(|candidate| candidate.matched_tokens).max().unwrap_or(0);
        let reason = match (policy, own_reason) {
            _ if candidates.len() == 1 => Reason::OnlyCandidate,
            (_, Some(reason)) => reason,
            (Policy::Warm | Policy::Lmcache, _) if best_match > 0 && chosen.matched_tokens == best_match => {
                Reason::PrefixHit
            }
            (Policy::Warm | Policy::Lmcache, _) if best_match > 0 => Reason::LoadOverPrefix,
            (Policy::RoundRobin, _) => Reason::RoundRobin,
            (Policy::Random, _) => Reason::Random,
            (Policy::PowerOfTwo, _) => Reason::PowerOfTwo,
            _ if tied > 1 => Reason::TieLru,
            (Policy::Warm | Policy::Lmcache, _) => Reason::LeastCost,
            _ => Reason::LeastLoaded,
        };
        Some(Decision {
            slot: chosen.slot,
            policy,
            reason,
            matched_tokens: chosen.matched_tokens.min(ask.prompt_tokens),
            new_tokens: warm::new_tokens(*ask, chosen),
            best_matched_tokens: best_match.min(ask.prompt_tokens),
            cost,
            runner_up: runner_up.map(|at| candidates[at].slot),
            runner_up_cost: runner_up_cost.unwrap_or(0),
            tied,
            time_to_first_token_s: chosen.speed.map(|speed| warm::time_to_first_token(*ask, chosen, speed)),
        })
    }

    fn last_chosen(&self, candidate: &Candidate) -> u64 {
        self.last_chosen[usize::from(candidate.slot.0)]
    }

    fn least_loaded(&self, candidates: &[Candidate]) -> Option<Choice> {
        self.least(candidates, load)
    }

    /// The least by cost; of equals, the one that was chosen longest ago.
    fn least(&self, candidates: &[Candidate], cost: impl Fn(&Candidate) -> (u64, u64)) -> Option<Choice> {
        let mut best: Option<(usize, (u64, u64), u64)> = None;
        let mut second: Option<(usize, (u64, u64), u64)> = None;
        let mut tied = 0;
        for (at, candidate) in candidates.iter().enumerate() {
            let entry = (at, cost(candidate), self.last_chosen(candidate));
            match best {
                Some(leader) if entry.1 > leader.1 || (entry.1 == leader.1 && entry.2 >= leader.2) => {
                    tied += u32::from(entry.1 == leader.1);
                    if second.is_none_or(|second| (entry.1, entry.2) < (second.1, second.2)) {
                        second = Some(entry);
                    }
                }
                _ => {
                    tied = if best.is_some_and(|leader| leader.1 == entry.1) { tied + 1 } else { 1 };
                    second = best;
                    best = Some(entry);
                }
            }
        }
        let (at, (cost, _), _) = best?;
        Some(Choice { at, cost, runner_up: second.map(|(at, (cost, _), _)| (at, cost)), tied })
    }

    /// The next slot after the last one chosen, whichever candidates there are this time.
    fn next_in_turn(&self, candidates: &[Candidate]) -> Option<Choice> {
        let last = self.last_slot.map_or(-1, |slot| i32::from(slot.0));
        let (at, _) = candidates.iter().enumerate().min_by_key(|(_, candidate)| {
            let slot = i32::from(candidate.slot.0);
            (slot <= last, slot)
        })?;
        Some(Choice { at, cost: 0, runner_up: None, tied: 1 })
    }

    fn any(&mut self, candidates: &[Candidate]) -> Option<Choice> {
        if candidates.is_empty() {
            return None;
        }
        Some(Choice { at: self.random.usize(..candidates.len()), cost: 0, runner_up: None, tied: 1 })
    }

    /// Two different candidates at random, and of them the less loaded one.
    fn better_of_two(&mut self, candidates: &[Candidate]) -> Option<Choice> {
        if candidates.len() < 2 {
            return self.least_loaded(candidates);
        }
        let first = self.random.usize(..candidates.len());
        let second = (first + self.random.usize(1..candidates.len())) % candidates.len();
        let key = |at: usize| (load(&candidates[at]), self.last_chosen(&candidates[at]));
        let (at, other) = if key(second) < key(first) { (second, first) } else { (first, second) };
        let tied = 1 + u32::from(key(at).0 == key(other).0);
        let runner_up = Some((other, load(&candidates[other]).0));
        Some(Choice { at, cost: load(&candidates[at]).0, runner_up, tied })
    }
}

/// Load as `least_loaded` and `power_of_two` see it: requests, then prefill tokens that wait.
fn load(candidate: &Candidate) -> (u64, u64) {
    (u64::from(candidate.batch()), candidate.queued_prefill_tokens)
}

/// What a policy says: places in the list of candidates.
struct Choice {
    at: usize,
    cost: u64,
    /// With its cost.
    runner_up: Option<(usize, u64)>,
    tied: u32,
}
