//! Which prefixes are used most: a look over the whole index that never holds its lock for long.
//!
//! A sample is taken in steps, each under one read lock: one per 1,024 stretches of blocks to find the most used, some
//! ten microseconds, then one to read each of those. What changes in between is left out or read as it then is. The
//! data path pays one addition per stretch that a request goes through, in a cache line that it writes anyway.
//!
//! The index knows no time, only the number of inserts. [`Hottest`] notes both at every sample, so it can say when an
//! insert was, to within the interval of sampling or a sixteenth of its age, whichever is more.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{
    PrefixIndex,
    holders::NIL,
    tree::{Run, Tree},
};

/// Uses count half for every minute that has gone by since the last one.
const HALF_LIFE_NS: u64 = 60_000_000_000;

/// Stretches between a prompt's beginning and a listed prefix, at most: walking them is the work done under a lock.
const STRETCHES_MAX: usize = 1024;

/// Moments remembered.
const MOMENTS_MAX: usize = 512;

/// Worker slots that a sample shows, in words of 64.
const WORKER_WORDS: usize = 4;

/// A prefix that many requests share: the prompt up to the end of one stretch of blocks held by the same workers.
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

/// Finds the most used prefixes of one index, again and again.
#[derive(Debug, Default)]
pub struct Hottest {
    /// Number of inserts, and when there were that many; ascending.
    moments: Vec<(u64, u64)>,
    chunk: usize,
    /// The most used runs so far, the least of them first: weight, last use, run, its first hash.
    best: BinaryHeap<Reverse<(u32, u64, u32, u64)>>,
}

impl Hottest {
    /// Begins a sample. `now_ns` counts on from one call to the next.
    pub fn begin(&mut self, index: &PrefixIndex, now_ns: u64) {
        if self.moments.len() == MOMENTS_MAX {
            self.thin(now_ns);
        }
        self.moments.push((index.tree.read().clock(), now_ns));
        self.chunk = 0;
        self.best.clear();
    }

    /// Looks at the next 1,024 stretches, keeping the `count` most used; says whether there are more.
    pub fn step(&mut self, index: &PrefixIndex, count: usize, now_ns: u64) -> bool {
        let tree = index.tree.read();
        let Some(runs) = tree.chunk(self.chunk) else { return false };
        self.chunk += 1;
        for (id, run) in runs {
            let stamp = run.holders.last_stamp();
            let weight = weight(run.hits, now_ns.saturating_sub(self.time_of(stamp)));
            let entry = Reverse((weight, stamp, id, run.first()));
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
                let tree = index.tree.read();
                let run = tree.live_run(*id).filter(|run| run.first() == *first)?;
                self.read(&tree, run)
            })
            .collect()
    }

    fn read(&self, tree: &Tree, run: &Run) -> Option<Prefix> {
        let (mut depth_blocks, mut parent) = (run.hashes.len(), run.parent);
        for _ in 0..STRETCHES_MAX {
            if parent == NIL {
                let mut workers = [0; WORKER_WORDS];
                (0..).zip(&mut workers).for_each(|(index, word)| *word = run.holders.word(index));
                let last = |run: &Run| run.hashes.last().copied();
                return Some(Prefix {
                    hash: last(run)?,
                    parent_hash: if run.parent == NIL { 0 } else { last(tree.run(run.parent))? },
                    depth_blocks: depth_blocks as u32,
                    own_blocks: run.hashes.len() as u32,
                    hits: run.hits,
                    last_used_ns: self.time_of(run.holders.last_stamp()),
                    workers,
                });
            }
            let above = tree.run(parent);
            depth_blocks += above.hashes.len();
            parent = above.parent;
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
    use crate::index::WorkerSlot;

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
        let branch = |hash, own_blocks, hits, workers| Prefix {
            hash,
            parent_hash: 2,
            depth_blocks: 2 + own_blocks,
            own_blocks,
            hits,
            workers,
            ..shared
        };
        assert_eq!(
            prefixes,
            [shared, branch(11, 2, 2, [1 << 3, 0, 0, 0]), branch(20, 1, 1, [0, 1 << 6, 0, 0])]
        );
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
