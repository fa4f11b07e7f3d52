//! Requests that are cut off because their worker was dismissed before they ended.
//!
//! Each data thread lists its own requests in flight. When a worker is dismissed, the thread wakes those that are on it:
//! one that has no response head yet goes to another worker as after any failure, one whose body is under way ends as if the
//! worker had broken off.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    ops::Deref,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use crate::fleet::Worker;

/// The requests in flight of one thread.
#[derive(Default, Clone)]
pub(super) struct Cuts(Rc<Listed>);

#[derive(Default)]
struct Listed {
    next: Cell<u64>,
    requests: RefCell<HashMap<u64, Rc<InFlight>>>,
}

struct InFlight {
    worker: Arc<Worker>,
    waker: RefCell<Option<Waker>>,
}

/// Tells when a request is cut off.
#[derive(Clone)]
pub(super) struct CutOff(Rc<InFlight>);

/// One request in flight, listed for as long as this lives.
pub(super) struct Cut {
    request: CutOff,
    number: u64,
    cuts: Cuts,
}

impl Cuts {
    /// A request is on its way to the worker.
    pub(super) fn list(&self, worker: Arc<Worker>) -> Cut {
        let number = self.0.next.replace(self.0.next.get() + 1);
        let request = Rc::new(InFlight { worker, waker: RefCell::default() });
        self.0.requests.borrow_mut().insert(number, request.clone());
        Cut { request: CutOff(request), number, cuts: self.clone() }
    }

    /// Wakes the requests on workers that have been dismissed.
    pub(super) fn wake(&self) {
        for request in self.0.requests.borrow().values().filter(|request| request.worker.is_cut_off()) {
            if let Some(waker) = request.waker.take() {
                waker.wake();
            }
        }
    }
}

impl CutOff {
    /// Ready once the request is cut off; else the task is woken when it is.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if self.0.worker.is_cut_off() {
            return Poll::Ready(());
        }
        let mut waker = self.0.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Completes when the request is cut off.
    pub(super) async fn cut(&self) {
        poll_fn(|cx| self.poll(cx)).await;
    }
}

impl Deref for Cut {
    type Target = CutOff;

    fn deref(&self) -> &CutOff {
        &self.request
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.cuts.0.requests.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, fleet::Fleet, telemetry::Metrics};

    #[test]
    fn a_request_is_woken_when_its_worker_is_dismissed_and_no_other_is() {
        let (fleet, metrics) = (Fleet::default(), Metrics::new().expect("a fresh registry"));
        let worker = |url| {
            let worker = config::worker_config(url, None).expect("a URL");
            fleet.make(&worker, config::Config::default().breaker, &metrics).expect("there is room")
        };
        let (gone, stays) = (worker("http://127.0.0.1:1"), worker("http://127.0.0.1:2"));
        let cuts = Cuts::default();
        let (first, second) = (cuts.list(gone.clone()), cuts.list(stays));
        let cx = Context::from_waker(Waker::noop());
        assert!(first.poll(&cx).is_pending() && second.poll(&cx).is_pending());
        fleet.dismiss(&gone);
        cuts.wake();
        let is_listening = |cut: &Cut| cut.request.0.waker.borrow().is_some();
        assert!(!is_listening(&first) && first.poll(&cx).is_ready());
        assert!(is_listening(&second) && second.poll(&cx).is_pending());
        drop((first, second));
        assert!(cuts.0.requests.borrow().is_empty());
    }
}
