//! Requests through a router, the learned speeds and the index, all the product's own, over a fleet of [`Engine`]s, in
//! simulated time. Deterministic: the same requests, fleet and policy give the same figures.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::engine::{Engine, Progress, Request};
use crate::{
    index::{Matches, PrefixIndex, WorkerSlot},
    routing::{
        Ask, Candidate, Decision, Policy, Router, Settings, Speed,
        speed::{FleetPrefill, WorkerPrefill},
    },
};

/// One worker of the fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// Hash of its name, as [`Candidate::identity`].
    pub identity: u64,
    /// How fast it prefills.
    pub tokens_per_s: f64,
    /// Its KV cache.
    pub capacity_tokens: u64,
}

/// Who says which worker a request goes to.
#[derive(Debug, Clone, Copy)]
pub enum Chooser<'a> {
    /// A policy, which learns the workers' speeds if it may.
    Policy { settings: &'a Settings, learns: bool },
    /// It is known for each request.
    Known(&'a [usize]),
}

/// What is asked besides the requests themselves. One entry per request, or none for all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wishes<'a> {
    /// Hash of the session's key.
    pub sessions: &'a [Option<u64>],
    /// The workers that may have it; an empty list: all.
    pub eligible: &'a [Vec<usize>],
}

/// What became of one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Served {
    /// Number of its worker.
    pub worker: usize,
    /// Arrival to first token, seconds.
    pub ttft_s: f64,
    /// Tokens of its prompt that were in the worker's cache.
    pub cached: usize,
}

/// What became of all.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// In the order of the requests.
    pub served: Vec<Served>,
    /// Tokens that each worker prefilled.
    pub prefilled: Vec<u64>,
}

impl Outcome {
    /// Prompt tokens found in a cache, of all prompt tokens.
    pub fn cached_share(&self, requests: &[Request]) -> f64 {
        let cached: usize = self.served.iter().map(|served| served.cached).sum();
        let prompts: usize = requests.iter().map(|request| request.input).sum();
        cached as f64 / prompts as f64
    }
}

/// Where the simulation stands.
struct State<'a> {
    requests: &'a [Request],
    engines: Vec<Engine>,
    index: PrefixIndex,
    candidates: Vec<Candidate>,
    eligible: Vec<Candidate>,
    matches: Matches,
    fleet: FleetPrefill,
    learned: Vec<WorkerPrefill>,
    last_first_s: Vec<f64>,
    new_tokens: Vec<u32>,
    served: Vec<Served>,
}

/// Plays `requests`, which are in the order of their times, at `workers`.
///
/// # Panics
/// If there are no workers, or more than the index has room for.
pub fn run(requests: &[Request], workers: &[Worker], chooser: Chooser<'_>, wishes: Wishes<'_>) -> Outcome {
    assert!(!workers.is_empty(), "a fleet has a worker");
    let mut state = State::new(requests, workers);
    let mut router = match chooser {
        Chooser::Policy { settings, .. } => Router::new(settings.clone(), 1),
        Chooser::Known(_) => Router::new(Settings::new(Policy::default()), 1),
    };
    let mut steps: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut arrivals = requests.iter().enumerate().peekable();
    loop {
        let step = steps.peek().map(|Reverse((ns, _))| *ns);
        let arrival = arrivals.peek().map(|(_, request)| (request.at_s * 1e9) as u64);
        let worker = match (step, arrival) {
            (Some(ns), arrival) if arrival.is_none_or(|arrival| ns <= arrival) => {
                let Some(Reverse((_, worker))) = steps.pop() else { break };
                state.step_over(worker, ns as f64 / 1e9);
                worker
            }
            (_, Some(_)) => {
                let Some((number, request)) = arrivals.next() else { break };
                let ask = Ask {
                    prompt_tokens: request.input as u32,
                    session: wishes.sessions.get(number).copied().flatten(),
                };
                let learns = matches!(chooser, Chooser::Policy { learns: true, .. });
                state.look(request, learns);
                let eligible = wishes.eligible.get(number).map_or(&[][..], Vec::as_slice);
                let (worker, decision) = match chooser {
                    Chooser::Policy { .. } => {
                        let decision = state.decide(&mut router, &ask, eligible);
                        (usize::from(decision.slot.0), Some(decision))
                    }
                    Chooser::Known(workers) => (workers[number], None),
                };
                let was_idle = state.engines[worker].step_ends_s.is_none();
                state.send(number, worker, decision);
                if !was_idle {
                    continue; // its step is among the events
                }
                worker
            }
            _ => break,
        };
        if let Some(ends_s) = state.engines[worker].step_ends_s {
            steps.push(Reverse(((ends_s * 1e9) as u64, worker)));
        }
    }
    let prefilled = state.engines.iter().map(|engine| engine.prefilled as u64).collect();
    Outcome { served: state.served, prefilled }
}

impl<'a> State<'a> {
    fn new(requests: &'a [Request], workers: &[Worker]) -> Self {
        let index = PrefixIndex::default();
        let candidate = |(slot, worker): (usize, &Worker)| Candidate {
            identity: worker.identity,
            ..Candidate::idle(WorkerSlot(slot as u16))
        };
        let candidates: Vec<_> = workers.iter().enumerate().map(candidate).collect();
        let block_tokens = requests.first().map_or(1, |request| request.block_tokens.max(1)) as u64;
        for (candidate, worker) in candidates.iter().zip(workers) {
            index.set_capacity_blocks(candidate.slot, worker.capacity_tokens / block_tokens);
        }
        let engine = |(number, worker): (usize, &Worker)| {
            Engine::new(number, worker.tokens_per_s, worker.capacity_tokens)
        };
        Self {
            requests,
            engines: workers.iter().enumerate().map(engine).collect(),
            index,
            candidates,
            eligible: Vec::new(),
            matches: Matches::new(),
            fleet: FleetPrefill::default(),
            learned: vec![WorkerPrefill::default(); workers.len()],
            last_first_s: vec![0.0; workers.len()],
            new_tokens: vec![0; requests.len()],
            served: vec![Served { worker: 0, ttft_s: 0.0, cached: 0 }; requests.len()],
        }
    }

