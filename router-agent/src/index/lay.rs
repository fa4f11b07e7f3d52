//! Where blocks stand: the writer finds those that it knows, and gives places to those that it does not.
//!
//! A block stands in one run only, and behind its predecessor wherever that stands at the time and has nothing behind it.
//! So whoever comes from the predecessor finds it there or as the first block of a run. Blocks stay in their run, held or
//! not, until nobody holds any block of it; then the run is freed as a whole.
//!
//! New blocks mostly follow each other, so one search says where all of an event's blocks go. Each is then entered in the
//! table of all blocks, in a line that no cache holds; the lines are fetched sixteen blocks ahead.

use super::{
    WorkerSlot,
    run::{GROUP, NIL, RUN_BLOCKS},
    writer::{RunInfo, Shared, Writer},
};

/// How many blocks ahead the lines of the table are fetched.
const AHEAD: usize = 16;

/// A run's number × 32 + position.
pub(super) type Place = u32;

/// A stretch of one run.
#[derive(Clone, Copy)]
pub(super) struct Stretch {
    pub(super) run: u32,
    pub(super) mask: u32,
}

/// Where the block stands, if it is one of this run's first `len`.
fn find_in(shared: &Shared, run: u32, len: usize, hash: u64) -> Option<(u32, usize)> {
    let hashes = shared.runs.hashes(run);
    (0..len).find(|at| hashes.get(*at) == hash).map(|at| (run, at))
}

pub(super) fn place_of(run: u32, at: usize) -> Place {
    run * RUN_BLOCKS as u32 + at as u32
}

/// Bits `from..to`.
pub(super) fn bits(from: usize, to: usize) -> u32 {
    ((1_u64 << to) - (1_u64 << from)) as u32
}

/// Whether the block stands at this place, which may never have been given out.
fn stands(shared: &Shared, hash: u64, place: Place) -> bool {
    let (run, at) = split(place);
    at < shared.runs.len(run) && shared.runs.hashes(run).get(at) == hash
}

fn split(place: Place) -> (u32, usize) {
    (place / RUN_BLOCKS as u32, place as usize % RUN_BLOCKS)
}

