//! Who is to be in the fleet: the workers of the configuration, and those that were discovered.
//!
//! Of two that name the same address, the configuration's is the one that counts; a discovered worker whose name is taken
//! goes by its address. A change of one list is applied as the change of the whole ([`Members::apply`]), so that what
//! operators did by the admin API stays.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, watch},
    time::{sleep, timeout},
};

use super::{MemberError, Members};
use crate::{
    config::WorkerConfig,
    discovery::{Discovered, Member},
    gateway::Shared,
    limits::DISCOVERY_FIRST_ANSWERS,
};

/// How soon it is tried again to add workers that there was no room for.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// See the module.
pub struct Roster {
    shared: Arc<Shared>,
    members: Arc<Members>,
    said: Mutex<Said>,
}

/// What was said last.
#[derive(Debug, Default)]
struct Said {
    configured: Vec<WorkerConfig>,
    discovered: Vec<Member>,
    /// Both together, as far as there was room.
    listed: Vec<WorkerConfig>,
}

impl Roster {
    /// With the workers of the configuration, which are in the fleet.
    pub fn new(shared: Arc<Shared>, members: Arc<Members>, configured: &[WorkerConfig]) -> Self {
        let (configured, listed) = (configured.to_vec(), configured.to_vec());
        let said = Mutex::new(Said { configured, discovered: Vec::new(), listed });
        Self { shared, members, said }
    }

    /// Whether these workers of a configuration find room.
    pub async fn check(&self, configured: &[WorkerConfig]) -> Result<(), MemberError> {
        let said = self.said.lock().await;
        self.members.check(&said.listed, configured)
    }

    /// The configuration says so from now on.
    pub async fn configure(&self, configured: &[WorkerConfig]) {
        let mut said = self.said.lock().await;
        said.configured = configured.to_vec();
        self.list(&mut said, None).await;
    }

    /// Waits for the first answer of every source, within bounds, and follows them from then on.
    pub async fn begin(&self, discovered: &mut watch::Receiver<Discovered>) {
        let all = discovered.wait_for(|discovered| discovered.is_complete);
        let is_late = timeout(DISCOVERY_FIRST_ANSWERS, all).await.is_err();
        if is_late {
            tracing::warn!(
                "discovery: not every source has answered yet: their workers are added when they do"
            );
        }
        self.discover(discovered).await;
    }

    /// Follows what is discovered, for ever.
    pub async fn follow(&self, mut discovered: watch::Receiver<Discovered>) {
        let mut left_out = 0;
        loop {
            tokio::select! {
                changed = discovered.changed() => if changed.is_err() { return },
                () = sleep(TRY_AGAIN), if left_out > 0 => {}
            }
            left_out = self.discover(&mut discovered).await;
        }
    }

    /// How many were left out for want of room.
    async fn discover(&self, discovered: &mut watch::Receiver<Discovered>) -> usize {
        let members = discovered.borrow_and_update().members.clone();
        let mut said = self.said.lock().await;
        said.discovered = members;
        self.say_readiness(&said);
        let drain_timeout = self.shared.config.load().discovery.drain_timeout;
        let left_out = self.list(&mut said, Some(drain_timeout)).await;
        // Of those that are new.
        self.say_readiness(&said);
        left_out
    }

    async fn list(&self, said: &mut Said, timeout: Option<Duration>) -> usize {
        let mut new = merge(&said.configured, &said.discovered);
        let left_out = self.members.make_room(&said.listed, &mut new);
        self.shared.metrics.discovery.left_out(left_out);
        self.members.apply(&said.listed, &new, timeout).await;
        said.listed = new;
        left_out
    }

    /// Who is not ready is given no requests. Workers of the configuration are.
    fn say_readiness(&self, said: &Said) {
        for worker in self.shared.fleet.workers().iter() {
            let found = said.discovered.iter().find(|member| member.worker.url == worker.url);
            let is_configured = said.configured.iter().any(|config| config.url == worker.url);
            worker.set_ready(is_configured || found.is_none_or(|member| member.is_ready));
        }
    }
}

/// Both lists as one, without an address or a name twice.
fn merge(configured: &[WorkerConfig], discovered: &[Member]) -> Vec<WorkerConfig> {
    let mut urls: HashSet<_> = configured.iter().map(|worker| worker.url.clone()).collect();
    let mut names: HashSet<_> = configured.iter().map(|worker| worker.name.clone()).collect();
    let mut all = configured.to_vec();
    for Member { worker, .. } in discovered {
        if !urls.insert(worker.url.clone()) {
            continue;
        }
        let mut worker = worker.clone();
        if !names.insert(worker.name.clone()) {
            worker.name = worker.url.authority();
            names.insert(worker.name.clone());
        }
        all.push(worker);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::worker_config;

    fn worker(url: &str, name: &str) -> WorkerConfig {
        worker_config(url, Some(name.to_owned())).expect("a test's URL")
    }

    #[test]
    fn the_configuration_comes_first_and_a_name_that_is_taken_is_an_address() {
        let found = |url, name| Member { worker: worker(url, name), is_ready: true };
        let configured = [worker("http://a:1", "one")];
        let discovered =
            [found("http://a:1", "same"), found("http://b:1", "one"), found("http://c:1", "two")];
        let all = merge(&configured, &discovered);
        let shown: Vec<_> = all.iter().map(|worker| (worker.url.authority(), worker.name.as_str())).collect();
        let expected = [("a:1".to_owned(), "one"), ("b:1".to_owned(), "b:1"), ("c:1".to_owned(), "two")];
        assert_eq!(shown, expected);
    }
}
