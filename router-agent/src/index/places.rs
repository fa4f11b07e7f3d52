//! Block hash → its place (run and position), for the writer alone: what `remove` needs to find any block.
//!
//! Open addressing in shards, which grow one by one and by little, so that not much of the table stands empty. An entry is
//! 8 bytes: the place, and 32 bits of the scattered hash, which choose where a search begins and tell other hashes apart;
//! so growing reads nothing but the shard. The hash itself stands in the run. It is scattered by a random odd factor: a
//! client who can choose hashes cannot choose places.

/// A run's number × 32 + position. Below `u32::MAX - 1`.
pub(super) type Place = u32;

const SHARDS_LOG2: u32 = 10;

/// Entries: the low half is one of these, or the place plus `PLACE`; the high half has the bits.
const FREE: u64 = 0;
const GONE: u64 = 1;
const PLACE: u32 = 2;

/// Entries that a shard has room for at first.
const LEN_MIN: usize = 8;

#[derive(Default)]
struct Shard {
    entries: Box<[u64]>,
    live: usize,
    used: usize,
}

/// See the module.
pub(super) struct Places {
    shards: Box<[Shard]>,
    factor: u64,
    bytes: usize,
}

fn place_of(entry: u64) -> Option<Place> {
    (entry as u32).checked_sub(PLACE)
}

fn bits_of(entry: u64) -> u32 {
    (entry >> 32) as u32
}

impl Places {
    pub(super) fn new() -> Self {
        let shards: Box<[Shard]> = (0..1 << SHARDS_LOG2).map(|_| Shard::default()).collect();
        Self { bytes: size_of_val(&*shards), shards, factor: fastrand::u64(..) | 1 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.live).sum()
    }

    /// Shard, and bits.
    fn scatter(&self, hash: u64) -> (usize, u32) {
        let scattered = hash.wrapping_mul(self.factor);
        ((scattered >> (64 - SHARDS_LOG2)) as usize, (scattered >> (32 - SHARDS_LOG2)) as u32)
    }

    /// Where the block is. `hash_at`: the hash that stands at a place.
    pub(super) fn get(&self, hash: u64, hash_at: impl Fn(Place) -> u64) -> Option<Place> {
        let (shard, bits) = self.scatter(hash);
        let shard = &self.shards[shard];
        let found = shard.search(bits, |place| hash_at(place) == hash)?;
        place_of(shard.entries[found])
    }

    /// Touches the lines that the searches for these blocks begin in. No load waits for another here, so their cache
    /// misses overlap; the searches themselves, one after the other, would wait for each.
    pub(super) fn touch(&self, hashes: &[u64]) {
        let touched = hashes.iter().fold(0, |sum, hash| {
            let (shard, bits) = self.scatter(*hash);
            let shard = &self.shards[shard];
            sum ^ shard.entries.get(shard.begin(bits)).copied().unwrap_or_default()
        });
        std::hint::black_box(touched);
    }

    /// Enters a block, unless it is there already: then says where.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        place: Place,
        hash_at: impl Fn(Place) -> u64,
    ) -> Option<Place> {
        let (at, bits) = self.scatter(hash);
        let shard = &self.shards[at];
        if let Some(found) = shard.search(bits, |place| hash_at(place) == hash) {
            return place_of(shard.entries[found]);
        }
        if (shard.used + 1) * 6 > shard.entries.len() * 5 {
            let len = ((shard.live + 1) * 3 / 2).max(LEN_MIN);
            self.resize(at, len);
        }
        self.shards[at].put(bits, place);
        None
    }

    /// Removes a block that stands at this place.
    pub(super) fn remove(&mut self, hash: u64, place: Place) {
        let (at, bits) = self.scatter(hash);
        let shard = &mut self.shards[at];
        let Some(found) = shard.search(bits, |other| other == place) else { return };
        shard.live -= 1;
        let len = shard.entries.len();
        if shard.entries[(found + 1) % len] == FREE {
            // No search goes past here, so nothing needs to be marked, nor do the gone ones before it.
            let mut last = found;
            loop {
                shard.entries[last] = FREE;
                shard.used -= 1;
                last = (last + len - 1) % len;
                if shard.entries[last] != GONE {
                    break;
                }
            }
        } else {
            shard.entries[found] = GONE;
        }
        if shard.live == 0 {
            self.resize(at, 0);
        } else if shard.live * 8 < len && len > LEN_MIN {
            let len = (shard.live * 2).max(LEN_MIN);
            self.resize(at, len);
        }
    }

    fn resize(&mut self, at: usize, len: usize) {
        let old = std::mem::take(&mut self.shards[at]);
        self.bytes = self.bytes + len * size_of::<u64>() - old.entries.len() * size_of::<u64>();
        self.shards[at].entries = vec![FREE; len].into();
        for entry in old.entries {
            if let Some(place) = place_of(entry) {
                self.shards[at].put(bits_of(entry), place);
            }
        }
    }
}

impl Shard {
    /// Where searches for these bits begin, whatever the number of entries.
    fn begin(&self, bits: u32) -> usize {
        ((u64::from(bits) * self.entries.len() as u64) >> 32) as usize
    }

    fn search(&self, bits: u32, is: impl Fn(Place) -> bool) -> Option<usize> {
        let begin = self.begin(bits);
        for at in (begin..self.entries.len()).chain(0..begin) {
            let entry = self.entries[at];
            if bits_of(entry) == bits && place_of(entry).is_some_and(&is) {
                return Some(at);
            }
            if entry == FREE {
                return None;
            }
        }
        None
    }

    /// Writes an entry that is not there, into a shard that has room.
    fn put(&mut self, bits: u32, place: Place) {
        let mut at = self.begin(bits);
        while place_of(self.entries[at]).is_some() {
            at = if at + 1 == self.entries.len() { 0 } else { at + 1 };
        }
        self.used += usize::from(self.entries[at] == FREE);
        self.live += 1;
        self.entries[at] = u64::from(bits) << 32 | u64::from(place + PLACE);
    }
}
