//! Each policy's choices in tables, and what must hold of every decision.

mod settable;

use std::collections::HashMap;

use super::*;

const ASK: Ask = Ask { prompt_tokens: 1000, session: Some(7) };

fn router(policy: Policy, seed: u64) -> Router {
    Router::new(Settings::new(policy), seed)
}

/// 7,000 tokens/s.
const SPEED: Speed = Speed { token_s: 1.0 / 7e3, fleet_token_s: 1.0 / 7e3, fixed_s: 0.02, batch_s: 0.05 };

fn candidate(slot: u16) -> Candidate {
    Candidate::idle(WorkerSlot(slot))
}

/// (matched, in flight, queued) for slots 0, 1, 2, ...
fn candidates(figures: &[(u32, u32, u64)]) -> Vec<Candidate> {
    let numbered = figures.iter().enumerate();
    numbered
        .map(|(slot, &(matched_tokens, in_flight, queued_prefill_tokens))| Candidate {
            matched_tokens,
            matched_blocks: matched_tokens / 32,
            in_flight,
            in_flight_at_scrape: in_flight,
            queued_prefill_tokens,
            ..candidate(slot as u16)
        })
        .collect()
}

fn decide(policy: Policy, candidates: &[Candidate]) -> Decision {
    router(policy, 1).decide(&ASK, candidates).expect("there are candidates")
}

#[test]
fn no_candidates_no_decision() {
    for policy in Policy::ALL {
        assert_eq!(router(policy, 1).decide(&ASK, &[]), None);
    }
}

#[test]
fn one_candidate_is_chosen_whatever_its_load() {
    for policy in Policy::ALL {
        let decision = decide(policy, &candidates(&[(0, 500, 1_000_000)]));
        assert_eq!((decision.slot, decision.reason), (WorkerSlot(0), Reason::OnlyCandidate));
        assert_eq!((decision.runner_up, decision.tied), (None, 1));
    }
}

#[test]
fn warm_weighs_the_prefix_against_the_wait() {
    for (what, figures, slot, reason) in [
        ("idle and cold: any", vec![(0, 0, 0), (0, 0, 0)], 0, Reason::TieLru),
        ("the prefix draws", vec![(0, 0, 0), (900, 0, 0)], 1, Reason::PrefixHit),
        ("the longer prefix draws more", vec![(600, 0, 0), (900, 0, 0)], 1, Reason::PrefixHit),
        (
            "nine others sharing the steps cost as much as the prefix saves",
            vec![(0, 0, 0), (900, 10, 0)],
            0,
            Reason::LoadOverPrefix,
        ),
        ("eight do not", vec![(0, 0, 0), (900, 8, 0)], 1, Reason::PrefixHit),
        (
            "prefill that waits in front of it counts",
            vec![(0, 0, 0), (900, 0, 5_000)],
            0,
            Reason::LoadOverPrefix,
        ),
        ("cold: the shorter queue", vec![(0, 1, 800), (0, 1, 700)], 1, Reason::LeastCost),
        ("cold: the smaller batch", vec![(0, 4, 0), (0, 3, 0)], 1, Reason::LeastCost),
        // The paper's condition of failure: a full hit must not hide the batch.
        ("two full hits: the less busy", vec![(1000, 50, 0), (1000, 2, 0)], 1, Reason::PrefixHit),
        (
            "a full hit on a very busy worker loses",
            vec![(1000, 5000, 0), (0, 0, 0)],
            1,
            Reason::LoadOverPrefix,
        ),
        (
            "a match longer than the prompt is a full hit",
            vec![(9999, 0, 0), (1000, 0, 0)],
            0,
            Reason::PrefixHit,
        ),
    ] {
        let decision = decide(Policy::Warm, &candidates(&figures));
        assert_eq!((decision.slot, decision.reason), (WorkerSlot(slot), reason), "{what}");
    }
}

#[test]
fn warm_counts_new_tokens_as_the_worker_will() {
    for (prompt_tokens, matched, new) in
        [(1000, 0, 1000), (1000, 900, 100), (1000, 1000, 16), (10, 10, 10), (0, 0, 1)]
    {
        let ask = Ask { prompt_tokens, session: None };
        let decision = router(Policy::Warm, 1).decide(&ask, &candidates(&[(matched, 0, 0)]));
        assert_eq!(decision.map(|decision| decision.new_tokens), Some(new));
    }
}

#[test]
fn the_batch_is_ours_and_what_the_scrape_shows_of_others() {
    for (in_flight, running, waiting, in_flight_at_scrape, batch) in [
        (0, 0, 0, 0, 0),
        (7, 0, 0, 0, 7),
        (7, 5, 2, 7, 7),    // the scrape saw our own
        (2, 5, 2, 7, 2),    // ours have ended since
        (9, 5, 2, 7, 9),    // ours have grown since
        (2, 20, 10, 7, 25), // 23 are others'
        (4, 10, 0, 4, 10),  // without the figure at the scrape: the larger count
    ] {
        let candidate = Candidate { in_flight, running, waiting, in_flight_at_scrape, ..candidate(0) };
        assert_eq!(candidate.batch(), batch);
    }
}

