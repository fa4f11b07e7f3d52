//! How many bytes of prompt make a token, measured where both are known, for the prompts whose tokens are not.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::prompt::BYTES_PER_TOKEN;

/// The share that one more prompt has in the measure.
const WEIGHT: f64 = 0.05;
/// Shorter prompts are mostly template.
const TOKENS_MIN: usize = 64;

/// An exponentially weighted mean over all models, shared by all threads. It starts at 4, English text with usual
/// vocabularies. Two threads at once may lose one of two samples, which is no matter.
#[derive(Debug)]
pub(super) struct BytesPerToken(AtomicU64);

impl Default for BytesPerToken {
    fn default() -> Self {
        Self(AtomicU64::new((BYTES_PER_TOKEN as f64).to_bits()))
    }
}

impl BytesPerToken {
    pub(super) fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }

    /// A prompt of `bytes` has `tokens` tokens.
    pub(super) fn observe(&self, bytes: u64, tokens: usize) {
        if tokens >= TOKENS_MIN && bytes > 0 {
            let mean = self.get();
            self.0.store((mean + WEIGHT * (bytes as f64 / tokens as f64 - mean)).to_bits(), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_what_is_measured_and_leaves_out_short_prompts() {
        let measure = BytesPerToken::default();
        measure.observe(1000, 10);
        assert!((measure.get() - 4.0).abs() < f64::EPSILON);
        for _ in 0..200 {
            measure.observe(2000, 1000);
        }
        assert!((measure.get() - 2.0).abs() < 0.01, "{}", measure.get());
    }
}
