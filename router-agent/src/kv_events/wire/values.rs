//! Block hashes and extra keys as events carry them.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use vllm_block_hash::BlockHash;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The engine's name for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineHash {
    /// The low 64 bits.
    Low(u64),
    /// The whole digest.
    Digest(BlockHash),
}

impl EngineHash {
    /// The low 64 bits, in either form.
    pub fn low(&self) -> u64 {
        match self {
            Self::Low(low) => *low,
            Self::Digest(digest) => digest.low_u64(),
        }
    }
}

/// What makes equal tokens different content, as the engine publishes it: without tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtraKey {
    /// An adapter's name, a cache salt.
    Text(String),
    /// Anything else (an image's id and offset, a digest of embeddings), by its hash.
    Other(u64),
}

impl<'de> Deserialize<'de> for EngineHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HashVisitor;
        impl Visitor<'_> for HashVisitor {
            type Value = EngineHash;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a block hash: an integer of 64 bits or a digest of 8 to 32 bytes")
            }

            fn visit_u64<E>(self, low: u64) -> Result<EngineHash, E> {
                Ok(EngineHash::Low(low))
            }

            /// Before vLLM masked them, integers were signed.
            fn visit_i64<E>(self, low: i64) -> Result<EngineHash, E> {
                Ok(EngineHash::Low(low as u64))
            }

            fn visit_bytes<E: serde::de::Error>(self, digest: &[u8]) -> Result<EngineHash, E> {
                let length = E::invalid_length(digest.len(), &self);
                BlockHash::from_bytes(digest).map(EngineHash::Digest).ok_or(length)
            }
        }
        deserializer.deserialize_any(HashVisitor)
    }
}

/// Of extra keys that are no texts only equality matters.
fn hashed(form: u64, bytes: &[u8]) -> ExtraKey {
    ExtraKey::Other(xxh3_64_with_seed(bytes, form))
}

impl ExtraKey {
    /// This key after those that `so_far` stands for.
    pub fn fold(&self, so_far: u64) -> u64 {
        match self {
            Self::Text(text) => xxh3_64_with_seed(text.as_bytes(), so_far.wrapping_add(1)),
            Self::Other(hash) => xxh3_64_with_seed(&hash.to_le_bytes(), so_far),
        }
    }
}

impl<'de> Deserialize<'de> for ExtraKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = ExtraKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an extra key: a text, bytes, a number, or a list of those")
            }

            fn visit_str<E>(self, text: &str) -> Result<ExtraKey, E> {
                Ok(ExtraKey::Text(text.to_owned()))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<ExtraKey, E> {
                Ok(hashed(1, bytes))
            }

            fn visit_u64<E>(self, number: u64) -> Result<ExtraKey, E> {
                Ok(hashed(2, &number.to_le_bytes()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<ExtraKey, E> {
                Ok(hashed(3, &number.to_le_bytes()))
            }

            fn visit_unit<E>(self) -> Result<ExtraKey, E> {
                Ok(hashed(4, &[]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ExtraKey, A::Error> {
                let mut all = 0;
                while let Some(key) = list.next_element::<ExtraKey>()? {
                    all = key.fold(all);
                }
                Ok(hashed(5, &all.to_le_bytes()))
            }
        }
        deserializer.deserialize_any(KeyVisitor)
    }
}