#[test]
fn costs_saturate() {
    let mut all = candidates(&[(0, u32::MAX, u64::MAX), (0, 0, 0)]);
    all[0].running = u32::MAX;
    assert_eq!(decide(Policy::Warm, &all).slot, WorkerSlot(1));
}

#[test]
fn least_loaded_takes_the_fewest_requests_then_the_shortest_queue() {
    for (figures, slot, reason) in [
        (vec![(900, 3, 0), (0, 2, 9_999)], 1, Reason::LeastLoaded),
        (vec![(900, 2, 50), (0, 2, 40)], 1, Reason::LeastLoaded),
        (vec![(0, 2, 40), (0, 2, 40)], 0, Reason::TieLru),
    ] {
        let decision = decide(Policy::LeastLoaded, &candidates(&figures));
        assert_eq!((decision.slot, decision.reason), (WorkerSlot(slot), reason));
    }
}

#[test]
fn round_robin_keeps_its_turn_when_the_candidates_change() {
    let mut router = router(Policy::RoundRobin, 1);
    let all = candidates(&[(0, 0, 0); 4]);
    let mut next = |candidates: &[Candidate]| router.decide(&ASK, candidates).expect("one is chosen").slot.0;
    assert_eq!([next(&all), next(&all), next(&all)], [0, 1, 2]);
    assert_eq!(next(&[all[1], all[0]]), 0, "around the end");
    assert_eq!(next(&[all[3], all[2], all[0]]), 2, "the order of the list does not matter");
    assert_eq!([next(&all), next(&all)], [3, 0]);
}

