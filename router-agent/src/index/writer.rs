//! The write path: one writer at a time, behind the index's mutex. It changes the words that readers see one by one, each
//! change true by itself, and keeps what readers do not need: the place of every block and the order of use.
//!
//! A block stands in one run only, and behind its predecessor wherever that stands at the time and has nothing behind it.
//! So whoever comes from the predecessor finds it there or as the first block of a run. Blocks stay in their run, held or
//! not, until nobody holds any block of it; then the run is freed as a whole.

use super::{
    WorkerSlot,
    places::{Place, Places},
    run::{GROUP, NIL, RUN_BLOCKS, Runs, WORKERS_MAX},
    slab::Slab,
    starts::{StartCounts, Starts},
    uses::{GroupInfo, Use, Worker},
};

/// What the writer remembers of a run.
#[derive(Default, Clone, Copy)]
pub(super) struct RunInfo {
    /// The hash before the first one; 0 at a prompt's beginning.
    pub(super) parent_hash: u64,
    /// Inserts and stores that went through the run's first block.
    pub(super) hits: u32,
    /// Blocks that stand in the run; 0: the run is free.
    pub(super) len: u8,
}

/// What readers share with the writer.
pub(super) struct Shared {
    pub(super) runs: Runs,
    pub(super) starts: Starts,
}

/// A stretch of one run.
#[derive(Clone, Copy)]
struct Stretch {
    run: u32,
    mask: u32,
}

/// See the module.
pub(super) struct Writer {
    pub(super) infos: Slab<RunInfo>,
    pub(super) groups: Slab<GroupInfo>,
    pub(super) uses: Slab<Use>,
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
    path: Vec<Stretch>,
}

fn hash_at(shared: &Shared, place: Place) -> u64 {
    shared.runs.hashes(place / RUN_BLOCKS as u32).get(place as usize % RUN_BLOCKS)
}

fn place_of(run: u32, at: usize) -> Place {
    run * RUN_BLOCKS as u32 + at as u32
}

/// Bits `from..to`.
fn bits(from: usize, to: usize) -> u32 {
    ((1_u64 << to) - (1_u64 << from)) as u32
}

