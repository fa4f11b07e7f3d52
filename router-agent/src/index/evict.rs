//! What leaves the index, and in which order: capacity, clearing and the bound in bytes, all from the end of a worker's
//! list of uses.

use super::{
    WorkerSlot,
    run::NIL,
    uses::Use,
    writer::{Shared, Writer},
};

impl Writer {
    /// Takes at most `count` blocks off the worker's oldest use, the deepest first; returns how many.
    fn evict(&mut self, shared: &Shared, slot: WorkerSlot, count: u64) -> u64 {
        let oldest = self.worker(slot).oldest;
        if oldest == NIL {
            return 0;
        }
        let Use { group, lane, mask, .. } = self.uses[oldest];
        let mut kept = mask;
        let mut taken = 0;
        while kept != 0 && taken < count {
            kept &= !(1 << kept.ilog2());
            taken += 1;
        }
        let gone = mask & !kept;
        self.forget_use(group, usize::from(lane), slot, gone);
        self.release(shared, group, usize::from(lane), slot, gone);
        taken
    }

    /// Evicts what the worker holds beyond its capacity, at most `blocks_max`; says whether more is left to do.
    pub(super) fn shrink_step(&mut self, shared: &Shared, slot: WorkerSlot, blocks_max: usize) -> bool {
        let mut left = blocks_max as u64;
        loop {
            let worker = self.worker(slot);
            let excess = worker.blocks.saturating_sub(worker.capacity);
            if excess == 0 || left == 0 {
                return excess > 0;
            }
            let evicted = self.evict(shared, slot, excess.min(left));
            debug_assert!(evicted > 0, "more than nothing is held, so there is a use");
            left -= evicted;
        }
    }

    /// Drops what the worker last used at `until` or before, at most `uses_max` uses; says whether more is left.
    pub(super) fn clear_step(
        &mut self,
        shared: &Shared,
        slot: WorkerSlot,
        until: u64,
        uses_max: usize,
    ) -> bool {
        for _ in 0..uses_max {
            if self.worker(slot).oldest == NIL || self.oldest_stamp(slot) > until {
                return false;
            }
            self.evict(shared, slot, u64::MAX);
        }
        true
    }

    /// Drops uses of whichever worker's oldest one is the oldest, until the bound in bytes holds.
    pub(super) fn evict_to_bytes(&mut self, shared: &Shared) {
        while self.bytes() > self.bytes_max {
            let slots = (0..self.workers_end).map(|slot| WorkerSlot(slot as u16));
            let Some(slot) = slots.min_by_key(|slot| self.oldest_stamp(*slot)) else { return };
            let evicted = self.evict(shared, slot, u64::MAX);
            if evicted == 0 {
                return;
            }
            self.evicted_by_bytes += evicted;
        }
    }
}
