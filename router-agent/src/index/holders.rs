//! Who holds a run: a bitset, and for each holder its place in that worker's order of use.
//!
//! The bitset is what lookups read. The uses stand in slot order beside it, so a holder's use is found by counting
//! the bits below its own; 16 bytes per holder and no search.

use super::WorkerSlot;

/// Workers that an index can tell apart.
pub const WORKERS_MAX: usize = 1024;

const WORDS: usize = WORKERS_MAX / 64;

/// No run.
pub(super) const NIL: u32 = u32::MAX;

/// When a worker last used a run, and the run's neighbours in that worker's order of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    /// The clock of the last insert that covered the run.
    pub(super) stamp: u64,
    pub(super) newer: u32,
    pub(super) older: u32,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Holders {
    /// Slots 0 to 63, which is all that most fleets have.
    low: u64,
    high: Option<Box<[u64; WORDS - 1]>>,
    uses: Vec<Use>,
}

impl Holders {
    pub(super) fn word(&self, index: usize) -> u64 {
        match (index, &self.high) {
            (0, _) => self.low,
            (_, Some(high)) => high[index - 1],
            (_, None) => 0,
        }
    }

    /// How many words of the bitset may be other than zero.
    pub(super) fn words(&self) -> usize {
        if self.high.is_some() { WORDS } else { 1 }
    }

    pub(super) fn contains(&self, slot: WorkerSlot) -> bool {
        self.word(usize::from(slot.0) / 64) >> (slot.0 % 64) & 1 == 1
    }

    pub(super) fn len(&self) -> usize {
        self.uses.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.uses.is_empty()
    }

    /// When any of them last used the run.
    pub(super) fn last_stamp(&self) -> u64 {
        self.uses.iter().map(|used| used.stamp).max().unwrap_or(0)
    }

    /// How many holders stand before this slot.
    fn rank(&self, slot: WorkerSlot) -> usize {
        let index = usize::from(slot.0) / 64;
        let whole: u32 = (0..index).map(|word| self.word(word).count_ones()).sum();
        let below = self.word(index) & ((1_u64 << (slot.0 % 64)) - 1);
        (whole + below.count_ones()) as usize
    }

    /// The use of a worker that holds the run.
    pub(super) fn get(&self, slot: WorkerSlot) -> &Use {
        debug_assert!(self.contains(slot), "{slot:?} does not hold the run");
        &self.uses[self.rank(slot)]
    }

    pub(super) fn get_mut(&mut self, slot: WorkerSlot) -> &mut Use {
        debug_assert!(self.contains(slot), "{slot:?} does not hold the run");
        let rank = self.rank(slot);
        &mut self.uses[rank]
    }

    /// Adds a worker that does not hold the run yet.
    pub(super) fn add(&mut self, slot: WorkerSlot, used: Use) {
        debug_assert!(!self.contains(slot), "{slot:?} holds the run already");
        let rank = self.rank(slot);
        let index = usize::from(slot.0) / 64;
        if index == 0 {
            self.low |= 1 << slot.0;
        } else {
            self.high.get_or_insert_default()[index - 1] |= 1 << (slot.0 % 64);
        }
        if self.uses.len() == self.uses.capacity() {
            // Most runs have one holder: no room is kept for more before there are several.
            self.uses.reserve_exact((self.uses.len() / 2).max(1));
        }
        self.uses.insert(rank, used);
    }

    /// Removes a worker that holds the run.
    pub(super) fn remove(&mut self, slot: WorkerSlot) -> Use {
        debug_assert!(self.contains(slot), "{slot:?} does not hold the run");
        let used = self.uses.remove(self.rank(slot));
        let index = usize::from(slot.0) / 64;
        if index == 0 {
            self.low &= !(1 << slot.0);
        } else if let Some(high) = &mut self.high {
            high[index - 1] &= !(1 << (slot.0 % 64));
        }
        used
    }

    /// The holders, in order of their slots.
    pub(super) fn slots(&self) -> impl Iterator<Item = WorkerSlot> + '_ {
        (0..self.words()).flat_map(|index| {
            let mut word = self.word(index);
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| word.trailing_zeros())?;
                word &= word - 1;
                Some(WorkerSlot((index * 64) as u16 + bit as u16))
            })
        })
    }

    /// The same workers, which last used both runs at the same times.
    pub(super) fn used_alike(&self, other: &Self) -> bool {
        self.uses.len() == other.uses.len()
            && (0..self.words().max(other.words())).all(|index| self.word(index) == other.word(index))
            && self.uses.iter().zip(&other.uses).all(|(a, b)| a.stamp == b.stamp)
    }

    /// Heap memory.
    pub(super) fn heap_bytes(&self) -> usize {
        self.uses.capacity() * size_of::<Use>()
            + if self.high.is_some() { size_of::<[u64; WORDS - 1]>() } else { 0 }
    }
}
