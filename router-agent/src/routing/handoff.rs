//! When it pays to prefill a prompt on another worker than the one that decodes it: pure arithmetic.
//!
//! A worker that prefills a prompt of `n` uncached tokens is kept from its decodes for `token × n` seconds. Handed over, the
//! request itself waits for `fixed + per_token × n` seconds more: a second request, the transfer of the KV blocks, a step
//! of the decode worker. Where the former is the larger the prompt is prefilled apart. The line of the latter is learned
//! from decode stages, from request sent to first token.

use super::line::Line;
use crate::limits::{HANDOFF_TOKENS, HANDOFF_TOKENS_MAX, HANDOFF_TOKENS_MIN};

/// Weight that an observation loses to each newer one: the last hundred or so count.
const FORGET: f64 = 0.99;
/// Observations below which nothing is concluded.
const COLD: u64 = 8;

/// What handing over takes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Handoff {
    line: Line,
    observations: u64,
}

impl Handoff {
    /// A prompt with so many tokens that were prefilled elsewhere took so many seconds to its first token.
    pub fn observe(&mut self, tokens: f64, seconds: f64) {
        self.line.observe(FORGET, tokens, seconds);
        self.observations += 1;
    }

    /// Uncached tokens from which on handing over takes less than a prefill at `token_s` seconds per token.
    pub fn tokens_min(&self, token_s: Option<f64>) -> u32 {
        let Some(token_s) = token_s.filter(|_| self.observations >= COLD) else { return HANDOFF_TOKENS };
        let (fixed, per_token) = self.line.fit();
        let gain = token_s - per_token;
        // A quotient beyond any number is a large one; a cast saturates.
        let even = if gain > 0.0 { (fixed / gain).ceil() as u32 } else { u32::MAX };
        even.clamp(HANDOFF_TOKENS_MIN, HANDOFF_TOKENS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(fixed: f64, per_token: f64) -> Handoff {
        let mut handoff = Handoff::default();
        for tokens in [500.0, 2_000.0, 8_000.0].into_iter().cycle().take(30) {
            handoff.observe(tokens, fixed + per_token * tokens);
        }
        handoff
    }

    #[test]
    fn a_prompt_is_worth_it_from_where_its_prefill_takes_longer_than_its_transfer() {
        // 20 ms and 1 µs per token, against 50 µs: 20 ms / 49 µs.
        let tokens = learned(0.020, 1e-6).tokens_min(Some(50e-6));
        assert!((405..=412).contains(&tokens), "{tokens}");
    }

    #[test]
    fn what_is_not_known_or_never_pays_has_bounds() {
        assert_eq!(Handoff::default().tokens_min(Some(1e-4)), HANDOFF_TOKENS);
        assert_eq!(learned(0.02, 1e-6).tokens_min(None), HANDOFF_TOKENS);
        assert_eq!(learned(0.02, 1e-4).tokens_min(Some(1e-5)), HANDOFF_TOKENS_MAX, "slower than prefilling");
        assert_eq!(learned(1e-6, 1e-9).tokens_min(Some(1e-4)), HANDOFF_TOKENS_MIN);
    }
}
