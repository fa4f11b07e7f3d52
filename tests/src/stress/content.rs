//! What responses say: every byte a function of seed and position, so that any piece can be checked by itself and the
//! first wrong byte has an address.
//!
//! SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014) over the position in
//! words of eight bytes: about a gigabyte a second and core.

use xxhash_rust::xxh3::Xxh3;

/// The generator's increment.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bytes made at a time.
const BLOCK: usize = 4096;

pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Numbers that follow from a seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// In `0..end`; zero if that is empty.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64() % end.max(1)
    }

    /// Once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// In `0..=max`, every order of magnitude as likely as any other.
    pub fn log_uniform(&mut self, max: u64) -> u64 {
        let bits = self.below(u64::from(u64::BITS - max.leading_zeros()) + 1);
        self.below(1 << bits).min(max)
    }
}

/// The content of `seed` from `offset` on, as much as `out` holds.
pub(super) fn fill(seed: u64, offset: u64, out: &mut [u8]) {
    let mut word = offset / 8;
    let mut skip = (offset % 8) as usize;
    let mut at = 0;
    while at < out.len() {
        let bytes = mix(seed.wrapping_add(word.wrapping_mul(GOLDEN))).to_le_bytes();
        let count = (8 - skip).min(out.len() - at);
        out[at..at + count].copy_from_slice(&bytes[skip..skip + count]);
        at += count;
        skip = 0;
        word += 1;
    }
}

/// Where `bytes`, which should stand at `offset` of the content of `seed`, are wrong first.
pub(super) fn first_difference(seed: u64, offset: u64, bytes: &[u8]) -> Option<usize> {
    let mut expected = [0; BLOCK];
    for (number, block) in bytes.chunks(BLOCK).enumerate() {
        let start = number * BLOCK;
        let expected = &mut expected[..block.len()];
        fill(seed, offset + start as u64, expected);
        if block != expected {
            let same = block.iter().zip(&*expected).take_while(|(a, b)| a == b).count();
            return Some(start + same);
        }
    }
    None
}

/// xxh3 over the first `length` bytes of the content of `seed`.
pub(super) fn digest(seed: u64, length: u64) -> u64 {
    let mut hasher = Xxh3::new();
    let mut block = [0; BLOCK];
    let mut at = 0;
    while at < length {
        let count = (length - at).min(BLOCK as u64);
        let block = &mut block[..count as usize];
        fill(seed, at, block);
        hasher.update(block);
        at += count;
    }
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_piece_is_the_same_as_in_the_whole() {
        let mut whole = vec![0; 10_000];
        fill(5, 0, &mut whole);
        for (offset, length) in [(0, 1), (1, 7), (7, 9), (8, 8), (4095, 4098), (9_999, 1)] {
            let mut piece = vec![0; length];
            fill(5, offset as u64, &mut piece);
            assert_eq!(piece, whole[offset..offset + length], "{length} from {offset}");
        }
    }

    #[test]
    fn a_changed_a_lost_and_a_repeated_byte_are_found_where_they_are() {
        let mut bytes = vec![0; 20_000];
        fill(9, 100, &mut bytes);
        assert_eq!(first_difference(9, 100, &bytes), None);
        let mut changed = bytes.clone();
        changed[12_345] ^= 1;
        assert_eq!(first_difference(9, 100, &changed), Some(12_345));
        let lost = [&bytes[..5_000], &bytes[5_001..]].concat();
        assert!(first_difference(9, 100, &lost).is_some_and(|at| (5_000..5_010).contains(&at)));
        let repeated = [&bytes[..5_001], &bytes[5_000..]].concat();
        assert!(first_difference(9, 100, &repeated).is_some_and(|at| (5_001..5_010).contains(&at)));
    }

    #[test]
    fn sizes_of_every_order_come() {
        let mut random = Random::new(1);
        let sizes: Vec<u64> = (0..10_000).map(|_| random.log_uniform(10 << 20)).collect();
        for bits in 1..23 {
            let count = sizes.iter().filter(|size| u64::BITS - size.leading_zeros() == bits).count();
            assert!(count > 100, "{count} of {bits} bits");
        }
        assert!(sizes.contains(&0) && sizes.iter().all(|size| *size <= 10 << 20));
    }
}
