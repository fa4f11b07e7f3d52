//! Every candidate's part in a decision: what the policy compares, computed from the same figures.
//!
//! Pure, so that a decision can be told apart long after it was made (`records`), and one that is not made at all
//! (`/explain` of the admin port).

use super::{Ask, Candidate, Policy, Settings, load, warm, weighted};
use crate::index::WorkerSlot;

/// One candidate's part in a decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    pub slot: WorkerSlot,
    /// Tokens that the worker is believed to have.
    pub matched_tokens: u32,
    /// Tokens that it would have to prefill.
    pub new_tokens: u32,
    pub queued_prefill_tokens: u64,
    /// Requests that the worker has ([`Candidate::batch`]).
    pub batch: u32,
    /// What the policy minimises, in [`cost_unit`]; 0 for policies that do not.
    pub cost: u64,
    /// Seconds to the first token there, as the learned speeds have it; none while they are not known.
    pub time_to_first_token_s: Option<f64>,
}

/// How every candidate scores by `policy`, in the order of `candidates`. `out` is emptied first.
pub fn explain(
    policy: Policy,
    settings: &Settings,
    ask: &Ask,
    candidates: &[Candidate],
    out: &mut Vec<Score>,
) {
    let warm = warm::Cost::of(candidates);
    let weighted = weighted::costs(&settings.weighted, *ask, candidates);
    out.clear();
    out.extend(candidates.iter().map(|candidate| Score {
        slot: candidate.slot,
        matched_tokens: candidate.matched_tokens.min(ask.prompt_tokens),
        new_tokens: warm::new_tokens(*ask, candidate),
        queued_prefill_tokens: candidate.queued_prefill_tokens,
        batch: candidate.batch(),
        cost: match policy {
            Policy::Warm | Policy::Lmcache => warm.on(*ask, candidate),
            Policy::Weighted => weighted(candidate),
            Policy::Prefix | Policy::Session | Policy::LeastLoaded | Policy::PowerOfTwo => load(candidate).0,
            Policy::RoundRobin | Policy::Random => 0,
        },
        time_to_first_token_s: candidate.speed.map(|speed| warm::time_to_first_token(*ask, candidate, speed)),
    }));
}

/// What costs of `policy` among these candidates are counted in; none for policies that compare none.
pub fn cost_unit(policy: Policy, candidates: &[Candidate]) -> Option<&'static str> {
    match policy {
        Policy::Warm | Policy::Lmcache => Some(match warm::Cost::of(candidates) {
            warm::Cost::Product => "token_requests",
            warm::Cost::Predicted { .. } => "microseconds",
        }),
        Policy::Weighted => Some("millionths_below_best"),
        Policy::Prefix | Policy::Session | Policy::LeastLoaded | Policy::PowerOfTwo => Some("requests"),
        Policy::RoundRobin | Policy::Random => None,
    }
}
