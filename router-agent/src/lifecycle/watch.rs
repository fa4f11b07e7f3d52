//! Sees that the configuration file says something else.
//!
//! The file is read twice a second and compared by content. That sees what notifications of the kernel's miss or tell in
//! many ways: a file that is written in place, one that is renamed over it, a symbolic link above it that is changed
//! (Kubernetes' mounted ConfigMaps), a file on a network file system. A change counts once two looks have seen the same, so
//! that a file is not read while it is being written.

use std::{path::Path, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use xxhash_rust::xxh3::xxh3_64;

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is remembered of a file.
#[derive(Debug)]
pub struct Watch {
    /// What has been reported, or was there at the start.
    known: Option<u64>,
    last: Option<u64>,
}

impl Watch {
    /// Remembers what the file says now: to be called before it is read.
    pub fn new(path: &Path) -> Self {
        let now = digest(path);
        Self { known: now, last: now }
    }

    /// Completes when the file says something else than it did, and goes on saying it.
    pub async fn changed(&mut self, path: &Path) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if self.look(digest(path)) {
                return;
            }
        }
    }

    /// Whether this is news. A file that is not there is none: it may be about to be replaced.
    fn look(&mut self, now: Option<u64>) -> bool {
        let is_settled = std::mem::replace(&mut self.last, now) == now;
        let is_news = is_settled && now.is_some() && now != self.known;
        if is_news {
            self.known = now;
        }
        is_news
    }
}

fn digest(path: &Path) -> Option<u64> {
    std::fs::read(path).ok().map(|bytes| xxh3_64(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_once_it_has_settled_and_only_once() {
        let mut watch = Watch { known: Some(1), last: Some(1) };
        let looks =
            [Some(1), Some(2), Some(3), Some(3), Some(3), None, None, Some(3), Some(4), Some(4), Some(4)];
        let news: Vec<bool> = looks.into_iter().map(|now| watch.look(now)).collect();
        let expected = [false, false, false, true, false, false, false, false, false, true, false];
        assert_eq!(news, expected);
    }
}
