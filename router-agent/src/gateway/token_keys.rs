//! The keys of a prompt's token blocks, once per key space of the fleet, and what each worker holds of them.

use std::sync::Arc;

use super::Shared;
use crate::{
    fleet::{KvState, Worker},
    index::Matches,
    prompt::hash_tokens_into,
};

/// What the tokens of a prompt are keyed with besides themselves.
#[derive(Debug, Default)]
pub(super) struct Identity {
    pub(super) model: Option<Arc<str>>,
    pub(super) cache_salt: Option<Box<str>>,
}

/// A prompt whose tokens are known.
#[derive(Debug)]
pub(super) struct TokenKeys {
    /// Tokens of the prompt.
    tokens: u32,
    /// By the place of a key space: the length of its blocks, and the prompt's keys.
    spaces: Vec<(u32, Vec<u64>)>,
}

/// Where the tokens that a worker is believed to hold are known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MatchKind {
    /// Its own KV events, all of them.
    Exact,
    /// What was sent there, or part of its events.
    Approximate,
    /// What another gateway has sent there.
    Hint,
}

impl MatchKind {
    /// The header's value, and the metric's label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Approximate => "approximate",
            Self::Hint => "hint",
        }
    }
}

/// What a worker's own events say of a prompt.
#[derive(Debug, Clone, Copy)]
pub(super) struct TokenMatch {
    pub(super) kind: MatchKind,
    /// Leading blocks.
    pub(super) blocks: u32,
    /// Tokens of them that need no prefill: the engine computes a full hit's last block again.
    pub(super) tokens: u32,
}

impl TokenKeys {
    /// Keys the tokens for every key space that there is. None if no worker's blocks are known.
    pub(super) fn new(shared: &Shared, identity: &Identity, tokens: &[u32]) -> Option<Self> {
        let spaces = shared.fleet.key_spaces().all();
        let keys = spaces.iter().map(|space| {
            let root = space.root_of_request(identity.model.as_deref(), identity.cache_salt.as_deref());
            let mut keys = Vec::with_capacity(tokens.len() / space.block_tokens as usize);
            hash_tokens_into(root, space.block_tokens, tokens, &mut keys);
            (space.block_tokens, keys)
        });
        let spaces: Vec<_> = keys.collect();
        (!spaces.is_empty()).then_some(Self { tokens: tokens.len() as u32, spaces })
    }

    /// The keys as the worker's blocks are keyed, if its events can be believed.
    pub(super) fn of_worker(&self, worker: &Worker) -> Option<&[u64]> {
        let place = worker.kv_cache.key_space().filter(|_| worker.kv_cache.state().is_sound())?;
        self.spaces.get(place).map(|(_, keys)| keys.as_slice())
    }

    /// Looks all keys up.
    pub(super) fn lookup(&self, shared: &Shared, matches: &mut Vec<Matches>) {
        while matches.len() < self.spaces.len() {
            matches.push(Matches::new());
        }
        for ((_, keys), matches) in self.spaces.iter().zip(matches.iter_mut()) {
            shared.token_index.lookup(keys, matches);
        }
    }

    /// What the worker holds by its own word, if that can be believed.
    pub(super) fn match_of(&self, worker: &Worker, matches: &[Matches]) -> Option<TokenMatch> {
        let kind = match worker.kv_cache.state() {
            KvState::Exact => MatchKind::Exact,
            KvState::Gap => MatchKind::Approximate,
            _ => return None,
        };
        let place = worker.kv_cache.key_space()?;
        let (block_tokens, _) = self.spaces.get(place)?;
        let blocks = matches.get(place)?.blocks(worker.slot);
        Some(TokenMatch { kind, blocks, tokens: cached_tokens(blocks, *block_tokens, self.tokens) })
    }
}

/// As vLLM counts `cached_tokens`: whole blocks, and at least one token left to compute.
fn cached_tokens(blocks: u32, block_tokens: u32, prompt_tokens: u32) -> u32 {
    blocks.min(prompt_tokens.saturating_sub(1) / block_tokens) * block_tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_hits_last_block_is_computed_again() {
        assert_eq!(cached_tokens(4, 16, 64), 48);
        assert_eq!(cached_tokens(4, 16, 65), 64);
        assert_eq!(cached_tokens(3, 16, 65), 48);
        assert_eq!(cached_tokens(0, 16, 0), 0);
    }
}
