//! What a data thread goes by: the configuration, and what it has made of it. A request takes the snapshot of the moment
//! when it begins, and a reload in the middle of it is for the next one.

use std::{cell::RefCell, ops::Deref, rc::Rc, sync::Arc};

use super::lmcache::Controller;
use crate::{
    config::{Config, Live},
    upstream::{Pool, PoolSettings},
};

/// A configuration with what belongs to it on one thread.
pub(super) struct Snapshot {
    config: Arc<Config>,
    /// Its connections to the LMCache controller, where there is one.
    pub(super) lmcache: Option<Rc<Controller>>,
}

impl Deref for Snapshot {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.config
    }
}

impl Snapshot {
    fn new(config: Arc<Config>, before: Option<&Self>) -> Self {
        let kept = before.filter(|before| {
            before.routing.lmcache == config.routing.lmcache
                && before.routing.settings.policy == config.routing.settings.policy
                && before.breaker == config.breaker
        });
        let lmcache = match kept {
            Some(before) => before.lmcache.clone(),
            None => Controller::new(&config).map(Rc::new),
        };
        Self { config, lmcache }
    }
}

/// The newest snapshot of one thread. The count of its holders is the thread's own: threads share nothing but a look at
/// whether the configuration is another one.
pub(super) struct Snapshots(RefCell<Rc<Snapshot>>);

impl Snapshots {
    pub(super) fn new(live: &Live) -> Self {
        Self(RefCell::new(Rc::new(Snapshot::new(live.get(), None))))
    }

    /// The configuration now; `pool` is told if it is another one.
    pub(super) fn newest(&self, live: &Live, pool: &Pool) -> Rc<Snapshot> {
        let mut newest = self.0.borrow_mut();
        let now = live.load();
        if !Arc::ptr_eq(&now, &newest.config) {
            let next = Snapshot::new(Arc::clone(&now), Some(&newest));
            pool.configure(PoolSettings { connect_timeout: next.timeouts.connect });
            *newest = Rc::new(next);
        }
        newest.clone()
    }
}
