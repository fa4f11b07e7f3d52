//! The write path: one writer at a time, behind the index's mutex. It changes the words that readers see one by one, each
//! change true by itself, and keeps what readers do not need: the place of every block and the order of use.
//! Where blocks stand is in `lay`.

use super::{
    WorkerSlot,
    lay::{Stretch, place_of},
    places::Places,
    run::{FURTHER, GROUP, Group, NIL, RUN_BLOCKS, Runs, WORKERS_MAX, first_blocks},
    slab::Slab,
    starts::{StartCounts, Starts},
    uses::{GroupInfo, Use, Worker},
    wide::{WIDE_GROUPS, WideRef},
};

/// What the writer remembers of a run.
#[derive(Clone, Copy)]
pub(super) struct RunInfo {
    /// The hash before the first one; 0 at a prompt's beginning.
    pub(super) parent_hash: u64,
    /// Inserts and stores that went through the run's first block.
    pub(super) hits: u32,
    /// The newest use of the run's first group.
    pub(super) uses: u32,
}

impl Default for RunInfo {
    fn default() -> Self {
        Self { parent_hash: 0, hits: 0, uses: NIL }
    }
}

/// What readers share with the writer.
pub(super) struct Shared {
    pub(super) runs: Runs,
    pub(super) starts: Starts,
}

/// See the module.
pub(super) struct Writer {
    pub(super) infos: Slab<RunInfo>,
    pub(super) groups: Slab<GroupInfo>,
    pub(super) uses: Slab<Use>,
    pub(super) wides: Slab<()>,
    pub(super) places: Places,
    pub(super) counts: StartCounts,
    pub(super) workers: Box<[Worker]>,
    /// Slots at and above this one have never held anything.
    pub(super) workers_end: usize,
    /// Counts inserts and stores.
    pub(super) clock: u64,
    pub(super) bytes_max: usize,
    bytes_fixed: usize,
    /// Different blocks that are held.
    pub(super) blocks: u64,
    pub(super) evicted_by_capacity: u64,
    pub(super) evicted_by_bytes: u64,
    /// The stretches of the insert at hand, from the root.
    pub(super) path: Vec<Stretch>,
}

/// The group of the worker in the run, if there is one.
fn known_group(shared: &Shared, run: u32, slot: WorkerSlot) -> Option<(u32, &Group)> {
    let number = usize::from(slot.0) / GROUP;
    shared.runs.groups(run).find(|(_, group)| group.header().number() == number)
}

impl Writer {
    pub(super) fn new(bytes_max: usize, shared: &Shared, counts: StartCounts) -> Self {
        let workers = vec![Worker::IDLE; WORKERS_MAX].into_boxed_slice();
        Self {
            infos: Slab::default(),
            groups: Slab::default(),
            uses: Slab::default(),
            wides: Slab::default(),
            places: Places::new(),
            counts,
            bytes_max,
            bytes_fixed: shared.runs.directory_bytes() + size_of_val(&*workers),
            workers,
            workers_end: 0,
            clock: 0,
            blocks: 0,
            evicted_by_capacity: 0,
            evicted_by_bytes: 0,
            path: Vec::new(),
        }
    }

    pub(super) fn worker(&self, slot: WorkerSlot) -> &Worker {
        &self.workers[usize::from(slot.0)]
    }

    pub(super) fn worker_mut(&mut self, slot: WorkerSlot) -> &mut Worker {
        &mut self.workers[usize::from(slot.0)]
    }

    /// Memory of what is in use, and of the tables with their free places.
    pub(super) fn bytes(&self) -> usize {
        self.bytes_fixed
            + self.infos.live() * (Runs::RUN_BYTES + size_of::<RunInfo>())
            + self.groups.live() * (Runs::GROUP_BYTES + size_of::<GroupInfo>())
            + self.uses.live() * size_of::<Use>()
            + self.wides.live() * Runs::WIDE_BYTES
            + self.places.bytes()
            + self.counts.bytes()
    }

    /// The worker holds these blocks and has just used them. `parent`: the block before them, if there is one.
    pub(super) fn store(&mut self, shared: &Shared, slot: WorkerSlot, parent: Option<u64>, hashes: &[u64]) {
        let capacity = usize::try_from(self.worker(slot).capacity).unwrap_or(usize::MAX);
        // What lies beyond the capacity would be evicted first: the deepest of what was used last, after all else.
        let hashes = &hashes[..hashes.len().min(capacity)];
        if hashes.is_empty() {
            return;
        }
        self.clock += 1;
        self.workers_end = self.workers_end.max(usize::from(slot.0) + 1);
        let path = self.lay(shared, slot, parent, hashes);
        let mut newer = NIL;
        for stretch in &path {
            match self.hold(shared, *stretch, slot, newer) {
                Some(used) => newer = used,
                None if shared.runs.held(stretch.run, u32::MAX) == 0 => {
                    self.free_run(shared, stretch.run);
                }
                None => {}
            }
        }
        self.path = path;

        let before = self.worker(slot).blocks;
        while self.shrink_step(shared, slot, usize::MAX) {}
        self.evicted_by_capacity += before - self.worker(slot).blocks;
        self.evict_to_bytes(shared);
    }

    /// The clock when anyone last used any block of the run.
    pub(super) fn last_used(&self, shared: &Shared, run: u32) -> u64 {
        let groups = shared.runs.groups(run);
        // The newest use comes first.
        let newest = groups.map(|(id, _)| self.uses_of(id)).filter(|id| *id != NIL);
        newest.map(|id| self.uses[id].stamp).max().unwrap_or(0)
    }

