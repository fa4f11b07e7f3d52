//! What a lookup answers: a reusable buffer, one number per worker.

use super::{WorkerSlot, run::WORKERS_MAX};

/// Leading blocks per worker. Make one per thread and keep it.
#[derive(Debug, Clone)]
pub struct Matches {
    blocks: Box<[u32; WORKERS_MAX]>,
    /// Slots at and above this one hold zero.
    end: usize,
}

impl Default for Matches {
    fn default() -> Self {
        Self { blocks: Box::new([0; WORKERS_MAX]), end: 0 }
    }
}

impl Matches {
    pub fn new() -> Self {
        Self::default()
    }

    /// How many leading blocks the worker holds.
    pub fn blocks(&self, slot: WorkerSlot) -> u32 {
        self.blocks.get(usize::from(slot.0)).copied().unwrap_or(0)
    }

    /// The workers that hold at least one block, in order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = (WorkerSlot, u32)> + '_ {
        let held = self.blocks[..self.end].iter().enumerate().filter(|(_, blocks)| **blocks > 0);
        held.map(|(slot, blocks)| (WorkerSlot(slot as u16), *blocks))
    }

    /// The longest match of any worker.
    pub fn best_blocks(&self) -> u32 {
        self.blocks[..self.end].iter().copied().max().unwrap_or(0)
    }

    pub(super) fn reset(&mut self) {
        self.blocks[..self.end].fill(0);
        self.end = 0;
    }

    pub(super) fn set(&mut self, slot: usize, blocks: u32) {
        self.blocks[slot] = blocks;
        self.end = self.end.max(slot + 1);
    }

    /// Sets all workers of one word of a bitset.
    pub(super) fn set_word(&mut self, word_index: usize, mut word: u64, blocks: u32) {
        while word != 0 {
            self.set(word_index * 64 + word.trailing_zeros() as usize, blocks);
            word &= word - 1;
        }
    }
}
