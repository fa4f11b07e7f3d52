//! What is known of a prompt on each worker, as policies are told it: for the choice, and for who asks what it would be.

use std::sync::atomic::Ordering::Relaxed;

use super::{
    choose::Plan,
    eligible::Stage,
    token_keys::{MatchKind, TokenMatch},
};
use crate::{
    fleet::Worker,
    index::Matches,
    routing::{Ask, Candidate},
};

/// What is known of a prompt's place in the workers' caches.
pub(super) struct Known<'a> {
    pub(super) plan: &'a Plan,
    pub(super) stage: Stage,
    /// By what was sent where.
    pub(super) matches: &'a Matches,
    /// By the workers' own word, by key space.
    pub(super) token_matches: &'a [Matches],
}

impl Known<'_> {
    /// By the worker's own word, if that is all there is to know; else by what was sent there, if that is more.
    pub(super) fn matched(&self, worker: &Worker) -> TokenMatch {
        let Self { plan, matches, token_matches, .. } = *self;
        let blocks = matches.blocks(worker.slot);
        if let Some(matched) = &plan.lmcache {
            let tokens = matched.iter().find(|(of, _)| *of == worker.slot).map_or(0, |(_, tokens)| *tokens);
            return TokenMatch { kind: MatchKind::Approximate, blocks, tokens };
        }
        let sent = || {
            let tokens = plan.size.tokens_of_blocks(blocks, plan.block_bytes, plan.bytes_per_token);
            TokenMatch { kind: MatchKind::Approximate, blocks, tokens }
        };
        match plan.token_keys.as_ref().and_then(|keys| keys.match_of(worker, token_matches)) {
            Some(own) if own.kind == MatchKind::Exact => own,
            Some(own) => Some(sent()).filter(|sent| sent.tokens > own.tokens).unwrap_or(own),
            None => sent(),
        }
    }

    /// What the policies are asked. Of a decode stage nothing is left to be prefilled: it goes by load alone.
    pub(super) fn ask(&self) -> Ask {
        let ask = self.plan.ask();
        if self.stage == Stage::Decode { Ask { prompt_tokens: 0, ..ask } } else { ask }
    }

    /// The worker as the policies see it.
    pub(super) fn candidate(&self, worker: &Worker) -> Candidate {
        let Worker { slot, load, engine, .. } = worker;
        let mut matched = self.matched(worker);
        if self.stage == Stage::Decode {
            (matched.tokens, matched.blocks) = (0, 0);
        }
        Candidate {
            slot: *slot,
            matched_tokens: matched.tokens,
            matched_blocks: matched.blocks,
            in_flight: load.in_flight(),
            pending: load.pending(),
            queued_prefill_tokens: load.queued_prefill_tokens(),
            running: engine.running.load(Relaxed),
            waiting: engine.waiting.load(Relaxed),
            in_flight_at_scrape: engine.in_flight_at_scrape.load(Relaxed),
            kv_usage_permille: engine.kv_usage_permille.load(Relaxed),
            adapter: engine.adapter(self.plan.model),
            identity: worker.identity,
            speed: worker.speed.get(),
        }
    }
}
