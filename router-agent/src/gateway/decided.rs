//! A decision as the `decisions` map shows it. The figures are those that the policy saw: candidates as they were
//! listed for it.

use http::HeaderValue;
use router_common::{
    decisions::{DecisionPolicy, DecisionReason, DecisionValue, NO_WORKER},
    limits::REQUEST_ID_BYTES,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    index::WorkerSlot,
    routing::{Candidate, Decision, Policy, Reason},
};

/// What the record says beside the decision itself.
pub(super) struct Circumstances<'a> {
    pub(super) request_id: &'a HeaderValue,
    pub(super) candidates: &'a [Candidate],
    /// Workers tried before.
    pub(super) tried: usize,
    pub(super) prompt_tokens: u32,
    pub(super) matched_blocks: u32,
}

/// The record of `decision`; number and time are stamped by the map's writer.
pub(super) fn record(decision: &Decision, circumstances: &Circumstances<'_>) -> DecisionValue {
    let Circumstances { request_id, candidates, tried, prompt_tokens, matched_blocks } = *circumstances;
    let figures = |slot: WorkerSlot| {
        let found = candidates.iter().find(|candidate| candidate.slot == slot);
        found.copied().unwrap_or_else(|| Candidate::idle(slot))
    };
    let worker = figures(decision.slot);
    let runner_up = decision.runner_up.map(figures);
    DecisionValue {
        request_hash: xxh3_64(request_id.as_bytes()),
        request_id: first_bytes(request_id.as_bytes()),
        cost: decision.cost,
        runner_up_cost: decision.runner_up_cost,
        queued_prefill_tokens: worker.queued_prefill_tokens,
        runner_up_queued_prefill_tokens: runner_up.map_or(0, |other| other.queued_prefill_tokens),
        runner_up: decision.runner_up.map_or(NO_WORKER, |slot| u32::from(slot.0)),
        attempt: tried as u32 + 1,
        candidates: candidates.len() as u32,
        tied: decision.tied,
        prompt_tokens,
        matched_blocks,
        matched_tokens: decision.matched_tokens,
        best_matched_tokens: decision.best_matched_tokens,
        runner_up_matched_tokens: runner_up.map_or(0, |other| other.matched_tokens.min(prompt_tokens)),
        new_tokens: decision.new_tokens,
        batch: worker.batch(),
        runner_up_batch: runner_up.map_or(0, |other| other.batch()),
        ..DecisionValue::new(u32::from(decision.slot.0), policy(decision.policy), reason(decision.reason))
    }
}

fn first_bytes(id: &[u8]) -> [u8; REQUEST_ID_BYTES] {
    let mut bytes = [0; REQUEST_ID_BYTES];
    let length = id.len().min(REQUEST_ID_BYTES);
    bytes[..length].copy_from_slice(&id[..length]);
    bytes
}

fn policy(policy: Policy) -> DecisionPolicy {
    match policy {
        Policy::Warm => DecisionPolicy::Warm,
        Policy::RoundRobin => DecisionPolicy::RoundRobin,
        Policy::Random => DecisionPolicy::Random,
        Policy::LeastLoaded => DecisionPolicy::LeastLoaded,
        Policy::PowerOfTwo => DecisionPolicy::PowerOfTwo,
        Policy::Prefix => DecisionPolicy::Prefix,
        Policy::Session => DecisionPolicy::Session,
        Policy::Lmcache => DecisionPolicy::Lmcache,
        Policy::Weighted => DecisionPolicy::Weighted,
    }
}

fn reason(reason: Reason) -> DecisionReason {
    match reason {
        Reason::OnlyCandidate => DecisionReason::OnlyCandidate,
        Reason::PrefixHit => DecisionReason::PrefixHit,
        Reason::LoadOverPrefix => DecisionReason::LoadOverPrefix,
        Reason::LeastCost => DecisionReason::LeastCost,
        Reason::TieLru => DecisionReason::TieLru,
        Reason::LeastLoaded => DecisionReason::LeastLoaded,
        Reason::PowerOfTwo => DecisionReason::PowerOfTwo,
        Reason::RoundRobin => DecisionReason::RoundRobin,
        Reason::Random => DecisionReason::Random,
        Reason::Saturated => DecisionReason::Saturated,
        Reason::Session => DecisionReason::Session,
        Reason::SessionOverflow => DecisionReason::SessionOverflow,
        Reason::HighestScore => DecisionReason::HighestScore,
        Reason::WeightedRandom => DecisionReason::WeightedRandom,
        Reason::PreviousResponse => DecisionReason::PreviousResponse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{Ask, Router, Settings};

    fn decided(policy: Policy, candidates: &[Candidate]) -> DecisionValue {
        let decision = Router::new(Settings::new(policy), 1)
            .decide(&Ask { prompt_tokens: 100, ..Ask::default() }, candidates)
            .expect("one");
        let request_id = HeaderValue::from_static("abc");
        record(
            &decision,
            &Circumstances {
                request_id: &request_id,
                candidates,
                tried: 1,
                prompt_tokens: 100,
                matched_blocks: 5,
            },
        )
    }

    #[test]
    fn a_record_has_the_figures_of_both_workers_that_were_in_question() {
        let slot = |slot| Candidate::idle(WorkerSlot(slot));
        let candidates = [
            Candidate { in_flight: 9, queued_prefill_tokens: 1000, ..slot(1) },
            Candidate { in_flight: 2, queued_prefill_tokens: 30, matched_tokens: 80, ..slot(4) },
            Candidate { in_flight: 3, queued_prefill_tokens: 40, matched_tokens: 120, ..slot(7) },
        ];
        let row = decided(Policy::Warm, &candidates);
        assert_eq!((row.worker, row.runner_up, row.candidates, row.tied), (4, 7, 3, 1));
        assert_eq!((row.policy, row.reason), (DecisionPolicy::Warm, DecisionReason::LoadOverPrefix));
        assert_eq!((row.matched_tokens, row.best_matched_tokens, row.new_tokens), (80, 100, 20));
        assert_eq!((row.queued_prefill_tokens, row.batch, row.cost), (30, 2, (30 + 20) * 3));
        assert_eq!((row.runner_up_queued_prefill_tokens, row.runner_up_batch), (40, 3));
        assert_eq!((row.runner_up_matched_tokens, row.runner_up_cost), (100, (40 + 16) * 4));
        assert_eq!((row.attempt, row.prompt_tokens, row.matched_blocks), (2, 100, 5));
        assert!(row.request_id.starts_with(b"abc\0") && row.request_hash == xxh3_64(b"abc"));
    }

    #[test]
    fn without_a_runner_up_there_is_none() {
        let row = decided(Policy::RoundRobin, &[Candidate::idle(WorkerSlot(0))]);
        assert_eq!((row.worker, row.runner_up, row.runner_up_cost), (0, NO_WORKER, 0));
        assert_eq!(row.reason, DecisionReason::OnlyCandidate);
    }

    #[test]
    fn every_policy_and_reason_keeps_its_name() {
        let same = |ours: &str, map: &str| ours.replace('_', "") == map.to_lowercase();
        assert!(Policy::ALL.iter().all(|each| same(each.name(), policy(*each).name())));
        assert!(Reason::ALL.iter().all(|each| same(each.label(), reason(*each).name())));
    }

    #[test]
    fn long_ids_are_cut() {
        assert_eq!(first_bytes(&[7; 100]), [7; REQUEST_ID_BYTES]);
    }
}