#[test]
fn random_is_even_and_repeats_with_its_seed() {
    let all = candidates(&[(0, 0, 0); 8]);
    let choices = |seed| {
        let mut router = router(Policy::Random, seed);
        (0..8_000).map(|_| router.decide(&ASK, &all).expect("one").slot).collect::<Vec<_>>()
    };
    assert_eq!(choices(1), choices(1));
    assert_ne!(choices(1), choices(2));
    let mut counts = HashMap::new();
    for slot in choices(3) {
        *counts.entry(slot).or_insert(0) += 1;
    }
    assert!(counts.len() == 8 && counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
}

#[test]
fn power_of_two_never_takes_the_most_loaded_and_compares_two_different_ones() {
    let mut router = router(Policy::PowerOfTwo, 1);
    let all = candidates(&[(0, 3, 0), (0, 9, 0), (0, 1, 0), (0, 2, 0)]);
    let mut counts = [0; 4];
    for _ in 0..6_000 {
        let decision = router.decide(&ASK, &all).expect("one is chosen");
        assert_eq!(decision.reason, Reason::PowerOfTwo);
        let other = decision.runner_up.expect("two were compared");
        assert_ne!(decision.slot, other);
        assert!(all[usize::from(decision.slot.0)].in_flight <= all[usize::from(other.0)].in_flight);
        counts[usize::from(decision.slot.0)] += 1;
    }
    assert_eq!(counts[1], 0);
    assert!((2_700..3_300).contains(&counts[2]), "the least loaded is in half of the pairs: {counts:?}");
}

/// The guard's part: counts move with the decision.
fn count(all: &mut [Candidate], decision: &Decision) {
    let chosen =
        all.iter_mut().find(|candidate| candidate.slot == decision.slot).expect("it was a candidate");
    chosen.in_flight += 1;
    chosen.pending += 1;
    chosen.queued_prefill_tokens += u64::from(decision.new_tokens);
}

#[test]
fn a_burst_of_equal_requests_spreads_over_the_holders() {
    for (policy, learned) in [
        (Policy::Warm, false),
        (Policy::Warm, true),
        (Policy::Lmcache, true),
        (Policy::Prefix, false),
        (Policy::Weighted, false),
        (Policy::LeastLoaded, false),
    ] {
        for matched in [0, 992, 1000] {
            let mut router = router(policy, 1);
            let mut all = candidates(&[(matched, 0, 0); 8]);
            if learned {
                for candidate in &mut all {
                    candidate.speed = Some(SPEED);
                }
            }
            for _ in 0..64 {
                let decision = router.decide(&ASK, &all).expect("one is chosen");
                count(&mut all, &decision);
            }
            let spread: Vec<u32> = all.iter().map(|candidate| candidate.in_flight).collect();
            assert!(spread.iter().all(|count| (6..=10).contains(count)), "{policy} {matched}: {spread:?}");
        }
    }
}

#[test]
fn ties_without_counts_go_to_the_longest_unchosen() {
    // Requests that end at once leave no count behind: only the turn tells the workers apart.
    for policy in [Policy::Warm, Policy::LeastLoaded] {
        let mut router = router(policy, 1);
        let all = candidates(&[(0, 0, 0); 5]);
        let slots: Vec<u16> = (0..10).map(|_| router.decide(&ASK, &all).expect("one").slot.0).collect();
        assert_eq!(slots, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
    }
    let tied = decide(Policy::Warm, &candidates(&[(0, 1, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)]));
    assert_eq!((tied.tied, tied.reason), (3, Reason::TieLru));
}

#[test]
fn the_explanation_is_what_was_decided_by() {
    let mut random = fastrand::Rng::with_seed(4);
    let mut scores = Vec::new();
    for policy in Policy::ALL {
        let mut router = router(policy, 5);
        for _ in 0..500 {
            let figures: Vec<_> = (0..random.usize(1..12))
                .map(|_| (random.u32(..4) * 300, random.u32(..4), random.u64(..3) * 500))
                .collect();
            let all = candidates(&figures);
            let decision = router.decide(&ASK, &all).expect("one is chosen");
            explain(policy, router.settings(), &ASK, &all, &mut scores);
            assert_eq!(scores.len(), all.len());
            let chosen = scores.iter().find(|score| score.slot == decision.slot).expect("it is among them");
            assert_eq!(chosen.cost, decision.cost);
            assert_eq!(chosen.new_tokens, decision.new_tokens);
            assert_eq!(chosen.matched_tokens, decision.matched_tokens);
            assert_eq!(
                decision.best_matched_tokens,
                scores.iter().map(|score| score.matched_tokens).max().unwrap_or(0)
            );
            if matches!(policy, Policy::Warm | Policy::Lmcache | Policy::Weighted | Policy::LeastLoaded) {
                assert!(scores.iter().all(|score| score.cost >= decision.cost));
                let mut costs: Vec<u64> = scores.iter().map(|score| score.cost).collect();
                costs.sort_unstable();
                let second = decision.runner_up.map(|slot| scores.iter().find(|score| score.slot == slot));
                assert_eq!(second.flatten().map(|score| score.cost), costs.get(1).copied());
            }
            if policy == Policy::Warm {
                assert_eq!(
                    decision.tied as usize,
                    scores.iter().filter(|score| score.cost == decision.cost).count()
                );
            }
        }
    }
}

#[test]
fn names_are_read_back_and_unknown_ones_list_the_known() {
    for policy in Policy::ALL {
        assert_eq!(policy.to_string().parse(), Ok(policy));
    }
    assert_eq!(
        "cache_aware".parse::<Policy>().expect_err("unknown").to_string(),
        "no policy is called `cache_aware`; there are warm, prefix, session, lmcache, weighted, \
         round_robin, random, least_loaded, power_of_two"
    );
    let labels: std::collections::HashSet<_> = Reason::ALL.map(Reason::label).into();
    assert_eq!(labels.len(), Reason::ALL.len());
}

fn with_speeds(mut candidates: Vec<Candidate>, factors: &[f64]) -> Vec<Candidate> {
    for (candidate, factor) in candidates.iter_mut().zip(factors) {
        candidate.speed = Some(Speed { token_s: SPEED.token_s * factor, ..SPEED });
    }
    candidates
}

#[test]
fn with_speeds_warm_predicts_the_first_token() {
    let all = with_speeds(candidates(&[(0, 0, 0), (900, 1, 6_900)]), &[1.0, 1.0]);
    let decision = decide(Policy::Warm, &all);
    // 1,000 tokens at 7,000/s now, or 7,000 of them behind another.
    assert_eq!((decision.slot, decision.reason), (WorkerSlot(0), Reason::LoadOverPrefix));
    let predicted = decision.time_to_first_token_s.expect("speeds are known");
    assert!((predicted - (0.02 + 1_000.0 / 7e3)).abs() < 1e-9, "{predicted}");
    assert_eq!(decide(Policy::Warm, &candidates(&[(0, 0, 0)])).time_to_first_token_s, None);
}

#[test]
fn warm_keeps_a_conversation_where_others_would_have_to_wait_for_its_prefill() {
    // The holder is somewhat busier than the other. On a fleet without queues it would be left...
    let of = |pending: u32| {
        let mut all = with_speeds(candidates(&[(0, 0, 0), (600, 0, 1_300)]), &[1.0; 2]);
        for candidate in &mut all {
            candidate.pending = pending;
        }
        decide(Policy::Warm, &all).slot
    };
    assert_eq!(of(0), WorkerSlot(0));
    // ... but where everybody waits, 600 tokens computed again delay them all.
    assert_eq!(of(3), WorkerSlot(1));
}

#[test]
fn a_slow_worker_gets_what_it_can_do_in_the_same_time() {
    let mut all = with_speeds(candidates(&[(0, 0, 0); 8]), &[4.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    let mut router = router(Policy::Warm, 1);
    for _ in 0..290 {
        let decision = router.decide(&ASK, &all).expect("one is chosen");
        count(&mut all, &decision);
    }
    // A quarter of the others' speed: 10 of 290.
    assert!((3..=13).contains(&all[0].in_flight), "{}", all[0].in_flight);
    assert!(all[1..].iter().all(|candidate| (38..=42).contains(&candidate.in_flight)));
}
