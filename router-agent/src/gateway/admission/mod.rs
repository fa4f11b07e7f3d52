//! Admission: between "parsed, tokens known" and "choose".
//!
//! A request goes on at once where nobody waits and a worker has room for it (one look at an atomic). Otherwise it waits in
//! a queue that all data threads share under one short lock ([`queue`]): fair between tenants by prompt tokens, by
//! priority, bounded in length and in time. A place that becomes free wakes one who waits, no more: the place is reserved
//! for it ([`Reservation`]) until it has chosen. What frees places: the end of a request, its first byte (prefill is
//! over), one who leaves the queue with a place in its hands; and for what happens without an event (a breaker whose time
//! is over, a worker that is well again) the data threads look every [`LOOK_EVERY`] while anybody waits.
//!
//! No wake-up is lost: who begins to wait looks for a free place *after* it can be seen waiting, and whoever frees one
//! looks for those who wait *after* it is free, with a full fence between the two on both sides.

mod drain;
mod lanes;
mod places;
mod queue;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering, fence},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

pub(super) use self::queue::Bid;
use self::{
    drain::Drain,
    lanes::Waiting,
    places::Places,
    queue::{FairQueue, Pushed},
};
use super::{
    Shared,
    choose::Choice,
    eligible::{Bounds, Stage, Wanted},
    error::{GatewayError, Overload},
};
use crate::{fleet::Reservation, index::WorkerSlot};

/// Pause between two looks for places that became free without an event.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Everybody who waits, and who has a place and has not chosen yet.
pub(super) struct Admission {
    /// How many that are.
    busy: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    queue: FairQueue<Waiter>,
    drain: Drain,
}

struct Waiter {
    bid: Bid,
    stage: Stage,
    model: Option<u64>,
    only: Option<WorkerSlot>,
    among: Option<Box<[WorkerSlot]>>,
    tried: Box<[WorkerSlot]>,
    is_bounded: bool,
    turn: oneshot::Sender<Turn>,
}

/// What one who waits is told.
enum Turn {
    /// There is a place.
    Go(Grant),
    /// Somebody else has a better right to wait.
    PushedOut,
}

/// A place on a worker, until whoever has it has chosen. Dropped, others may have it.
struct Grant {
    shared: Arc<Shared>,
    reservation: Option<Reservation>,
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.reservation = None;
        self.shared.admission.freed(&self.shared);
    }
}

impl Default for Admission {
    fn default() -> Self {
        let state = State { queue: FairQueue::default(), drain: Drain::new(Instant::now()) };
        Self { busy: AtomicUsize::new(0), state: Mutex::new(state) }
    }
}

impl Admission {
    /// A place may have become free.
    pub(super) fn freed(&self, shared: &Arc<Shared>) {
        fence(Ordering::SeqCst);
        if self.busy.load(Ordering::Relaxed) > 0 {
            self.dispatch(shared);
        }
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// Prompt tokens that the queue lets through per second; 0 while that is not known.
    pub(super) fn drain_rate(&self) -> f64 {
        self.state.lock().drain.rate(Instant::now()).unwrap_or(0.0)
    }

    /// Gives every free place to whoever is next for it.
    fn dispatch(&self, shared: &Arc<Shared>) {
        let workers = shared.fleet.workers().clone();
        let bounds = Bounds::of(&shared.config().limits);
        let mut turns = Vec::new();
        {
            let mut state = self.state.lock();
            let mut places = Places::new(&workers, bounds, Instant::now());
            loop {
                let next = state.queue.take(|waiter| places.has(waiter), |waiter| waiter.bid.tenant.clone());
                let Some(Waiting { item: waiter, cost, .. }) = next else { break };
                let reservation = places.find(&waiter).map(|worker| Reservation::new(worker, cost));
                places = Places::new(&workers, bounds, Instant::now());
                turns.push((waiter.turn, reservation));
            }
        }
        // Not under the lock: a place that nobody takes any more comes back here.
        for (turn, reservation) in turns {
            let _ = turn.send(Turn::Go(Grant { shared: shared.clone(), reservation }));
        }
    }

    /// Lets somebody wait, if it may.
    fn enter(
        &self,
        shared: &Shared,
        request: &Request<'_>,
        turn: oneshot::Sender<Turn>,
    ) -> Result<u64, GatewayError> {
        let Request { bid, wanted, until, .. } = request;
        let now = Instant::now();
        let is_served = wanted.is_served(&shared.fleet.workers(), now);
        let mut state = self.state.lock();
        let ahead = state.queue.ahead_of(bid);
        let expected = state.drain.time_for(now, ahead);
        let refuse = |overload| Err(request.refusal(shared, overload, expected));
        // A worker that is awaited may come at any time; the pace of those that are there is known.
        if is_served && expected.is_some_and(|expected| expected > until.saturating_duration_since(now)) {
            return refuse(Overload::TooLate);
        }
        let Some(Pushed { id, pushed_out }) = state.queue.push(bid, now, request.limit, request.waiter(turn))
        else {
            return refuse(Overload::QueueFull);
        };
        state.drain.waits(now, true);
        drop(state);
        if let Some(other) = pushed_out {
            let _ = other.turn.send(Turn::PushedOut);
        }
        Ok(id)
    }

    /// Lets somebody wait on whose place was gone when it came, in front of those who came later.
    fn enter_again(&self, request: &Request<'_>, id: u64, since: Instant, turn: oneshot::Sender<Turn>) {
        let item = request.waiter(turn);
        let waiting = Waiting { id, cost: request.bid.cost, since, item };
        self.state.lock().queue.put_back(&request.bid, waiting);
    }
}

/// A request that wants a worker.
pub(super) struct Request<'a> {
    pub(super) bid: Bid,
    pub(super) wanted: Wanted<'a>,
    /// Whether the bounds of workers hold for it.
    pub(super) is_bounded: bool,
    /// When it has waited for long enough.
    pub(super) until: Instant,
    /// Of the queue, requests.
    pub(super) limit: usize,
}

