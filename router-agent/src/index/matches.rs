//! What a lookup answers: a reusable buffer, one number per worker.

use super::{WorkerSlot, run::WORKERS_MAX};

/// From so many workers of one word on, all 64 are written, without a branch.
const DENSE: u32 = 12;

/// Leading blocks per worker. Make one per thread and keep it.
#[derive(Debug, Clone)]
pub struct Matches {
    blocks: Box<[u32; WORKERS_MAX]>,
    /// Slots at and above this one hold zero.
    end: usize,
    best: u32,
}

impl Default for Matches {
    fn default() -> Self {
        Self { blocks: Box::new([0; WORKERS_MAX]), end: 0, best: 0 }
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
        self.best
    }

    pub(super) fn reset(&mut self) {
        self.blocks[..self.end].fill(0);
        (self.end, self.best) = (0, 0);
    }

    /// Sets a worker's number, once in a lookup.
    pub(super) fn set(&mut self, slot: usize, blocks: u32) {
        self.blocks[slot] = blocks;
        self.end = self.end.max(slot + 1);
        self.best = self.best.max(blocks);
    }

    /// Lowers workers of one word of a bitset that were set too high.
    pub(super) fn set_back(&mut self, word_index: usize, word: u64, blocks: u32) {
        self.set_word(word_index, word, blocks);
        self.best = self.blocks[..self.end].iter().copied().max().unwrap_or(0);
    }

    /// Sets all workers of one word of a bitset, each once in a lookup.
    pub(super) fn set_word(&mut self, word_index: usize, mut word: u64, blocks: u32) {
        let first = word_index * 64;
        if word.count_ones() < DENSE {
            while word != 0 {
                self.set(first + word.trailing_zeros() as usize, blocks);
                word &= word - 1;
            }
            return;
        }
        let (fours, _) = self.blocks[first..first + 64].as_chunks_mut::<4>();
        for (at, four) in fours.iter_mut().enumerate() {
            let bits = (word >> (at * 4)) as u32;
            for (lane, own) in four.iter_mut().enumerate() {
                *own = if bits & 1 << lane != 0 { blocks } else { *own };
            }
        }
        self.end = self.end.max(first + 64 - word.leading_zeros() as usize);
        self.best = self.best.max(blocks);
    }
}
