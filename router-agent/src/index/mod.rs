//! The prefix index: which worker holds how many leading blocks of a prompt.
//!
//! Promises: after any history, [`PrefixIndex::lookup`] says what the literal reference (`model.rs`) says: the leading
//! blocks of a prompt that each worker holds, by [`PrefixIndex::insert`] (what was sent where) and
//! [`PrefixIndex::store`] / [`PrefixIndex::remove`] (what the worker says), less what capacity has evicted. A lookup
//! takes no lock, allocates nothing and does not retry: its steps are bounded by its prompt and the workers, whatever
//! writers do (see `lookup.rs` for what an answer means while they write). Writers take turns; calls for one worker take
//! effect in the order in which they are made. Blocks are evicted least recently used first and from the end of a
//! prefix, per worker by its own capacity and over all workers by a bound in bytes. Every hold of the writers' lock is
//! for a bounded piece of work; what takes longer (a worker's removal) gives way to others in between.
//!
//! A block's hash names the whole prefix that it ends (see [`crate::prompt::hash_into`]). So two sequences that share
//! the hash at a place share everything before it, and a lookup compares one hash per run, not one per block.
//!
//! The structure, its cost and the figures are in `docs/routing.md`. Shared by all data threads.

mod arena;
mod audit;
mod evict;
mod hottest;
mod lay;
mod lookup;
mod matches;
#[cfg(all(test, not(shuttle)))]
mod model;
mod places;
mod run;
mod slab;
mod starts;
mod sync;
#[cfg(all(test, not(shuttle)))]
mod tests;
mod uses;
mod wide;
mod writer;

use parking_lot::{Mutex, MutexGuard};
use sync::{
    AtomicU32,
    Ordering::{Acquire, Release},
};

pub use self::{
    hottest::{Hottest, Prefix},
    matches::Matches,
    run::WORKERS_MAX,
};
use self::{
    run::Runs,
    starts::Starts,
    writer::{Shared, Writer},
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
    /// Stretches of up to 32 blocks that are kept together.
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
    shared: Shared,
    /// No slot from here on has ever held anything.
    slots_end: AtomicU32,
    writer: Mutex<Writer>,
}

impl Default for PrefixIndex {
    fn default() -> Self {
        Self::new(INDEX_BYTES_MAX)
    }
}

impl PrefixIndex {
    /// An empty index that stays below `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        let (starts, counts) = Starts::new();
        let shared = Shared { runs: Runs::new(bytes_max), starts };
        let writer = Mutex::new(Writer::new(bytes_max, &shared, counts));
        Self { shared, slots_end: AtomicU32::new(0), writer }
    }

    /// For every worker: how many leading blocks of `hashes` it holds.
    pub fn lookup(&self, hashes: &[u64], out: &mut Matches) {
        out.reset();
        let slots_end = self.slots_end.load(Acquire) as usize;
        lookup::lookup(&self.shared.runs, &self.shared.starts, slots_end, hashes, out);
    }

    /// Records that these blocks, a prompt from its beginning, were sent to the worker.
    ///
    /// # Panics
    /// If the slot is not below [`WORKERS_MAX`].
    pub fn insert(&self, slot: WorkerSlot, hashes: &[u64]) {
        self.store(slot, None, hashes);
    }

    /// The worker says that it holds these blocks, which follow block `parent` (`None`: they begin a prompt).
    ///
    /// A hash names its whole prefix, so the answers do not depend on `parent`: it only says where the blocks are best
    /// kept. Behind a parent that the index does not know (evicted, or never told of) they are kept on their own, and
    /// count as soon as the worker holds everything before them.
    ///
    /// # Panics
    /// If the slot is not below [`WORKERS_MAX`].
    pub fn store(&self, slot: WorkerSlot, parent: Option<u64>, hashes: &[u64]) {
        assert!(usize::from(slot.0) < WORKERS_MAX, "{slot:?} is no worker slot");
        let mut writer = self.writer.lock();
        let end = u32::from(slot.0) + 1;
        if self.slots_end.load(Acquire) < end {
            self.slots_end.store(end, Release);
        }
        writer.store(&self.shared, slot, parent, hashes);
    }

    /// The worker says that these blocks are gone. What it holds behind them stays, and counts again once the hole is
    /// filled. Blocks that it does not hold are passed over.
    pub fn remove(&self, slot: WorkerSlot, hashes: &[u64]) {
        for hashes in hashes.chunks(STEP) {
            let mut writer = self.writer.lock();
            writer.remove(&self.shared, slot, hashes);
            MutexGuard::unlock_fair(writer);
        }
    }

    /// The worker is gone: forgets its blocks and its capacity. Call it (or [`PrefixIndex::clear`]) once more when
    /// the slot is given to another worker: a request that was decided before may have been recorded since.
    pub fn remove_worker(&self, slot: WorkerSlot) {
        self.clear(slot);
        self.writer.lock().worker_mut(slot).capacity = u64::MAX;
    }

    /// The worker's cache is empty (restart, reset): forgets what it held when this was called.
    pub fn clear(&self, slot: WorkerSlot) {
        let now = self.writer.lock().clock;
        self.step_by_step(|writer| writer.clear_step(&self.shared, slot, now, STEP));
    }

    /// Bounds what the worker is believed to hold, as its KV cache does. Unbounded at first.
    pub fn set_capacity_blocks(&self, slot: WorkerSlot, blocks: u64) {
        self.writer.lock().worker_mut(slot).capacity = blocks;
        self.step_by_step(|writer| writer.shrink_step(&self.shared, slot, STEP));
    }

    /// Repeats a step until it says that nothing is left, and lets those who wait for the lock go first in between.
    fn step_by_step(&self, mut step: impl FnMut(&mut Writer) -> bool) {
        loop {
            let mut writer = self.writer.lock();
            let more = step(&mut writer);
            MutexGuard::unlock_fair(writer);
            if !more {
                return;
            }
        }
    }

    /// Blocks that the worker holds.
    pub fn blocks(&self, slot: WorkerSlot) -> u64 {
        self.writer.lock().worker(slot).blocks
    }

    /// Memory of all live structures: runs, holders, uses, tables.
    pub fn bytes(&self) -> usize {
        self.writer.lock().bytes()
    }

    pub fn stats(&self) -> IndexStats {
        let writer = self.writer.lock();
        IndexStats {
            bytes: writer.bytes(),
            runs: writer.infos.live(),
            blocks: writer.blocks,
            held_blocks: writer.workers[..writer.workers_end].iter().map(|worker| worker.blocks).sum(),
            evicted_by_capacity: writer.evicted_by_capacity,
            evicted_by_bytes: writer.evicted_by_bytes,
        }
    }

    /// Walks the whole structure and recomputes what it says of itself. For tests and diagnosis: it holds the lock.
    pub fn audit(&self) -> Result<(), String> {
        self.writer.lock().audit(&self.shared)
    }
}
