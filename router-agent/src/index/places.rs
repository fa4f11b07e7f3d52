//! Block hash → its place (run and position), for the writer alone: what `remove` needs to find any block.
//!
//! Open addressing in shards, which grow one by one and by half, so that little of the table stands empty. The hash
//! itself stands in the run; an entry has 4 bytes of place and 1 of tag, which tells most other hashes apart. Places are
//! chosen by a random odd factor.

/// A run's number × 32 + position.
pub(super) type Place = u32;

const SHARDS_LOG2: u32 = 10;

const FREE: u8 = 0;
const GONE: u8 = 1;
/// Tags of entries begin here.
const ENTRY: u8 = 2;

/// Entries that a shard has room for at first.
const LEN_MIN: usize = 8;

/// Bytes of an entry.
const ENTRY_BYTES: usize = size_of::<u8>() + size_of::<Place>();

#[derive(Default)]
struct Shard {
    tags: Box<[u8]>,
    places: Box<[Place]>,
    live: usize,
    used: usize,
}

/// See the module.
pub(super) struct Places {
    shards: Box<[Shard]>,
    factor: u64,
    bytes: usize,
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

    /// Shard, tag, and the bits that choose where a search begins.
    fn scatter(&self, hash: u64) -> (usize, u8, u32) {
        let scattered = hash.wrapping_mul(self.factor);
        let tag = (scattered >> 8) as u8;
        let begin = (scattered >> (32 - SHARDS_LOG2)) as u32;
        ((scattered >> (64 - SHARDS_LOG2)) as usize, tag.max(ENTRY), begin)
    }

    /// Where the block is. `hash_at`: the hash that stands at a place.
    pub(super) fn get(&self, hash: u64, hash_at: impl Fn(Place) -> u64) -> Option<Place> {
        let (shard, tag, begin) = self.scatter(hash);
        let shard = &self.shards[shard];
        shard.search(tag, begin, |place| hash_at(place) == hash).map(|at| shard.places[at])
    }

    /// Enters a block, unless it is there already: then says where.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        place: Place,
        hash_at: impl Fn(Place) -> u64,
    ) -> Option<Place> {
        let (at, tag, begin) = self.scatter(hash);
        let shard = &self.shards[at];
        if let Some(found) = shard.search(tag, begin, |place| hash_at(place) == hash) {
            return Some(shard.places[found]);
        }
        if (shard.used + 1) * 5 > shard.tags.len() * 4 {
            let len = ((shard.live + 1) * 15 / 8).max(LEN_MIN);
            self.resize(at, len, hash_at);
        }
        self.shards[at].put(tag, begin, place);
        None
    }

    /// Removes a block that stands at this place.
    pub(super) fn remove(&mut self, hash: u64, place: Place, hash_at: impl Fn(Place) -> u64) {
        let (at, tag, begin) = self.scatter(hash);
        let shard = &mut self.shards[at];
        let Some(found) = shard.search(tag, begin, |other| other == place) else { return };
        shard.live -= 1;
        let len = shard.tags.len();
        if shard.tags[(found + 1) % len] == FREE {
            // No search goes past here, so nothing needs to be marked, nor do the gone ones before it.
            let mut last = found;
            loop {
                shard.tags[last] = FREE;
                shard.used -= 1;
                last = (last + len - 1) % len;
                if shard.tags[last] != GONE {
                    break;
                }
            }
        } else {
            shard.tags[found] = GONE;
        }
        if shard.live == 0 {
            self.resize(at, 0, hash_at);
        } else if shard.live * 8 < len && len > LEN_MIN {
            let len = (shard.live * 2).max(LEN_MIN);
            self.resize(at, len, hash_at);
        }
    }

    fn resize(&mut self, at: usize, len: usize, hash_at: impl Fn(Place) -> u64) {
        let old = std::mem::take(&mut self.shards[at]);
        self.bytes = self.bytes + len * ENTRY_BYTES - old.tags.len() * ENTRY_BYTES;
        let mut new = Shard { tags: vec![FREE; len].into(), places: vec![0; len].into(), ..Shard::default() };
        for (tag, place) in old.tags.iter().zip(&old.places) {
            if *tag >= ENTRY {
                new.put(*tag, self.scatter(hash_at(*place)).2, *place);
            }
        }
        self.shards[at] = new;
    }
}

impl Shard {
    /// The first place of a search, of any number of places.
    fn begin(&self, bits: u32) -> usize {
        (u64::from(bits) * self.tags.len() as u64 >> 32) as usize
    }

    fn search(&self, tag: u8, bits: u32, is: impl Fn(Place) -> bool) -> Option<usize> {
        let begin = self.begin(bits);
        for at in (begin..self.tags.len()).chain(0..begin) {
            if self.tags[at] == tag && is(self.places[at]) {
                return Some(at);
            }
            if self.tags[at] == FREE {
                return None;
            }
        }
        None
    }

    /// Writes an entry that is not there, into a shard that has room.
    fn put(&mut self, tag: u8, bits: u32, place: Place) {
        let mut at = self.begin(bits);
        while self.tags[at] >= ENTRY {
            at = (at + 1) % self.tags.len();
        }
        self.used += usize::from(self.tags[at] == FREE);
        self.live += 1;
        self.tags[at] = tag;
        self.places[at] = place;
    }
}
