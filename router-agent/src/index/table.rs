//! First hash of a run → the run: open addressing, in shards.
//!
//! A hash names a whole prefix, so one table serves all runs and no run needs a map of its children. 256 shards, so
//! that growing one moves a 256th of the entries: no write lock is held for a whole rehash. Keys are scattered by a
//! random odd factor, so that a client who can choose hashes cannot choose slots.

use super::holders::NIL;

const SHARDS: usize = 256;

/// Slots of a shard that holds anything.
const SLOTS_MIN: usize = 8;

#[derive(Default)]
struct Shard {
    /// A slot with run `NIL` is free; its key means nothing.
    keys: Vec<u64>,
    runs: Vec<u32>,
    len: usize,
}

/// See the module.
pub(super) struct Table {
    shards: Box<[Shard]>,
    factor: u64,
    bytes: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            factor: fastrand::u64(..) | 1,
            bytes: SHARDS * size_of::<Shard>(),
        }
    }

    /// Memory of the table, free slots included.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len).sum()
    }

    /// The shard (from the top bits) and the bits that choose its slot.
    fn place(&self, key: u64) -> (usize, usize) {
        let scattered = key.wrapping_mul(self.factor);
        ((scattered >> 56) as usize, (scattered >> 24) as usize)
    }

    pub(super) fn get(&self, key: u64) -> Option<u32> {
        let (shard, start) = self.place(key);
        self.shards[shard].find(key, start).map(|slot| self.shards[shard].runs[slot])
    }

    /// Sets the run of `key`; returns the one that it had.
    pub(super) fn insert(&mut self, key: u64, run: u32) -> Option<u32> {
        let (at, start) = self.place(key);
        if let Some(slot) = self.shards[at].find(key, start) {
            return Some(std::mem::replace(&mut self.shards[at].runs[slot], run));
        }
        let slots = self.shards[at].runs.len();
        if (self.shards[at].len + 1) * 4 > slots * 3 {
            self.resize(at, (slots * 2).max(SLOTS_MIN));
        }
        self.shards[at].put(key, run, start);
        self.shards[at].len += 1;
        None
    }

    pub(super) fn remove(&mut self, key: u64) -> Option<u32> {
        let (at, start) = self.place(key);
        let slot = self.shards[at].find(key, start)?;
        let run = self.shards[at].runs[slot];
        let factor = self.factor;
        self.shards[at].free(slot, |key| (key.wrapping_mul(factor) >> 24) as usize);
        let (len, slots) = (self.shards[at].len, self.shards[at].runs.len());
        if len == 0 {
            self.resize(at, 0);
        } else if slots > SLOTS_MIN && len * 8 < slots {
            self.resize(at, slots / 2);
        }
        Some(run)
    }

    fn resize(&mut self, at: usize, slots: usize) {
        let old = std::mem::take(&mut self.shards[at]);
        self.bytes -= old.runs.len() * (size_of::<u64>() + size_of::<u32>());
        self.bytes += slots * (size_of::<u64>() + size_of::<u32>());
        let mut shard = Shard { keys: vec![0; slots], runs: vec![NIL; slots], len: old.len };
        for (key, run) in old.keys.into_iter().zip(old.runs) {
            if run != NIL {
                shard.put(key, run, self.place(key).1);
            }
        }
        self.shards[at] = shard;
    }

    /// Every entry, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.shards.iter().flat_map(|shard| {
            let slots = shard.keys.iter().zip(&shard.runs);
            slots.filter(|(_, run)| **run != NIL).map(|(key, run)| (*key, *run))
        })
    }

    /// What `bytes` must say.
    pub(super) fn counted_bytes(&self) -> usize {
        let shards = self.shards.iter();
        SHARDS * size_of::<Shard>()
            + shards.map(|shard| shard.keys.capacity() * 8 + shard.runs.capacity() * 4).sum::<usize>()
    }
}

impl Shard {
    fn find(&self, key: u64, start: usize) -> Option<usize> {
        let mask = self.runs.len().checked_sub(1)?;
        let mut slot = start & mask;
        while self.runs[slot] != NIL {
            if self.keys[slot] == key {
                return Some(slot);
            }
            slot = (slot + 1) & mask;
        }
        None
    }

    /// Writes an entry that is not there yet, into a shard that has room.
    fn put(&mut self, key: u64, run: u32, start: usize) {
        let mask = self.runs.len() - 1;
        let mut slot = start & mask;
        while self.runs[slot] != NIL {
            slot = (slot + 1) & mask;
        }
        self.keys[slot] = key;
        self.runs[slot] = run;
    }

    /// Frees a slot, and moves what follows it up so that no search ends too early.
    fn free(&mut self, slot: usize, start_of: impl Fn(u64) -> usize) {
        let mask = self.runs.len() - 1;
        let mut hole = slot;
        let mut next = (hole + 1) & mask;
        while self.runs[next] != NIL {
            let start = start_of(self.keys[next]) & mask;
            // The entry may move into the hole if the hole is not before its start, counted around the ring.
            if (next.wrapping_sub(start) & mask) >= (next.wrapping_sub(hole) & mask) {
                self.keys[hole] = self.keys[next];
                self.runs[hole] = self.runs[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.runs[hole] = NIL;
        self.len -= 1;
    }
}
