//! The places that workers have in the index and in the kernel's maps.
//!
//! A place is given to another worker only when nobody can mean the one before by it: no request, follower, monitor or
//! snapshot of the fleet holds that worker, and a while has passed since ([`REST`]: what is sent on by place, such as a
//! prediction's end or a flow in the kernel, is done within a second). The longest free place is given out first, so that
//! what a map or a log says of a place stays true for as long as can be.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::Worker;
use crate::{index::WorkerSlot, limits::WORKERS_MAX};

/// From the last reference to a worker to its place's next use.
pub(super) const REST: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Places from here on have never been used.
    unused: u16,
    /// The longest free first.
    free: VecDeque<WorkerSlot>,
    resting: Vec<Resting>,
}

#[derive(Debug)]
struct Resting {
    worker: Arc<Worker>,
    /// Since when nobody else holds it.
    alone_since: Option<Instant>,
}

impl Slots {
    /// A place; none while all are taken or rest.
    pub(super) fn take(&mut self) -> Option<WorkerSlot> {
        if usize::from(self.unused) < WORKERS_MAX {
            self.unused += 1;
            return Some(WorkerSlot(self.unused - 1));
        }
        self.free.pop_front()
    }

    /// How many could be taken.
    pub(super) fn available(&self) -> usize {
        WORKERS_MAX - usize::from(self.unused) + self.free.len()
    }

    /// The worker is no longer in the fleet.
    pub(super) fn retire(&mut self, worker: Arc<Worker>) {
        self.resting.push(Resting { worker, alone_since: None });
    }

    /// Whether any place rests.
    pub(super) fn any_rests(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Takes out the places that have rested: they are to be emptied, and then given back by [`Slots::put_back`].
    pub(super) fn rested(&mut self, now: Instant) -> Vec<WorkerSlot> {
        let mut rested = Vec::new();
        self.resting.retain_mut(|Resting { worker, alone_since }| {
            if Arc::strong_count(worker) > 1 {
                *alone_since = None;
                return true;
            }
            let since = *alone_since.get_or_insert(now);
            let is_over = now.duration_since(since) >= REST;
            if is_over {
                rested.push(worker.slot);
            }
            !is_over
        });
        rested
    }

    /// The place may have another worker.
    pub(super) fn put_back(&mut self, slot: WorkerSlot) {
        self.free.push_back(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_used_again_only_after_its_worker_is_gone_for_a_while() {
        let mut slots = Slots::default();
        let first = slots.take().expect("one of many");
        let worker = Worker::for_tests("http://127.0.0.1:1");
        assert_eq!(worker.slot, first);
        let request = worker.clone();
        let began = Instant::now();
        slots.retire(worker);
        assert!(slots.rested(began).is_empty(), "a request holds the worker");
        assert!(slots.rested(began + 10 * REST).is_empty());
        drop(request);
        let alone = began + 20 * REST;
        assert!(slots.rested(alone).is_empty(), "it rests");
        assert!(slots.rested(alone + REST / 2).is_empty());
        assert_eq!(slots.rested(alone + REST), [first]);
        assert!(!slots.any_rests());
    }

    #[test]
    fn unused_places_come_first_and_then_the_longest_free() {
        let mut slots = Slots::default();
        slots.put_back(WorkerSlot(7));
        slots.put_back(WorkerSlot(3));
        let all: Vec<u16> = std::iter::from_fn(|| slots.take()).map(|slot| slot.0).collect();
        assert_eq!(all.len(), WORKERS_MAX + 2);
        assert!(all[..WORKERS_MAX].is_sorted());
        assert_eq!(all[WORKERS_MAX..], [7, 3]);
        assert_eq!(slots.available(), 0);
    }
}
