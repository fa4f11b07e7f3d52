//! Block hashes, byte for byte as vLLM 0.32 makes them.
//!
//! `hash(block) = H(serialize((parent digest, (token, …), extra keys)))`, where the first block's parent is
//! `H(serialize(seed))`. Two serialisations (Python's pickle protocol 5; canonical CBOR) and two hashes (SHA-256;
//! XXH3-128) give the four algorithms of `--prefix-caching-hash-algo`. Tested against vectors recorded from
//! `vllm.utils.hashing`.
#![forbid(unsafe_code)]

mod cbor;
mod pickle;

use std::hash::{BuildHasherDefault, Hash, Hasher};

use cbor::cbor_head;
use pickle::Pickle;
use sha2::{Digest, Sha256};

/// `--prefix-caching-hash-algo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashAlgo {
    /// SHA-256 over pickle: the default.
    Sha256,
    /// SHA-256 over canonical CBOR.
    Sha256Cbor,
    /// XXH3-128 over pickle.
    Xxhash,
    /// XXH3-128 over canonical CBOR; the cheapest.
    XxhashCbor,
}

impl HashAlgo {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sha256, Self::Sha256Cbor, Self::Xxhash, Self::XxhashCbor];

    /// The algorithm of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algo| algo.name() == name)
    }

    /// The name that the option and `cache_config_info` use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha256Cbor => "sha256_cbor",
            Self::Xxhash => "xxhash",
            Self::XxhashCbor => "xxhash_cbor",
        }
    }

    /// Bytes of a digest.
    pub fn digest_len(self) -> usize {
        match self {
            Self::Sha256 | Self::Sha256Cbor => 32,
            Self::Xxhash | Self::XxhashCbor => 16,
        }
    }

    fn pickles(self) -> bool {
        matches!(self, Self::Sha256 | Self::Xxhash)
    }
}

/// A block's digest: 32 bytes, or 16 followed by zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHash {
    bytes: [u8; 32],
    len: u8,
}

impl BlockHash {
    /// A digest of 8 to 32 bytes, as taken from an event. `None` for other lengths.
    pub fn from_bytes(digest: &[u8]) -> Option<Self> {
        let mut bytes = [0; 32];
        bytes.get_mut(..digest.len()).filter(|_| digest.len() >= 8)?.copy_from_slice(digest);
        Some(Self { bytes, len: digest.len() as u8 })
    }

    /// The digest as it is.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// What KV events publish by default: the last eight bytes, big endian.
    pub fn low_u64(&self) -> u64 {
        let end = usize::from(self.len);
        u64::from_be_bytes(self.bytes[end - 8..end].try_into().expect("eight bytes"))
    }
}

impl Hash for BlockHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.low_u64());
    }
}

/// A hasher for keys that are hashes already.
#[derive(Default)]
pub struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64(bytes);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// For maps keyed by [`BlockHash`].
pub type BlockHashState = BuildHasherDefault<IdentityHasher>;

/// What makes equal tokens different content: a LoRA adapter (all blocks), a cache salt (first block only).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtraKeys {
    /// Adapter name and path. The path is hashed and never published.
    pub lora: Option<(String, String)>,
    /// The request's `cache_salt`.
    pub cache_salt: Option<String>,
}

impl ExtraKeys {
    /// The untagged list that a KV event publishes for block `index`, `None` where there is nothing.
    pub fn published(&self, index: usize) -> Option<Vec<String>> {
        let lora = self.lora.iter().map(|(name, _)| name.clone());
        let salt = self.cache_salt.iter().filter(|_| index == 0).cloned();
        let keys: Vec<_> = lora.chain(salt).collect();
        (!keys.is_empty()).then_some(keys)
    }
}

/// Hashes blocks with one algorithm and seed.
#[derive(Clone, Debug)]
pub struct BlockHasher {
    algo: HashAlgo,
    none_hash: BlockHash,
}

