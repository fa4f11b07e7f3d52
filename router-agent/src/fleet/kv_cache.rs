//! What is known of a worker's KV cache from the worker itself: how far its KV events can be trusted, how its blocks
//! are keyed, and what the last scrape said of it. Written by [`crate::kv_events`] and the monitor, read by decisions.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering::Relaxed},
};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::prompt::token_root;

/// How the worker's KV events stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum KvState {
    /// Every event since the engine's start (or since its cache was last emptied) has been seen, in order.
    Exact = 0,
    /// Events are followed, but some before were lost and could not be had again: what is claimed is true, and not all
    /// is known.
    Gap = 1,
    /// The history is being asked for.
    CatchingUp = 2,
    /// There is no connection.
    Connecting = 3,
    /// The engine computes blocks and publishes nothing.
    Silent = 4,
    /// The worker publishes none, or is not asked.
    Off = 5,
}

impl KvState {
    /// Every state, for metrics that show one series per state.
    pub const ALL: [Self; 6] =
        [Self::Exact, Self::Gap, Self::CatchingUp, Self::Connecting, Self::Silent, Self::Off];

    /// The name in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Gap => "gap",
            Self::CatchingUp => "catching_up",
            Self::Connecting => "connecting",
            Self::Silent => "silent",
            Self::Off => "off",
        }
    }

    /// Whether what the events claim is true, whether complete or not.
    pub fn is_sound(self) -> bool {
        matches!(self, Self::Exact | Self::Gap)
    }
}

/// How blocks are keyed: the same for all workers that serve the same weights in blocks of the same length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySpace {
    /// Tokens per block.
    pub block_tokens: u32,
    /// The weights: `root` in `/v1/models`.
    pub model: String,
    /// Names under which requests ask for the model itself; any other name is an adapter's. Empty: not known, every name
    /// is the model's.
    pub names: Vec<String>,
}

impl KeySpace {
    /// What stands in front of the first block of a request for `model`.
    pub fn root_of_request(&self, model: Option<&str>, cache_salt: Option<&str>) -> u64 {
        let is_base = |name: &&str| self.names.is_empty() || self.names.iter().any(|own| own == name);
        self.root(model.filter(|name| !is_base(name)), cache_salt)
    }

    /// What stands in front of the first block of a sequence of the adapter, or of the model itself.
    pub fn root(&self, adapter: Option<&str>, cache_salt: Option<&str>) -> u64 {
        token_root(&self.model, adapter, cache_salt, self.block_tokens)
    }
}

/// All key spaces of the fleet, each once. A place in the list is a worker's [`KvCache::key_space`].
#[derive(Debug, Default)]
pub struct KeySpaces(ArcSwap<Vec<Arc<KeySpace>>>);

impl KeySpaces {
    /// A fleet has a few; each costs a hash of the prompt and a lookup per request.
    const MAX: usize = 16;

    /// The list. A space keeps its place.
    pub fn all(&self) -> Guard<Arc<Vec<Arc<KeySpace>>>> {
        self.0.load()
    }

    /// The place of `space`, with the shared space itself; none if there are too many different ones.
    pub fn place(&self, space: &KeySpace) -> Option<(u8, Arc<KeySpace>)> {
        loop {
            let list = self.0.load_full();
            if let Some(at) = list.iter().position(|own| **own == *space) {
                return Some((at as u8, list[at].clone()));
            }
            if list.len() == Self::MAX {
                return None;
            }
            let mut longer = Vec::clone(&list);
            longer.push(Arc::new(space.clone()));
            self.0.compare_and_swap(&list, Arc::new(longer)); // and look again, whoever was first
        }
    }
}

