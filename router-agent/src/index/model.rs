//! The literal reference: per worker, a map from block (prefix hash) to when it was last used and how deep it is.
//! No runs, no tables, no lists. What the index promises is what this does.

use std::collections::HashMap;

use super::WorkerSlot;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    stamp: u64,
    depth: usize,
}

#[derive(Debug, Default)]
struct Worker {
    blocks: HashMap<u64, Block>,
    capacity: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    workers: HashMap<WorkerSlot, Worker>,
    clock: u64,
}

impl Model {
    /// Both an insert and a store: where blocks follow is nothing to a map.
    pub(super) fn store(&mut self, slot: WorkerSlot, hashes: &[u64]) {
        self.clock += 1;
        let stamp = self.clock;
        let worker = self.workers.entry(slot).or_default();
        for (depth, hash) in hashes.iter().enumerate() {
            worker.blocks.insert(*hash, Block { stamp, depth });
        }
        worker.shrink();
    }

    pub(super) fn remove(&mut self, slot: WorkerSlot, hashes: &[u64]) {
        if let Some(worker) = self.workers.get_mut(&slot) {
            worker.blocks.retain(|hash, _| !hashes.contains(hash));
        }
    }

    pub(super) fn matched(&self, slot: WorkerSlot, hashes: &[u64]) -> u32 {
        let Some(worker) = self.workers.get(&slot) else { return 0 };
        hashes.iter().take_while(|hash| worker.blocks.contains_key(hash)).count() as u32
    }

    pub(super) fn blocks(&self, slot: WorkerSlot) -> u64 {
        self.workers.get(&slot).map_or(0, |worker| worker.blocks.len() as u64)
    }

    pub(super) fn held_blocks(&self) -> u64 {
        self.workers.values().map(|worker| worker.blocks.len() as u64).sum()
    }

    /// Different blocks, whoever holds them.
    pub(super) fn distinct_blocks(&self) -> u64 {
        let all: std::collections::HashSet<u64> =
            self.workers.values().flat_map(|worker| worker.blocks.keys().copied()).collect();
        all.len() as u64
    }

    pub(super) fn clear(&mut self, slot: WorkerSlot) {
        if let Some(worker) = self.workers.get_mut(&slot) {
            worker.blocks.clear();
        }
    }

    pub(super) fn remove_worker(&mut self, slot: WorkerSlot) {
        self.workers.remove(&slot);
    }

    pub(super) fn set_capacity(&mut self, slot: WorkerSlot, blocks: u64) {
        let worker = self.workers.entry(slot).or_default();
        worker.capacity = Some(blocks);
        worker.shrink();
    }

    /// Evicts over all workers, oldest first, until that many pairs are left: what the bound in bytes does, given
    /// how far it went.
    pub(super) fn evict_to(&mut self, held_blocks: u64) {
        while self.held_blocks() > held_blocks {
            let oldest = self.workers.iter().flat_map(|(slot, worker)| {
                worker
                    .blocks
                    .iter()
                    .map(|(hash, block)| (block.stamp, usize::MAX - block.depth, *slot, *hash))
            });
            let (_, _, slot, hash) = oldest.min().expect("something is held");
            self.workers.get_mut(&slot).expect("just seen").blocks.remove(&hash);
        }
    }
}

impl Worker {
    /// Least recently used first; of what one prompt used, the deepest first.
    fn shrink(&mut self) {
        while self.capacity.is_some_and(|capacity| self.blocks.len() as u64 > capacity) {
            let oldest = self.blocks.iter().min_by_key(|(_, block)| (block.stamp, usize::MAX - block.depth));
            let hash = *oldest.expect("there is more than the capacity").0;
            self.blocks.remove(&hash);
        }
    }
}
