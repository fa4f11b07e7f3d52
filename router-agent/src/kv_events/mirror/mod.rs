//! What one worker's events add up to: the engine's blocks, under the engine's names and under ours.
//!
//! An engine may hold the same content in several physical blocks (concurrent equal prompts; the recomputed last block of
//! a full hit): it says `BlockStored` for each and `BlockRemoved` for each, so both are counted. The index hears of the
//! first and of the last only. A data parallel worker's ranks name their blocks independently; the worker holds what any
//! of them holds.

use std::{collections::HashMap, sync::Arc};

use super::wire::{Event, ExtraKey, Place, Removed, Stored};
use crate::{
    fleet::{KeySpace, KeySpaces, Worker},
    index::PrefixIndex,
    limits,
    prompt::TokenBlockHasher,
    telemetry::KvWorkerMetrics,
};

/// The two indices that a worker's word bears on.
#[derive(Clone)]
pub struct Indices {
    /// By token blocks: what workers say, and predictions.
    pub tokens: Arc<PrefixIndex>,
    /// By prompt bytes: what was sent where.
    pub bytes: Arc<PrefixIndex>,
}

/// See the module.
pub(super) struct Mirror {
    worker: Arc<Worker>,
    indices: Indices,
    spaces: Arc<KeySpaces>,
    metrics: KvWorkerMetrics,
    /// By (rank, low 64 bits of the engine's hash).
    blocks: HashMap<(u32, u64), Block>,
    /// By our key: how many of the engine's names it has now.
    names: HashMap<u64, u32>,
    /// Physical blocks with content.
    physical: u64,
    physical_max: u64,
    /// The model as `/v1/models` has it; blocks of no known length yet.
    model: KeySpace,
    space: Option<Arc<KeySpace>>,
    /// The KV cache group that is followed, of a model with several.
    group: Option<u32>,
    hasher: TokenBlockHasher,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    key: u64,
    /// Physical blocks with this content.
    count: u32,
}

/// Events add up to more blocks than the worker has: some `BlockRemoved` has not been seen, or the engine was asked to
/// report cache hits as stored blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overflow;

impl Mirror {
    pub(super) fn new(
        worker: Arc<Worker>,
        indices: Indices,
        spaces: Arc<KeySpaces>,
        metrics: KvWorkerMetrics,
    ) -> Self {
        Self {
            worker,
            indices,
            spaces,
            metrics,
            blocks: HashMap::new(),
            names: HashMap::new(),
            physical: 0,
            physical_max: limits::KV_BLOCKS_MAX as u64,
            model: KeySpace { block_tokens: 0, model: String::new(), names: Vec::new() },
            space: None,
            group: None,
            hasher: TokenBlockHasher::default(),
        }
    }

    /// What the worker serves. A block's length, where it is known already, lets requests be keyed before the first event.
    pub(super) fn set_model(&mut self, model: String, names: Vec<String>, block_tokens: Option<u32>) {
        self.model = KeySpace { block_tokens: 0, model, names };
        self.space = None;
        self.worker.kv_cache.set_key_space(None);
        if let Some(block_tokens) = block_tokens.filter(|tokens| *tokens > 0) {
            self.set_block_tokens(block_tokens);
        }
    }

    /// Physical blocks that there are, over all ranks.
    pub(super) fn set_physical_max(&mut self, blocks: u64) {
        self.physical_max = blocks.min(limits::KV_BLOCKS_MAX as u64);
    }

    /// Applies one event of one rank.
    pub(super) fn apply(&mut self, rank: u32, event: &Event) -> Result<(), Overflow> {
        match event {
            Event::Stored(stored) => return self.store(rank, stored),
            Event::Removed(removed) => self.remove(rank, removed),
            Event::Cleared => {
                self.metrics.cleared.inc();
                self.clear(rank);
            }
            Event::Other => self.metrics.skipped.inc(),
        }
        Ok(())
    }

    fn store(&mut self, rank: u32, event: &Stored) -> Result<(), Overflow> {
        if !self.follows(&event.place, event.kind.as_deref()) || !self.set_block_tokens(event.block_tokens) {
            self.metrics.skipped.inc();
            return Ok(());
        }
        let Some(parent) = self.parent(rank, event) else {
            self.metrics.orphaned.inc();
            return Ok(());
        };
        self.metrics.stored.inc();
        let mut keys = Vec::with_capacity(event.hashes.len());
        let mut last = parent;
        let tokens = event.tokens.chunks_exact(event.block_tokens as usize);
        for (at, (hash, tokens)) in event.hashes.iter().zip(tokens).enumerate() {
            last = self.hasher.hash(last, tokens);
            last = other_keys(event, at).fold(last, |key, extra| extra.fold(key));
            keys.push(last);
            self.add(rank, hash.low(), last);
        }
        self.indices.tokens.store(self.worker.slot, event.parent.map(|_| parent), &keys);
        if self.physical > self.physical_max { Err(Overflow) } else { Ok(()) }
    }

    /// Our key for what stands before the event's first block; none if that is not known.
    fn parent(&self, rank: u32, event: &Stored) -> Option<u64> {
        if let Some(parent) = &event.parent {
            return self.blocks.get(&(rank, parent.low())).map(|block| block.key);
        }
        let space = self.space.as_ref()?;
        Some(space.root(event.adapter.as_deref(), salt(event)))
    }

    fn add(&mut self, rank: u32, hash: u64, key: u64) {
        let block = self.blocks.entry((rank, hash)).or_insert(Block { key, count: 0 });
        if block.count == 0 {
            *self.names.entry(key).or_insert(0) += 1;
        }
        block.count += 1;
        self.physical += 1;
    }

