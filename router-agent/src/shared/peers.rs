//! The other gateways: what each of them last said of its load, and what that is together.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::message::Message;
use crate::{
    fleet::{Fleet, LoadOfPeers},
    limits,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Peers {
    /// This process: what it says comes back to it, too.
    own: u64,
    ttl: Duration,
    by_process: HashMap<u64, Peer>,
}

#[derive(Debug)]
struct Peer {
    heard: Instant,
    message: Message,
}

impl Peers {
    pub(super) fn new(own: u64, ttl: Duration) -> Self {
        Self { own, ttl, by_process: HashMap::new() }
    }

    /// A gateway says something. Whether that is news.
    pub(super) fn hear(&mut self, message: Message, now: Instant) -> bool {
        let process = message.process;
        if process == self.own {
            return false;
        }
        if message.is_last {
            return self.by_process.remove(&process).is_some();
        }
        let is_known = self.by_process.contains_key(&process);
        if !is_known && self.by_process.len() >= limits::SHARED_PEERS_MAX {
            return false;
        }
        self.by_process.insert(process, Peer { heard: now, message });
        true
    }

    /// Forgets those that have been silent for too long. Whether there were any.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.by_process.len();
        self.by_process.retain(|_, peer| now.saturating_duration_since(peer.heard) < self.ttl);
        self.by_process.len() != before
    }

    pub(super) fn count(&self) -> usize {
        self.by_process.len()
    }

    /// What they have together on each worker, by its URL.
    fn sums(&self) -> HashMap<&str, LoadOfPeers> {
        let mut sums = HashMap::<&str, LoadOfPeers>::new();
        for says in self.by_process.values().flat_map(|peer| &peer.message.workers) {
            let sum = sums.entry(&says.0).or_default();
            *sum = sum.plus(says.load());
        }
        sums
    }

    /// Decisions see it from now on.
    pub(super) fn apply(&self, fleet: &Fleet) {
        let sums = self.sums();
        for worker in fleet.workers().iter() {
            worker.peers.set(sums.get(&*worker.address_text).copied().unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(1);

    fn says(process: u64, workers: &str) -> Message {
        let text = format!(r#"{{"v":1,"gateway":"g","process":{process},"workers":{workers}}}"#);
        Message::parse(text.as_bytes()).expect("a message")
    }

    fn in_flight(peers: &Peers, worker: &str) -> u32 {
        peers.sums().get(worker).map_or(0, |load| load.in_flight)
    }

    #[test]
    fn what_all_others_have_is_added_up_and_ones_own_is_not() {
        let (mut peers, now) = (Peers::new(1, TTL), Instant::now());
        assert!(!peers.hear(says(1, r#"[["http://a:1",9,9,9]]"#), now));
        assert!(peers.hear(says(2, r#"[["http://a:1",3,2,100],["http://b:1",1,0,0]]"#), now));
        assert!(peers.hear(says(3, r#"[["http://a:1",4,1,50]]"#), now));
        let sum = peers.sums()["http://a:1"];
        assert_eq!(sum, LoadOfPeers { in_flight: 7, pending: 3, queued_prefill_tokens: 150 });
        assert!(peers.hear(says(2, "[]"), now), "what it says replaces what it said");
        assert_eq!((in_flight(&peers, "http://a:1"), in_flight(&peers, "http://b:1")), (4, 0));
    }

    #[test]
    fn who_leaves_or_falls_silent_counts_no_longer() {
        let (mut peers, start) = (Peers::new(1, TTL), Instant::now());
        peers.hear(says(2, r#"[["http://a:1",3,2,100]]"#), start);
        peers.hear(says(3, r#"[["http://a:1",4,2,100]]"#), start + TTL / 2);
        assert!(!peers.expire(start + TTL / 2));
        assert!(peers.expire(start + TTL));
        assert_eq!((peers.count(), in_flight(&peers, "http://a:1")), (1, 4));
        assert!(peers.hear(Message::last("g", 3), start + TTL));
        assert_eq!((peers.count(), in_flight(&peers, "http://a:1")), (0, 0));
    }

    #[test]
    fn their_number_is_bounded_and_no_sum_overflows() {
        let (mut peers, now) = (Peers::new(0, TTL), Instant::now());
        for process in 1..=limits::SHARED_PEERS_MAX as u64 {
            let most = format!(r#"[["http://a:1",{},0,{}]]"#, u32::MAX, u64::MAX);
            assert!(peers.hear(says(process, &most), now));
        }
        assert!(!peers.hear(says(u64::MAX, "[]"), now));
        assert_eq!(in_flight(&peers, "http://a:1"), u32::MAX);
    }
}
