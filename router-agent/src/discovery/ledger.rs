//! What the sources have said so far, and who is in the fleet by that. Without a clock and without a network: whoever asks
//! says what time it is.

use std::{
    collections::{BTreeMap, btree_map::Entry as Place},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Found, Member, Readiness};
use crate::{config::WorkerUrl, limits::DISCOVERED_MAX};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// In the order of the configuration.
    pages: Vec<(Arc<str>, Page)>,
}

/// What one source has said.
#[derive(Debug, Default)]
struct Page {
    /// By address.
    entries: BTreeMap<String, Entry>,
    /// Its last answer named nobody, and that is not believed yet.
    is_emptied: bool,
}

#[derive(Debug)]
struct Entry {
    found: Found,
    has_been_ready: bool,
    /// Since when it has not been named.
    missing_since: Option<Instant>,
}

impl Ledger {
    /// From now on these are the sources, in this order. What others have said is forgotten.
    pub(super) fn keep(&mut self, sources: impl Iterator<Item = Arc<str>>) {
        let mut before = std::mem::take(&mut self.pages);
        self.pages = sources
            .map(|source| {
                let place = before.iter().position(|(other, _)| *other == source);
                let page = place.map(|place| before.swap_remove(place).1).unwrap_or_default();
                (source, page)
            })
            .collect();
    }

    /// The source names these workers, and no others.
    pub(super) fn answer(&mut self, source: &str, mut found: Vec<Found>, now: Instant) {
        let Some((_, page)) = self.pages.iter_mut().find(|(other, _)| **other == *source) else { return };
        if found.len() > DISCOVERED_MAX {
            tracing::warn!(source, named = found.len(), read = DISCOVERED_MAX, "discovery: too many workers");
            found.truncate(DISCOVERED_MAX);
        }
        page.answer(source, found, now);
    }

    /// Drops who is gone for good. How long until there may be more of them; none: as long as nobody says anything.
    pub(super) fn settle(
        &mut self,
        now: Instant,
        gone_after: Duration,
        is_healthy: impl Fn(&WorkerUrl) -> bool,
    ) -> Option<Duration> {
        let waits =
            self.pages.iter_mut().map(|(source, page)| page.settle(source, now, gone_after, &is_healthy));
        waits.flatten().min()
    }

    /// Who is to be in the fleet.
    pub(super) fn members(&self) -> Vec<Member> {
        let entries = self.pages.iter().flat_map(|(_, page)| page.entries.values());
        let is_in = |entry: &&Entry| entry.has_been_ready;
        let member = |entry: &Entry| Member {
            worker: entry.found.worker.clone(),
            is_ready: entry.found.readiness == Readiness::Ready,
        };
        entries.filter(is_in).map(member).collect()
    }

    /// A source's workers: ready, unready, missing.
    pub(super) fn counts(&self, source: &str) -> [usize; 3] {
        let mut counts = [0; 3];
        let page = self.pages.iter().find(|(other, _)| **other == *source);
        for entry in page.iter().flat_map(|(_, page)| page.entries.values()) {
            let state = match (entry.missing_since, entry.found.readiness) {
                (Some(_), _) => 2,
                (None, Readiness::Ready) => 0,
                (None, _) => 1,
            };
            counts[state] += 1;
        }
        counts
    }
}

impl Page {
    fn answer(&mut self, source: &str, found: Vec<Found>, now: Instant) {
        let mut named = BTreeMap::new();
        for found in found {
            match named.entry(found.worker.url.to_string()) {
                Place::Vacant(place) => drop(place.insert(found)),
                // On its way from one object to another it may be in both.
                Place::Occupied(mut place) if found.readiness < place.get().readiness => {
                    drop(place.insert(found));
                }
                Place::Occupied(_) => {}
            }
        }
        named.retain(|url, found| {
            let stays = found.readiness != Readiness::Ending;
            if !stays {
                self.entries.remove(url);
            }
            stays
        });
        if named.is_empty() && !self.entries.is_empty() {
            if !std::mem::replace(&mut self.is_emptied, true) {
                let workers = self.entries.len();
                tracing::warn!(
                    source,
                    workers,
                    "discovery: the source names nobody any more; its workers stay until none passes its health checks"
                );
            }
            return;
        }
        self.is_emptied = false;
        for (url, entry) in &mut self.entries {
            if !named.contains_key(url) {
                entry.missing_since.get_or_insert(now);
            }
        }
        for (url, found) in named {
            let before = self.entries.get(&url);
            let is_same =
                before.is_some_and(|entry| entry.found.worker.incarnation == found.worker.incarnation);
            let was_ready = is_same && before.is_some_and(|entry| entry.has_been_ready);
            let has_been_ready = was_ready || found.readiness == Readiness::Ready;
            self.entries.insert(url, Entry { found, has_been_ready, missing_since: None });
        }
    }

    fn settle(
        &mut self,
        source: &str,
        now: Instant,
        gone_after: Duration,
        is_healthy: impl Fn(&WorkerUrl) -> bool,
    ) -> Option<Duration> {
        if self.is_emptied {
            if self.entries.values().any(|entry| is_healthy(&entry.found.worker.url)) {
                return Some(Duration::MAX); // health is looked at again and again
            }
            tracing::warn!(
                source,
                "discovery: none of its workers is healthy: they leave, as the source has said"
            );
            self.entries.clear();
            self.is_emptied = false;
        }
        let left = |entry: &Entry| {
            let missing_for = entry.missing_since.map(|since| now.saturating_duration_since(since));
            missing_for.map(|missing_for| gone_after.saturating_sub(missing_for))
        };
        self.entries.retain(|_, entry| left(entry) != Some(Duration::ZERO));
        self.entries.values().filter_map(left).min()
    }
}

#[cfg(test)]
mod tests;
