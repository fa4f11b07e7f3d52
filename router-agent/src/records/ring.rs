//! The last records, bounded by their number and by their bytes.
//!
//! A writer holds the lock for one push and one pop, tens of nanoseconds, and frees what it has pushed out afterwards. A
//! reader takes a few records at a time, so that it never holds the lock for longer than a writer by much.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

use super::Record;

/// Records that a reader takes at a time.
const READ_AT_ONCE: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Ring {
    is_on: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    keep: usize,
    bytes_max: usize,
    bytes: usize,
    /// The number of the record behind the last one, all counted that ever were in here.
    next: u64,
    /// The oldest first.
    records: VecDeque<Arc<Record>>,
}

impl Inner {
    /// Takes out the oldest record, if there are too many or too large ones.
    fn surplus(&mut self) -> Option<Arc<Record>> {
        let is_over = self.records.len() > self.keep || self.bytes > self.bytes_max;
        let oldest = if is_over { self.records.pop_front() } else { None }?;
        self.bytes -= oldest.bytes();
        Some(oldest)
    }
}

impl Ring {
    pub(super) fn new(keep: usize, bytes_max: usize) -> Self {
        let inner = Inner { keep, bytes_max, bytes: 0, next: 0, records: VecDeque::new() };
        Self { is_on: AtomicBool::new(keep > 0), inner: Mutex::new(inner) }
    }

    /// Whether it keeps anything.
    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Relaxed)
    }

    pub(super) fn resize(&self, keep: usize, bytes_max: usize) {
        self.is_on.store(keep > 0, Relaxed);
        {
            let mut inner = self.inner.lock();
            (inner.keep, inner.bytes_max) = (keep, bytes_max);
        }
        self.trim();
    }

    pub(super) fn push(&self, record: Arc<Record>) {
        if !self.is_on() {
            return;
        }
        let (surplus, is_over) = {
            let mut inner = self.inner.lock();
            inner.bytes += record.bytes();
            inner.next += 1;
            inner.records.push_back(record);
            let surplus = inner.surplus();
            (surplus, inner.bytes > inner.bytes_max)
        };
        drop(surplus);
        if is_over {
            self.trim();
        }
    }

    /// Frees one record after the other, none of them under the lock.
    fn trim(&self) {
        loop {
            let surplus = self.inner.lock().surplus();
            if surplus.is_none() {
                return;
            }
        }
    }

    /// The newest `limit` of those that are `wanted`, newest first.
    pub(super) fn newest(&self, limit: usize, wanted: impl Fn(&Record) -> bool) -> Vec<Arc<Record>> {
        let mut found = Vec::new();
        let mut before = u64::MAX;
        let mut some = Vec::with_capacity(READ_AT_ONCE);
        while found.len() < limit {
            {
                let inner = self.inner.lock();
                let oldest = inner.next - inner.records.len() as u64;
                let end = before.min(inner.next).max(oldest);
                before = end.saturating_sub(READ_AT_ONCE as u64).max(oldest);
                let range = (before - oldest) as usize..(end - oldest) as usize;
                some.extend(inner.records.range(range).cloned());
            }
            if some.is_empty() {
                break;
            }
            found.extend(some.drain(..).rev().filter(|record| wanted(record)));
        }
        found.truncate(limit);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::record::tests::record;

    fn ids(records: &[Arc<Record>]) -> Vec<&str> {
        records.iter().map(|record| record.request_id()).collect()
    }

    #[test]
    fn the_newest_come_first_and_the_oldest_go_first() {
        let ring = Ring::new(200, usize::MAX);
        (0..500).for_each(|number| ring.push(record(&number.to_string(), 2)));
        let all = ring.newest(usize::MAX, |_| true);
        assert_eq!(all.len(), 200);
        assert_eq!((all[0].request_id(), all[199].request_id()), ("499", "300"));
        assert_eq!(ids(&ring.newest(3, |record| record.request_id().ends_with('7'))), ["497", "487", "477"]);
        assert_eq!(ids(&ring.newest(9, |record| record.request_id() == "299")), [""; 0]);
        ring.resize(2, usize::MAX);
        assert_eq!(ids(&ring.newest(9, |_| true)), ["499", "498"]);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let one = record("0", 4).bytes();
        let ring = Ring::new(100, one * 3);
        (0..10).for_each(|number| ring.push(record(&number.to_string(), 4)));
        assert_eq!(ids(&ring.newest(9, |_| true)), ["9", "8", "7"]);
        ring.push(record("x", 8));
        assert!(ring.inner.lock().bytes <= one * 3);
        assert_eq!(ring.newest(9, |_| true)[0].request_id(), "x");
    }

    #[test]
    fn a_ring_of_nothing_keeps_nothing() {
        let ring = Ring::new(0, usize::MAX);
        ring.push(record("0", 1));
        assert!(!ring.is_on() && ring.newest(9, |_| true).is_empty());
    }
}
