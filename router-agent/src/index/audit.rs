//! Everything that must hold of the index, recomputed from scratch.

use std::collections::HashSet;

use super::{
    WorkerSlot,
    run::{GROUP, NIL, WORKERS_MAX, first_blocks},
    writer::{Shared, Writer},
};

macro_rules! check {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err(format!($($what)+));
        }
    };
}

impl Writer {
    /// See [`super::PrefixIndex::audit`].
    pub(super) fn audit(&self, shared: &Shared) -> Result<(), String> {
        let (mut blocks, mut placed, mut further, mut wides, mut live) = (0, 0, 0, 0, 0);
        let mut held = vec![0_u64; WORKERS_MAX];
        let entered: HashSet<u32> = shared.starts.runs().into_iter().collect();
        for run in (0..self.infos.end()).filter(|run| shared.runs.len(*run) > 0) {
            live += 1;
            let hashes = shared.runs.hashes(run);
            for at in 0..shared.runs.len(run) {
                let place = self.place(shared, hashes.get(at));
                check!(place == Some((run, at)), "block {at} of run {run} is looked for at {place:?}");
            }
            placed += shared.runs.len(run);
            check!(entered.contains(&run), "run {run} is not entered under its first hash");
            let found = shared.starts.read().find(hashes.get(0), |id| (id == run).then_some(id));
            check!(found == Some(run), "run {run} is not found by its first hash");
            let end = (shared.runs.len(run), hashes.get(shared.runs.len(run) - 1));
            check!(shared.runs.top(run).end() == end, "run {run} has the wrong end");
            let union = shared.runs.held(run, u32::MAX);
            check!(union != 0, "run {run} is held by no one");
            check!(
                u64::from(union) < 1 << shared.runs.len(run),
                "run {run} has holders of blocks that it has not"
            );
            blocks += u64::from(union.count_ones());
            let mut numbers = HashSet::new();
            let wide = shared.runs.top(run).wide().get();
            wides += usize::from(wide.is_some());
            for (id, group) in shared.runs.groups(run) {
                further += usize::from(id != run);
                let header = group.header();
                check!(self.run_of(id) == run, "group {id} belongs to another run");
                check!(group.is_sound(), "group {id} has the wrong short cuts");
                check!(numbers.insert(header.number()), "run {run} has group {} twice", header.number());
                for lane in 0..GROUP {
                    let mask = group.mask(lane);
                    let slot = header.number() * GROUP + lane;
                    if let Some((id, blocks)) = wide {
                        let ((sure, any), first) =
                            (shared.runs.wide(id).word(slot / 64), first_blocks(blocks));
                        let says = (sure >> (slot % 64) & 1 == 1, any >> (slot % 64) & 1 == 1);
                        check!(says == (mask & first == first, mask != 0), "the sets of run {run} are wrong");
                    }
                    held[header.number() * GROUP + lane] += u64::from(mask.count_ones());
                    self.audit_uses(id, lane, mask)?;
                }
            }
        }
        check!(blocks == self.blocks, "{} blocks counted, {blocks} there", self.blocks);
        check!(placed == self.places.len(), "{} places, {placed} blocks in runs", self.places.len());
        check!(further == self.groups.live(), "{} groups counted, {further} there", self.groups.live());
        check!(wides == self.wides.live(), "{} runs with sets counted, {wides} there", self.wides.live());
        check!(live == self.infos.live(), "{} runs counted, {live} there", self.infos.live());
        check!(live == entered.len() && live == self.counts.len(), "{live} runs, {} entered", entered.len());
        check!(self.bytes() <= self.bytes_max || live == 0, "the bound in bytes is broken");
        let mut uses = 0;
        for (slot, held) in held.iter().enumerate() {
            uses += self.audit_worker(WorkerSlot(slot as u16), *held)?;
        }
        check!(uses == self.uses.live(), "{} uses counted, {uses} there", self.uses.live());
        Ok(())
    }

    /// A worker's uses of a run: each block that it holds in exactly one.
    fn audit_uses(&self, group: u32, lane: usize, mask: u32) -> Result<(), String> {
        let (mut id, mut seen, mut stamp) = (self.uses_of(group), 0, u64::MAX);
        while id != NIL {
            let used = self.uses[id];
            check!(used.group == group && used.mask != 0, "use {id} is of another group, or empty");
            check!(used.stamp <= stamp, "the uses of group {group} are out of order");
            let own = if usize::from(used.lane) == lane { used.mask } else { 0 };
            check!(own & seen == 0, "use {id} shares its blocks");
            (seen, stamp, id) = (seen | own, used.stamp, used.sibling);
        }
        check!(seen == mask, "group {group} lane {lane}: uses say {seen:x}, the mask {mask:x}");
        Ok(())
    }

    /// The list by last use: whole and in order. Returns its length.
    fn audit_worker(&self, slot: WorkerSlot, held: u64) -> Result<usize, String> {
        let worker = self.worker(slot);
        let (mut id, mut newer, mut blocks, mut stamp, mut count) = (worker.newest, NIL, 0, u64::MAX, 0);
        while id != NIL {
            let used = self.uses[id];
            check!(used.newer == newer, "use {id} in the list of {slot:?} does not lead back");
            check!(used.stamp <= stamp, "the list of {slot:?} is out of order at use {id}");
            count += 1;
            check!(count <= self.uses.live(), "the list of {slot:?} is a ring");
            stamp = used.stamp;
            blocks += u64::from(used.mask.count_ones());
            (newer, id) = (id, used.older);
        }
        check!(newer == worker.oldest, "the list of {slot:?} ends at {newer}, not at {}", worker.oldest);
        check!(blocks == worker.blocks && blocks == held, "{slot:?} has {blocks} blocks, {held} held");
        check!(worker.blocks <= worker.capacity, "{slot:?} holds more than its capacity");
        Ok(count)
    }
}
