//! Everything that must hold of the tree, recomputed from scratch.

use std::collections::HashSet;

use super::{
    WorkerSlot,
    holders::{NIL, WORKERS_MAX},
    tree::{Run, Tree},
};

macro_rules! check {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err(format!($($what)+));
        }
    };
}

impl Tree {
    /// See [`super::PrefixIndex::audit`].
    pub(super) fn audit(&self) -> Result<(), String> {
        let mut run_bytes = 0;
        let mut blocks = 0;
        let mut held = [0_usize; WORKERS_MAX];
        let mut children =
            vec![(0_u32, 0_u32); self.table.iter().map(|(_, id)| id as usize + 1).max().unwrap_or(0)];
        for (key, id) in self.table.iter() {
            let run = self.run(id);
            check!(run.hashes.first() == Some(&key), "run {id} is entered under {key:x}, not its first hash");
            check!(!run.holders.is_empty(), "run {id} is held by no one");
            check!(
                run.holders.slots().count() == run.holders.len(),
                "run {id} has {} uses for other holders",
                run.holders.len()
            );
            run_bytes += size_of::<Run>() + run.hashes.capacity() * 8 + run.holders.heap_bytes();
            blocks += run.hashes.len() as u64;
            run.holders.slots().for_each(|slot| held[usize::from(slot.0)] += 1);
            if run.parent != NIL {
                let parent = self.run(run.parent);
                check!(
                    parent.hashes.first().is_some_and(|first| self.table.get(*first) == Some(run.parent)),
                    "run {id} has parent {}, which is not entered",
                    run.parent
                );
                let (count, xor) = &mut children[run.parent as usize];
                *count += 1;
                *xor ^= id;
            }
        }
        for (_, id) in self.table.iter() {
            let run = self.run(id);
            check!((run.children, run.child_xor) == children[id as usize], "run {id} miscounts its children");
        }
        let stats = self.stats();
        check!(stats.runs == self.table.len(), "{} runs, {} entered", stats.runs, self.table.len());
        check!(stats.blocks == blocks, "{} blocks counted, {blocks} there", stats.blocks);
        check!(
            self.table.bytes() == self.table.counted_bytes(),
            "the table says {} bytes and has {}",
            self.table.bytes(),
            self.table.counted_bytes()
        );
        check!(self.run_bytes == run_bytes, "{} bytes of runs counted, {run_bytes} there", self.run_bytes);
        check!(self.bytes() <= self.bytes_max || stats.runs == 0, "the bound in bytes is broken");
        held.iter().enumerate().try_for_each(|(slot, held)| self.audit_worker(WorkerSlot(slot as u16), *held))
    }

    /// The list by last use: whole, in order, and every run after its parent.
    fn audit_worker(&self, slot: WorkerSlot, held: usize) -> Result<(), String> {
        let worker = self.worker(slot);
        let mut seen = HashSet::new();
        let (mut id, mut newer, mut blocks, mut stamp) = (worker.newest, NIL, 0, u64::MAX);
        while id != NIL {
            let run = self.run(id);
            check!(run.holders.contains(slot), "run {id} is in the list of {slot:?}, which does not hold it");
            check!(seen.insert(id), "the list of {slot:?} is a ring at run {id}");
            let used = run.holders.get(slot);
            check!(used.newer == newer, "run {id} in the list of {slot:?} does not lead back");
            check!(used.stamp <= stamp, "the list of {slot:?} is out of order at run {id}");
            check!(
                run.parent == NIL || seen.contains(&run.parent),
                "{slot:?} holds run {id}, but not or less recently what leads to it"
            );
            stamp = used.stamp;
            blocks += run.hashes.len() as u64;
            (newer, id) = (id, used.older);
        }
        check!(newer == worker.oldest, "the list of {slot:?} ends at {newer}, not at {}", worker.oldest);
        let oldest = if worker.oldest == NIL { u64::MAX } else { stamp };
        check!(oldest == worker.oldest_stamp, "{slot:?} has the wrong oldest stamp");
        check!(seen.len() == held, "{slot:?} holds {held} runs, {} are in its list", seen.len());
        check!(blocks == worker.blocks, "{slot:?} has {blocks} blocks, not {}", worker.blocks);
        check!(worker.blocks <= worker.capacity, "{slot:?} holds more than its capacity");
        Ok(())
    }
}
