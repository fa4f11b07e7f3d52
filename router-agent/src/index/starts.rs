//! First hash of a run → the run, for readers: open addressing in shards, which grow one by one.
//!
//! An entry never moves. A shard that has to grow is copied and replaced as a whole (`ArcSwap`), so a reader sees a shard
//! as it was at one moment within its lookup, plus single entries of later. Places are chosen by a random odd factor:
//! a client who can choose hashes cannot choose places.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::sync::{
    AtomicU64,
    Ordering::{Acquire, Release},
};

#[cfg(not(shuttle))]
const SHARDS_LOG2: u32 = 8;
#[cfg(shuttle)]
const SHARDS_LOG2: u32 = 1;

const FREE: u32 = 0;
const GONE: u32 = 1;
/// An entry's low half is the run's number plus this.
const RUN: u32 = 2;

/// Places of a shard that holds anything.
const PLACES_MIN: usize = 8;

/// High half: the middle bits of the scattered hash. Low half: `FREE`, `GONE` or a run.
type Shard = Box<[AtomicU64]>;

/// See the module.
pub(super) struct Starts {
    shards: Box<[ArcSwap<Shard>]>,
    factor: u64,
}

/// What the writer remembers of the shards.
pub(super) struct StartCounts {
    /// Per shard: entries, and entries and gone ones.
    shards: Vec<(usize, usize)>,
    bytes: usize,
}

impl Starts {
    pub(super) fn new() -> (Self, StartCounts) {
        let count = 1 << SHARDS_LOG2;
        let empty: Arc<Shard> = Arc::default();
        let shards: Box<[_]> = (0..count).map(|_| ArcSwap::new(empty.clone())).collect();
        let bytes = size_of_val(&*shards);
        let counts = StartCounts { shards: vec![(0, 0); count], bytes };
        (Self { shards, factor: fastrand::u64(..) | 1 }, counts)
    }

    /// Shard, tag, and the bits that choose the place.
    fn place(&self, hash: u64) -> (usize, u32, usize) {
        let scattered = hash.wrapping_mul(self.factor);
        ((scattered >> (64 - SHARDS_LOG2)) as usize, (scattered >> 8) as u32, (scattered >> 28) as usize)
    }

    /// The first result that `check` has for a run whose first hash may be this one.
    pub(super) fn find<R>(&self, hash: u64, mut check: impl FnMut(u32) -> Option<R>) -> Option<R> {
        let (shard, tag, start) = self.place(hash);
        let places = self.shards[shard].load();
        let mask = places.len().wrapping_sub(1);
        for step in 0..places.len() {
            let entry = places[(start + step) & mask].load(Acquire);
            if entry as u32 == FREE {
                return None;
            }
            if (entry >> 32) as u32 == tag
                && entry as u32 >= RUN
                && let Some(found) = check(entry as u32 - RUN)
            {
                return Some(found);
            }
        }
        None
    }

    /// Enters a run that is not there. `first`: the first hash of a run.
    pub(super) fn insert(&self, counts: &mut StartCounts, hash: u64, run: u32, first: impl Fn(u32) -> u64) {
        let (at, tag, start) = self.place(hash);
        let mut places = self.shards[at].load_full();
        if (counts.shards[at].1 + 1) * 4 > places.len() * 3 {
            let len = counts.shards[at].0 + 1;
            places = self.resize(counts, at, (len * 2).next_power_of_two().max(PLACES_MIN), first);
        }
        put(&places, start, tag, run, &mut counts.shards[at]);
    }

    /// Removes a run that is there.
    pub(super) fn remove(&self, counts: &mut StartCounts, hash: u64, run: u32, first: impl Fn(u32) -> u64) {
        let (at, tag, start) = self.place(hash);
        let places = self.shards[at].load_full();
        let entry = u64::from(tag) << 32 | u64::from(run + RUN);
        let mask = places.len().wrapping_sub(1);
        let mut steps = (0..places.len()).map(|step| (start + step) & mask);
        if let Some(place) = steps.find(|place| places[*place].load(Acquire) == entry) {
            places[place].store(u64::from(GONE), Release);
            let (live, _) = &mut counts.shards[at];
            *live -= 1;
            if *live == 0 {
                self.resize(counts, at, 0, first);
            } else if places.len() > PLACES_MIN && *live * 8 < places.len() {
                self.resize(counts, at, places.len() / 2, first);
            }
        }
    }

    fn resize(
        &self,
        counts: &mut StartCounts,
        at: usize,
        len: usize,
        first: impl Fn(u32) -> u64,
    ) -> Arc<Shard> {
        let old = self.shards[at].load_full();
        let new: Arc<Shard> = Arc::new((0..len).map(|_| AtomicU64::default()).collect());
        counts.shards[at] = (0, 0);
        for entry in &*old {
            let entry = entry.load(Acquire);
            if entry as u32 >= RUN {
                let run = entry as u32 - RUN;
                put(&new, self.place(first(run)).2, (entry >> 32) as u32, run, &mut counts.shards[at]);
            }
        }
        counts.bytes = counts.bytes + new.len() * size_of::<u64>() - old.len() * size_of::<u64>();
        self.shards[at].store(new.clone());
        new
    }

    /// Every run that is entered.
    pub(super) fn runs(&self) -> Vec<u32> {
        let entries = self.shards.iter().flat_map(|shard| {
            let places = shard.load();
            places
                .iter()
                .map(|entry| entry.load(Acquire) as u32)
                .filter(|low| *low >= RUN)
                .collect::<Vec<_>>()
        });
        entries.map(|low| low - RUN).collect()
    }
}

/// Writes an entry into a shard that has room.
fn put(places: &Shard, start: usize, tag: u32, run: u32, (live, used): &mut (usize, usize)) {
    let mask = places.len() - 1;
    let mut place = start & mask;
    loop {
        let low = places[place].load(Acquire) as u32;
        if low < RUN {
            places[place].store(u64::from(tag) << 32 | u64::from(run + RUN), Release);
            *live += 1;
            *used += usize::from(low == FREE);
            return;
        }
        place = (place + 1) & mask;
    }
}

impl StartCounts {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|(live, _)| live).sum()
    }
}
