//! What leaves the tree, and in which order: capacity, clearing, the bound in bytes, and the lists by last use that
//! all of them follow.

use super::{
    WorkerSlot,
    holders::{NIL, Use},
    tree::Tree,
};

impl Tree {
    /// The worker no longer holds the run, below which it holds nothing.
    fn drop_holder(&mut self, id: u32, slot: WorkerSlot) {
        self.unlink(id, slot);
        self.worker_mut(slot).blocks -= self.run(id).hashes.len() as u64;
        self.change(id, |run| {
            run.holders.remove(slot);
        });
        if self.run(id).holders.is_empty() {
            debug_assert_eq!(self.run(id).children, 0, "held below, so held here");
            let gone = self.free_run(id);
            self.blocks -= gone.hashes.len() as u64;
            self.table.remove(gone.first());
            if gone.parent != NIL {
                let parent = self.run_mut(gone.parent);
                parent.children -= 1;
                parent.child_xor ^= id;
                self.merge(gone.parent);
            }
        } else {
            self.merge(id);
        }
    }

    /// Takes the worker's `count` oldest blocks off the run at the end of its list; returns how many it took.
    fn evict(&mut self, slot: WorkerSlot, count: u64) -> u64 {
        let id = self.worker(slot).oldest;
        if id == NIL {
            return 0;
        }
        let len = self.run(id).hashes.len();
        if len as u64 <= count {
            self.drop_holder(id, slot);
            return len as u64;
        }
        let kept = len - count as usize;
        if self.run(id).holders.len() == 1 {
            self.change(id, |run| {
                run.hashes.truncate(kept);
                run.hashes.shrink_to_fit();
            });
            self.worker_mut(slot).blocks -= count;
            self.blocks -= count;
        } else {
            self.split(id, kept);
            self.drop_holder(id, slot);
        }
        count
    }

    /// Evicts what the worker holds beyond its capacity, at most `blocks_max`; says whether more is left to do.
    pub(super) fn shrink_step(&mut self, slot: WorkerSlot, blocks_max: usize) -> bool {
        let mut left = blocks_max as u64;
        loop {
            let worker = self.worker(slot);
            let excess = worker.blocks.saturating_sub(worker.capacity);
            if excess == 0 || left == 0 {
                return excess > 0;
            }
            left -= self.evict(slot, excess.min(left));
        }
    }

    /// One step of [`super::PrefixIndex::set_capacity_blocks`]. Cutting a shared run costs memory, so the bound in
    /// bytes has to be looked after here, too.
    pub(super) fn shrink_step_bounded(&mut self, slot: WorkerSlot, blocks_max: usize) -> bool {
        let more = self.shrink_step(slot, blocks_max);
        self.evict_to_bytes();
        more
    }

    pub(super) fn set_capacity(&mut self, slot: WorkerSlot, blocks: u64) {
        self.worker_mut(slot).capacity = blocks;
    }

    /// Drops the worker's runs that were last used at `until` or before, at most `runs_max`; says whether more are
    /// left.
    pub(super) fn clear_step(&mut self, slot: WorkerSlot, until: u64, runs_max: usize) -> bool {
        for _ in 0..runs_max {
            if self.worker(slot).oldest_stamp > until {
                return false;
            }
            self.drop_holder(self.worker(slot).oldest, slot);
        }
        true
    }

    /// Drops runs of whichever worker used its oldest one longest ago, until the bound in bytes holds.
    pub(super) fn evict_to_bytes(&mut self) {
        while self.bytes() > self.bytes_max {
            let workers = self.workers[..self.workers_end].iter().enumerate();
            let Some((slot, worker)) = workers.min_by_key(|(_, worker)| worker.oldest_stamp) else { return };
            if worker.oldest == NIL {
                return;
            }
            self.evicted_by_bytes += self.run(worker.oldest).hashes.len() as u64;
            self.drop_holder(worker.oldest, WorkerSlot(slot as u16));
        }
    }

    /// Puts a run that the worker holds right after `newer` in its list (`NIL`: in front).
    pub(super) fn link(&mut self, id: u32, slot: WorkerSlot, newer: u32) {
        let older =
            if newer == NIL { self.worker(slot).newest } else { self.run(newer).holders.get(slot).older };
        let used = self.run_mut(id).holders.get_mut(slot);
        used.newer = newer;
        used.older = older;
        let stamp = used.stamp;
        match newer {
            NIL => self.worker_mut(slot).newest = id,
            newer => self.run_mut(newer).holders.get_mut(slot).older = id,
        }
        match older {
            NIL => {
                let worker = self.worker_mut(slot);
                worker.oldest = id;
                worker.oldest_stamp = stamp;
            }
            older => self.run_mut(older).holders.get_mut(slot).newer = id,
        }
    }

    pub(super) fn unlink(&mut self, id: u32, slot: WorkerSlot) {
        let Use { newer, older, .. } = *self.run(id).holders.get(slot);
        match newer {
            NIL => self.worker_mut(slot).newest = older,
            newer => self.run_mut(newer).holders.get_mut(slot).older = older,
        }
        match older {
            NIL => {
                let stamp = if newer == NIL { u64::MAX } else { self.run(newer).holders.get(slot).stamp };
                let worker = self.worker_mut(slot);
                worker.oldest = newer;
                worker.oldest_stamp = stamp;
            }
            older => self.run_mut(older).holders.get_mut(slot).newer = newer,
        }
    }
}
