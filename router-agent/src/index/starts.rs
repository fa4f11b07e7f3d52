//! First hash of a run → the run, for readers: one table, open addressing.
//!
//! An entry never moves. A table that is too full, or too empty, is copied into another one, a few entries with every
//! change, and replaced as a whole once that is complete (`ArcSwap`). A reader keeps to the table that it began with: it
//! sees it as it was at one moment within its lookup, plus single entries of later. Places are chosen by a random odd
//! factor: a client who can choose hashes cannot choose places.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use prefetch_index::prefetch_index;

use super::sync::{
    AtomicU64,
    Ordering::{Acquire, Release},
};

const FREE: u32 = 0;
const GONE: u32 = 1;
/// An entry's low half is the run's number plus this.
const RUN: u32 = 2;

/// Places of a table that holds anything.
const PLACES_MIN: usize = 8;

/// Places that are made, and that are copied, with every change while there is another table to come. It is complete
/// before an eighth and a 32nd of the old one's places have changed.
const MADE: usize = 64;
const COPIED: usize = 8;

/// High half: a tag, bits of the scattered hash that also say where a search begins. Low half: `FREE`, `GONE` or a run.
type Table = Box<[AtomicU64]>;

/// See the module.
pub(super) struct Starts {
    table: ArcSwap<Table>,
    factor: u64,
}

/// The table as one lookup sees it.
pub(super) struct Reading {
    table: Guard<Arc<Table>>,
    factor: u64,
}

/// What the writer knows of the table.
pub(super) struct StartCounts {
    known: Known,
    coming: Coming,
}

/// A table that readers see, or will see.
struct Known {
    places: Arc<Table>,
    live: usize,
    /// Entries and gone ones.
    used: usize,
}

/// The table that will replace the one at hand.
enum Coming {
    None,
    /// Its places so far, and how many there will be.
    Made(Vec<AtomicU64>, usize),
    /// What stood in the places below this one is in it, too.
    Copied(Known, usize),
}

fn tag(factor: u64, hash: u64) -> u32 {
    (hash.wrapping_mul(factor) >> 32) as u32
}

