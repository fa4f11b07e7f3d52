//! Which prefixes are used most: a look over the whole index that never holds its lock for long.
//!
//! A sample is taken in steps, each under the writers' lock: one per 256 stretches of blocks to find the most used, some
//! ten microseconds, then one to read each of those. Lookups go on meanwhile. What changes in between is left out or read as it then is. The
//! data path pays one addition per stretch that a request goes through, in a cache line that it writes anyway.
//!
//! The index knows no time, only the number of inserts. [`Hottest`] notes both at every sample, so it can say when an
//! insert was, to within the interval of sampling or a sixteenth of its age, whichever is more.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{
    PrefixIndex, WorkerSlot,
    run::{GROUP, RUN_BLOCKS},
    writer::{Shared, Writer},
};

/// Uses count half for every minute that has gone by since the last one.
const HALF_LIFE_NS: u64 = 60_000_000_000;

/// Stretches between a prompt's beginning and a listed prefix, at most: walking them is the work done under a lock.
const STRETCHES_MAX: usize = 1024;

/// Moments remembered.
const MOMENTS_MAX: usize = 512;

/// Runs that a step looks at.
const STEP: u32 = 256;

/// Worker slots that a sample shows, in words of 64.
const WORKER_WORDS: usize = 4;

/// A prefix that many requests share: the prompt up to the last block of a run that all who hold the run's
/// beginning hold, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Hash of the last block, which names the whole prefix.
    pub hash: u64,
    /// The same of the stretch before; 0 if this is a prompt's first.
    pub parent_hash: u64,
    /// Blocks from the prompt's beginning.
    pub depth_blocks: u32,
    /// Blocks of the stretch alone.
    pub own_blocks: u32,
    /// Inserts that covered it.
    pub hits: u32,
    /// Time of the last of them, in the caller's nanoseconds.
    pub last_used_ns: u64,
    /// Bit `slot % 64` of word `slot / 64`: the worker holds it. Slots from 256 on are not shown.
    pub workers: [u64; WORKER_WORDS],
}

impl Prefix {
    /// Whether the worker in this place holds it, as far as that is shown.
    pub fn is_held_by(&self, slot: WorkerSlot) -> bool {
        let at = usize::from(slot.0);
        self.workers.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }
}

/// Finds the most used prefixes of one index, again and again.
#[derive(Debug, Default)]
pub struct Hottest {
    /// Number of inserts, and when there were that many; ascending.
    moments: Vec<(u64, u64)>,
    next: u32,
    /// The most used runs so far, the least of them first: weight, last use, run, its first hash.
    best: BinaryHeap<Reverse<(u32, u64, u32, u64)>>,
}

impl Hottest {
    /// Begins a sample. `now_ns` counts on from one call to the next.
    pub fn begin(&mut self, index: &PrefixIndex, now_ns: u64) {
        if self.moments.len() == MOMENTS_MAX {
            self.thin(now_ns);
        }
        self.moments.push((index.writer.lock().clock, now_ns));
        self.next = 0;
        self.best.clear();
    }

    /// Looks at the next 256 runs, keeping the `count` most used; says whether there are more.
    pub fn step(&mut self, index: &PrefixIndex, count: usize, now_ns: u64) -> bool {
        let writer = index.writer.lock();
        let runs = self.next..writer.infos.end().min(self.next + STEP);
        if runs.is_empty() {
            return false;
        }
        self.next = runs.end;
        for id in runs.filter(|id| index.shared.runs.len(*id) > 0) {
            let stamp = writer.last_used(&index.shared, id);
            let weight = weight(writer.infos[id].hits, now_ns.saturating_sub(self.time_of(stamp)));
            let entry = Reverse((weight, stamp, id, index.shared.runs.hashes(id).get(0)));
            if self.best.len() < count {
                self.best.push(entry);
            } else if let Some(mut least) = self.best.peek_mut()
                && entry < *least
            {
                *least = entry;
            }
        }
        true
    }

    /// Ends a sample: what is still there of the stretches found, the most used first.
    pub fn finish(&mut self, index: &PrefixIndex) -> Vec<Prefix> {
        let best = std::mem::take(&mut self.best).into_sorted_vec();
        best.iter()
            .filter_map(|Reverse((_, _, id, first))| {
                let writer = index.writer.lock();
                let there = index.shared.runs.len(*id) > 0 && index.shared.runs.hashes(*id).get(0) == *first;
                there.then(|| self.read(&writer, &index.shared, *id)).flatten()
            })
            .collect()
    }

    /// `None` if nobody holds the run's beginning, or not all of what leads to it is known.
    fn read(&self, writer: &Writer, shared: &Shared, run: u32) -> Option<Prefix> {
        let (mut workers, mut own_blocks) = ([0; WORKER_WORDS], RUN_BLOCKS as u32);
        for (_, group) in shared.runs.groups(run) {
            let number = group.header().number();
            for lane in (0..GROUP).filter(|lane| group.mask(*lane) & 1 == 1) {
                own_blocks = own_blocks.min(group.mask(lane).trailing_ones());
                if let Some(word) = workers.get_mut(number * GROUP / 64) {
                    *word |= 1 << (number * GROUP % 64 + lane);
                }
            }
        }
        if workers == [0; WORKER_WORDS] {
            return None;
        }
        let parent_hash = writer.infos[run].parent_hash;
        let mut depth_blocks = own_blocks;
        let mut above = parent_hash;
        for _ in 0..STRETCHES_MAX {
            if above == 0 {
                return Some(Prefix {
                    hash: shared.runs.hashes(run).get(own_blocks as usize - 1),
                    parent_hash,
                    depth_blocks,
                    own_blocks,
                    hits: writer.infos[run].hits,
                    last_used_ns: self.time_of(writer.last_used(shared, run)),
                    workers,
                });
            }
            let (run, at) = writer.place(shared, above)?;
            depth_blocks += at as u32 + 1;
            above = writer.infos[run].parent_hash;
        }
        None
    }

