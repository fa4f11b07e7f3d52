//! Block hash → its run, for the writer alone: what `remove` needs to find any block.
//!
//! A hash table in shards, which grow one by one. A shard is a row of buckets of one cache line each, with twelve entries
//! of 5 bytes: the run, and a tag of 16 bits. The tag alone says in which bucket an entry belongs, whatever their number,
//! and tags of one bucket are neighbours: so a shard grows by being read and written once from front to back, and
//! nothing but the shard is read. Whether a block whose tag agrees is the one that is meant, and where it stands, the
//! run's own hashes say. Hashes are scattered by a random odd factor: a client who can choose hashes cannot choose
//! buckets.

use prefetch_index::prefetch_index;

const SHARDS_LOG2: u32 = 10;

/// Runs are numbered below this.
pub(super) const RUNS_MAX: usize = 1 << 24;

/// Entries of a bucket: what goes into 64 bytes.
const BUCKET: usize = 12;

/// Twelve entries, of which the first `len` are in use.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Bucket {
    tags: [u16; BUCKET],
    /// The run's lower 16 and upper 8 bits.
    runs_low: [u16; BUCKET],
    runs_high: [u8; BUCKET],
    len: u8,
    /// Entries that went by, because this bucket was full, and stand in one of the next. From 255 on not counted down.
    passed: u8,
}

const _: () = assert!(size_of::<Bucket>() == 64);

#[derive(Default)]
struct Shard {
    buckets: Box<[Bucket]>,
    live: usize,
}

/// See the module.
pub(super) struct Places {
    shards: Box<[Shard]>,
    factor: u64,
    bytes: usize,
}

/// The share of a shard's entries that may be in use, in percent.
const FULL: usize = 80;

/// Buckets of a shard that has grown or shrunk to hold so many entries. Then 35 to 55 % of it are in use, by the shard's
/// number: so shards do not all grow at the same time, and the table is about as full at any time.
fn buckets_for(entries: usize, shard: usize) -> usize {
    let percent = 35 + ((20 * shard) >> SHARDS_LOG2);
    if entries == 0 { 0 } else { entries * 100 / (percent * BUCKET) + 1 }
}

impl Bucket {
    fn run(&self, at: usize) -> u32 {
        u32::from(self.runs_high[at]) << 16 | u32::from(self.runs_low[at])
    }

    fn set(&mut self, at: usize, tag: u16, run: u32) {
        self.tags[at] = tag;
        (self.runs_low[at], self.runs_high[at]) = (run as u16, (run >> 16) as u8);
    }

    /// Bit i: entry i has this tag.
    fn tagged(&self, tag: u16) -> u32 {
        // All are compared, without a branch: that is fewer steps than to look at those in use.
        let mut tagged = 0;
        for (at, own) in self.tags.iter().enumerate() {
            tagged |= u32::from(*own == tag) << at;
        }
        tagged & ((1 << self.len) - 1)
    }
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

    /// Shard, and tag.
    fn scatter(&self, hash: u64) -> (usize, u16) {
        let scattered = hash.wrapping_mul(self.factor);
        ((scattered >> (64 - SHARDS_LOG2)) as usize, (scattered >> (48 - SHARDS_LOG2)) as u16)
    }

    /// What `check` says of the first run that it says anything of, of those in which the block may stand.
    pub(super) fn find<R>(&self, hash: u64, check: impl FnMut(u32) -> Option<R>) -> Option<R> {
        let (shard, tag) = self.scatter(hash);
        self.shards[shard].find(tag, check)
    }

    /// Has the line fetched in which the search for this block begins.
    pub(super) fn prefetch(&self, hash: u64) {
        let (shard, tag) = self.scatter(hash);
        let shard = &self.shards[shard];
        prefetch_index(&shard.buckets, shard.home(tag));
    }

    /// Enters a block, unless `check` says of a run that the block stands there: then that is what it said.
    pub(super) fn insert<R>(
        &mut self,
        hash: u64,
        run: u32,
        check: impl FnMut(u32) -> Option<R>,
    ) -> Option<R> {
        let (at, tag) = self.scatter(hash);
        let shard = &mut self.shards[at];
        let found = shard.find(tag, check);
        if found.is_some() {
            return found;
        }
        if (shard.live + 1) * 100 > shard.buckets.len() * BUCKET * FULL {
            self.bytes += shard.resize(buckets_for(shard.live + 1, at));
        }
        shard.put(tag, run);
        None
    }