fn search<R>(places: &Table, tag: u32, mut check: impl FnMut(u32) -> Option<R>) -> Option<R> {
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

impl Reading {
    /// The first result that `check` has for a run whose first hash may be this one.
    pub(super) fn find<R>(&self, hash: u64, check: impl FnMut(u32) -> Option<R>) -> Option<R> {
        search(&self.table, tag(self.factor, hash), check)
    }
}

impl Starts {
    pub(super) fn new() -> (Self, StartCounts) {
        let places: Arc<Table> = Arc::default();
        let table = ArcSwap::new(places.clone());
        let counts = StartCounts { known: Known { places, live: 0, used: 0 }, coming: Coming::None };
        (Self { table, factor: fastrand::u64(..) | 1 }, counts)
    }

    pub(super) fn read(&self) -> Reading {
        Reading { table: self.table.load(), factor: self.factor }
    }

    /// As [`Reading::find`], for the writer.
    pub(super) fn find<R>(
        &self,
        counts: &StartCounts,
        hash: u64,
        check: impl FnMut(u32) -> Option<R>,
    ) -> Option<R> {
        search(&counts.known.places, tag(self.factor, hash), check)
    }

    /// Has the line fetched in which a search begins.
    pub(super) fn prefetch(&self, counts: &StartCounts, hash: u64) {
        let places = &counts.known.places;
        prefetch_index(&***places, tag(self.factor, hash) as usize & places.len().wrapping_sub(1));
    }

    /// Enters a run that is not there.
    pub(super) fn insert(&self, counts: &mut StartCounts, hash: u64, run: u32) {
        let len = counts.known.places.len();
        if (counts.known.used + 1) * 8 > len * 5 {
            counts.begin();
            if len == 0 {
                self.advance(counts);
            }
        }
        let tag = tag(self.factor, hash);
        let place = counts.known.put(tag, run);
        if let Coming::Copied(coming, end) = &mut counts.coming
            && place < *end
        {
            coming.put(tag, run);
        }
        self.advance(counts);
    }

    /// Removes a run that is there.
    pub(super) fn remove(&self, counts: &mut StartCounts, hash: u64, run: u32) {
        let tag = tag(self.factor, hash);
        let Some(place) = counts.known.take(tag, run) else { return };
        if let Coming::Copied(coming, end) = &mut counts.coming
            && place < *end
        {
            coming.take(tag, run);
        }
        let (live, len) = (counts.known.live, counts.known.places.len());
        if live == 0 {
            let places: Arc<Table> = Arc::default();
            self.table.store(places.clone());
            *counts = StartCounts { known: Known { places, live: 0, used: 0 }, coming: Coming::None };
            return;
        }
        if len > PLACES_MIN && live * 8 < len {
            counts.begin();
        }
        self.advance(counts);
    }

    /// One step towards the table to come, if there is one.
    fn advance(&self, counts: &mut StartCounts) {
        let old = &counts.known.places;
        match &mut counts.coming {
            Coming::None => return,
            Coming::Made(places, len) => {
                let missing = *len - places.len();
                places.extend((0..missing.min(MADE)).map(|_| AtomicU64::default()));
                if missing <= MADE {
                    let places = Arc::new(std::mem::take(places).into_boxed_slice());
                    counts.coming = Coming::Copied(Known { places, live: 0, used: 0 }, 0);
                }
                if !old.is_empty() {
                    return;
                }
            }
            Coming::Copied(coming, end) => {
                for place in old.iter().skip(*end).take(COPIED) {
                    let entry = place.load(Acquire);
                    if entry as u32 >= RUN {
                        coming.put((entry >> 32) as u32, entry as u32 - RUN);
                    }
                }
                *end += COPIED;
            }
        }
        if let Coming::Copied(_, end) = &counts.coming
            && *end >= old.len()
            && let Coming::Copied(coming, _) = std::mem::replace(&mut counts.coming, Coming::None)
        {
            self.table.store(coming.places.clone());
            counts.known = coming;
        }
    }

    /// Every run that is entered.
    pub(super) fn runs(&self) -> Vec<u32> {
        let entries = self.table.load();
        let low = entries.iter().map(|entry| entry.load(Acquire) as u32);
        low.filter(|low| *low >= RUN).map(|low| low - RUN).collect()
    }
}

impl StartCounts {
    /// Begins a table that will have twice the places that there are entries, at least, and half those that there are.
    fn begin(&mut self) {
        if let Coming::None = self.coming {
            let len = ((self.known.live + 1) * 2).next_power_of_two();
            let len = len.max(PLACES_MIN).max(self.known.places.len() / 2);
            self.coming = Coming::Made(Vec::with_capacity(len), len);
        }
    }

    /// Memory of the table, and of the one to come.
    pub(super) fn bytes(&self) -> usize {
        let coming = match &self.coming {
            Coming::None => 0,
            Coming::Made(_, len) => *len,
            Coming::Copied(coming, _) => coming.places.len(),
        };
        (self.known.places.len() + coming) * size_of::<AtomicU64>()
    }

    pub(super) fn len(&self) -> usize {
        self.known.live
    }
}

impl Known {
    /// Writes an entry into a table that has room; returns its place.
    fn put(&mut self, tag: u32, run: u32) -> usize {
        let mask = self.places.len() - 1;
        let mut place = tag as usize & mask;
        loop {
            let low = self.places[place].load(Acquire) as u32;
            if low < RUN {
                self.places[place].store(u64::from(tag) << 32 | u64::from(run + RUN), Release);
                self.live += 1;
                self.used += usize::from(low == FREE);
                return place;
            }
            place = (place + 1) & mask;
        }
    }

    /// Removes an entry; returns its place if it was there.
    fn take(&mut self, tag: u32, run: u32) -> Option<usize> {
        let entry = u64::from(tag) << 32 | u64::from(run + RUN);
        let mask = self.places.len().wrapping_sub(1);
        let mut steps = (0..self.places.len()).map(|step| (tag as usize + step) & mask);
        let place = steps.find(|place| self.places[*place].load(Acquire) == entry)?;
        self.places[place].store(u64::from(GONE), Release);
        self.live -= 1;
        Some(place)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn finds_what_is_entered_while_tables_come_and_go() {
        let (starts, mut counts) = Starts::new();
        let (mut entered, mut random) = (HashMap::new(), fastrand::Rng::with_seed(1));
        for turn in 0..40_000_u32 {
            // Grows to some thousands, shrinks to none, and again.
            let (hash, grows) = (random.u64(..6_000), turn / 10_000 % 2 == 0);
            if let Some(run) = entered.remove(&hash) {
                starts.remove(&mut counts, hash, run);
            } else if grows {
                entered.insert(hash, turn);
                starts.insert(&mut counts, hash, turn);
            }
            let (hash, reading) = (random.u64(..6_000), starts.read());
            let find = |hash| reading.find(hash, |run| (entered.get(&hash) == Some(&run)).then_some(run));
            assert_eq!(find(hash), entered.get(&hash).copied(), "turn {turn}");
            if turn % 1_000 == 0 {
                assert!((0..6_000).all(|hash| find(hash) == entered.get(&hash).copied()), "turn {turn}");
                assert_eq!((counts.len(), starts.runs().len()), (entered.len(), entered.len()));
            }
        }
        for (hash, run) in entered {
            starts.remove(&mut counts, hash, run);
        }
        assert_eq!((counts.bytes(), starts.runs().len()), (0, 0));
    }
}
