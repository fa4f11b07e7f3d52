//! First hash of a run → the run, for readers: open addressing in shards, which grow one by one.
//!
//! An entry never moves. A shard that has to grow is copied and replaced as a whole (`ArcSwap`), so a reader sees a shard
//! as it was at one moment within its lookup, plus single entries of later. Places are chosen by a random odd factor:
//! a client who can choose hashes cannot choose places.

use std::sync::Arc;

use arc_swap::ArcSwap;
use prefetch_index::prefetch_index;

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

/// High half: a tag, bits of the scattered hash that also say where a search begins. Low half: `FREE`, `GONE` or a run.
type Shard = Box<[AtomicU64]>;

/// See the module.
pub(super) struct Starts {
    shards: Box<[ArcSwap<Shard>]>,
    factor: u64,
}

/// What the writer remembers of the shards.
pub(super) struct StartCounts {
    shards: Vec<Known>,
    bytes: usize,
}

/// A shard as the writer knows it: without the care that readers have to take for it not to be freed meanwhile.
struct Known {
    places: Arc<Shard>,
    live: usize,
    /// Entries and gone ones.
    used: usize,
}

impl Starts {
    pub(super) fn new() -> (Self, StartCounts) {
        let count = 1 << SHARDS_LOG2;
        let empty: Arc<Shard> = Arc::default();
        let shards: Box<[_]> = (0..count).map(|_| ArcSwap::new(empty.clone())).collect();
        let known = shards.iter().map(|_| Known { places: empty.clone(), live: 0, used: 0 }).collect();
        let counts = StartCounts { bytes: size_of_val(&*shards), shards: known };
        (Self { shards, factor: fastrand::u64(..) | 1 }, counts)
    }

    /// Shard, and tag.
    fn scatter(&self, hash: u64) -> (usize, u32) {
        let scattered = hash.wrapping_mul(self.factor);
        ((scattered >> (64 - SHARDS_LOG2)) as usize, (scattered >> (32 - SHARDS_LOG2)) as u32)
    }

    /// The first result that `check` has for a run whose first hash may be this one.
    pub(super) fn find<R>(&self, hash: u64, check: impl FnMut(u32) -> Option<R>) -> Option<R> {
        let (shard, tag) = self.scatter(hash);
        search(&self.shards[shard].load(), tag, check)
    }

    /// The same, for the writer.
    pub(super) fn find_known<R>(
        &self,
        counts: &StartCounts,
        hash: u64,
        check: impl FnMut(u32) -> Option<R>,
    ) -> Option<R> {
        let (shard, tag) = self.scatter(hash);
        search(&counts.shards[shard].places, tag, check)
    }

    /// Has the line fetched in which a search by the writer begins.
    pub(super) fn prefetch(&self, counts: &StartCounts, hash: u64) {
        let (shard, tag) = self.scatter(hash);
        let places = &counts.shards[shard].places;
        prefetch_index(&***places, tag as usize & places.len().wrapping_sub(1));
    }

    /// Enters a run that is not there.
    pub(super) fn insert(&self, counts: &mut StartCounts, hash: u64, run: u32) {
        let (at, tag) = self.scatter(hash);
        let known = &counts.shards[at];
        if (known.used + 1) * 4 > known.places.len() * 3 {
            let len = ((known.live + 1) * 2).next_power_of_two().max(PLACES_MIN);
            self.resize(counts, at, len);
        }
        counts.shards[at].put(tag, run);
    }

    /// Removes a run that is there.
    pub(super) fn remove(&self, counts: &mut StartCounts, hash: u64, run: u32) {
        let (at, tag) = self.scatter(hash);
        let known = &mut counts.shards[at];
        let entry = u64::from(tag) << 32 | u64::from(run + RUN);
        let places = &known.places;
        let mask = places.len().wrapping_sub(1);
        let mut steps = (0..places.len()).map(|step| (tag as usize + step) & mask);
        if let Some(place) = steps.find(|place| places[*place].load(Acquire) == entry) {
            places[place].store(u64::from(GONE), Release);
            known.live -= 1;
            let (live, len) = (known.live, places.len());
            if live == 0 {
                self.resize(counts, at, 0);
            } else if len > PLACES_MIN && live * 8 < len {
                self.resize(counts, at, len / 2);
            }
        }
    }

    fn resize(&self, counts: &mut StartCounts, at: usize, len: usize) {
        let places: Arc<Shard> = Arc::new((0..len).map(|_| AtomicU64::default()).collect());
        let mut new = Known { places, live: 0, used: 0 };
        let old = &counts.shards[at].places;
        for entry in old.iter().map(|entry| entry.load(Acquire)).filter(|entry| *entry as u32 >= RUN) {
            new.put((entry >> 32) as u32, entry as u32 - RUN);
        }
        counts.bytes = counts.bytes + len * size_of::<u64>() - old.len() * size_of::<u64>();
        self.shards[at].store(new.places.clone());
        counts.shards[at] = new;
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

fn search<R>(places: &Shard, tag: u32, mut check: impl FnMut(u32) -> Option<R>) -> Option<R> {
    let mask = places.len().wrapping_sub(1);
    for step in 0..places.len() {
        let entry = places[(tag as usize + step) & mask].load(Acquire);
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

impl Known {
    /// Writes an entry into a shard that has room.
    fn put(&mut self, tag: u32, run: u32) {
        let mask = self.places.len() - 1;
        let mut place = tag as usize & mask;
        loop {
            let low = self.places[place].load(Acquire) as u32;
            if low < RUN {
                self.places[place].store(u64::from(tag) << 32 | u64::from(run + RUN), Release);
                self.live += 1;
                self.used += usize::from(low == FREE);
                return;
            }
            place = (place + 1) & mask;
        }
    }
}

impl StartCounts {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|known| known.live).sum()
    }
}