    /// Removes a block that stands in this run.
    pub(super) fn remove(&mut self, hash: u64, run: u32) {
        let (at, tag) = self.scatter(hash);
        let shard = &mut self.shards[at];
        if !shard.take(tag, run) {
            return;
        }
        let buckets = buckets_for(shard.live, at);
        if shard.live == 0 || shard.live * 4 < shard.buckets.len() * BUCKET && buckets < shard.buckets.len() {
            let before = size_of_val(&*shard.buckets);
            shard.resize(buckets);
            self.bytes -= before - size_of_val(&*shard.buckets);
        }
    }
}

impl Shard {
    /// The bucket in which entries with this tag belong: buckets share the range of tags evenly, in order.
    fn home(&self, tag: u16) -> usize {
        (usize::from(tag) * self.buckets.len()) >> 16
    }

    fn after(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() { 0 } else { bucket + 1 }
    }

    fn find<R>(&self, tag: u16, mut check: impl FnMut(u32) -> Option<R>) -> Option<R> {
        let mut at = self.home(tag);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            let mut tagged = bucket.tagged(tag);
            while tagged != 0 {
                let found = check(bucket.run(tagged.trailing_zeros() as usize % BUCKET));
                if found.is_some() {
                    return found;
                }
                tagged &= tagged - 1;
            }
            if bucket.passed == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// Writes an entry into a shard that has room.
    fn put(&mut self, tag: u16, run: u32) {
        let mut at = self.home(tag);
        while usize::from(self.buckets[at].len) == BUCKET {
            self.buckets[at].passed = self.buckets[at].passed.saturating_add(1);
            at = self.after(at);
        }
        let bucket = &mut self.buckets[at];
        bucket.set(usize::from(bucket.len), tag, run);
        bucket.len += 1;
        self.live += 1;
    }

    /// Removes an entry; says whether it was there.
    fn take(&mut self, tag: u16, run: u32) -> bool {
        let home = self.home(tag);
        let mut at = home;
        for _ in 0..self.buckets.len() {
            let bucket = &mut self.buckets[at];
            let mut tagged = bucket.tagged(tag);
            while tagged != 0 {
                let found = tagged.trailing_zeros() as usize % BUCKET;
                if bucket.run(found) == run {
                    let last = usize::from(bucket.len) - 1;
                    bucket.set(found, bucket.tags[last], bucket.run(last));
                    bucket.len -= 1;
                    self.live -= 1;
                    self.passed_less(home, at);
                    return true;
                }
                tagged &= tagged - 1;
            }
            if bucket.passed == 0 {
                return false;
            }
            at = self.after(at);
        }
        false
    }

    /// An entry that went by the buckets from `home` to before `to` is gone.
    fn passed_less(&mut self, home: usize, to: usize) {
        let mut at = home;
        while at != to {
            let passed = &mut self.buckets[at].passed;
            *passed -= u8::from(*passed < u8::MAX);
            at = self.after(at);
        }
    }

    /// Gives the shard so many buckets, which have room for what is in it; returns the bytes that it grew by, if it did.
    fn resize(&mut self, buckets: usize) -> usize {
        let new = vec![Bucket::default(); buckets].into_boxed_slice();
        let grown = size_of_val(&*new).saturating_sub(size_of_val(&*self.buckets));
        let old = std::mem::replace(&mut self.buckets, new);
        self.live = 0;
        for bucket in &*old {
            for at in 0..usize::from(bucket.len) {
                self.put(bucket.tags[at], bucket.run(at));
            }
        }
        grown
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    /// The block of each run has the run's number as its hash.
    #[test]
    fn finds_what_is_entered_while_shards_grow_and_shrink() {
        let (mut places, mut random) = (Places::new(), fastrand::Rng::with_seed(1));
        let is = |run: u32, hash: u64| (u64::from(run) == hash).then_some(run);
        let mut entered = vec![false; 150_000];
        let mut count = 0;
        for turn in 0..600_000 {
            // Fills up to two thirds, then to half, then again.
            let (hash, grows) = (random.u64(..150_000), turn / 150_000 % 2 == 0);
            let there = entered[hash as usize];
            assert_eq!(places.find(hash, |run| is(run, hash)).is_some(), there, "turn {turn}");
            if grows || !there {
                let before = places.insert(hash, hash as u32, |run| is(run, hash));
                assert_eq!(before.is_some(), there, "turn {turn}");
                count += usize::from(!there);
                entered[hash as usize] = true;
            } else {
                places.remove(hash, hash as u32);
                count -= 1;
                entered[hash as usize] = false;
            }
            assert!(turn % 10_000 != 0 || places.len() == count, "turn {turn}");
        }
        for hash in (0..150_000).filter(|hash| entered[*hash as usize]) {
            places.remove(hash, hash as u32);
        }
        assert_eq!((places.len(), places.bytes()), (0, Places::new().bytes()));
    }
}
