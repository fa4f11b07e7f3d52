//! The order of use: what each worker has used when, and so what leaves it first.
//!
//! A **use** is what one worker last used of one run at one time: a mask of blocks. A block is in exactly one use of
//! each worker that holds it. Per worker, all uses form a list by time; of those of the same time, the deeper one counts
//! as older, and in a use the deeper block. So what leaves first is always at the end of the list.

use super::{
    WorkerSlot,
    lay::Place,
    run::{FURTHER, NIL},
    writer::Writer,
};

/// See the module.
#[derive(Default, Clone, Copy)]
pub(super) struct Use {
    /// The clock of the insert or store.
    pub(super) stamp: u64,
    pub(super) newer: u32,
    pub(super) older: u32,
    /// The next use of the same group, by any of its workers.
    pub(super) sibling: u32,
    pub(super) group: u32,
    /// Blocks of the run.
    pub(super) mask: u32,
    /// Place of the worker in the group.
    pub(super) lane: u8,
}

/// A worker's list of uses, and its account.
#[derive(Debug, Clone, Copy)]
pub(super) struct Worker {
    pub(super) newest: u32,
    pub(super) oldest: u32,
    pub(super) blocks: u64,
    pub(super) capacity: u64,
    /// Where the last block stood that was stored, and the last that was removed: where the next event mostly goes on.
    pub(super) stored: Place,
    pub(super) removed: Place,
}

impl Worker {
    pub(super) const IDLE: Self =
        Self { newest: NIL, oldest: NIL, blocks: 0, capacity: u64::MAX, stored: 0, removed: 0 };
}

impl Writer {
    /// Puts a use into its worker's list, right behind `newer` (`NIL`: in front).
    pub(super) fn link(&mut self, id: u32, slot: WorkerSlot, newer: u32) {
        let older = if newer == NIL { self.worker(slot).newest } else { self.uses[newer].older };
        let used = &mut self.uses[id];
        (used.newer, used.older) = (newer, older);
        match newer {
            NIL => self.worker_mut(slot).newest = id,
            newer => self.uses[newer].older = id,
        }
        match older {
            NIL => self.worker_mut(slot).oldest = id,
            older => self.uses[older].newer = id,
        }
    }

    pub(super) fn unlink(&mut self, id: u32, slot: WorkerSlot) {
        let Use { newer, older, .. } = self.uses[id];
        match newer {
            NIL => self.worker_mut(slot).newest = older,
            newer => self.uses[newer].older = older,
        }
        match older {
            NIL => self.worker_mut(slot).oldest = newer,
            older => self.uses[older].newer = newer,
        }
    }

    /// When the worker used its oldest blocks; `u64::MAX` if it holds none.
    pub(super) fn oldest_stamp(&self, slot: WorkerSlot) -> u64 {
        match self.worker(slot).oldest {
            NIL => u64::MAX,
            oldest => self.uses[oldest].stamp,
        }
    }

    /// Notes that the worker used these blocks of a run at `stamp`, right behind `newer` in its list.
    pub(super) fn note_use(
        &mut self,
        group: u32,
        lane: usize,
        slot: WorkerSlot,
        mask: u32,
        stamp: u64,
        newer: u32,
    ) {
        let replaced =
            |used: &Use| used.group == group && usize::from(used.lane) == lane && used.mask & !mask == 0;
        let mut newer = newer;
        // Only hashes that name no prefix lead through the same blocks twice.
        while newer != NIL && replaced(&self.uses[newer]) {
            newer = self.uses[newer].newer;
        }
        self.forget_use(group, lane, slot, mask);
        let id = self.uses.alloc();
        let sibling = std::mem::replace(self.uses_of_mut(group), id);
        self.uses[id] = Use { stamp, newer: NIL, older: NIL, sibling, group, mask, lane: lane as u8 };
        self.link(id, slot, newer);
    }

    /// Takes blocks out of the uses that they are in.
    pub(super) fn forget_use(&mut self, group: u32, lane: usize, slot: WorkerSlot, mask: u32) {
        let (mut before, mut id) = (NIL, self.uses_of(group));
        while id != NIL {
            let used = &mut self.uses[id];
            let next = used.sibling;
            let own = usize::from(used.lane) == lane;
            used.mask &= if own { !mask } else { u32::MAX };
            if used.mask == 0 {
                self.unlink(id, slot);
                self.uses.free(id);
                match before {
                    NIL => *self.uses_of_mut(group) = next,
                    before => self.uses[before].sibling = next,
                }
            } else {
                before = id;
            }
            id = next;
        }
    }
}

/// What the writer remembers of a group that is not a run's first.
#[derive(Default, Clone, Copy)]
pub(super) struct GroupInfo {
    pub(super) run: u32,
    /// The newest use by any of its workers.
    pub(super) uses: u32,
}

impl Writer {
    pub(super) fn run_of(&self, group: u32) -> u32 {
        if group & FURTHER == 0 { group } else { self.groups[group & !FURTHER].run }
    }

    /// The newest use of a group by any of its workers.
    pub(super) fn uses_of(&self, group: u32) -> u32 {
        if group & FURTHER == 0 { self.infos[group].uses } else { self.groups[group & !FURTHER].uses }
    }

    fn uses_of_mut(&mut self, group: u32) -> &mut u32 {
        if group & FURTHER == 0 {
            &mut self.infos[group].uses
        } else {
            &mut self.groups[group & !FURTHER].uses
        }
    }
}
