//! Free places on workers, as one look finds them.

use std::{collections::HashMap, sync::Arc, time::Instant};

use super::Waiter;
use crate::{
    fleet::Worker,
    gateway::eligible::{Bounds, Stage, Wanted},
    index::WorkerSlot,
};

/// Remembers what it found by what was wanted: of a thousand who wait, most want the same.
pub(super) struct Places<'a> {
    workers: &'a [Arc<Worker>],
    bounds: Bounds,
    now: Instant,
    /// Whether anybody at all could go, by whether the bounds hold for it. Mostly not: then nobody is looked at closer.
    any: [bool; 2],
    known: HashMap<Want, Option<Arc<Worker>>>,
}

/// A stage, a model, a worker, and whether the bounds hold.
type Want = (Stage, Option<u64>, Option<WorkerSlot>, bool);

impl<'a> Places<'a> {
    pub(super) fn new(workers: &'a [Arc<Worker>], bounds: Bounds, now: Instant) -> Self {
        let routable = |worker: &&Arc<Worker>| worker.is_routable(now);
        let any = [
            workers.iter().any(|worker| routable(&worker)),
            workers.iter().filter(routable).any(|worker| bounds.room(worker, None)),
        ];
        Self { workers, bounds, now, any, known: HashMap::new() }
    }

    /// Whether there is a place for one who waits.
    pub(super) fn has(&mut self, waiter: &Waiter) -> bool {
        self.any[usize::from(waiter.is_bounded)] && self.find(waiter).is_some()
    }

    /// The least loaded worker that has a place for it.
    pub(super) fn find(&mut self, waiter: &Waiter) -> Option<Arc<Worker>> {
        let Self { workers, bounds, now, known, .. } = self;
        let find = || {
            let bounds = if waiter.is_bounded { *bounds } else { Bounds::default() };
            let Waiter { stage, model, only, ref among, ref tried, .. } = *waiter;
            let among = among.as_deref();
            let wanted = Wanted { stage, prefilled_by: None, model, only, among, tried, bounds };
            wanted.with_room(workers, *now, None).min_by_key(|worker| worker.load.taken()).cloned()
        };
        if waiter.tried.is_empty() && waiter.among.is_none() {
            known
                .entry((waiter.stage, waiter.model, waiter.only, waiter.is_bounded))
                .or_insert_with(find)
                .clone()
        } else {
            find()
        }
    }
}
