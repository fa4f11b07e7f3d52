//! The default policy's cost: `(queued + new) × (batch + 1)`.
//!
//! `queued` is the prefill work in front of this request, `new` its own, `batch` the requests that share the engine's
//! steps with it: the product is how long the first token takes, times how many requests pay for it. It is LMetric's
//! (arXiv 2603.15202); what is different here:
//!
//! - The paper names its own condition of failure: where one factor is zero the other does not count. `batch + 1` is
//!   never zero; `new` of a full hit would be, and then a worker with a thousand requests would tie with an idle
//!   one. So `new` is at least [`RECOMPUTED_TOKENS`], which is also what vLLM really does: of a prompt that is
//!   cached to the end it computes the last block again.
//! - `batch` is ours, exact at the moment of the decision, plus what the scrape shows of others
//!   ([`Candidate::batch`]), not the scrape alone, which is as old as its interval.
//! - Equal costs go to the worker that was chosen longest ago, so that an idle fleet fills evenly.

use super::{Ask, Candidate};

/// Tokens of the last block, which vLLM computes even if it has it. Its default block.
pub(super) const RECOMPUTED_TOKENS: u32 = 16;

/// Tokens that the worker would have to prefill for this request; at least 1.
pub(super) fn new_tokens(ask: Ask, candidate: &Candidate) -> u32 {
    let missing = ask.prompt_tokens.saturating_sub(candidate.matched_tokens);
    missing.max(RECOMPUTED_TOKENS.min(ask.prompt_tokens)).max(1)
}

/// In token-requests; saturates.
pub(super) fn cost(ask: Ask, candidate: &Candidate) -> u64 {
    let work = candidate.queued_prefill_tokens.saturating_add(u64::from(new_tokens(ask, candidate)));
    work.saturating_mul(u64::from(candidate.batch()) + 1)
}
