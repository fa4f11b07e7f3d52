//! The prefix index: which worker holds how many leading blocks of a prompt.
//!
//! Promises: [`PrefixIndex::lookup`] is exact for what [`PrefixIndex::insert`] was told, less what capacity has
//! evicted; it allocates nothing. Blocks are evicted least recently used first and from the end of a prefix, per
//! worker by its own capacity (as the engine does) and over all workers by a bound in bytes. Every write lock is
//! held for a bounded piece of work; what takes longer (a worker's removal) gives way to readers in between.
//!
//! A block's hash names the whole prefix that it ends (see [`crate::prompt::hash_into`]). So two sequences that
//! share the hash at a place share everything before it, and a lookup compares one hash per run, not one per block.
//!
//! The structure, its cost and the figures are in `docs/routing.md`. Shared by all data threads.

mod audit;
mod evict;
mod exact;
mod holders;
mod hottest;
mod matches;
#[cfg(test)]
mod model;
mod table;
#[cfg(test)]
mod tests;
mod tree;

use parking_lot::{RwLock, RwLockWriteGuard};

use self::tree::Tree;
pub use self::{
    holders::WORKERS_MAX,
    hottest::{Hottest, Prefix},
    matches::Matches,
};

/// Default bound of the index: DESIGN's table of limits.
pub const INDEX_BYTES_MAX: usize = 256 << 20;

/// Blocks or runs that are evicted under one write lock, at most, where the work is not bounded by the prompt: some
/// ten microseconds.
const STEP: usize = 128;

/// A worker's place in the index, given out by the fleet. Below [`WORKERS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerSlot(pub u16);

/// What the index holds, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Memory of all live structures.
    pub bytes: usize,
    /// Stretches of blocks held by the same workers.
    pub runs: usize,
    /// Different blocks.
    pub blocks: u64,
    /// Pairs of a block and a worker that holds it.
    pub held_blocks: u64,
    /// Pairs evicted for a worker's capacity, since the start.
    pub evicted_by_capacity: u64,
    /// Pairs evicted for the bound in bytes, since the start.
    pub evicted_by_bytes: u64,
}

/// See the module.
pub struct PrefixIndex {
    tree: RwLock<Tree>,
    exact: RwLock<exact::Exact>,
}

impl Default for PrefixIndex {
    fn default() -> Self {
        Self::new(INDEX_BYTES_MAX)
    }
}

impl PrefixIndex {
    /// An empty index that stays below `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self { tree: RwLock::new(Tree::new(bytes_max)), exact: RwLock::default() }
    }

    /// For every worker: how many leading blocks of `hashes` it holds.
    pub fn lookup(&self, hashes: &[u64], out: &mut Matches) {
        out.reset();
        self.tree.read().lookup(hashes, out);
        self.exact.read().lookup(hashes, out);
    }

    /// Records that the worker holds these blocks, and that it has just used them.
    ///
    /// # Panics
    /// If the slot is not below [`WORKERS_MAX`].
    pub fn insert(&self, slot: WorkerSlot, hashes: &[u64]) {
        self.tree.write().insert(slot, hashes);
    }

    /// The worker says that it holds these blocks, which follow block `parent` (`None`: they begin a prompt). A hash
    /// names its whole prefix, so blocks behind a parent that is not known are kept: they count as soon as the worker
    /// holds everything before them.
    pub fn store(&self, slot: WorkerSlot, _parent: Option<u64>, hashes: &[u64]) {
        self.exact.write().store(slot, hashes);
    }

    /// The worker says that these blocks are gone. What it holds behind them stays, and counts again once the hole is
    /// filled. Blocks that it does not hold are passed over.
    pub fn remove(&self, slot: WorkerSlot, hashes: &[u64]) {
        self.exact.write().remove(slot, hashes);
    }

    /// The worker is gone: forgets its blocks and its capacity. Call it (or [`PrefixIndex::clear`]) once more when
    /// the slot is given to another worker: a request that was decided before may have been recorded since.
    pub fn remove_worker(&self, slot: WorkerSlot) {
        self.clear(slot);
        self.tree.write().set_capacity(slot, u64::MAX);
    }

    /// The worker's cache is empty (restart, reset): forgets what it held when this was called.
    pub fn clear(&self, slot: WorkerSlot) {
        let now = self.tree.read().clock();
        self.exact.write().clear(slot);
        self.step_by_step(|tree| tree.clear_step(slot, now, STEP));
    }

    /// Bounds what the worker is believed to hold, as its KV cache does. Unbounded at first.
    pub fn set_capacity_blocks(&self, slot: WorkerSlot, blocks: u64) {
        self.tree.write().set_capacity(slot, blocks);
        self.step_by_step(|tree| tree.shrink_step_bounded(slot, STEP));
    }

    /// Repeats a step until it says that nothing is left, and lets those who wait for the lock go first in between.
    fn step_by_step(&self, mut step: impl FnMut(&mut Tree) -> bool) {
        loop {
            let mut tree = self.tree.write();
            let more = step(&mut tree);
            RwLockWriteGuard::unlock_fair(tree);
            if !more {
                return;
            }
        }
    }

    /// Blocks that the worker holds.
    pub fn blocks(&self, slot: WorkerSlot) -> u64 {
        self.tree.read().blocks(slot)
    }

    /// Memory of all live structures: runs, hashes, holders, table.
    pub fn bytes(&self) -> usize {
        self.tree.read().bytes()
    }

    pub fn stats(&self) -> IndexStats {
        self.tree.read().stats()
    }

    /// Walks the whole structure and recomputes what it says of itself. For tests and diagnosis: it holds the lock.
    pub fn audit(&self) -> Result<(), String> {
        self.tree.read().audit()
    }
}
