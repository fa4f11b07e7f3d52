//! What policies make of a trace, in a discrete-event simulation that takes seconds: the router, the learned speeds and the
//! index are the product's, the workers are `engine.rs`. `cargo bench -p router-agent --bench policies -- [TRACE]`, by
//! default the committed sample; figures of docs/routing.md are of the whole Mooncake conversation trace.

use std::{cmp::Reverse, collections::BinaryHeap};

use router_agent::{
    index::{Matches, PrefixIndex, WorkerSlot},
    routing::{
        Ask, Candidate, Policy, Router, Settings, Speed,
        speed::{FleetPrefill, WorkerPrefill},
    },
};

mod engine;
mod trace;

use engine::{Engine, Progress};
use trace::{BLOCK_TOKENS, Request, Trace};

const WORKERS: usize = 8;
const TOKENS_PER_S: f64 = 7_000.0;
const KV_TOKENS: u64 = 32_768 * 16;
const SEEDS: u64 = 3;
const SAMPLE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/traces/mooncake_conversation_1000.jsonl");

/// What is compared: a policy, with or without learned speeds, with one worker so many times slower.
struct Case(&'static str, Policy, bool, f64);

#[derive(Default)]
struct Outcome {
    ttft_s: Vec<f64>,
    cached: f64,
    prefill_max_to_mean: f64,
    slow_share: f64,
}

fn main() {
    let path = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let trace = Trace::read(path.as_deref().unwrap_or(SAMPLE));
    println!(
        "load  policy                  TTFT mean    p50     p90     p99   cached  prefill max/mean  first worker's"
    );
    for load in [0.5, 0.8, 1.0, 1.2] {
        let rate = load * WORKERS as f64 * TOKENS_PER_S / trace.tokens_per_s();
        for case in [
            Case("warm", Policy::Warm, true, 1.0),
            Case("warm, the product", Policy::Warm, false, 1.0),
            Case("prefix", Policy::Prefix, false, 1.0),
            Case("least_loaded", Policy::LeastLoaded, false, 1.0),
            Case("round_robin", Policy::RoundRobin, false, 1.0),
            Case("warm, one 4 x slower", Policy::Warm, true, 4.0),
            Case("product, one 4 x slower", Policy::Warm, false, 4.0),
        ] {
            let mut all = Outcome::default();
            for seed in 1..=SEEDS {
                let one = replay(&trace.requests(rate, seed), &case);
                all.ttft_s.extend(one.ttft_s);
                all.cached += one.cached / SEEDS as f64;
                all.slow_share += one.slow_share / SEEDS as f64;
                all.prefill_max_to_mean = all.prefill_max_to_mean.max(one.prefill_max_to_mean);
            }
            all.ttft_s.sort_by(f64::total_cmp);
            let count = all.ttft_s.len();
            let at = |share: f64| all.ttft_s[((count as f64 * share) as usize).min(count - 1)];
            println!(
                "{load:<5} {:<24} {:7.2} {:7.2} {:7.2} {:7.2}  {:5.1} %  {:8.2}          {:5.1} %",
                case.0,
                all.ttft_s.iter().sum::<f64>() / count as f64,
                at(0.5),
                at(0.9),
                at(0.99),
                all.cached * 100.0,
                all.prefill_max_to_mean,
                all.slow_share * 100.0,
            );
        }
    }
}

fn replay(requests: &[Request], case: &Case) -> Outcome {
    let Case(_, policy, learns, slowness) = *case;
    let mut engines: Vec<_> = (0..WORKERS)
        .map(|i| Engine::new(i, if i == 0 { TOKENS_PER_S / slowness } else { TOKENS_PER_S }))
        .collect();
    let index = PrefixIndex::default();
    let mut candidates: Vec<_> = (0..WORKERS as u16).map(|i| Candidate::idle(WorkerSlot(i))).collect();
    for candidate in &candidates {
        index.set_capacity_blocks(candidate.slot, KV_TOKENS / BLOCK_TOKENS as u64);
    }
    let (mut router, mut matches) = (Router::new(Settings::new(policy), 1), Matches::new());
    let (mut fleet, mut learned) = (FleetPrefill::default(), [WorkerPrefill::default(); WORKERS]);
    let mut last_first_s = [0.0_f64; WORKERS];
    let mut new_tokens = vec![0; requests.len()];
    let mut ttft_s = Vec::with_capacity(requests.len());
    let mut steps: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut arrivals = requests.iter().enumerate().peekable();
    loop {
        let step = steps.peek().map(|Reverse((ns, _))| *ns);
        let arrival = arrivals.peek().map(|(_, request)| (request.at_s * 1e9) as u64);
        let (now_s, worker) = match (step, arrival) {
            (Some(ns), arrival) if arrival.is_none_or(|arrival| ns <= arrival) => {
                let Some(Reverse((_, worker))) = steps.pop() else { break };
                let now_s = ns as f64 / 1e9;
                engines[worker].complete(requests, now_s, |progress| match progress {
                    Progress::FirstToken(request) => {
                        let tokens = std::mem::take(&mut new_tokens[request]);
                        candidates[worker].pending -= 1;
                        candidates[worker].queued_prefill_tokens -= u64::from(tokens);
                        let begun_s = requests[request].at_s.max(last_first_s[worker]);
                        last_first_s[worker] = now_s;
                        fleet.observe(&mut learned[worker], f64::from(tokens), now_s - begun_s);
                        ttft_s.push(now_s - requests[request].at_s);
                    }
                    Progress::End => candidates[worker].in_flight -= 1,
                });
                (now_s, worker)
            }
            (_, Some(_)) => {
                let Some((number, request)) = arrivals.next() else { break };
                index.lookup(&request.ids, &mut matches);
                fleet.level(learned.iter_mut());
                for (candidate, learned) in candidates.iter_mut().zip(&learned) {
                    candidate.matched_blocks = matches.blocks(candidate.slot);
                    candidate.matched_tokens = candidate.matched_blocks * BLOCK_TOKENS as u32;
                    candidate.in_flight_at_scrape = candidate.in_flight;
                    candidate.speed = fleet.fit().filter(|_| learns).map(|(fixed_s, token_s)| Speed {
                        token_s: token_s * learned.factor(&fleet),
                        fleet_token_s: token_s,
                        fixed_s,
                        batch_s: 0.0,
                    });
                }
                let ask = Ask { prompt_tokens: request.input as u32, session: None };
                let decision = router.decide(&ask, &candidates).expect("there are workers");
                let worker = usize::from(decision.slot.0);
                index.insert(decision.slot, &request.ids);
                new_tokens[number] = decision.new_tokens;
                candidates[worker].in_flight += 1;
                candidates[worker].pending += 1;
                candidates[worker].queued_prefill_tokens += u64::from(decision.new_tokens);
                let was_idle = engines[worker].step_ends_s.is_none();
                engines[worker].submit(number, requests, request.at_s);
                if !was_idle {
                    continue; // its step is among the events
                }
                (request.at_s, worker)
            }
            _ => break,
        };
        debug_assert!(engines[worker].step_ends_s.is_none_or(|ends_s| ends_s >= now_s));
        if let Some(ends_s) = engines[worker].step_ends_s {
            steps.push(Reverse(((ends_s * 1e9) as u64, worker)));
        }
    }
    assert_eq!(ttft_s.len(), requests.len(), "every request was answered");
    let prefilled: Vec<usize> = engines.iter().map(|engine| engine.prefilled).collect();
    let sum: usize = prefilled.iter().sum();
    let hit: usize = engines.iter().map(|engine| engine.hit).sum();
    Outcome {
        ttft_s,
        cached: hit as f64 / (hit + sum) as f64,
        prefill_max_to_mean: prefilled.iter().copied().max().unwrap_or(0) as f64 * WORKERS as f64
            / sum as f64,
        slow_share: prefilled[0] as f64 / sum as f64,
    }
}