    fn step_over(&mut self, worker: usize, now_s: f64) {
        let Self { requests, candidates, fleet, learned, last_first_s, new_tokens, served, .. } = self;
        let candidate = &mut candidates[worker];
        self.engines[worker].complete(requests, now_s, |progress| match progress {
            Progress::FirstToken { request, cached } => {
                let tokens = std::mem::take(&mut new_tokens[request]);
                candidate.pending -= 1;
                candidate.queued_prefill_tokens -= u64::from(tokens);
                let begun_s = requests[request].at_s.max(last_first_s[worker]);
                last_first_s[worker] = now_s;
                fleet.observe(&mut learned[worker], f64::from(tokens), now_s - begun_s);
                served[request] = Served { worker, ttft_s: now_s - requests[request].at_s, cached };
            }
            Progress::End { .. } => candidate.in_flight -= 1,
        });
    }

    /// What is known of every worker when `request` comes.
    fn look(&mut self, request: &Request, learns: bool) {
        self.index.lookup(&request.ids, &mut self.matches);
        self.fleet.level(self.learned.iter_mut());
        let fit = self.fleet.fit().filter(|_| learns);
        for (candidate, learned) in self.candidates.iter_mut().zip(&self.learned) {
            candidate.matched_blocks = self.matches.blocks(candidate.slot);
            let tokens = candidate.matched_blocks as usize * request.block_tokens;
            candidate.matched_tokens = tokens.min(request.input) as u32;
            candidate.in_flight_at_scrape = candidate.in_flight;
            candidate.speed = fit.map(|(fixed_s, token_s)| Speed {
                token_s: token_s * learned.factor(&self.fleet),
                fleet_token_s: token_s,
                fixed_s,
                batch_s: 0.0,
            });
        }
    }

    fn decide(&mut self, router: &mut Router, ask: &Ask, eligible: &[usize]) -> Decision {
        let candidates = if eligible.is_empty() {
            &self.candidates
        } else {
            self.eligible.clear();
            self.eligible.extend(eligible.iter().map(|worker| self.candidates[*worker]));
            &self.eligible
        };
        router.decide(ask, candidates).expect("a fleet has a worker")
    }

    fn send(&mut self, number: usize, worker: usize, decision: Option<Decision>) {
        let request = &self.requests[number];
        let candidate = &mut self.candidates[worker];
        let missing = request.input as u32 - candidate.matched_tokens;
        let new_tokens = decision.map_or(missing.max(1), |decision| decision.new_tokens);
        self.index.insert(candidate.slot, &request.ids);
        self.new_tokens[number] = new_tokens;
        candidate.in_flight += 1;
        candidate.pending += 1;
        candidate.queued_prefill_tokens += u64::from(new_tokens);
        self.engines[worker].submit(number, self.requests, request.at_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        let mut random = fastrand::Rng::with_seed(3);
        let request = |number: u32| {
            let conversation = random.u64(..20);
            let ids: Vec<u64> = (0..8).map(|block| conversation << 16 | block).collect();
            Request {
                at_s: f64::from(number) * 0.2,
                input: 512 * 8 + 100,
                output: 20,
                ids: ids.into(),
                block_tokens: 512,
            }
        };
        (0..400).map(request).collect()
    }

    fn workers() -> Vec<Worker> {
        let worker = |identity| Worker { identity, tokens_per_s: 7_000.0, capacity_tokens: 65_536 };
        (0..4).map(worker).collect()
    }

    #[test]
    fn warm_finds_prefixes_that_turns_do_not_and_every_request_is_served() {
        let (requests, workers) = (requests(), workers());
        let play = |policy| {
            let settings = Settings::new(policy);
            run(&requests, &workers, Chooser::Policy { settings: &settings, learns: true }, Wishes::default())
        };
        let (warm, turns) = (play(Policy::Warm), play(Policy::RoundRobin));
        assert!(warm.served.iter().chain(&turns.served).all(|served| served.ttft_s > 0.0));
        assert!(warm.cached_share(&requests) > turns.cached_share(&requests) + 0.1);
        assert_eq!(play(Policy::Warm), warm, "the same again");
    }

    #[test]
    fn what_is_known_is_followed_and_who_may_not_have_a_request_does_not_get_it() {
        let (requests, workers) = (requests(), workers());
        let known: Vec<usize> = (0..requests.len()).map(|number| number % 3).collect();
        let outcome = run(&requests, &workers, Chooser::Known(&known), Wishes::default());
        assert!(outcome.served.iter().zip(&known).all(|(served, known)| served.worker == *known));
        assert_eq!(outcome.prefilled[3], 0);
        let eligible = vec![vec![1, 2]; requests.len()];
        let settings = Settings::new(Policy::LeastLoaded);
        let chooser = Chooser::Policy { settings: &settings, learns: false };
        let outcome = run(&requests, &workers, chooser, Wishes { eligible: &eligible, sessions: &[] });
        assert!(outcome.served.iter().all(|served| [1, 2].contains(&served.worker)));
    }
}