    /// Leaves moments that lie at least a 32nd of their age apart: some hundred for a month.
    fn thin(&mut self, now_ns: u64) {
        let mut kept_ns = 0;
        self.moments.retain(|(_, at_ns)| {
            let keep = at_ns.saturating_sub(kept_ns) >= now_ns.saturating_sub(*at_ns) / 32;
            kept_ns = if keep { *at_ns } else { kept_ns };
            keep
        });
        if self.moments.len() == MOMENTS_MAX {
            self.moments.remove(0);
        }
    }

    /// When the insert of this number had been made.
    fn time_of(&self, stamp: u64) -> u64 {
        let after = self.moments.partition_point(|(clock, _)| *clock < stamp);
        // Made since the sample began, or before: now.
        self.moments.get(after).or(self.moments.last()).map_or(0, |(_, at_ns)| *at_ns)
    }
}

fn weight(hits: u32, idle_ns: u64) -> u32 {
    hits >> (idle_ns / HALF_LIFE_NS).min(31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn sample(hottest: &mut Hottest, index: &PrefixIndex, count: usize, now_ns: u64) -> Vec<Prefix> {
        hottest.begin(index, now_ns);
        while hottest.step(index, count, now_ns) {}
        hottest.finish(index)
    }

    #[test]
    fn shared_beginnings_come_first_with_depth_holders_and_uses() {
        let (index, mut hottest) = (PrefixIndex::default(), Hottest::default());
        assert!(sample(&mut hottest, &index, 8, SECOND).is_empty());
        index.insert(WorkerSlot(3), &[1, 2, 10, 11]);
        index.insert(WorkerSlot(70), &[1, 2, 20]);
        index.insert(WorkerSlot(3), &[1, 2, 10, 11]);
        let prefixes = sample(&mut hottest, &index, 8, 2 * SECOND);
        let shared = Prefix {
            hash: 2,
            parent_hash: 0,
            depth_blocks: 2,
            own_blocks: 2,
            hits: 3,
            last_used_ns: 2 * SECOND,
            workers: [1 << 3, 1 << 6, 0, 0],
        };
        let branch = Prefix {
            hash: 20,
            parent_hash: 2,
            depth_blocks: 3,
            own_blocks: 1,
            hits: 1,
            workers: [0, 1 << 6, 0, 0],
            ..shared
        };
        assert_eq!(prefixes, [shared, branch], "what only one of the sharers holds is not listed apart");
        assert_eq!(sample(&mut hottest, &index, 1, 2 * SECOND), prefixes[..1]);
    }

    #[test]
    fn uses_fade_with_time() {
        let (index, mut hottest) = (PrefixIndex::default(), Hottest::default());
        (0..100).for_each(|_| index.insert(WorkerSlot(0), &[1]));
        assert_eq!(sample(&mut hottest, &index, 1, SECOND)[0].hash, 1);
        index.insert(WorkerSlot(0), &[2]);
        index.insert(WorkerSlot(0), &[2]);
        let then = 6 * 60 * SECOND + SECOND;
        assert_eq!(sample(&mut hottest, &index, 1, SECOND)[0].hash, 1);
        (0..2).for_each(|_| index.insert(WorkerSlot(0), &[2]));
        let prefixes = sample(&mut hottest, &index, 2, then);
        assert_eq!((prefixes[0].hash, prefixes[0].last_used_ns), (2, then), "4 now beat 100 six minutes ago");
        assert_eq!((prefixes[1].hash, prefixes[1].hits, prefixes[1].last_used_ns), (1, 100, SECOND));
    }

    #[test]
    fn what_left_the_index_is_not_listed() {
        let (index, mut hottest) = (PrefixIndex::default(), Hottest::default());
        (0..3000).for_each(|number| index.insert(WorkerSlot(0), &[number + 1, number + 10_000]));
        hottest.begin(&index, SECOND);
        while hottest.step(&index, 3000, SECOND) {}
        index.clear(WorkerSlot(0));
        index.insert(WorkerSlot(1), &[77]);
        assert!(hottest.finish(&index).is_empty(), "places that were given to others are recognised");
        assert_eq!(sample(&mut hottest, &index, 3000, SECOND).len(), 1);
    }

    #[test]
    fn the_past_gets_coarser_but_is_not_forgotten() {
        let (index, mut hottest) = (PrefixIndex::default(), Hottest::default());
        for second in 1..=10_000 {
            index.insert(WorkerSlot(0), &[second]);
            hottest.begin(&index, second * SECOND);
        }
        assert!(hottest.moments.len() <= MOMENTS_MAX);
        for (stamp, slack) in [(2, 625), (5_000, 313), (9_000, 63), (9_999, 1)] {
            let off = hottest.time_of(stamp).abs_diff(stamp * SECOND) / SECOND;
            assert!(off <= slack, "insert {stamp}: {off} s off");
        }
    }
}