impl Request<'_> {
    fn waiter(&self, turn: oneshot::Sender<Turn>) -> Waiter {
        Waiter {
            bid: self.bid.clone(),
            stage: self.wanted.stage,
            model: self.wanted.model,
            only: self.wanted.only,
            among: self.wanted.among.map(Box::from),
            tried: self.wanted.tried.into(),
            is_bounded: self.is_bounded,
            turn,
        }
    }

    /// What the client is told: when to come back where workers have too much to do, and that there are none where there
    /// are none.
    fn refusal(&self, shared: &Shared, overload: Overload, expected: Option<Duration>) -> GatewayError {
        if self.wanted.is_served(&shared.fleet.workers(), Instant::now()) {
            shared.metrics.queue.refused(overload.label());
            GatewayError::Overloaded { overload, retry_after: expected.unwrap_or(Duration::ZERO) }
        } else {
            shared.metrics.queue.refused("no_worker");
            GatewayError::NoWorker
        }
    }
}

/// Chooses a worker by `choose`, at once or when it is this request's turn. Dropped, it leaves the queue.
pub(super) async fn admit(
    shared: &Arc<Shared>,
    request: Request<'_>,
    mut choose: impl FnMut(Option<&Reservation>) -> Option<Choice>,
) -> Result<Choice, GatewayError> {
    let admission = &shared.admission;
    if admission.busy.load(Ordering::Relaxed) == 0
        && let Some(choice) = choose(None)
    {
        return Ok(choice);
    }
    let began = Instant::now();
    let _busy = Busy::new(shared);
    let mut place: Option<Place<'_>> = None;
    loop {
        let (turn, my_turn) = oneshot::channel();
        if let Some(place) = &place {
            admission.enter_again(&request, place.id, began, turn);
        } else {
            let id = admission.enter(shared, &request, turn)?;
            place = Some(Place { shared, bid: &request.bid, id });
        }
        admission.freed(shared);
        let grant = match tokio::time::timeout_at(request.until.into(), my_turn).await {
            Ok(Ok(Turn::Go(grant))) => grant,
            Ok(Ok(Turn::PushedOut) | Err(_)) => {
                return Err(request.refusal(shared, Overload::PushedOut, shared.expected(&request.bid)));
            }
            Err(_) => return Err(request.refusal(shared, Overload::Waited, shared.expected(&request.bid))),
        };
        // The one whose turn it was may find that the place is gone: its worker has failed since. Then it waits again.
        if let Some(choice) = choose(grant.reservation.as_ref()) {
            let now = Instant::now();
            admission.state.lock().drain.let_through(now, request.bid.cost);
            shared.metrics.queue.wait.observe(now.duration_since(began).as_secs_f64());
            return Ok(choice);
        }
    }
}

impl Shared {
    /// How long a request with this bid would wait, if it came now.
    fn expected(&self, bid: &Bid) -> Option<Duration> {
        let mut state = self.admission.state.lock();
        let ahead = state.queue.ahead_of(bid);
        state.drain.time_for(Instant::now(), ahead)
    }
}

/// While it lives, whoever comes waits behind.
struct Busy<'a>(&'a Arc<Shared>);

impl<'a> Busy<'a> {
    fn new(shared: &'a Arc<Shared>) -> Self {
        shared.admission.busy.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let admission = &self.0.admission;
        if admission.busy.fetch_sub(1, Ordering::SeqCst) == 1 {
            admission.state.lock().drain.waits(Instant::now(), false);
        }
    }
}

/// A place in the queue; dropped, it is given up.
struct Place<'a> {
    shared: &'a Arc<Shared>,
    bid: &'a Bid,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.admission.state.lock().queue.remove(self.bid, self.id);
    }
}
