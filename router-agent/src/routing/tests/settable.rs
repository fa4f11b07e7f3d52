//! The policies that have settings: `prefix`, `session`, `weighted`.

use super::*;

#[test]
fn prefix_follows_the_longest_match_until_its_worker_is_full() {
    for (what, figures, slot, reason) in [
        ("one block is no match", vec![(0, 1, 0), (32, 2, 0)], 0, Reason::LeastLoaded),
        ("the longest match, whatever the load", vec![(64, 0, 0), (96, 7, 0)], 1, Reason::PrefixHit),
        ("of equals the less busy", vec![(96, 3, 0), (96, 2, 0)], 1, Reason::PrefixHit),
        ("a full one: the next match", vec![(0, 0, 0), (64, 3, 0), (96, 8, 0)], 1, Reason::Saturated),
        ("no other match: the least loaded", vec![(0, 2, 0), (0, 1, 0), (96, 8, 0)], 1, Reason::Saturated),
        ("all full: the least loaded", vec![(0, 9, 0), (96, 8, 0)], 1, Reason::PrefixHit),
    ] {
        let decision = decide(Policy::Prefix, &candidates(&figures));
        assert_eq!((decision.slot, decision.reason), (WorkerSlot(slot), reason), "{what}");
    }
}

#[test]
fn a_session_stays_and_moves_only_with_its_worker() {
    let all = candidates(&[(0, 0, 0); 8]);
    let place = |session, candidates: &[Candidate]| {
        let ask = Ask { prompt_tokens: 10, session: Some(session) };
        router(Policy::Session, session).decide(&ask, candidates).expect("one is chosen").slot
    };
    let mut counts = [0; 8];
    for session in 0..4_000 {
        let own = place(session, &all);
        assert_eq!(place(session, &all), own);
        counts[usize::from(own.0)] += 1;
        // Another worker's end moves nobody; its own one's does.
        let without = |slot: u16| all.iter().copied().filter(|c| c.slot.0 != slot).collect::<Vec<_>>();
        assert_eq!(place(session, &without((own.0 + 1) % 8)), own);
        assert_ne!(place(session, &without(own.0)), own);
    }
    assert!(counts.iter().all(|count| (400..600).contains(count)), "{counts:?}");
}

#[test]
fn a_session_overflows_at_its_bound_and_needs_a_key() {
    let mut all = candidates(&[(0, 0, 0); 8]);
    let mut router = router(Policy::Session, 1);
    for sent in 0..80_u32 {
        let decision = router.decide(&ASK, &all).expect("one is chosen");
        count(&mut all, &decision);
        let bound = (f64::from(sent + 1) / 8.0 * 1.25).ceil() as u32;
        assert!(all.iter().all(|candidate| candidate.in_flight <= bound.max(1)), "{all:?}");
        let expected = [Reason::Session, Reason::SessionOverflow];
        assert!(expected.contains(&decision.reason));
    }
    let keyless = router.decide(&Ask { session: None, ..ASK }, &candidates(&[(0, 2, 0), (0, 1, 0)]));
    assert_eq!(
        keyless.map(|decision| (decision.slot, decision.reason)),
        Some((WorkerSlot(1), Reason::LeastLoaded))
    );
}

fn weighted(scorers: &[(Scorer, f64)], pick: Pick, temperature: f64) -> Router {
    let weighted = Weighted { scorers: scorers.to_vec(), pick, temperature };
    Router::new(Settings { weighted, ..Settings::new(Policy::Weighted) }, 3)
}

#[test]
fn each_scorer_prefers_what_it_is_for() {
    let mut all = candidates(&[(0, 2, 500), (800, 3, 900), (0, 9, 0), (0, 0, 600)]);
    all[0].kv_usage_permille = 100;
    for candidate in &mut all[1..] {
        candidate.kv_usage_permille = 700;
    }
    all[2].adapter = Adapter::Waiting;
    all[3].adapter = Adapter::Running;
    let own = router(Policy::Session, 1).decide(&ASK, &candidates(&[(0, 0, 0); 4])).expect("one").slot;
    for (scorer, slot) in [
        (Scorer::Prefix, 1),
        (Scorer::Queue, 2),
        (Scorer::KvUsage, 0),
        (Scorer::Load, 3),
        (Scorer::Session, own.0),
        (Scorer::Lora, 3),
    ] {
        let decision = weighted(&[(scorer, 1.0)], Pick::Max, 1.0).decide(&ASK, &all).expect("one");
        assert_eq!((decision.slot, decision.reason), (WorkerSlot(slot), Reason::HighestScore), "{scorer}");
    }
    let both = [(Scorer::Prefix, 1.0), (Scorer::Load, 2.0)];
    let decision = weighted(&both, Pick::Max, 1.0).decide(&ASK, &all).expect("one");
    assert_eq!(
        (decision.slot, decision.runner_up),
        (WorkerSlot(1), Some(WorkerSlot(3))),
        "0.8 + 2 × 6/9 is more than 2"
    );
}

#[test]
fn a_draw_has_chances_by_score_and_temperature() {
    let all = candidates(&[(500, 0, 0), (1000, 0, 0), (0, 0, 0)]);
    let share_of_the_best = |temperature| {
        let mut router = weighted(&[(Scorer::Prefix, 1.0)], Pick::WeightedRandom, temperature);
        let drawn = (0..6_000).map(|_| router.decide(&ASK, &all).expect("one").slot.0);
        let counts = drawn.fold([0_u32; 3], |mut counts, slot| {
            counts[usize::from(slot)] += 1;
            counts
        });
        assert_eq!(counts[2], 0, "a score of zero has no chance");
        f64::from(counts[1]) / 6_000.0
    };
    assert!((share_of_the_best(1.0) - 2.0 / 3.0).abs() < 0.03);
    assert!((share_of_the_best(0.5) - 4.0 / 5.0).abs() < 0.03);
    let mut nobody_scores = weighted(&[(Scorer::Lora, 1.0)], Pick::WeightedRandom, 1.0);
    let slots: std::collections::HashSet<_> =
        (0..60).map(|_| nobody_scores.decide(&ASK, &all).expect("one").slot.0).collect();
    assert_eq!(slots.len(), 3);
}
