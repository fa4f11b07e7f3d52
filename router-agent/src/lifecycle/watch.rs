//! Sees that the configuration's files say something else.
//!
//! They are read twice a second and compared by content. That sees what notifications of the kernel's miss or tell in
//! many ways: a file that is written in place, one that is renamed over it, a symbolic link above it that is changed
//! (Kubernetes' mounted ConfigMaps), a file on a network file system. A change counts once two looks have seen the same, so
//! that a file is not read while it is being written.

use std::{path::PathBuf, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use xxhash_rust::xxh3::Xxh3;

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is remembered of the files.
#[derive(Debug)]
pub struct Watch {
    /// What has been reported, or was there at the start.
    known: Option<u64>,
    last: Option<u64>,
}

impl Watch {
    /// Remembers what the files say now.
    pub fn new(paths: &[PathBuf]) -> Self {
        let now = digest(paths);
        Self { known: now, last: now }
    }

    /// Completes when the files say something else than they did, and go on saying it. `paths`: those in use now.
    pub async fn changed(&mut self, paths: impl Fn() -> Vec<PathBuf>) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if self.look(digest(&paths())) {
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

/// Of all of them; none while one cannot be read.
fn digest(paths: &[PathBuf]) -> Option<u64> {
    let mut digest = Xxh3::new();
    for path in paths {
        let bytes = std::fs::read(path).ok()?;
        digest.update(&(bytes.len() as u64).to_le_bytes());
        digest.update(&bytes);
    }
    Some(digest.digest())
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
