//! Determinism: one mixing function, from which every "random" choice of a worker follows.

use parking_lot::Mutex;

/// SplitMix64's output function: a bijection of 64 bits with full avalanche.
pub(crate) fn mix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A seeded sequence shared by the tasks of one worker (ids, fault shares).
pub(crate) struct SharedRng(Mutex<u64>);

impl SharedRng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(mix64(seed)))
    }

    pub(crate) fn next_u64(&self) -> u64 {
        let mut state = self.0.lock();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(*state)
    }

    /// Uniform in [0, 1).
    pub(crate) fn next_f64(&self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
