//! Exemplars: for each bucket of a worker's times to first token, the traced request that fell into it last.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Exemplar {
    pub(super) trace_id: u128,
    pub(super) seconds: f64,
    /// Since the epoch.
    pub(super) at_s: f64,
}

/// See the module. Bounded by workers and buckets.
#[derive(Debug)]
pub struct Exemplars {
    /// Upper bounds of buckets, without the last one's.
    bounds: &'static [f64],
    by_worker: Mutex<HashMap<String, Vec<Option<Exemplar>>>>,
}

impl Exemplars {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, by_worker: Mutex::default() }
    }

    /// A traced request had its first token after so many seconds.
    pub fn note(&self, worker: &str, seconds: f64, trace_id: u128) {
        let at_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        let mut by_worker = self.by_worker.lock();
        if !by_worker.contains_key(worker) {
            by_worker.insert(worker.to_owned(), vec![None; self.bounds.len() + 1]);
        }
        if let Some(place) = by_worker.get_mut(worker).and_then(|buckets| buckets.get_mut(bucket)) {
            *place = Some(Exemplar { trace_id, seconds, at_s });
        }
    }

    /// That of a worker's bucket, counted from 0.
    pub(super) fn of(&self, worker: &str, bucket: usize) -> Option<Exemplar> {
        *self.by_worker.lock().get(worker)?.get(bucket)?
    }

    /// The worker is there no longer.
    pub(super) fn forget(&self, worker: &str) {
        self.by_worker.lock().remove(worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_has_its_last_request() {
        let exemplars = Exemplars::new(&[0.1, 1.0]);
        for (seconds, trace_id) in [(0.1, 1), (0.05, 2), (0.5, 3), (7.0, 4)] {
            exemplars.note("gpu0", seconds, trace_id);
        }
        let ids = [0, 1, 2].map(|bucket| exemplars.of("gpu0", bucket).map(|exemplar| exemplar.trace_id));
        assert_eq!(ids, [Some(2), Some(3), Some(4)]);
        assert_eq!(exemplars.of("gpu1", 0), None);
        exemplars.forget("gpu0");
        assert_eq!(exemplars.of("gpu0", 0), None);
    }
}
