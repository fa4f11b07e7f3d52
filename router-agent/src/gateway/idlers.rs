//! The idle connections of a thread that still have hyper's state and buffers, so that a following request finds them.
//!
//! They are few: where there is one more, the one that has been idle for longest is told to rest
//! ([`super::connection`]). So a crowd of connections, each with a request now and then, is as small as one that never
//! said anything, and connections with one request after the other are left alone.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, time::Instant};

use super::phases::Phases;
use crate::limits::IDLE_WITH_BUFFERS_MAX;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Idlers {
    /// Since when each is idle, the longest first. Those that are not any more are in here, too.
    queue: RefCell<VecDeque<(Instant, Rc<Phases>)>>,
}

impl Idlers {
    /// A connection has nothing to do from now on.
    pub(super) fn push(&self, since: Instant, phases: Rc<Phases>) {
        let surplus = {
            let mut queue = self.queue.borrow_mut();
            queue.push_back((since, phases));
            (queue.len() > IDLE_WITH_BUFFERS_MAX).then(|| queue.pop_front()).flatten()
        };
        if let Some((since, phases)) = surplus {
            phases.tell_to_rest(since);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;
    use crate::gateway::protocol::Protocol;

    #[test]
    fn who_is_idle_for_longest_is_told_to_rest_and_who_is_busy_again_is_not() {
        let idlers = Rc::<Idlers>::default();
        let connection = || {
            let phases = Phases::new(Protocol::Http1, idlers.clone());
            let serving = phases.serve();
            serving.read_to_its_end();
            drop(serving);
            phases.flushed();
            phases
        };
        let is_told = |phases: &Phases| {
            pin!(phases.told_to_rest()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
        };
        let (idle, busy) = (connection(), connection());
        let _serving = busy.serve();
        let others: Vec<_> = (2..IDLE_WITH_BUFFERS_MAX).map(|_| connection()).collect();
        assert!(!is_told(&idle) && !is_told(&busy) && !others.iter().any(|phases| is_told(phases)));
        let _two_more = (connection(), connection());
        assert!(is_told(&idle) && !is_told(&busy), "the first two have left");
        assert!(!others.iter().any(|phases| is_told(phases)));
    }
}
