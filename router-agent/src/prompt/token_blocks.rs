//! Hashes of token blocks: the engine's own blocks under keys of ours.
//!
//! Block i's key is XXH3 of its token ids (32 bits each, little endian) with block i−1's key as the seed, as
//! [`super::hash_into`] does it with bytes. So a key names a whole prefix, the engine's hash algorithm and seed do not
//! matter, and a request's keys are computed from its tokens alone. In front of block one stands [`token_root`].

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

/// What makes equal tokens different content from the first block on: the model's weights, a LoRA adapter, the request's
/// `cache_salt`, and the length of a block.
pub fn token_root(model: &str, adapter: Option<&str>, cache_salt: Option<&str>, block_tokens: u32) -> u64 {
    let mut root = Xxh3::new();
    root.update(b"token blocks");
    root.update(&block_tokens.to_le_bytes());
    for part in [Some(model), adapter, cache_salt] {
        // A length no text has stands for none, so that parts cannot run into each other.
        root.update(&part.map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
        root.update(part.unwrap_or_default().as_bytes());
    }
    root.digest()
}

/// The keys of all whole blocks of `tokens`, into `out`, which is emptied first. `root` is from [`token_root`].
///
/// # Panics
/// If `block_tokens` is 0.
pub fn hash_tokens_into(root: u64, block_tokens: u32, tokens: &[u32], out: &mut Vec<u64>) {
    out.clear();
    let mut hasher = TokenBlockHasher::default();
    let mut last = root;
    for block in tokens.chunks_exact(block_tokens as usize) {
        last = hasher.hash(last, block);
        out.push(last);
    }
}

/// Hashes single blocks; keeps the buffer that they are written into.
#[derive(Debug, Default)]
pub struct TokenBlockHasher {
    bytes: Vec<u8>,
}

impl TokenBlockHasher {
    /// The key of a block of tokens behind the block `parent`.
    pub fn hash(&mut self, parent: u64, tokens: &[u32]) -> u64 {
        self.bytes.clear();
        self.bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        xxh3_64_with_seed(&self.bytes, parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(root: u64, block_tokens: u32, tokens: &[u32]) -> Vec<u64> {
        let mut out = vec![1, 2, 3];
        hash_tokens_into(root, block_tokens, tokens, &mut out);
        out
    }

    #[test]
    fn keys_name_prefixes_and_tails_have_none() {
        let tokens: Vec<u32> = (0..70).collect();
        let long = keys(9, 16, &tokens);
        assert_eq!(long.len(), 4);
        assert_eq!(keys(9, 16, &tokens[..40]), long[..2]);
        let mut changed = tokens.clone();
        changed[17] += 1;
        let other = keys(9, 16, &changed);
        assert_eq!(other[0], long[0]);
        assert!(other[1..].iter().zip(&long[1..]).all(|(a, b)| a != b), "all behind a change differ");
        assert!(keys(8, 16, &tokens).iter().all(|key| !long.contains(key)), "another root, other keys");
    }

    #[test]
    fn every_part_of_the_root_counts_and_parts_do_not_run_together() {
        let roots = [
            token_root("m", None, None, 16),
            token_root("m", None, None, 32),
            token_root("n", None, None, 16),
            token_root("m", Some(""), None, 16),
            token_root("m", Some("a"), None, 16),
            token_root("m", None, Some("a"), 16),
            token_root("ma", None, None, 16),
            token_root("m", Some("ab"), Some("c"), 16),
            token_root("m", Some("a"), Some("bc"), 16),
        ];
        for (at, root) in roots.iter().enumerate() {
            assert!(!roots[..at].contains(root), "{at}");
        }
    }
}
