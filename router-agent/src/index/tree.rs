//! The radix tree behind the lock: one writer, plain data, no pointers.
//!
//! A **run** is a stretch of blocks that the same workers hold and last used together; its hashes are contiguous.
//! Runs are numbered; a run knows its parent, and the table finds a child by its first hash, so a walk costs one
//! probe per run. A run is split where a prompt leaves it or ends inside it, and two runs become one again when
//! eviction has left them alike.
//!
//! Per worker, the runs that it holds form one list by last use; of those used by the same insert the deeper one
//! counts as older. So the end of the list is always a run below which the worker holds nothing, and evicting it
//! never leaves a hole.

use super::{
    IndexStats, Matches, WorkerSlot,
    holders::{Holders, NIL, Use, WORKERS_MAX},
    table::Table,
};

/// A stretch of blocks held by the same workers.
#[derive(Default)]
pub(super) struct Run {
    pub(super) hashes: Vec<u64>,
    pub(super) holders: Holders,
    /// The run before it, or `NIL`.
    pub(super) parent: u32,
    pub(super) children: u32,
    /// All children's numbers xored: with one child, that child.
    pub(super) child_xor: u32,
    /// Inserts that covered the run since it was stored; a run that grows at its end keeps its count.
    pub(super) hits: u32,
}

impl Run {
    pub(super) fn first(&self) -> u64 {
        self.hashes[0]
    }

    fn heap_bytes(&self) -> usize {
        self.hashes.capacity() * size_of::<u64>() + self.holders.heap_bytes()
    }
}

/// A worker's list of runs by last use, and its account.
#[derive(Debug, Clone, Copy)]
pub(super) struct Worker {
    pub(super) newest: u32,
    pub(super) oldest: u32,
    /// The stamp of the oldest run; `u64::MAX` without one.
    pub(super) oldest_stamp: u64,
    pub(super) blocks: u64,
    pub(super) capacity: u64,
}

const IDLE: Worker =
    Worker { newest: NIL, oldest: NIL, oldest_stamp: u64::MAX, blocks: 0, capacity: u64::MAX };

/// Runs are kept in chunks of this many, which never move.
const CHUNK: usize = 1024;

/// See the module.
pub(super) struct Tree {
    chunks: Vec<Vec<Run>>,
    free: Vec<u32>,
    pub(super) table: Table,
    pub(super) workers: Box<[Worker]>,
    /// Slots at and above this one have never held anything.
    pub(super) workers_end: usize,
    /// Counts inserts.
    clock: u64,
    pub(super) bytes_max: usize,
    /// Runs and what they own; the table counts for itself.
    pub(super) run_bytes: usize,
    live_runs: usize,
    pub(super) blocks: u64,
    evicted_by_capacity: u64,
    pub(super) evicted_by_bytes: u64,
    /// The runs of the insert at hand, from the root.
    path: Vec<u32>,
}

