//! Objects of one kind, as the API server has them: listed, and watched from then on.
//!
//! Whatever breaks a watch off (a lost connection, a server that is gone, one that no longer knows what there was: 410 Gone)
//! is followed by a pause and another list, so that no change is missed. What was known holds meanwhile.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use futures_util::{FutureExt, StreamExt, stream::BoxStream};
use kube::{
    Api, Resource, ResourceExt,
    runtime::watcher::{self, Config, Event, watcher},
};
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::error::{Needed, explain};

/// How long the server is asked to keep one watch open.
pub(super) const WATCH_TIMEOUT: Duration = Duration::from_mins(1);
/// Before the first new try; doubled at each.
const PAUSE: Duration = Duration::from_millis(800);
/// As often as it is doubled.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// See the module. `T` is what is kept of an object.
pub(super) struct Watched<'a, K, T, R> {
    api: Api<K>,
    config: Config,
    needed: Needed<'a>,
    /// What is kept of an object.
    read: R,
    events: Option<BoxStream<'static, watcher::Result<Event<K>>>>,
    known: BTreeMap<String, T>,
    /// What the list under way has had so far.
    listed: BTreeMap<String, T>,
    failures: u32,
}

impl<'a, K, T, R> Watched<'a, K, T, R>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    R: FnMut(&K) -> T,
{
    /// Nothing is asked before [`Watched::next`].
    pub(super) fn new(api: Api<K>, config: Config, needed: Needed<'a>, read: R) -> Self {
        let config = config.timeout(WATCH_TIMEOUT.as_secs() as u32);
        let (known, listed) = (BTreeMap::new(), BTreeMap::new());
        Self { api, config, needed, read, events: None, known, listed, failures: 0 }
    }

    /// All objects by namespace and name, when they have changed; or why they are not known any more, or not yet.
    pub(super) async fn next(&mut self) -> Result<&BTreeMap<String, T>, String> {
        loop {
            if self.events.is_none() {
                if self.failures > 0 {
                    sleep(pause(self.failures)).await;
                }
                self.events = Some(watcher(self.api.clone(), self.config.clone()).boxed());
            }
            let Some(events) = &mut self.events else { continue };
            let mut next = events.next().await;
            let mut is_news = false;
            // All that is there already, as one change.
            while let Some(event) = next {
                match event {
                    Ok(event) => is_news |= self.take(event),
                    Err(error) => {
                        self.events = None;
                        self.failures = self.failures.saturating_add(1);
                        if let Some(failure) = explain(&error, &self.needed) {
                            return Err(failure);
                        }
                    }
                }
                next = self.events.as_mut().and_then(|events| events.next().now_or_never().flatten());
            }
            if is_news {
                return Ok(&self.known);
            }
        }
    }

    /// Whether the objects are others now.
    fn take(&mut self, event: Event<K>) -> bool {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => drop(self.listed.insert(key(&object), (self.read)(&object))),
            Event::InitDone => {
                self.known = std::mem::take(&mut self.listed);
                self.failures = 0;
                return true;
            }
            Event::Apply(object) => {
                self.known.insert(key(&object), (self.read)(&object));
                return true;
            }
            Event::Delete(object) => return self.known.remove(&key(&object)).is_some(),
        }
        false
    }
}

/// `NAMESPACE/NAME`.
fn key<K: ResourceExt>(object: &K) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

/// Half of it is at random: gateways that lost the same server do not come back at the same time.
fn pause(failures: u32) -> Duration {
    let pause = PAUSE.saturating_mul(1 << (failures - 1).min(6)).min(PAUSE_MAX);
    pause.mul_f64(f64::midpoint(1.0, fastrand::f64()))
}