impl Writer {
    pub(super) fn new(bytes_max: usize, shared: &Shared, counts: StartCounts) -> Self {
        let workers = vec![Worker::IDLE; WORKERS_MAX].into_boxed_slice();
        Self {
            infos: Slab::default(),
            groups: Slab::default(),
            uses: Slab::default(),
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
        let path = self.lay(shared, parent, hashes);
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

    /// Finds the blocks, or gives them places; returns the stretches they stand in. Ends early if there is no room.
    fn lay(&mut self, shared: &Shared, parent: Option<u64>, hashes: &[u64]) -> Vec<Stretch> {
        let mut path = std::mem::take(&mut self.path);
        path.clear();
        // Where the next block is known to stand, and where the last one stands.
        let mut next = self.place(shared, hashes[0]);
        let mut last = match (next, parent) {
            (None, Some(parent)) => self.place(shared, parent),
            _ => None,
        };
        let (mut at, mut parent_hash) = (0, parent.unwrap_or(0));
        while at < hashes.len() {
            let rest = &hashes[at..];
            let (run, from) = match next.take().or_else(|| self.successor(shared, last, rest[0])) {
                Some(known) => known,
                None => match last {
                    Some((run, from)) if from + 1 < RUN_BLOCKS && from + 1 == self.len(run) => {
                        (run, from + 1)
                    }
                    _ => match self.new_run(shared, parent_hash) {
                        Some(run) => (run, 0),
                        None => return path,
                    },
                },
            };
            let mut to = from;
            if from < self.len(run) {
                to += shared.runs.hashes(run).common_blocks(from, rest).min(self.len(run) - from);
            }
            // Where the run ends, it goes on with what stands nowhere else.
            if to == self.len(run) && to < RUN_BLOCKS && to - from < rest.len() {
                self.places.touch(&rest[to - from..rest.len().min(RUN_BLOCKS - from)]);
            }
            while to == self.len(run) && to < RUN_BLOCKS && to - from < rest.len() {
                let hash = rest[to - from];
                if let Some(elsewhere) =
                    self.places.insert(hash, place_of(run, to), |place| hash_at(shared, place))
                {
                    next = Some(split(elsewhere));
                    break;
                }
                shared.runs.hashes(run).set(to, hash);
                self.infos[run].len += 1;
                to += 1;
                if to == 1 {
                    let first = |run| shared.runs.hashes(run).get(0);
                    shared.starts.insert(&mut self.counts, hash, run, first);
                }
            }
            if to == from {
                // Only hashes that name no prefix come here: the block stands elsewhere, though not where it should.
                if self.len(run) == 0 {
                    self.infos.free(run);
                }
                last = None;
                continue;
            }
            at += to - from;
            path.push(Stretch { run, mask: bits(from, to) });
            last = Some((run, to - 1));
            parent_hash = hashes[at - 1];
        }
        path
    }

    /// The place of a block whose predecessor stands at `last`, if it has one.
    fn successor(&self, shared: &Shared, last: Option<(u32, usize)>, hash: u64) -> Option<(u32, usize)> {
        let mut neighbour = NIL;
        if let Some((run, at)) = last {
            if at + 1 < self.len(run) && shared.runs.hashes(run).get(at + 1) == hash {
                return Some((run, at + 1));
            }
            neighbour = run + 1;
        }
        let begins = |run| {
            let (_, hashes) = shared.runs.find(run)?;
            (hashes.get(0) == hash && run < self.infos.end() && self.len(run) > 0).then_some((run, 0))
        };
        (neighbour != NIL).then(|| begins(neighbour)).flatten().or_else(|| shared.starts.find(hash, begins))
    }

    /// Run and position of a block.
    pub(super) fn place(&self, shared: &Shared, hash: u64) -> Option<(u32, usize)> {
        self.places.get(hash, |place| hash_at(shared, place)).map(split)
    }

    /// The clock when anyone last used any block of the run.
    pub(super) fn last_used(&self, shared: &Shared, run: u32) -> u64 {
        let groups = shared.runs.groups(run);
        // The newest use of a worker is the first of its uses of the run.
        let newest = groups.flat_map(|(id, _)| self.groups[id].uses).filter(|id| *id != NIL);
        newest.map(|id| self.uses[id].stamp).max().unwrap_or(0)
    }

    /// Blocks that stand in a run.
    pub(super) fn len(&self, run: u32) -> usize {
        usize::from(self.infos[run].len)
    }

    fn new_run(&mut self, shared: &Shared, parent_hash: u64) -> Option<u32> {
        let run = self.infos.alloc();
        self.infos[run] = RunInfo { parent_hash, ..RunInfo::default() };
        if !shared.runs.ensure_run(run) {
            self.infos.free(run);
            return None;
        }
        Some(run)
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
            group.set_mask(lane, held | mask);
        }
        if mask & 1 != 0 {
            self.infos[run].hits = self.infos[run].hits.saturating_add(1);
        }
        self.note_use(id, lane, slot, mask, self.clock, newer);
        Some(self.groups[id].uses[lane])
    }

    /// The group of the worker in the run, made if need be; `None` if there is no room.
    fn group_of(&mut self, shared: &Shared, run: u32, slot: WorkerSlot) -> Option<u32> {
        let number = usize::from(slot.0) / GROUP;
        let mut groups = shared.runs.groups(run);
        if let Some((id, _)) = groups.find(|(_, group)| group.header().number() == number) {
            return Some(id);
        }
        let id = self.groups.alloc();
        if !shared.runs.ensure_group(id) {
            self.groups.free(id);
            return None;
        }
        self.groups[id] = GroupInfo { run, ..GroupInfo::default() };
        let head = shared.runs.head(run);
        shared.runs.group(id).begin(number, head.get().first_group());
        head.set_first_group(id);
        Some(id)
    }

    /// The worker holds these blocks no longer; what it does not hold is passed over.
    pub(super) fn remove(&mut self, shared: &Shared, slot: WorkerSlot, hashes: &[u64]) {
        for hash in hashes {
            let Some((run, at)) = self.place(shared, *hash) else { continue };
            let (number, lane) = (usize::from(slot.0) / GROUP, usize::from(slot.0) % GROUP);
            let mut groups = shared.runs.groups(run);
            let found = groups.find(|(_, group)| group.header().number() == number);
            if let Some((id, group)) = found
                && group.mask(lane) >> at & 1 == 1
            {
                self.forget_use(id, lane, slot, 1 << at);
                self.release(shared, id, lane, slot, 1 << at);
            }
        }
    }

    /// Takes blocks from a worker that holds them; they are in no use any more.
    pub(super) fn release(&mut self, shared: &Shared, id: u32, lane: usize, slot: WorkerSlot, mask: u32) {
        let (group, run) = (shared.runs.group(id), self.groups[id].run);
        debug_assert_eq!(group.mask(lane) & mask, mask, "released, so held");
        group.set_mask(lane, group.mask(lane) & !mask);
        self.worker_mut(slot).blocks -= u64::from(mask.count_ones());
        self.blocks -= u64::from((mask & !shared.runs.held(run, mask)).count_ones());
        if group.mask(lane) == 0 && shared.runs.held(run, u32::MAX) == 0 {
            self.free_run(shared, run);
        }
    }

    /// Nobody holds any of it. The generation goes first: see `run`.
    fn free_run(&mut self, shared: &Shared, run: u32) {
        let groups: Vec<u32> = shared.runs.groups(run).map(|(id, _)| id).collect();
        shared.runs.head(run).retire();
        let hashes = shared.runs.hashes(run);
        let first = hashes.get(0);
        shared.starts.remove(&mut self.counts, first, run, |run| shared.runs.hashes(run).get(0));
        for at in 0..self.len(run) {
            self.places.remove(hashes.get(at), place_of(run, at));
            hashes.set(at, 0);
        }
        for id in groups {
            self.groups.free(id);
        }
        self.infos[run].len = 0;
        self.infos.free(run);
    }
}

fn split(place: Place) -> (u32, usize) {
    (place / RUN_BLOCKS as u32, place as usize % RUN_BLOCKS)
}
