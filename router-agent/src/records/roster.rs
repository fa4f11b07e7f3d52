//! Names of workers by their places, as they were when a decision was made.
//!
//! A record may outlive a worker whose place has another one by then, and it must not hold the worker itself: a place is
//! given out again only when nobody does (`fleet/slots.rs`).

use std::{
    ptr,
    sync::{Arc, Weak},
};

use crate::{fleet::Worker, index::WorkerSlot};

/// The names of one list of workers.
#[derive(Debug, Default)]
pub struct Roster(Vec<(WorkerSlot, Box<str>)>);

impl Roster {
    /// The name of the worker that had the place.
    pub fn name(&self, slot: WorkerSlot) -> &str {
        self.0.iter().find(|(of, _)| *of == slot).map_or("", |(_, name)| name)
    }
}

/// The roster of the newest list that one thread has seen, made once per list.
#[derive(Debug, Default)]
pub struct Rosters {
    /// Keeps the list's address its own, and no worker.
    list: Weak<Vec<Arc<Worker>>>,
    roster: Arc<Roster>,
}

impl Rosters {
    /// The roster of this list.
    pub fn of(&mut self, workers: &Arc<Vec<Arc<Worker>>>) -> &Arc<Roster> {
        if !ptr::eq(self.list.as_ptr(), Arc::as_ptr(workers)) {
            self.list = Arc::downgrade(workers);
            let name = |worker: &Arc<Worker>| (worker.slot, worker.name.as_str().into());
            self.roster = Arc::new(Roster(workers.iter().map(name).collect()));
        }
        &self.roster
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roster_outlives_its_workers_and_holds_none() {
        let worker = Worker::for_tests("http://127.0.0.1:1");
        let (slot, name) = (worker.slot, worker.name.clone());
        let mut rosters = Rosters::default();
        let list = Arc::new(vec![worker.clone()]);
        let roster = rosters.of(&list).clone();
        assert!(Arc::ptr_eq(rosters.of(&list), &roster), "made once");
        drop(list);
        assert_eq!(Arc::strong_count(&worker), 1);
        assert_eq!((roster.name(slot), roster.name(WorkerSlot(9))), (name.as_str(), ""));
        assert!(!Arc::ptr_eq(rosters.of(&Arc::new(Vec::new())), &roster), "another list, another roster");
    }
}
