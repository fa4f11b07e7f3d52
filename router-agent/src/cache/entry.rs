//! An answer that is kept.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use prometheus::IntCounter;
use quick_cache::{Lifecycle, Weighter};

use super::{Key, Which};

/// What an entry costs beside its bytes: places in tables, counts, and a few header fields.
const ENTRY_BYTES: usize = 1024;

/// A whole answer with status 200, and what it is the answer to.
#[derive(Debug)]
pub struct Entry {
    pub(super) canonical: Arc<[u8]>,
    tenant: Arc<str>,
    model: Option<Box<str>>,
    /// Of the answer, without what was said of its way.
    pub headers: HeaderMap,
    /// Its body, whole.
    pub body: Bytes,
    stored: Instant,
}

impl Entry {
    pub(super) fn new(key: &Key, headers: &HeaderMap, body: Bytes) -> Self {
        let lasting = headers.iter().filter(|(name, _)| !is_of_one_answer(name));
        let headers = lasting.map(|(name, value)| (name.clone(), value.clone())).collect();
        let Key { canonical, tenant, model } = key.clone();
        Self { canonical, tenant, model, headers, body, stored: Instant::now() }
    }

    /// How long it has been here.
    pub fn age(&self) -> Duration {
        self.stored.elapsed()
    }

    pub(super) fn is(&self, which: &Which) -> bool {
        which.tenant.as_deref().is_none_or(|tenant| tenant == &*self.tenant)
            && which.model.as_deref().is_none_or(|model| self.model.as_deref() == Some(model))
    }
}

/// Fields that are about the way of one answer, or for one client.
fn is_of_one_answer(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-warmpath-") || *name == header::DATE || *name == header::SET_COOKIE
}

#[derive(Debug, Clone)]
pub(super) struct Weight;

impl Weighter<u128, Arc<Entry>> for Weight {
    fn weight(&self, _: &u128, entry: &Arc<Entry>) -> u64 {
        (entry.canonical.len() + entry.body.len() + ENTRY_BYTES) as u64
    }
}

/// Counts entries that had to go for others.
#[derive(Debug, Clone)]
pub(super) struct Evictions(pub(super) IntCounter);

impl Lifecycle<u128, Arc<Entry>> for Evictions {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _: u128, _: Arc<Entry>) {
        self.0.inc();
    }
}