impl Tree {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            chunks: Vec::new(),
            free: Vec::new(),
            table: Table::new(),
            workers: vec![IDLE; WORKERS_MAX].into_boxed_slice(),
            workers_end: 0,
            clock: 0,
            bytes_max,
            run_bytes: 0,
            live_runs: 0,
            blocks: 0,
            evicted_by_capacity: 0,
            evicted_by_bytes: 0,
            path: Vec::new(),
        }
    }

    pub(super) fn run(&self, id: u32) -> &Run {
        &self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }

    pub(super) fn run_mut(&mut self, id: u32) -> &mut Run {
        &mut self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }

    pub(super) fn worker(&self, slot: WorkerSlot) -> &Worker {
        &self.workers[usize::from(slot.0)]
    }

    pub(super) fn worker_mut(&mut self, slot: WorkerSlot) -> &mut Worker {
        &mut self.workers[usize::from(slot.0)]
    }

    /// The runs of one chunk, with their numbers; `None` beyond the last chunk.
    pub(super) fn chunk(&self, chunk: usize) -> Option<impl Iterator<Item = (u32, &Run)>> {
        let runs =
            (0..).zip(self.chunks.get(chunk)?).map(move |(at, run)| ((chunk * CHUNK + at) as u32, run));
        Some(runs.filter(|(_, run)| !run.hashes.is_empty()))
    }

    /// The run of this number, if it is in use.
    pub(super) fn live_run(&self, id: u32) -> Option<&Run> {
        let run = self.chunks.get(id as usize / CHUNK)?.get(id as usize % CHUNK)?;
        (!run.hashes.is_empty()).then_some(run)
    }

    pub(super) fn clock(&self) -> u64 {
        self.clock
    }

    pub(super) fn blocks(&self, slot: WorkerSlot) -> u64 {
        self.worker(slot).blocks
    }

    pub(super) fn bytes(&self) -> usize {
        self.run_bytes + self.table.bytes() + size_of::<[Worker; WORKERS_MAX]>()
    }

    pub(super) fn stats(&self) -> IndexStats {
        IndexStats {
            bytes: self.bytes(),
            runs: self.live_runs,
            blocks: self.blocks,
            held_blocks: self.workers[..self.workers_end].iter().map(|worker| worker.blocks).sum(),
            evicted_by_capacity: self.evicted_by_capacity,
            evicted_by_bytes: self.evicted_by_bytes,
        }
    }

    // ---- reading ----

    /// The child of `parent` (`NIL`: the root) that begins with `first`.
    fn child(&self, parent: u32, first: u64) -> Option<u32> {
        self.table.get(first).filter(|id| self.run(*id).parent == parent)
    }

    /// See [`super::PrefixIndex::lookup`]. `out` has been reset.
    pub(super) fn lookup(&self, hashes: &[u64], out: &mut Matches) {
        let mut at = 0;
        let mut parent = NIL;
        let mut above: Option<&Holders> = None;
        while let Some(&first) = hashes.get(at) {
            let Some(id) = self.child(parent, first) else { break };
            let run = self.run(id);
            if let Some(above) = above {
                for index in 0..above.words() {
                    let left = above.word(index) & !run.holders.word(index);
                    out.set_word(index, left, at as u32);
                }
            }
            above = Some(&run.holders);
            let common = common_blocks(&run.hashes, &hashes[at..]);
            at += common;
            if common < run.hashes.len() {
                break;
            }
            parent = id;
        }
        if let Some(above) = above {
            for index in 0..above.words() {
                out.set_word(index, above.word(index), at as u32);
            }
        }
    }

    // ---- writing ----

    /// See [`super::PrefixIndex::insert`].
    pub(super) fn insert(&mut self, slot: WorkerSlot, hashes: &[u64]) {
        assert!(usize::from(slot.0) < WORKERS_MAX, "{slot:?} is no worker slot");
        let capacity = usize::try_from(self.worker(slot).capacity).unwrap_or(usize::MAX);
        // What lies beyond the capacity would be evicted first: the deepest of what was used last, after all else.
        let hashes = &hashes[..hashes.len().min(capacity)];
        if hashes.is_empty() {
            return;
        }
        self.clock += 1;
        self.workers_end = self.workers_end.max(usize::from(slot.0) + 1);

        let mut path = std::mem::take(&mut self.path);
        path.clear();
        let (mut at, mut last) = (0, NIL);
        while let Some(&first) = hashes.get(at) {
            let Some(id) = self.child(last, first) else { break };
            let common = common_blocks(&self.run(id).hashes, &hashes[at..]);
            // Where the prompt leaves the run or ends inside it, the run's later part is not used now.
            let whole = common == self.run(id).hashes.len();
            last = if whole { id } else { self.split(id, common) };
            path.push(last);
            at += common;
            if !whole {
                break;
            }
        }
        for &id in path.iter().rev() {
            self.touch(id, slot);
        }
        let rest = &hashes[at..];
        if !rest.is_empty() {
            self.worker_mut(slot).blocks += rest.len() as u64;
            self.blocks += rest.len() as u64;
            if last != NIL && self.run(last).children == 0 && self.run(last).holders.len() == 1 {
                self.change(last, |run| {
                    run.hashes.reserve_exact(rest.len());
                    run.hashes.extend_from_slice(rest);
                });
            } else {
                let id = self.new_run(Run { hashes: rest.to_vec(), parent: last, hits: 1, ..Run::default() });
                self.adopt(last, id);
                // Deeper than the whole path, so older than it.
                match path.last() {
                    Some(&above) => self.hold_after(id, slot, above, self.clock),
                    None => self.hold_newest(id, slot, self.clock),
                }
            }
        }
        self.path = path;

        let before = self.worker(slot).blocks;
        while self.shrink_step(slot, usize::MAX) {}
        self.evicted_by_capacity += before - self.worker(slot).blocks;
        self.evict_to_bytes();
    }

    /// Moves the run to the front of the worker's list; the worker holds it from now on.
    fn touch(&mut self, id: u32, slot: WorkerSlot) {
        let run = self.run_mut(id);
        run.hits = run.hits.saturating_add(1);
        if self.run(id).holders.contains(slot) {
            self.unlink(id, slot);
            self.run_mut(id).holders.get_mut(slot).stamp = self.clock;
            self.link(id, slot, NIL);
        } else {
            self.worker_mut(slot).blocks += self.run(id).hashes.len() as u64;
            self.hold_newest(id, slot, self.clock);
        }
    }

    fn hold_newest(&mut self, id: u32, slot: WorkerSlot, stamp: u64) {
        self.change(id, |run| run.holders.add(slot, Use { stamp, newer: NIL, older: NIL }));
        self.link(id, slot, NIL);
    }

    fn hold_after(&mut self, id: u32, slot: WorkerSlot, newer: u32, stamp: u64) {
        self.change(id, |run| run.holders.add(slot, Use { stamp, newer: NIL, older: NIL }));
        self.link(id, slot, newer);
    }

    /// Cuts the run in two after `len` blocks and returns the first part. The run itself becomes the second part,
    /// so its children need not be told.
    pub(super) fn split(&mut self, id: u32, len: usize) -> u32 {
        debug_assert!(0 < len && len < self.run(id).hashes.len(), "a split that leaves an empty part");
        let parent = self.run(id).parent;
        let Run { hashes, hits, .. } = self.run(id);
        let (head, hits) = (hashes[..len].to_vec(), *hits);
        let head = self.new_run(Run { hashes: head, parent, hits, ..Run::default() });
        self.change(id, |run| {
            run.hashes.drain(..len);
            run.hashes.shrink_to_fit();
            run.parent = head;
        });
        if parent != NIL {
            self.run_mut(parent).child_xor ^= id ^ head;
        }
        let grown = self.run_mut(head);
        grown.children = 1;
        grown.child_xor = id;
        // `new_run` has entered the head under the hash that was the run's.
        self.table.insert(self.run(id).first(), id);
        // The parts are used alike, and the first one counts as newer.
        let slots: Vec<WorkerSlot> = self.run(id).holders.slots().collect();
        for slot in slots {
            let Use { stamp, newer, .. } = *self.run(id).holders.get(slot);
            self.hold_after(head, slot, newer, stamp);
        }
        head
    }

    /// Joins a run and its only child if nothing tells them apart. The child stays, the run goes.
    pub(super) fn merge(&mut self, id: u32) {
        if id == NIL || self.run(id).children != 1 {
            return;
        }
        let child = self.run(id).child_xor;
        if !self.run(id).holders.used_alike(&self.run(child).holders) {
            return;
        }
        let slots: Vec<WorkerSlot> = self.run(id).holders.slots().collect();
        for slot in slots {
            self.unlink(id, slot);
        }
        let gone = self.free_run(id);
        self.table.remove(self.run(child).first());
        self.table.insert(gone.first(), child);
        if gone.parent != NIL {
            self.run_mut(gone.parent).child_xor ^= id ^ child;
        }
        self.change(child, |run| {
            let mut hashes = Vec::with_capacity(gone.hashes.len() + run.hashes.len());
            hashes.extend_from_slice(&gone.hashes);
            hashes.extend_from_slice(&run.hashes);
            run.hashes = hashes;
            run.parent = gone.parent;
        });
    }

    // ---- storage ----

    /// Changes what a run owns, and the account of it.
    pub(super) fn change(&mut self, id: u32, change: impl FnOnce(&mut Run)) {
        let run = self.run_mut(id);
        let before = run.heap_bytes();
        change(run);
        let after = run.heap_bytes();
        self.run_bytes = self.run_bytes - before + after;
    }

    /// Stores a run, not yet held, and enters it into the table.
    fn new_run(&mut self, run: Run) -> u32 {
        self.run_bytes += size_of::<Run>() + run.heap_bytes();
        self.live_runs += 1;
        let first = run.first();
        let id = if let Some(id) = self.free.pop() {
            *self.run_mut(id) = run;
            id
        } else {
            if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
                self.chunks.push(Vec::with_capacity(CHUNK));
            }
            let id = (self.chunks.len() - 1) * CHUNK;
            let chunk = self.chunks.last_mut().expect("a chunk with room was just seen to");
            chunk.push(run);
            (id + chunk.len() - 1) as u32
        };
        self.table.insert(first, id);
        id
    }

    fn adopt(&mut self, parent: u32, child: u32) {
        if parent != NIL {
            let parent = self.run_mut(parent);
            parent.children += 1;
            parent.child_xor ^= child;
        }
    }

    /// Takes a run out of the storage, not out of the table.
    pub(super) fn free_run(&mut self, id: u32) -> Run {
        let run = std::mem::take(self.run_mut(id));
        self.run_bytes -= size_of::<Run>() + run.heap_bytes();
        self.live_runs -= 1;
        self.free.push(id);
        run
    }
}

/// How many leading blocks a run and a prompt share, given that they share the first. A hash names its whole
/// prefix, so they agree up to some place and nowhere after it: the last block is compared first, and a place of
/// divergence is found by bisection.
fn common_blocks(run: &[u64], prompt: &[u64]) -> usize {
    let len = run.len().min(prompt.len());
    debug_assert!(len > 0 && run[0] == prompt[0], "found by its first hash");
    if run[len - 1] == prompt[len - 1] {
        return len;
    }
    let (mut same, mut different) = (0, len - 1);
    while different - same > 1 {
        let middle = usize::midpoint(same, different);
        if run[middle] == prompt[middle] {
            same = middle;
        } else {
            different = middle;
        }
    }
    different
}
