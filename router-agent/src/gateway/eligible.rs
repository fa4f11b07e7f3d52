//! Which workers may get a request: those that are well, do this part of it, serve its model, were not tried, and have
//! room for it.

use std::{sync::Arc, time::Instant};

use crate::{
    config::{Limits, WorkerRole},
    fleet::{Reservation, Worker},
    index::WorkerSlot,
};

/// Up to what a worker gets requests.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bounds {
    /// Requests at once.
    concurrency: Option<u32>,
    /// Prompt tokens that wait for its prefill.
    queued_tokens: Option<u64>,
}

impl Bounds {
    /// For what makes a worker work; everything else has no bounds.
    pub(super) fn of(limits: &Limits) -> Self {
        Self { concurrency: limits.worker_concurrency, queued_tokens: limits.worker_queued_tokens }
    }

    /// Whether the worker has room for one more. The last that is let in may take its tokens above the bound: it would
    /// never be let in otherwise. What is reserved for `own` counts for nothing.
    pub(super) fn room(&self, worker: &Worker, own: Option<&Reservation>) -> bool {
        let (mut requests, mut tokens) = worker.load.taken();
        if let Some((own_requests, own_tokens)) = own.and_then(|own| own.on(worker)) {
            requests = requests.saturating_sub(own_requests);
            tokens = tokens.saturating_sub(own_tokens);
        }
        self.concurrency.is_none_or(|bound| requests < bound)
            && self.queued_tokens.is_none_or(|bound| tokens < bound)
    }
}

/// What of a request a worker is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) enum Stage {
    /// All of it.
    #[default]
    Whole,
    /// Its prompt, for another worker ([`super::disaggregation`]).
    Prefill,
    /// Its answer: the prompt was prefilled elsewhere.
    Decode,
}

impl Stage {
    /// The name in records and on the admin port.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }

    /// Whether a worker of this role is there for it.
    pub(super) fn is_for(self, role: WorkerRole) -> bool {
        (self == Self::Prefill) == (role == WorkerRole::Prefill)
    }
}

/// What a request wants of a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) stage: Stage,
    /// Who has prefilled it, where that was somebody else.
    pub(super) prefilled_by: Option<WorkerSlot>,
    /// [`crate::fleet::model_key`] of the model that it names.
    pub(super) model: Option<u64>,
    /// The one that it asks for, if it asks for one.
    pub(super) only: Option<WorkerSlot>,
    /// Those that it may go to; none: all.
    pub(super) among: Option<&'a [WorkerSlot]>,
    /// Workers that have failed it.
    pub(super) tried: &'a [WorkerSlot],
    pub(super) bounds: Bounds,
}

impl Wanted<'_> {
    /// Whether the worker could take it, room or not. A worker for prefill stages takes whole requests only where nobody
    /// else is there ([`Wanted::is_desperate`]), or where it is asked for.
    pub(super) fn suits(&self, worker: &Worker, now: Instant) -> bool {
        (self.stage.is_for(worker.role()) || self.only.is_some()) && self.could(worker, now)
    }

    /// As [`Wanted::suits`], whatever its role.
    fn could(&self, worker: &Worker, now: Instant) -> bool {
        worker.is_routable(now)
            && worker.serves(self.model)
            && self.only.is_none_or(|only| only == worker.slot)
            && self.among.is_none_or(|among| among.contains(&worker.slot))
            && !self.tried.contains(&worker.slot)
    }

    /// Whether nobody is there whose role it would be: a worker of another role serves it better than none.
    fn is_desperate(&self, workers: &[Arc<Worker>], now: Instant) -> bool {
        self.stage == Stage::Whole && !workers.iter().any(|worker| self.suits(worker, now))
    }

    /// Whether anybody could, room or not.
    pub(super) fn is_served(&self, workers: &[Arc<Worker>], now: Instant) -> bool {
        workers.iter().any(|worker| self.suits(worker, now))
            || (self.stage == Stage::Whole && workers.iter().any(|worker| self.could(worker, now)))
    }

    /// Those that can take it now. Who is left out, only where everybody else is out: better than nobody.
    pub(super) fn with_room<'w>(
        &self,
        workers: &'w [Arc<Worker>],
        now: Instant,
        own: Option<&Reservation>,
    ) -> impl Iterator<Item = &'w Arc<Worker>> {
        let any_role = self.is_desperate(workers, now);
        let suits = move |worker: &Worker| self.suits(worker, now) || (any_role && self.could(worker, now));
        let in_good_standing = |worker: &Arc<Worker>| !worker.is_left_out(now) && suits(worker);
        let leave_out = workers.iter().any(in_good_standing);
        workers.iter().filter(move |worker| {
            suits(worker) && !(leave_out && worker.is_left_out(now)) && self.bounds.room(worker, own)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Flight;

    fn wanted(concurrency: Option<u32>, queued_tokens: Option<u64>) -> Wanted<'static> {
        Wanted {
            stage: Stage::Whole,
            prefilled_by: None,
            model: None,
            only: None,
            among: None,
            tried: &[],
            bounds: Bounds { concurrency, queued_tokens },
        }
    }

    fn has_room(wanted: Wanted<'_>, worker: &Arc<Worker>, own: Option<&Reservation>) -> bool {
        wanted.with_room(std::slice::from_ref(worker), Instant::now(), own).next().is_some()
    }

    #[test]
    fn a_worker_has_room_below_its_bounds_and_reservations_count() {
        let worker = Worker::for_tests("http://127.0.0.1:1");
        let _flight = Flight::begin(worker.clone(), 100);
        assert!(has_room(wanted(None, None), &worker, None));
        assert!(has_room(wanted(Some(2), Some(101)), &worker, None));
        assert!(!has_room(wanted(Some(1), None), &worker, None));
        assert!(!has_room(wanted(None, Some(100)), &worker, None));
        let reservation = Reservation::new(worker.clone(), 50);
        assert!(!has_room(wanted(Some(2), None), &worker, None), "the place is somebody's");
        assert!(!has_room(wanted(None, Some(150)), &worker, None));
        assert!(has_room(wanted(Some(2), Some(150)), &worker, Some(&reservation)), "and that is who asks");
        drop(reservation);
        assert!(has_room(wanted(Some(2), Some(101)), &worker, None));
    }
}
