//! The step before the choice where gateways share what they have sent: what the others know of a prompt that this one does
//! not know well.

use std::{sync::Arc, time::Instant};

use super::{Shared, choose::Plan};
use crate::{
    fleet::{KvState, Worker},
    index::Matches,
};

impl Plan {
    /// Asks the other gateways for its prefix, of which a worker is known here to have `best` blocks at most. Returns at once
    /// where nothing is shared, or that is known well enough.
    pub(super) async fn ask_others(&mut self, shared: &Shared, best: Option<u32>) {
        if let Some((state, best)) = shared.state.as_ref().zip(best) {
            self.hints = state.hints(&self.hashes, best).await;
        }
    }

    /// The most of its blocks that were sent to one worker; none where nobody else would know better.
    pub(super) fn known_blocks(&self, shared: &Shared, matches: &mut Matches) -> Option<u32> {
        if shared.state.is_none() || !self.by_prefix || self.only.is_some() {
            return None;
        }
        let workers = shared.fleet.workers();
        let is_exact = |worker: &Arc<Worker>| worker.kv_cache.state() == KvState::Exact;
        if self.token_keys.is_some() && workers.iter().all(is_exact) {
            return None; // they say it themselves
        }
        shared.index.lookup(&self.hashes, matches);
        let now = Instant::now();
        let usable = workers.iter().filter(|worker| worker.is_routable(now));
        Some(usable.map(|worker| matches.blocks(worker.slot)).max().unwrap_or(0))
    }
}
