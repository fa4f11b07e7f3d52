//! The response cache: an answer that was given once is given again to whoever asks for exactly the same.
//!
//! A request is known by its canonical bytes ([`crate::prompt::canonical`], behind its tenant and its path): by their
//! 128-bit hash for looking up, and by themselves for being the same. So no collision gives anybody another one's answer.
//! Only whole answers with status 200 are kept, up to a number of bytes over all, the most useful ones by quick_cache's
//! policy (a variant of S3-FIFO and Clock-Pro), for no longer than a time.
//!
//! Requests that are the same at the same time share one **flight**: the first one asks a worker, the others get what it
//! gets, from the beginning and as it comes ([`flight`]). A flight is driven by nobody's connection: whoever leaves, it
//! goes on for those who are left, and ends with the last. One that fails before it has an answer to share lets those who
//! wait for it go on by themselves.

mod entry;
mod flight;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use quick_cache::{DefaultHashBuilder, OptionsBuilder, sync::Cache};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use self::entry::{Evictions, Weight};
pub use self::{
    entry::Entry,
    flight::{Driver, Head, Interrupted, Reader},
};
use crate::{limits::CACHE_SHARDS, telemetry::CacheMetrics};

/// What a request asks for.
#[derive(Debug, Clone)]
pub struct Key {
    /// See the module.
    pub canonical: Arc<[u8]>,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// The model that it names for workers.
    pub model: Option<Box<str>>,
}

/// How much the cache holds and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of all entries, and as many again of flights that may become entries.
    pub bytes_max: usize,
    /// Bytes of one entry: its request and its answer.
    pub entry_bytes_max: usize,
    /// An older entry is none.
    pub ttl: Duration,
}

/// What there is for a request.
pub enum Found {
    /// The answer.
    Hit(Arc<Entry>),
    /// Somebody asks for it at this moment.
    Follow(Reader),
    /// Nothing: this request asks, and drives.
    Lead(Driver, Reader),
}

/// Which entries are meant; of what is not said, all.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// Of this tenant.
    pub tenant: Option<String>,
    /// Of this model.
    pub model: Option<String>,
}

/// The cache. Shared by all threads.
pub struct ResponseCache {
    entries: Cache<u128, Arc<Entry>, Weight, DefaultHashBuilder, Evictions>,
    flights: Mutex<HashMap<u128, Arc<flight::Flight>>>,
    /// Bytes that flights hold.
    in_flight: Arc<AtomicUsize>,
    /// Counts clearings: what began before one is not kept.
    epoch: AtomicU64,
    /// Nobody outside can say which requests have the same hash.
    seed: u64,
    metrics: Arc<CacheMetrics>,
}

impl ResponseCache {
    /// An empty one. It takes memory as it is used.
    pub fn new(bytes_max: usize, metrics: Arc<CacheMetrics>) -> Self {
        let options = OptionsBuilder::new()
            .shards(CACHE_SHARDS)
            .estimated_items_capacity(1024)
            .weight_capacity(bytes_max as u64)
            .build()
            .expect("everything that it needs is given");
        let evictions = Evictions(metrics.evicted_for_room.clone());
        Self {
            entries: Cache::with_options(options, Weight, DefaultHashBuilder::default(), evictions),
            flights: Mutex::default(),
            in_flight: Arc::default(),
            epoch: AtomicU64::new(0),
            seed: fastrand::u64(..),
            metrics,
        }
    }

    /// Holds at most so many bytes from now on.
    pub fn resize(&self, bytes_max: usize) {
        if self.entries.capacity() != bytes_max as u64 {
            self.entries.set_capacity(bytes_max as u64);
        }
    }

    /// What there is for a request. `anew`: whatever there is, it is asked again.
    pub fn seek(self: &Arc<Self>, key: Key, bounds: Bounds, anew: bool) -> Found {
        let hash = xxh3_128_with_seed(&key.canonical, self.seed);
        if !anew && let Some(entry) = self.get(hash, &key, bounds.ttl) {
            return Found::Hit(entry);
        }
        let mut flights = self.flights.lock();
        if !anew {
            // A flight that has ended since is an entry now.
            if let Some(entry) = self.get(hash, &key, bounds.ttl) {
                return Found::Hit(entry);
            }
            if let Some(reader) = flights.get(&hash).and_then(|flight| flight.join(&key)) {
                return Found::Follow(reader);
            }
        }
        let (driver, reader) = flight::begin(self.clone(), hash, key, bounds, self.epoch.load(Relaxed));
        flights.insert(hash, driver.flight().clone());
        Found::Lead(driver, reader)
    }

    fn get(&self, hash: u128, key: &Key, ttl: Duration) -> Option<Arc<Entry>> {
        let entry = self.entries.get(&hash).filter(|entry| entry.canonical == key.canonical)?;
        if entry.age() < ttl {
            return Some(entry);
        }
        if self.entries.remove_if(&hash, |there| Arc::ptr_eq(there, &entry)).is_some() {
            self.metrics.expired.inc();
        }
        None
    }

    /// A flight is over; `entry`, if its answer is to be kept.
    fn landed(&self, flight: &Arc<flight::Flight>, hash: u128, epoch: u64, entry: Option<Entry>) {
        if let Some(entry) = entry.filter(|_| self.epoch.load(Relaxed) == epoch) {
            self.entries.insert(hash, Arc::new(entry));
        }
        let mut flights = self.flights.lock();
        if flights.get(&hash).is_some_and(|there| Arc::ptr_eq(there, flight)) {
            flights.remove(&hash);
        }
    }

    /// Drops the entries that are meant; says how many. What is in flight is not kept, whatever it is of.
    pub fn clear(&self, which: &Which) -> u64 {
        self.epoch.fetch_add(1, Relaxed);
        self.flights.lock().clear();
        let cleared = AtomicU64::new(0);
        self.entries.retain(|_, entry| {
            let is_meant = entry.is(which);
            cleared.fetch_add(u64::from(is_meant), Relaxed);
            !is_meant
        });
        let cleared = cleared.into_inner();
        self.metrics.cleared.inc_by(cleared);
        cleared
    }

    /// Entries, and their bytes.
    pub fn size(&self) -> (usize, u64) {
        (self.entries.len(), self.entries.weight())
    }

    /// Bytes that flights hold.
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight.load(Relaxed)
    }
}

#[cfg(test)]
mod tests;
