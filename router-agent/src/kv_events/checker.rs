//! Recomputes published block hashes from their tokens, where that is possible.
//!
//! The index does not need the engine's hashes to be what we think they are: it keys blocks by their tokens. So this is a
//! second opinion on the whole stream: an event whose hash does not follow from its tokens and its parent was garbled, or
//! comes from an engine that hashes otherwise than vLLM 0.32 does. What cannot be recomputed counts as `unknown`: a block
//! behind one that was not seen (integers are the low half of a digest), a LoRA adapter's (its path is hashed, and not
//! published), an image's, and everything of a server whose algorithm or seed is not known. The seed is the configured
//! `PYTHONHASHSEED`, else vLLM's own; a server that has neither shows in its first block, and is not judged.

use std::collections::{HashMap, VecDeque};

use vllm_block_hash::{BlockHash, BlockHasher, ExtraKeys, HashAlgo};

use super::{
    mirror::{beside_adapter, salt},
    wire::{EngineHash, Stored},
};
use crate::telemetry::KvWorkerMetrics;

/// Digests kept, so that later events can go on from there: some 80 bytes each.
const DIGESTS_MAX: usize = 16 * 1024;

/// Checks one worker's stream.
pub(super) struct Checker {
    hasher: BlockHasher,
    metrics: KvWorkerMetrics,
    seed: Seed,
    digests: HashMap<u64, BlockHash>,
    order: VecDeque<u64>,
    scratch: Vec<u8>,
}

/// Whether the server's first blocks come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seed {
    NotSeen,
    Ours,
    Another,
}

impl Checker {
    /// For a server with this algorithm and, if it has one, `PYTHONHASHSEED`.
    pub(super) fn new(algo: HashAlgo, seed: Option<&str>, metrics: KvWorkerMetrics) -> Self {
        Self {
            hasher: BlockHasher::new(algo, seed),
            metrics,
            seed: Seed::NotSeen,
            digests: HashMap::new(),
            order: VecDeque::new(),
            scratch: Vec::new(),
        }
    }

    /// Checks the blocks of one event.
    pub(super) fn check(&mut self, event: &Stored) {
        let Some(mut parent) = self.parent(event) else {
            self.metrics.hashes_unknown.inc_by(event.hashes.len() as u64);
            return;
        };
        let extra = ExtraKeys { lora: None, cache_salt: salt(event).map(str::to_owned) };
        let tokens = event.tokens.chunks_exact(event.block_tokens as usize);
        for (at, (published, tokens)) in event.hashes.iter().zip(tokens).enumerate() {
            if beside_adapter(event, at).len() > usize::from(at == 0 && extra.cache_salt.is_some()) {
                self.metrics.hashes_unknown.inc_by((event.hashes.len() - at) as u64);
                return;
            }
            let index = if event.parent.is_none() { at } else { at + 1 };
            let digest = self.hasher.hash_block(parent, tokens, &extra, index, &mut self.scratch);
            let is_same = match published {
                EngineHash::Low(low) => *low == digest.low_u64(),
                EngineHash::Digest(whole) => *whole == digest,
            };
            if event.parent.is_none() && at == 0 && self.seed == Seed::NotSeen {
                self.seed = if is_same { Seed::Ours } else { Seed::Another };
            }
            let counter = match is_same {
                true => &self.metrics.hashes_match,
                // A digest says what it goes on from, so a wrong one is wrong whatever the seed.
                false if self.seed == Seed::Ours || event.parent.is_some() => &self.metrics.hashes_mismatch,
                false => &self.metrics.hashes_unknown,
            };
            counter.inc();
            parent = match published {
                EngineHash::Digest(whole) => *whole,
                EngineHash::Low(_) if is_same => digest,
                EngineHash::Low(_) => {
                    self.metrics.hashes_unknown.inc_by((event.hashes.len() - at - 1) as u64);
                    return;
                }
            };
            self.remember(parent);
        }
    }

    fn parent(&self, event: &Stored) -> Option<BlockHash> {
        if event.adapter.is_some() {
            return None;
        }
        match &event.parent {
            Some(EngineHash::Digest(digest)) => Some(*digest),
            Some(EngineHash::Low(low)) => self.digests.get(low).copied(),
            None if self.seed == Seed::Another => None,
            None => Some(self.hasher.none_hash()),
        }
    }

    fn remember(&mut self, digest: BlockHash) {
        let low = digest.low_u64();
        if self.digests.insert(low, digest).is_none() {
            self.order.push_back(low);
        }
        if self.order.len() > DIGESTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.digests.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kv_events::{
            recordings::payloads,
            wire::{Event, decode},
        },
        telemetry::Metrics,
    };

    /// Matches, mismatches and unknowns of a recording.
    fn check(
        name: &str,
        algo: HashAlgo,
        seed: Option<&str>,
        mut change: impl FnMut(&mut Stored),
    ) -> [u64; 3] {
        let metrics = Metrics::new().unwrap().kv_events.worker("test");
        let mut checker = Checker::new(algo, seed, metrics.clone());
        for payload in payloads(name) {
            for event in decode(&payload).unwrap().events {
                if let Event::Stored(mut stored) = event {
                    change(&mut stored);
                    checker.check(&stored);
                }
            }
        }
        [metrics.hashes_match.get(), metrics.hashes_mismatch.get(), metrics.hashes_unknown.get()]
    }

    #[test]
    fn recorded_hashes_come_out_in_every_form_and_algorithm() {
        for (name, algo, seed) in [
            ("int_map", HashAlgo::Sha256, None),
            ("int_array", HashAlgo::Sha256, None),
            ("bytes_map", HashAlgo::Sha256Cbor, Some("42")),
            ("duplicates_map", HashAlgo::XxhashCbor, Some("0")),
        ] {
            let [matches, mismatches, unknown] = check(name, algo, seed, |_| {});
            assert!(matches > 5 && mismatches == 0, "{name}: {matches}, {mismatches}, {unknown}");
        }
        // What is unknown there follows blocks that the excerpts leave out. Paths of adapters are not published.
        let [matches, mismatches, unknown] = check("lora_map", HashAlgo::XxhashCbor, Some("0"), |_| {});
        assert!(matches > 0 && mismatches == 0 && unknown > 0);
    }

    #[test]
    fn a_garbled_token_is_a_mismatch() {
        let mut number = 0;
        let [_, mismatches, _] = check("int_map", HashAlgo::Sha256, None, |event| {
            number += 1;
            if number == 3 {
                event.tokens[0] += 1;
            }
        });
        assert_eq!(mismatches, 1);
    }

    #[test]
    fn a_server_with_a_seed_that_is_not_known_is_not_judged() {
        let [matches, mismatches, unknown] = check("int_map", HashAlgo::Sha256, Some("17"), |_| {});
        assert!(matches == 0 && mismatches == 0 && unknown > 5);
    }
}