    fn remove(&mut self, rank: u32, event: &Removed) {
        if !self.follows(&event.place, None) {
            self.metrics.skipped.inc();
            return;
        }
        self.metrics.removed.inc();
        let gone: Vec<u64> = event.hashes.iter().filter_map(|hash| self.take(rank, hash.low())).collect();
        self.indices.tokens.remove(self.worker.slot, &gone);
    }

    /// One physical block less; our key if it was the last one with that content.
    fn take(&mut self, rank: u32, hash: u64) -> Option<u64> {
        let block = self.blocks.get_mut(&(rank, hash))?;
        block.count -= 1;
        self.physical -= 1;
        if block.count > 0 {
            return None;
        }
        let key = block.key;
        self.blocks.remove(&(rank, hash));
        self.unname(key).then_some(key)
    }

    /// Whether that was the key's last name.
    fn unname(&mut self, key: u64) -> bool {
        let Some(names) = self.names.get_mut(&key) else { return false };
        *names -= 1;
        let last = *names == 0;
        if last {
            self.names.remove(&key);
        }
        last
    }

    /// The rank's cache is empty.
    pub(super) fn clear(&mut self, rank: u32) {
        self.forget(rank);
        if self.physical == 0 {
            self.clear_all();
        } else {
            self.worker.emptied_now();
            self.indices.bytes.clear(self.worker.slot); // what was sent cannot be told apart by rank
        }
    }

    /// All ranks' caches are empty, and what was sent there is gone with them.
    pub(super) fn clear_all(&mut self) {
        self.blocks.clear();
        self.names.clear();
        self.physical = 0;
        self.group = None;
        self.worker.emptied_now();
        self.indices.tokens.clear(self.worker.slot);
        self.indices.bytes.clear(self.worker.slot);
    }

    /// Nothing is followed any longer; what was sent there may still be in its cache.
    pub(super) fn reset(&mut self) {
        self.blocks.clear();
        self.names.clear();
        self.physical = 0;
        self.group = None;
        self.space = None;
        self.worker.kv_cache.set_key_space(None);
        self.indices.tokens.clear(self.worker.slot);
    }

    /// Nothing is known any longer of the rank's blocks; what was sent there may still be in its cache.
    pub(super) fn forget(&mut self, rank: u32) {
        let mine = self.blocks.extract_if(|(own, _), _| *own == rank);
        let mine: Vec<Block> = mine.map(|(_, block)| block).collect();
        self.physical -= mine.iter().map(|block| u64::from(block.count)).sum::<u64>();
        let gone: Vec<u64> =
            mine.into_iter().map(|block| block.key).filter(|key| self.unname(*key)).collect();
        self.indices.tokens.remove(self.worker.slot, &gone);
    }

    /// Takes back what was predicted and has not come. Says whether all of it has.
    pub(super) fn settle(&mut self, predicted: &[u64]) -> bool {
        let missing: Vec<u64> =
            predicted.iter().filter(|key| !self.names.contains_key(key)).copied().collect();
        self.indices.tokens.remove(self.worker.slot, &missing);
        missing.is_empty()
    }

    /// Only what the engine computes with, and one group: a model with several has full attention in the first.
    fn follows(&mut self, place: &Place, kind: Option<&str>) -> bool {
        if !place.is_device() {
            return false;
        }
        match (self.group, place.group) {
            (_, None) => true,
            (Some(followed), Some(group)) => followed == group,
            (None, Some(group)) => {
                let full = kind.is_none_or(|kind| kind.ends_with("attention") && !kind.contains("local"));
                if full {
                    self.group = Some(group);
                }
                full
            }
        }
    }

    /// Notes how long the worker's blocks are. False for blocks of another length than before.
    fn set_block_tokens(&mut self, block_tokens: u32) -> bool {
        match &self.space {
            Some(space) if self.physical > 0 => space.block_tokens == block_tokens,
            Some(space) if space.block_tokens == block_tokens => true,
            // A guess from the configuration gives way to the first block.
            _ => {
                let Some((place, space)) =
                    self.spaces.place(&KeySpace { block_tokens, ..self.model.clone() })
                else {
                    return false;
                };
                self.space = Some(space);
                self.worker.kv_cache.set_key_space(Some(place));
                true
            }
        }
    }

    #[cfg(test)]
    /// Different blocks, and physical ones.
    pub(super) fn size(&self) -> (usize, u64) {
        (self.names.len(), self.physical)
    }
}

/// The request's `cache_salt`: a text among the extra keys of a sequence's first block.
pub(super) fn salt(event: &Stored) -> Option<&str> {
    let mut first = beside_adapter(event, 0).iter().filter(|_| event.parent.is_none());
    first.find_map(|key| if let ExtraKey::Text(text) = key { Some(text.as_str()) } else { None })
}

/// The extra keys of the block at `at` but for the adapter's name, which comes first.
pub(super) fn beside_adapter(event: &Stored, at: usize) -> &[ExtraKey] {
    let keys = event.extra_keys.get(at).map_or(&[][..], Vec::as_slice);
    match (keys, &event.adapter) {
        ([ExtraKey::Text(first), rest @ ..], Some(adapter)) if first == adapter => rest,
        _ => keys,
    }
}

/// The extra keys of the block at `at` that are neither the adapter's name nor the salt: images and the like.
fn other_keys(event: &Stored, at: usize) -> impl Iterator<Item = &ExtraKey> {
    let salt = if at == 0 { salt(event) } else { None };
    beside_adapter(event, at).iter().filter(move |key| match key {
        ExtraKey::Text(text) => Some(text.as_str()) != salt,
        ExtraKey::Other(_) => true,
    })
}

#[cfg(test)]
mod tests;
