//! The default policy's cost: predicted time to the first token, and what the request costs others.
//!
//! ```text
//! cost(w) = (pending(w) + 1) × fixed + (queued(w) + new(w)) × token(w)      its own time to the first token
//!         + new(w) × token × (1 + 4 × pending)                              those who come behind it
//!         + (new(w) × token(w) + batch_s(w)) × running(w) / 10              those who run beside it
//! ```
//!
//! - `queued` and `pending` are prefill tokens and requests in front of this one, `new` its own tokens ([`new_tokens`]),
//!   `token(w)` and `fixed` what is learned of the worker ([`super::Speed`]), `token` that of an average worker.
//! - A token that is computed again although another worker has it delays whoever comes behind. How many those are
//!   follows from Little's law: as many as wait now, over all workers (the harmonic mean, so that a crowd on one worker
//!   does not raise the price of work on idle ones), times the length of a busy period. And it takes the place of
//!   another token in a cache that is full, which will be computed again: the 1.
//! - Each running request gets its next token later by this prefill, and all its tokens by this request's share of the
//!   step. A second in the middle of an answer counts a tenth of a second before it.
//!
//! The weights 1, 4 and 1/10 were found on a production trace by simulation; halved or doubled they give the same
//! percentiles within 7 % (docs/routing.md). They are not meant to be tuned.
//!
//! While no speed is known, the cost is LMetric's product (arXiv 2603.15202), `(queued + new) × (batch + 1)`, which needs
//! none. The paper names its condition of failure: where one factor is zero the other does not count. `batch + 1` is
//! never zero; `new` of a full hit would be, so it is at least [`RECOMPUTED_TOKENS`], which is also what vLLM does: of a
//! prompt that is cached to the end it computes the last block again.

use super::{Ask, Candidate, Speed};

/// Tokens of the last block, which vLLM computes even if it has it. Its default block.
pub(super) const RECOMPUTED_TOKENS: u32 = 16;
/// What a computed token costs in the cache, in tokens that are computed again for it.
const EVICTION: f64 = 1.0;
/// Requests that come behind, per request that waits now.
const BUSY_PERIOD: f64 = 4.0;
/// A second's delay of a running answer, in seconds before the first token.
const RUNNING: f64 = 0.1;

/// Tokens that the worker would have to prefill for this request; at least 1.
pub(super) fn new_tokens(ask: Ask, candidate: &Candidate) -> u32 {
    let missing = ask.prompt_tokens.saturating_sub(candidate.matched_tokens);
    missing.max(RECOMPUTED_TOKENS.min(ask.prompt_tokens)).max(1)
}

/// How costs of one decision are reckoned.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cost {
    /// Token-requests, by the product.
    Product,
    /// Microseconds, by the learned model.
    Predicted {
        /// Requests that wait on a worker: the harmonic mean over workers, of those plus one.
        pending: f64,
    },
}

impl Cost {
    /// The learned model, if every candidate has a speed.
    pub(super) fn of(candidates: &[Candidate]) -> Self {
        if candidates.is_empty() || candidates.iter().any(|candidate| candidate.speed.is_none()) {
            return Self::Product;
        }
        let inverse: f64 =
            candidates.iter().map(|candidate| 1.0 / (f64::from(candidate.pending) + 1.0)).sum();
        Self::Predicted { pending: candidates.len() as f64 / inverse - 1.0 }
    }

    /// The cost of sending the request to `candidate`; saturates.
    pub(super) fn on(self, ask: Ask, candidate: &Candidate) -> u64 {
        let new = new_tokens(ask, candidate);
        let (Self::Predicted { pending }, Some(speed)) = (self, candidate.speed) else {
            let work = candidate.queued_prefill_tokens.saturating_add(u64::from(new));
            return work.saturating_mul(u64::from(candidate.batch()) + 1);
        };
        let own = time_to_first_token(ask, candidate, speed);
        let new = f64::from(new);
        let behind = new * speed.fleet_token_s * (EVICTION + BUSY_PERIOD * pending);
        let running = f64::from(candidate.batch().saturating_sub(candidate.pending));
        let beside = (new * speed.token_s + speed.batch_s) * running * RUNNING;
        ((own + behind + beside) * 1e6) as u64 // a cast saturates
    }
}

/// The prediction, in seconds.
pub(super) fn time_to_first_token(ask: Ask, candidate: &Candidate, speed: Speed) -> f64 {
    let tokens = candidate.queued_prefill_tokens as f64 + f64::from(new_tokens(ask, candidate));
    (f64::from(candidate.pending) + 1.0) * speed.fixed_s + tokens * speed.token_s
}
