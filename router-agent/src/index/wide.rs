//! Who holds a run that many workers share, as two sets: so a lookup need not go through all of the run's groups.
//!
//! A run that has come to several groups gets one of these, for as long as it lives. It says of every worker whether it
//! holds the run's first blocks, up to the cut that the run had then (all 32, if it had none), and whether it holds any
//! block at all. Only where a worker that is asked for is in the second set alone, the masks have to be read.

use super::{
    WorkerSlot,
    run::WORKERS_MAX,
    sync::{
        AtomicU64,
        Ordering::{Acquire, Release},
    },
};

/// Groups from which on a run gets its sets.
#[cfg(not(shuttle))]
pub(super) const WIDE_GROUPS: usize = 4;
#[cfg(shuttle)]
pub(super) const WIDE_GROUPS: usize = 2;

/// Numbers of these are below this.
pub(super) const WIDES_MAX: usize = (1 << 24) - 1024;

const WORDS: usize = WORKERS_MAX / 64;

/// See the module.
#[derive(Default)]
pub(super) struct Wide {
    sure: [AtomicU64; WORDS],
    any: [AtomicU64; WORDS],
}

impl Wide {
    /// Of 64 workers: those that hold the first blocks, and those that hold any.
    pub(super) fn word(&self, index: usize) -> (u64, u64) {
        (self.sure[index].load(Acquire), self.any[index].load(Acquire))
    }

    pub(super) fn set(&self, slot: WorkerSlot, sure: bool, any: bool) {
        let (word, bit) = (usize::from(slot.0) / 64, 1 << (slot.0 % 64));
        for (set, is) in [(&self.sure[word], sure), (&self.any[word], any)] {
            let before = set.load(Acquire);
            let after = if is { before | bit } else { before & !bit };
            if after != before {
                set.store(after, Release);
            }
        }
    }

    pub(super) fn clear(&self) {
        for word in self.sure.iter().chain(&self.any) {
            word.store(0, Release);
        }
    }
}

/// Which of these a run has, and of how many of its first blocks the first set is: one word, so that both are of the same
/// moment. 0: none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct WideRef(pub(super) u32);

impl WideRef {
    pub(super) const NONE: Self = Self(0);

    pub(super) fn new(id: u32, blocks: usize) -> Self {
        Self((id + 1) | (blocks as u32) << 25)
    }

    /// Number and blocks.
    pub(super) fn get(self) -> Option<(u32, usize)> {
        Some(((self.0 & 0x1FF_FFFF).checked_sub(1)?, (self.0 >> 25) as usize))
    }
}
