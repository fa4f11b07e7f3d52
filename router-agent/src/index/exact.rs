//! What workers have said that they hold: block hash → bitset of workers.

use std::collections::HashMap;

use super::{Matches, WorkerSlot, holders::WORKERS_MAX};

const WORDS: usize = WORKERS_MAX / 64;

#[derive(Debug, Default)]
pub(super) struct Exact {
    blocks: HashMap<u64, [u64; WORDS]>,
}

impl Exact {
    pub(super) fn store(&mut self, slot: WorkerSlot, hashes: &[u64]) {
        for hash in hashes {
            self.blocks.entry(*hash).or_default()[usize::from(slot.0) / 64] |= 1 << (slot.0 % 64);
        }
    }

    pub(super) fn remove(&mut self, slot: WorkerSlot, hashes: &[u64]) {
        for hash in hashes {
            if let Some(holders) = self.blocks.get_mut(hash) {
                holders[usize::from(slot.0) / 64] &= !(1 << (slot.0 % 64));
                if *holders == [0; WORDS] {
                    self.blocks.remove(hash);
                }
            }
        }
    }

    pub(super) fn clear(&mut self, slot: WorkerSlot) {
        self.blocks.retain(|_, holders| {
            holders[usize::from(slot.0) / 64] &= !(1 << (slot.0 % 64));
            *holders != [0; WORDS]
        });
    }

    /// Raises what `out` says to what is held from the first block on.
    pub(super) fn lookup(&self, hashes: &[u64], out: &mut Matches) {
        let mut above = [u64::MAX; WORDS];
        for (depth, hash) in (1..).zip(hashes) {
            let Some(holders) = self.blocks.get(hash) else { return };
            for word in 0..WORDS {
                above[word] &= holders[word];
                let mut left = above[word];
                while left != 0 {
                    let bit = left.trailing_zeros();
                    let slot = WorkerSlot((word * 64) as u16 + bit as u16);
                    if out.blocks(slot) < depth {
                        out.set_word(word, 1 << bit, depth);
                    }
                    left &= left - 1;
                }
            }
        }
    }
}
