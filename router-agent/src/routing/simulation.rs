//! Policies, learned speeds and index together, on a synthetic trace of conversations over a fleet with a simple model of time:
//! does `warm` come close to what one unbounded cache would hit, with the load even?
//!
//! Each worker prefills one request after the other at a fixed rate and then decodes. Conversations arrive at
//! random, all share one system prompt, and wait between turns. Everything is seeded.

use std::{cmp::Reverse, collections::BinaryHeap};

use fastrand::Rng;

use super::{
    speed::{FleetPrefill, WorkerPrefill},
    *,
};
use crate::index::{Matches, PrefixIndex};

const WORKERS: u16 = 8;
const BLOCK_TOKENS: u32 = 32;
const SYSTEM_BLOCKS: usize = 20;
const CONVERSATIONS: u64 = 400;
const TURNS: usize = 6;
const PREFILL_TOKENS_PER_S: f64 = 8_000.0;

/// One turn: when it is sent, and its blocks, which begin with those of the turn before.
struct Turn {
    at_s: f64,
    hashes: Vec<u64>,
    decode_s: f64,
}

fn trace(seed: u64) -> Vec<Turn> {
    let mut random = Rng::with_seed(seed);
    let mut turns = Vec::new();
    for _ in 0..CONVERSATIONS {
        let mut hashes: Vec<u64> = (0..SYSTEM_BLOCKS as u64).collect();
        let mut at_s = random.f64() * 300.0;
        for _ in 0..TURNS {
            hashes.extend((0..random.usize(5..120)).map(|_| random.u64(1 << 32..)));
            turns.push(Turn { at_s, hashes: hashes.clone(), decode_s: 1.0 + random.f64() * 8.0 });
            at_s += 10.0 + random.f64() * 30.0;
        }
    }
    turns.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    turns
}

/// Something that ends at a time: the prefill of a request (its tokens, and what it took), or the request.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at_us: u64,
    worker: usize,
    prefilled: Option<(u32, u64)>,
}

#[derive(Debug)]
struct Outcome {
    /// Blocks found in the chosen worker's cache, of all blocks.
    cached_share: f64,
    /// Most prefilled by one worker over the mean.
    imbalance: f64,
    mean_ttft_s: f64,
    /// Requests by worker, of the first fifty and of all.
    first_fifty: [u32; WORKERS as usize],
    requests: [u32; WORKERS as usize],
    /// Tokens that each prefilled.
    prefilled: [u64; WORKERS as usize],
}

/// `capacity_blocks` bounds each worker's cache; the simulated cache is an index of its own, so what the router
/// believes and what is true differ only by what a decision costs in time. The first worker is `slowness` times slower.
fn simulate(policy: Policy, turns: &[Turn], capacity_blocks: u64, slowness: f64) -> Outcome {
    let index = PrefixIndex::default();
    let mut router = Router::new(Settings::new(policy), 9);
    let mut matches = Matches::new();
    let mut all: Vec<Candidate> = (0..WORKERS).map(|slot| Candidate::idle(WorkerSlot(slot))).collect();
    let mut free_at_s = [0.0_f64; WORKERS as usize];
    let mut prefilled = [0_u64; WORKERS as usize];
    let mut events: BinaryHeap<Reverse<Event>> = BinaryHeap::new();
    let (mut hit, mut asked, mut ttft_s) = (0_u64, 0_u64, 0.0);
    let (mut fleet, mut learned) = (FleetPrefill::default(), [WorkerPrefill::default(); WORKERS as usize]);
    let (mut first_fifty, mut requests) = ([0; WORKERS as usize], [0; WORKERS as usize]);
    for slot in 0..WORKERS {
        index.set_capacity_blocks(WorkerSlot(slot), capacity_blocks);
    }
    for (number, turn) in turns.iter().enumerate() {
        while events.peek().is_some_and(|Reverse(event)| event.at_us as f64 <= turn.at_s * 1e6) {
            let Reverse(event) = events.pop().expect("it was just seen");
            let worker = &mut all[event.worker];
            match event.prefilled {
                Some((tokens, took_us)) => {
                    worker.queued_prefill_tokens -= u64::from(tokens);
                    worker.pending -= 1;
                    fleet.observe(&mut learned[event.worker], f64::from(tokens), took_us as f64 / 1e6);
                }
                None => worker.in_flight -= 1,
            }
        }
        fleet.level(learned.iter_mut());
        index.lookup(&turn.hashes, &mut matches);
        for candidate in &mut all {
            candidate.matched_tokens = matches.blocks(candidate.slot) * BLOCK_TOKENS;
            candidate.matched_blocks = matches.blocks(candidate.slot);
            candidate.in_flight_at_scrape = candidate.in_flight;
            candidate.speed = fleet.fit().map(|(fixed_s, token_s)| Speed {
                token_s: token_s * learned[usize::from(candidate.slot.0)].factor(&fleet),
                fleet_token_s: token_s,
                fixed_s,
                batch_s: 0.0,
            });
        }
        let ask = Ask { prompt_tokens: turn.hashes.len() as u32 * BLOCK_TOKENS, session: None };
        let decision = router.decide(&ask, &all).expect("there are workers");
        let worker = usize::from(decision.slot.0);
        index.insert(decision.slot, &turn.hashes);
        hit += u64::from(decision.matched_tokens / BLOCK_TOKENS);
        asked += turn.hashes.len() as u64;
        prefilled[worker] += u64::from(decision.new_tokens);
        all[worker].in_flight += 1;
        all[worker].pending += 1;
        all[worker].queued_prefill_tokens += u64::from(decision.new_tokens);
        requests[worker] += 1;
        first_fifty[worker] += u32::from(number < 50);
        let start_s = free_at_s[worker].max(turn.at_s);
        let takes_s = f64::from(decision.new_tokens) / PREFILL_TOKENS_PER_S;
        let takes_s = if worker == 0 { takes_s * slowness } else { takes_s };
        free_at_s[worker] = start_s + takes_s;
        ttft_s += free_at_s[worker] - turn.at_s;
        let prefilled = Some((decision.new_tokens, (takes_s * 1e6) as u64));
        events.push(Reverse(Event { at_us: (free_at_s[worker] * 1e6) as u64, worker, prefilled }));
        let end_us = ((free_at_s[worker] + turn.decode_s) * 1e6) as u64;
        events.push(Reverse(Event { at_us: end_us, worker, prefilled: None }));
    }
    assert_eq!(index.audit(), Ok(()));
    let mean = prefilled.iter().sum::<u64>() as f64 / f64::from(WORKERS);
    Outcome {
        cached_share: hit as f64 / asked as f64,
        imbalance: prefilled.iter().max().map_or(0.0, |most| *most as f64 / mean),
        mean_ttft_s: ttft_s / turns.len() as f64,
        first_fifty,
        requests,
        prefilled,
    }
}