impl BlockHasher {
    /// `seed` is the imitated server's `PYTHONHASHSEED`; without one, vLLM's fixed default is used (for the XXH3
    /// algorithms vLLM then draws a random one; here they stay reproducible).
    pub fn new(algo: HashAlgo, seed: Option<&str>) -> Self {
        let seed = seed.unwrap_or("vllm-none-hash");
        let mut out = Vec::new();
        if algo.pickles() {
            let mut pickle = Pickle::new(&mut out);
            pickle.text(seed);
            pickle.finish();
        } else {
            cbor_head(&mut out, 3, seed.len() as u64);
            out.extend_from_slice(seed.as_bytes());
        }
        Self { algo, none_hash: digest(algo, &out) }
    }

    /// The parent of every first block.
    pub fn none_hash(&self) -> BlockHash {
        self.none_hash
    }

    /// The hash of the block at `index` of a sequence. `scratch` is reused between calls.
    pub fn hash_block(
        &self,
        parent: BlockHash,
        tokens: &[u32],
        extra: &ExtraKeys,
        index: usize,
        scratch: &mut Vec<u8>,
    ) -> BlockHash {
        scratch.clear();
        let salt = extra.cache_salt.as_deref().filter(|_| index == 0);
        let keys = extra
            .lora
            .iter()
            .map(|(name, path)| ("lora", [Some(name.as_str()), Some(path.as_str())]))
            .chain(salt.map(|salt| ("cache_salt", [Some(salt), None])));
        if self.algo.pickles() {
            let mut pickle = Pickle::new(scratch);
            pickle.bytes(parent.as_bytes());
            pickle.ints(tokens);
            let mut count = 0;
            if extra.lora.is_none() && salt.is_none() {
                pickle.none();
            } else {
                for (tag, values) in keys {
                    pickle.text(tag);
                    let mut arity = 1;
                    for value in values.into_iter().flatten() {
                        pickle.text(value);
                        arity += 1;
                    }
                    pickle.small_tuple(arity);
                    count += 1;
                }
                pickle.small_tuple(count);
            }
            pickle.small_tuple(3);
            pickle.finish();
        } else {
            cbor_head(scratch, 4, 3);
            cbor_head(scratch, 2, parent.as_bytes().len() as u64);
            scratch.extend_from_slice(parent.as_bytes());
            cbor_head(scratch, 4, tokens.len() as u64);
            for token in tokens {
                cbor_head(scratch, 0, u64::from(*token));
            }
            let keys: Vec<_> = keys.collect();
            if keys.is_empty() {
                scratch.push(0xf6);
            } else {
                cbor_head(scratch, 4, keys.len() as u64);
                for (tag, values) in keys {
                    let values: Vec<_> = values.into_iter().flatten().collect();
                    cbor_head(scratch, 4, 1 + values.len() as u64);
                    for text in std::iter::once(tag).chain(values) {
                        cbor_head(scratch, 3, text.len() as u64);
                        scratch.extend_from_slice(text.as_bytes());
                    }
                }
            }
        }
        digest(self.algo, scratch)
    }

    /// Appends the hashes of the full blocks of `tokens` that `hashes` does not hold yet.
    pub fn extend(&self, tokens: &[u32], block_size: usize, extra: &ExtraKeys, hashes: &mut Vec<BlockHash>) {
        let full = tokens.len() / block_size;
        let mut scratch = Vec::with_capacity(64 + block_size * 5);
        let mut parent = hashes.last().copied().unwrap_or(self.none_hash);
        for index in hashes.len()..full {
            let block = &tokens[index * block_size..(index + 1) * block_size];
            parent = self.hash_block(parent, block, extra, index, &mut scratch);
            hashes.push(parent);
        }
    }
}

fn digest(algo: HashAlgo, data: &[u8]) -> BlockHash {
    let mut bytes = [0; 32];
    match algo {
        HashAlgo::Sha256 | HashAlgo::Sha256Cbor => bytes.copy_from_slice(&Sha256::digest(data)),
        HashAlgo::Xxhash | HashAlgo::XxhashCbor => {
            bytes[..16].copy_from_slice(&xxhash_rust::xxh3::xxh3_128(data).to_be_bytes());
        }
    }
    BlockHash { bytes, len: algo.digest_len() as u8 }
}
