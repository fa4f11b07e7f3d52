//! The lengths of a prefix under which it is written down and looked for: the same for everyone who has that prefix,
//! however long the prompt is. There are eight to each doubling, so what is found is at most an eighth shorter than what was
//! sent, and a prompt of n blocks has about `8 × log2(n / 8)` of them: 46 of a prompt of 14,000 tokens, 70 of 100,000.

/// Shorter prefixes (of 128-byte blocks: 256 tokens) are not worth a message.
const SHORTEST: u32 = 8;

/// Blocks, and the hash of the last of them; the shortest first.
pub(super) fn of(hashes: &[u64]) -> impl Iterator<Item = (u32, u64)> {
    let mut blocks = SHORTEST;
    std::iter::from_fn(move || {
        let hash = *hashes.get(blocks as usize - 1)?;
        let mark = (blocks, hash);
        // The greatest power of two that is not above an eighth of it.
        blocks = blocks.checked_add(1 << (blocks / SHORTEST).ilog2())?;
        Some(mark)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_depend_on_the_depth_only_and_lie_an_eighth_apart() {
        let hashes: Vec<u64> = (1..=100_000).collect();
        let all: Vec<u32> =
            of(&hashes).map(|(blocks, hash)| u32::try_from(hash).unwrap().min(blocks)).collect();
        assert_eq!(all[..12], [8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22]);
        assert!(all.windows(2).all(|pair| (pair[1] - pair[0]) * 8 <= pair[0]), "{all:?}");
        assert!(all.len() <= 8 * 14, "{}", all.len());
        for length in [0, 7, 8, 9, 430, 3_125] {
            let shorter: Vec<u32> = of(&hashes[..length]).map(|(blocks, _)| blocks).collect();
            assert_eq!(shorter, all[..shorter.len()]);
            assert!(all.get(shorter.len()).is_none_or(|next| *next as usize > length));
        }
        assert_eq!((of(&hashes[..430]).count(), of(&hashes[..3_125]).count()), (46, 69));
    }
}