/// What a scrape says that bears on the KV cache. Counters are totals since the process started.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KvFacts {
    /// `process_start_time_seconds`.
    pub process_start: Option<f64>,
    /// Successful `POST /reset_prefix_cache`.
    pub resets: u64,
    /// Successful `POST /sleep`.
    pub sleeps: u64,
    /// `vllm:engine_sleep_state` is not awake.
    pub is_asleep: bool,
    /// Tokens computed, prompt (not from the cache) and output, by engine number.
    pub computed_tokens: Vec<u64>,
    /// `block_size` of `vllm:cache_config_info`.
    pub block_tokens: Option<u32>,
    /// `num_gpu_blocks` of `vllm:cache_config_info`, one engine.
    pub blocks: Option<u64>,
    /// `prefix_caching_hash_algo` of `vllm:cache_config_info`.
    pub hash_algo: Option<String>,
    /// `model_name`: the first name that the model is served under.
    pub model_name: Option<String>,
}

/// One worker's part.
#[derive(Debug)]
pub struct KvCache {
    state: AtomicU8,
    key_space: AtomicU8,
    facts: watch::Sender<Option<Arc<KvFacts>>>,
}

impl Default for KvCache {
    fn default() -> Self {
        Self {
            state: AtomicU8::new(KvState::Off as u8),
            key_space: AtomicU8::new(u8::MAX),
            facts: watch::Sender::new(None),
        }
    }
}

impl KvCache {
    /// How its events stand.
    pub fn state(&self) -> KvState {
        let state = self.state.load(Relaxed);
        KvState::ALL.into_iter().find(|known| *known as u8 == state).unwrap_or(KvState::Off)
    }

    /// See [`KvCache::state`]; the state before.
    pub fn set_state(&self, state: KvState) -> KvState {
        let before = self.state();
        self.state.store(state as u8, Relaxed);
        before
    }

    /// The place of its key space in [`KeySpaces::all`]; none before the length of its blocks is known.
    pub fn key_space(&self) -> Option<usize> {
        Some(self.key_space.load(Relaxed)).filter(|place| *place != u8::MAX).map(usize::from)
    }

    /// See [`KvCache::key_space`].
    pub fn set_key_space(&self, place: Option<u8>) {
        self.key_space.store(place.unwrap_or(u8::MAX), Relaxed);
    }

    /// Every scrape, from now on.
    pub fn scrapes(&self) -> watch::Receiver<Option<Arc<KvFacts>>> {
        self.facts.subscribe()
    }

    /// A scrape was made.
    pub fn scraped(&self, facts: KvFacts) {
        self.facts.send_replace(Some(Arc::new(facts)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(block_tokens: u32) -> KeySpace {
        KeySpace { block_tokens, model: "/m".into(), names: vec!["m".into(), "alias".into()] }
    }

    #[test]
    fn equal_spaces_share_a_place_and_their_number_is_bounded() {
        let spaces = KeySpaces::default();
        assert_eq!(spaces.place(&space(16)).unwrap().0, 0);
        assert_eq!(spaces.place(&space(32)).unwrap().0, 1);
        assert_eq!(spaces.place(&space(16)).unwrap().0, 0);
        for block_tokens in 100..200 {
            spaces.place(&space(block_tokens));
        }
        assert_eq!(spaces.all().len(), KeySpaces::MAX);
        assert_eq!(spaces.place(&space(16)).unwrap().0, 0, "what is there stays");
        assert!(spaces.place(&space(7)).is_none());
    }

    #[test]
    fn every_name_of_the_model_is_the_model_and_any_other_an_adapter() {
        let space = space(16);
        let base = space.root(None, None);
        assert_eq!(space.root_of_request(Some("m"), None), base);
        assert_eq!(space.root_of_request(Some("alias"), None), base);
        assert_eq!(space.root_of_request(None, None), base);
        assert_eq!(space.root_of_request(Some("ad1"), None), space.root(Some("ad1"), None));
        assert_ne!(space.root_of_request(Some("ad1"), None), base);
        let unnamed = KeySpace { names: Vec::new(), ..space };
        assert_eq!(unnamed.root_of_request(Some("whatever"), None), base);
    }

    #[test]
    fn states_survive_the_atomic() {
        let cache = KvCache::default();
        for state in KvState::ALL {
            cache.set_state(state);
            assert_eq!(cache.state(), state);
        }
    }
}
