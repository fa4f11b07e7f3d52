//! From a request body to a worker: parse, hash, look up, decide, and count the request in.

use std::{cell::RefCell, time::Instant};

use bytes::Bytes;

use super::{GatewayError, Shared, route::Route};
use crate::{
    fleet::Flight,
    index::{Matches, WorkerSlot},
    prompt::{self, BYTES_PER_TOKEN},
    routing::{Ask, Candidate, Policy, Reason},
};

/// What routing needs to know of a request, kept over its tries.
#[derive(Debug)]
pub(super) struct Plan {
    /// Block hashes of the prompt; empty for requests without one.
    hashes: Vec<u64>,
    prompt_tokens: u32,
    by_prefix: bool,
}

/// A worker, chosen and counted.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) flight: Flight,
    pub(super) reason: Reason,
    pub(super) policy: Policy,
    /// Prompt tokens that the index expects in the worker's cache.
    pub(super) matched_tokens: u32,
}

/// Buffers that a thread's decisions share, so that deciding allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    matches: Matches,
    candidates: Vec<Candidate>,
}

/// Reads the prompt.
pub(super) fn plan(shared: &Shared, route: Route, body: &Bytes) -> Result<Plan, GatewayError> {
    let Route::Inference(kind) = route else {
        return Ok(Plan { hashes: Vec::new(), prompt_tokens: 0, by_prefix: false });
    };
    let request = prompt::parse(kind, body)?;
    let block_bytes = shared.config.index.block_bytes;
    let mut hashes = Vec::new();
    let size = request.hash_into(block_bytes, &mut hashes);
    let prompt_tokens = size.tokens_exact.unwrap_or((size.bytes / BYTES_PER_TOKEN) as u32);
    Ok(Plan { hashes, prompt_tokens, by_prefix: true })
}

/// Chooses among the routable workers that are not in `tried`, counts the request there, and expects its prefix there
/// from now on. None if there is no such worker.
pub(super) fn choose(
    shared: &Shared,
    scratch: &RefCell<Scratch>,
    plan: &Plan,
    tried: &[WorkerSlot],
) -> Option<Choice> {
    let scratch = &mut *scratch.borrow_mut();
    let workers = shared.fleet.workers();
    let now = Instant::now();
    shared.index.lookup(&plan.hashes, &mut scratch.matches);
    let block_tokens = (shared.config.index.block_bytes / BYTES_PER_TOKEN) as u32;
    let matched_tokens = |slot: WorkerSlot| {
        (scratch.matches.blocks(slot) * block_tokens).min(plan.prompt_tokens)
    };
    let router = if plan.by_prefix { &shared.router } else { &shared.plain_router };
    let ask = Ask { prompt_tokens: plan.prompt_tokens };

    let candidates = &mut scratch.candidates;
    let choice = shared.fleet.choose(|| {
        use std::sync::atomic::Ordering::Relaxed;
        candidates.clear();
        candidates.extend(
            workers.iter().filter(|worker| worker.is_routable(now) && !tried.contains(&worker.slot)).map(|worker| {
                Candidate {
                    slot: worker.slot,
                    matched_tokens: matched_tokens(worker.slot),
                    in_flight: worker.load.in_flight(),
                    queued_prefill_tokens: worker.load.queued_prefill_tokens(),
                    running: worker.engine.running.load(Relaxed),
                    waiting: worker.engine.waiting.load(Relaxed),
                }
            }),
        );
        let decision = router.decide(&ask, candidates)?;
        let worker = workers.iter().find(|worker| worker.slot == decision.slot)?;
        let matched_tokens = matched_tokens(decision.slot);
        let new_tokens = plan.prompt_tokens - matched_tokens;
        let flight = Flight::begin(worker.clone(), u64::from(new_tokens));
        Some(Choice { flight, reason: decision.reason, policy: router.policy(), matched_tokens })
    })?;

    shared.decisions[usize::from(!plan.by_prefix)][choice.reason as usize].inc();
    if plan.by_prefix {
        shared.index.insert(choice.flight.worker().slot, &plan.hashes);
        shared.metrics.prompt_tokens.inc_by(u64::from(plan.prompt_tokens));
        shared.metrics.matched_tokens.inc_by(u64::from(choice.matched_tokens));
    }
    Some(choice)
}

/// Whether a worker other than those in `tried` could take the request.
pub(super) fn another_is_routable(shared: &Shared, tried: &[WorkerSlot]) -> bool {
    let now = Instant::now();
    shared.fleet.workers().iter().any(|worker| worker.is_routable(now) && !tried.contains(&worker.slot))
}