    /// The worker holds these blocks from now on; returns the use, which stands behind `newer` in the worker's list.
    /// `None` if there is no room.
    fn hold(&mut self, shared: &Shared, stretch: Stretch, slot: WorkerSlot, newer: u32) -> Option<u32> {
        let Stretch { run, mask } = stretch;
        let lane = usize::from(slot.0) % GROUP;
        let id = self.group_of(shared, run, slot)?;
        let group = shared.runs.group(id);
        let held = group.mask(lane);
        let added = mask & !held;
        if added != 0 {
            self.blocks +=
                u64::from(added.count_ones() - (added & shared.runs.held(run, added)).count_ones());
            self.worker_mut(slot).blocks += u64::from(added.count_ones());
            shared.runs.set_mask(run, id, slot, held | mask);
        }
        if mask & 1 != 0 {
            self.infos[run].hits = self.infos[run].hits.saturating_add(1);
        }
        self.note_use(id, lane, slot, mask, self.clock, newer);
        Some(self.uses_of(id))
    }

    /// The group of the worker in the run, made if need be; `None` if there is no room.
    fn group_of(&mut self, shared: &Shared, run: u32, slot: WorkerSlot) -> Option<u32> {
        if let Some((id, _)) = known_group(shared, run, slot) {
            return Some(id);
        }
        let id = self.groups.alloc();
        if !shared.runs.ensure_group(id) {
            self.groups.free(id);
            return None;
        }
        self.groups[id] = GroupInfo { run, uses: NIL };
        let id = id | FURTHER;
        let first = shared.runs.top(run).group();
        shared.runs.group(id).begin(usize::from(slot.0) / GROUP, first.header().cut(), first.header().next());
        first.set_next(id);
        if shared.runs.top(run).wide() == WideRef::NONE && shared.runs.groups(run).count() >= WIDE_GROUPS {
            self.widen(shared, run, first.header().cut());
        }
        Some(id)
    }

    /// Gives a run its sets of holders, if there is room.
    fn widen(&mut self, shared: &Shared, run: u32, cut: usize) {
        let (id, blocks) = (self.wides.alloc(), if cut == 0 { RUN_BLOCKS } else { cut });
        if !shared.runs.ensure_wide(id) {
            self.wides.free(id);
            return;
        }
        let first = first_blocks(blocks);
        for (_, group) in shared.runs.groups(run) {
            for lane in 0..GROUP {
                let slot = WorkerSlot((group.header().number() * GROUP + lane) as u16);
                let mask = group.mask(lane);
                shared.runs.wide(id).set(slot, mask & first == first, mask != 0);
            }
        }
        shared.runs.top(run).set_wide(WideRef::new(id, blocks));
    }

    /// The worker holds these blocks no longer; what it does not hold is passed over.
    pub(super) fn remove(&mut self, shared: &Shared, slot: WorkerSlot, hashes: &[u64]) {
        // Engines take many blocks of one run, the deepest first: these are found beside each other and released at once.
        let mut stretch = Stretch { run: NIL, mask: 0 };
        let mut removed = self.worker(slot).removed;
        for hash in hashes {
            let likely = [removed.wrapping_sub(1), removed.wrapping_add(1)];
            let Some((run, at)) = self.place_by(shared, likely, *hash) else { continue };
            removed = place_of(run, at);
            if run != stretch.run {
                self.release_held(shared, slot, stretch);
                stretch = Stretch { run, mask: 0 };
            }
            stretch.mask |= 1 << at;
        }
        self.release_held(shared, slot, stretch);
        self.worker_mut(slot).removed = removed;
    }

    /// Takes what it holds of a stretch from a worker.
    fn release_held(&mut self, shared: &Shared, slot: WorkerSlot, stretch: Stretch) {
        let lane = usize::from(slot.0) % GROUP;
        let known = if stretch.mask == 0 { None } else { known_group(shared, stretch.run, slot) };
        let Some((id, group)) = known else { return };
        let mask = group.mask(lane) & stretch.mask;
        if mask != 0 {
            self.forget_use(id, lane, slot, mask);
            self.release(shared, id, lane, slot, mask);
        }
    }

    /// Takes blocks from a worker that holds them; they are in no use any more.
    pub(super) fn release(&mut self, shared: &Shared, id: u32, lane: usize, slot: WorkerSlot, mask: u32) {
        let (group, run) = (shared.runs.group(id), self.run_of(id));
        debug_assert_eq!(group.mask(lane) & mask, mask, "released, so held");
        shared.runs.set_mask(run, id, slot, group.mask(lane) & !mask);
        self.worker_mut(slot).blocks -= u64::from(mask.count_ones());
        self.blocks -= u64::from((mask & !shared.runs.held(run, mask)).count_ones());
        if group.mask(lane) == 0 && shared.runs.held(run, u32::MAX) == 0 {
            self.free_run(shared, run);
        }
    }

    /// Nobody holds any of it. The generation goes first: see `run`.
    fn free_run(&mut self, shared: &Shared, run: u32) {
        let (len, wide) = (shared.runs.len(run), shared.runs.top(run).wide());
        shared.runs.top(run).retire();
        if let Some((id, _)) = wide.get() {
            shared.runs.wide(id).clear();
            self.wides.free(id);
        }
        let hashes = shared.runs.hashes(run);
        let first = hashes.get(0);
        shared.starts.remove(&mut self.counts, first, run);
        (0..len).for_each(|at| self.places.prefetch(hashes.get(at)));
        for at in 0..len {
            self.places.remove(hashes.get(at), run);
            hashes.set(at, 0);
        }
        let further: Vec<u32> = shared.runs.groups(run).map(|(id, _)| id).skip(1).collect();
        for id in further {
            self.groups.free(id & !FURTHER);
        }
        self.infos.free(run);
    }
}