/// What one cache without bounds would hit.
fn ceiling(turns: &[Turn]) -> f64 {
    let index = PrefixIndex::default();
    let mut matches = Matches::new();
    let (mut hit, mut asked) = (0_u64, 0_u64);
    for turn in turns {
        index.lookup(&turn.hashes, &mut matches);
        hit += u64::from(matches.blocks(WorkerSlot(0)));
        asked += turn.hashes.len() as u64;
        index.insert(WorkerSlot(0), &turn.hashes);
    }
    hit as f64 / asked as f64
}

#[test]
fn warm_comes_close_to_the_ceiling_with_an_even_load() {
    for seed in 1..=3 {
        let turns = trace(seed);
        let ceiling = ceiling(&turns);
        let warm = simulate(Policy::Warm, &turns, u64::MAX, 1.0);
        let even = simulate(Policy::RoundRobin, &turns, u64::MAX, 1.0);
        println!("seed {seed}: ceiling {ceiling:.3}, warm {warm:.3?}, round_robin {even:.3?}");
        assert!(warm.cached_share > ceiling * 0.9, "{} of {ceiling}", warm.cached_share);
        assert!(warm.imbalance < 1.15, "{}", warm.imbalance);
        assert!(warm.cached_share > even.cached_share + 0.2);
        assert!(warm.mean_ttft_s < even.mean_ttft_s * 0.6);
    }
}

#[test]
fn warm_keeps_its_lead_when_caches_are_small() {
    let turns = trace(4);
    let blocks: usize = turns.iter().map(|turn| turn.hashes.len()).max().unwrap_or(0);
    // Room for a dozen conversations per worker, where fifty are under way at a time.
    let capacity = blocks as u64 * 12;
    let policies =
        [Policy::Warm, Policy::RoundRobin, Policy::Random, Policy::LeastLoaded, Policy::PowerOfTwo];
    let outcomes = policies.map(|policy| (policy, simulate(policy, &turns, capacity, 1.0)));
    let [(_, warm), others @ ..] = &outcomes;
    println!("{outcomes:.3?}");
    for (policy, other) in others {
        assert!(warm.cached_share > other.cached_share * 1.3, "{policy}: {other:?} against {warm:?}");
        assert!(warm.mean_ttft_s < other.mean_ttft_s, "{policy}: {other:?} against {warm:?}");
    }
    assert!(warm.imbalance < 1.2, "{warm:?}");
}

#[test]
fn one_slow_worker_in_eight_is_found_and_gets_its_share() {
    for seed in 1..=3 {
        let turns = trace(seed);
        let outcome = simulate(Policy::Warm, &turns, u64::MAX, 5.0);
        println!("seed {seed}: {outcome:.3?}");
        // Even would be six of fifty. It must get some, or nothing would be learned of it.
        assert!((1..=6).contains(&outcome.first_fifty[0]), "{:?}", outcome.first_fifty);
        // Of all tokens no more than its share of the fleet's speed, 0.2 of 7.2.
        let share = outcome.prefilled[0] as f64 / outcome.prefilled.iter().sum::<u64>() as f64;
        assert!(share < 0.2 / 7.2 * 1.25, "{share}");
        assert!(outcome.requests[0] > 5, "it is tried again");
        let unlearned = simulate(Policy::RoundRobin, &turns, u64::MAX, 5.0);
        assert!(outcome.mean_ttft_s < unlearned.mean_ttft_s * 0.6);
    }
}