impl Writer {
    /// Finds the blocks, or gives them places; returns the stretches they stand in. Ends early if there is no room.
    pub(super) fn lay(
        &mut self,
        shared: &Shared,
        slot: WorkerSlot,
        parent: Option<u64>,
        hashes: &[u64],
    ) -> Vec<Stretch> {
        let mut path = std::mem::take(&mut self.path);
        path.clear();
        // Where the last block stands, and where the next one is known to stand.
        let mut last = parent.and_then(|parent| self.place_by(shared, [self.worker(slot).stored], parent));
        let mut next = if last.is_none() { self.place(shared, hashes[0]) } else { None };
        let mut appended = false;
        let (mut at, mut parent_hash) = (0, parent.unwrap_or(0));
        while at < hashes.len() {
            let rest = &hashes[at..];
            // Behind a new block stands nothing, or what began before its predecessor was known: `append` finds it.
            let known = if appended { next } else { next.or_else(|| self.successor(shared, last, rest[0])) };
            let (run, from) = match known {
                Some(known) => known,
                None => match last {
                    Some((run, from)) if from + 1 < RUN_BLOCKS && from + 1 == shared.runs.len(run) => {
                        (run, from + 1)
                    }
                    _ => match self.new_run(shared, slot, last, parent_hash) {
                        Some(run) => (run, 0),
                        None => break,
                    },
                },
            };
            let mut to = from;
            if from < shared.runs.len(run) {
                to += shared.runs.hashes(run).common_blocks(from, rest).min(shared.runs.len(run) - from);
            }
            // Where the run ends, it goes on with what stands nowhere else.
            next = None;
            if to == shared.runs.len(run) && to < RUN_BLOCKS && to - from < rest.len() {
                next = self.append(shared, run, &rest[to - from..], appended);
                appended = to < shared.runs.len(run);
                to = shared.runs.len(run);
            } else {
                appended = false;
            }
            if to == from {
                if shared.runs.len(run) == 0 {
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
        if let Some((run, at)) = last {
            self.worker_mut(slot).stored = place_of(run, at);
        }
        path
    }

    /// Continues a run by blocks that stand nowhere, as far as it has room; returns where the next one stands, if it
    /// stands somewhere.
    fn append(&mut self, shared: &Shared, run: u32, blocks: &[u64], appended: bool) -> Option<(u32, usize)> {
        let begin = shared.runs.len(run);
        let (hashes, mut len, mut elsewhere) = (shared.runs.hashes(run), begin, None);
        if begin == 0 {
            shared.starts.prefetch(&self.counts, blocks[0]);
        }
        if !appended {
            blocks.iter().take(AHEAD).for_each(|hash| self.places.prefetch(*hash));
        }
        for (at, hash) in blocks.iter().enumerate().take(RUN_BLOCKS - begin) {
            if let Some(ahead) = blocks.get(at + AHEAD) {
                self.places.prefetch(*ahead);
            }
            elsewhere = self.places.insert(*hash, run, |other| {
                // Of this run, more stands than it says; only hashes that name no prefix come twice.
                let known = if other == run { len } else { shared.runs.len(other) };
                find_in(shared, other, known, *hash)
            });
            if elsewhere.is_some() {
                break;
            }
            hashes.set(len, *hash);
            len += 1;
        }
        if len > begin {
            shared.runs.top(run).set_end(len, hashes.get(len - 1));
        }
        if begin == 0 && len > 0 {
            shared.starts.insert(&mut self.counts, hashes.get(0), run);
        }
        elsewhere
    }

    /// The place of a block whose predecessor stands at `last`, if it has one.
    fn successor(&self, shared: &Shared, last: Option<(u32, usize)>, hash: u64) -> Option<(u32, usize)> {
        let mut neighbour = NIL;
        if let Some((run, at)) = last {
            if at + 1 < shared.runs.len(run) && shared.runs.hashes(run).get(at + 1) == hash {
                return Some((run, at + 1));
            }
            neighbour = run + 1;
        }
        let begins = |run| stands(shared, hash, place_of(run, 0)).then_some((run, 0));
        (neighbour != NIL)
            .then(|| begins(neighbour))
            .flatten()
            .or_else(|| shared.starts.find(&self.counts, hash, begins))
    }

    /// Run and position of a block.
    pub(super) fn place(&self, shared: &Shared, hash: u64) -> Option<(u32, usize)> {
        self.places.find(hash, |run| find_in(shared, run, shared.runs.len(run), hash))
    }

    /// The same, where some places are likely.
    pub(super) fn place_by<const LIKELY: usize>(
        &self,
        shared: &Shared,
        likely: [Place; LIKELY],
        hash: u64,
    ) -> Option<(u32, usize)> {
        let found = likely.into_iter().find(|place| stands(shared, hash, *place));
        found.map(split).or_else(|| self.place(shared, hash))
    }

    /// A run for blocks of this worker behind `last`; `None` if there is no room.
    fn new_run(
        &mut self,
        shared: &Shared,
        slot: WorkerSlot,
        last: Option<(u32, usize)>,
        parent_hash: u64,
    ) -> Option<u32> {
        let run = self.infos.alloc();
        self.infos[run] = RunInfo { parent_hash, ..RunInfo::default() };
        if !shared.runs.ensure_run(run) {
            self.infos.free(run);
            return None;
        }
        shared.runs.top(run).group().begin(usize::from(slot.0) / GROUP, 0, NIL);
        if let Some((before, at)) = last
            && at + 1 < shared.runs.len(before)
        {
            // Prompts part inside a run: the next ones will mostly do so at the same place.
            let groups = shared.runs.groups(before).filter(|(_, group)| group.header().cut() != at + 1);
            groups.for_each(|(_, group)| group.set_cut(at + 1));
        }
        Some(run)
    }
}
