//! Token ids by the hash of what they were made from, bounded in bytes.
//!
//! One cache holds the pieces of texts that were tokenised here and the prompts whose tokens a worker told. What is used
//! again stays (a variant of Clock that keeps new entries on probation, as LRU would not: one long prompt that
//! never comes back does not sweep the conversations out).

use std::sync::Arc;

use quick_cache::{Weighter, sync::Cache};

/// What an entry costs beside its ids: key, counts and places in the cache's tables.
const ENTRY_BYTES: usize = 96;
/// Entries are some hundred ids long: so many is the table made for. It grows where they are shorter.
const USUAL_ENTRY_BYTES: usize = 1024;

/// The cache. Shared by all threads.
#[derive(Debug)]
pub struct TokenCache(Cache<u128, Arc<[u32]>, Bytes>);

#[derive(Debug, Clone)]
struct Bytes;

impl Weighter<u128, Arc<[u32]>> for Bytes {
    fn weight(&self, _: &u128, ids: &Arc<[u32]>) -> u64 {
        (size_of_val::<[u32]>(ids) + ENTRY_BYTES) as u64
    }
}

impl TokenCache {
    /// A cache that holds at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self(Cache::with_weighter(bytes_max / USUAL_ENTRY_BYTES, bytes_max as u64, Bytes))
    }

    /// The ids for this hash.
    pub fn get(&self, key: u128) -> Option<Arc<[u32]>> {
        self.0.get(&key)
    }

    /// Remembers them, unless they are longer than what one of the cache's shards may hold.
    pub fn insert(&self, key: u128, ids: Arc<[u32]>) {
        self.0.insert(key, ids);
    }

    /// What is held now, bytes.
    pub fn bytes(&self) -> u64 {
        self.0.weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_no_more_than_it_may_and_keeps_what_is_used() {
        let cache = TokenCache::new(1 << 20);
        let ids: Arc<[u32]> = vec![7; 256].into();
        let kept = 1_u128 << 100;
        cache.insert(kept, ids.clone());
        for key in 0..10_000_u128 {
            cache.insert(key, ids.clone());
            assert_eq!(cache.get(kept).as_ref(), Some(&ids), "after {key}");
            assert!(cache.bytes() <= 1 << 20);
        }
        assert!(cache.bytes() > 1 << 18, "and it is used");
        cache.insert(3 << 100, vec![7; 1 << 20].into());
        assert!(cache.get(3 << 100).is_none() && cache.bytes() <= 1 << 20, "too long for it");
    }
}
