//! From a request body to a worker: parse, hash, look up, decide, and count the request in.

use std::{
    cell::RefCell,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    GatewayError, Shared,
    decided::{self, Circumstances},
    lmcache::Matched,
    route::Route,
    tokens::Ask as AskTokens,
};
use crate::{
    fleet::{Flight, Worker, model_key},
    index::{Matches, WorkerSlot},
    prompt::{self, PromptSize},
    routing::{Ask, Candidate, Decision, Policy},
};

/// What routing needs to know of a request, kept over its tries.
#[derive(Debug)]
pub(super) struct Plan {
    /// Block hashes of the prompt; empty for requests without one.
    hashes: Vec<u64>,
    size: PromptSize,
    prompt_tokens: u32,
    /// Of this prompt where its tokens are known, else what is usual.
    bytes_per_token: f64,
    pub(super) by_prefix: bool,
    /// [`model_key`] of the model that the body names.
    model: Option<u64>,
    /// Hash of the session's key.
    session: Option<u64>,
    /// Where its token ids are to come from.
    ask_tokens: AskTokens,
    /// The prompt as the engine will see it, where that is known.
    pub(super) tokens: Option<Arc<[u32]>>,
    /// What the LMCache controller knows of the prompt, in place of the index.
    pub(super) lmcache: Option<Matched>,
}

impl Plan {
    /// What [`super::tokens::learn`] needs; to be asked for once.
    pub(super) fn ask_tokens(&mut self) -> AskTokens {
        std::mem::replace(&mut self.ask_tokens, AskTokens::Nothing)
    }

    /// The prompt's token ids are these: its length is known from now on.
    pub(super) fn set_tokens(&mut self, shared: &Shared, tokens: Arc<[u32]>) {
        self.prompt_tokens = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        if self.size.tokens_exact.is_none() && !tokens.is_empty() {
            self.bytes_per_token = self.size.bytes as f64 / tokens.len() as f64;
            shared.bytes_per_token.observe(self.size.bytes, tokens.len());
        }
        self.tokens = Some(tokens);
    }
}

/// A worker, chosen and counted.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) flight: Flight,
    pub(super) decision: Decision,
    /// Leading blocks of the prompt that were expected on the worker before the decision.
    pub(super) matched_blocks: u32,
}

/// Buffers that a thread's decisions share, so that deciding allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    matches: Matches,
    candidates: Vec<Candidate>,
}

/// Reads the prompt, and what else of the request a decision needs. A model that no worker serves is refused here.
pub(super) fn plan(
    shared: &Shared,
    route: Route,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Plan, GatewayError> {
    let serve = |model: Option<&str>| {
        let key = model.map(model_key);
        match model {
            Some(model) if !shared.fleet.serves(key) => Err(GatewayError::NoSuchModel(model.to_owned())),
            _ => Ok(key),
        }
    };
    let Route::Inference(kind) = route else {
        return Ok(Plan {
            hashes: Vec::new(),
            size: PromptSize::default(),
            prompt_tokens: 0,
            bytes_per_token: shared.bytes_per_token.get(),
            by_prefix: false,
            model: serve(prompt::model(body).as_deref())?,
            session: None,
            ask_tokens: AskTokens::Nothing,
            tokens: None,
            lmcache: None,
        });
    };
    let request = prompt::parse(kind, body)?;
    let mut hashes = Vec::new();
    let size = request.hash_into(shared.config.index.block_bytes, request.root_seed(), &mut hashes);
    let header = headers.get(&shared.config.routing.session_header).map(HeaderValue::as_bytes);
    let in_body = request.session.as_deref().or(request.user.as_deref()).map(str::as_bytes);
    let bytes_per_token = shared.bytes_per_token.get();
    Ok(Plan {
        hashes,
        size,
        prompt_tokens: size.tokens(bytes_per_token),
        bytes_per_token,
        by_prefix: true,
        model: serve(request.model.as_deref())?,
        session: header.or(in_body).map(xxh3_64),
        ask_tokens: AskTokens::of(shared, kind, &request),
        tokens: None,
        lmcache: None,
    })
}

/// Chooses among the routable workers that are not in `tried`, counts the request there, and expects its prefix there
/// from now on ([`forget`] takes that back). None if there is no such worker.
pub(super) fn choose(
    shared: &Shared,
    scratch: &RefCell<Scratch>,
    plan: &Plan,
    request_id: &HeaderValue,
    tried: &[WorkerSlot],
) -> Option<Choice> {
    let scratch = &mut *scratch.borrow_mut();
    let workers = shared.fleet.workers();
    let now = Instant::now();
    shared.index.lookup(&plan.hashes, &mut scratch.matches);
    let block_bytes = shared.config.index.block_bytes;
    let Scratch { matches, candidates } = scratch;
    let by_index = |slot| plan.size.tokens_of_blocks(matches.blocks(slot), block_bytes, plan.bytes_per_token);
    let matched_tokens = |slot| match &plan.lmcache {
        Some(matched) => matched.iter().find(|(of, _)| *of == slot).map_or(0, |(_, tokens)| *tokens),
        None => by_index(slot),
    };
    let candidate = |worker: &Arc<Worker>| {
        let Worker { slot, load, engine, .. } = &**worker;
        Candidate {
            slot: *slot,
            matched_tokens: matched_tokens(*slot),
            matched_blocks: matches.blocks(*slot),
            in_flight: load.in_flight(),
            pending: load.pending(),
            queued_prefill_tokens: load.queued_prefill_tokens(),
            running: engine.running.load(Relaxed),
            waiting: engine.waiting.load(Relaxed),
            in_flight_at_scrape: engine.in_flight_at_scrape.load(Relaxed),
            kv_usage_permille: engine.kv_usage_permille.load(Relaxed),
            adapter: engine.adapter(plan.model),
            identity: worker.identity,
            speed: worker.speed.get(),
        }
    };
    let routable = |worker: &&Arc<Worker>| is_candidate(worker, plan, tried, now);
    let ask = Ask { prompt_tokens: plan.prompt_tokens, session: plan.session };

    let (flight, decision) = {
        let mut routers = shared.routers.lock();
        let router = if plan.by_prefix { &mut routers.by_prefix } else { &mut routers.plain };
        candidates.clear();
        candidates.extend(workers.iter().filter(routable).map(candidate));
        // What the policy asks somebody else, and gets no answer to, this gateway knows itself.
        let decision = if plan.lmcache.is_none() && router.policy() == Policy::Lmcache {
            router.decide_by(Policy::Warm, &ask, candidates)?
        } else {
            router.decide(&ask, candidates)?
        };
        let worker = workers.iter().find(|worker| worker.slot == decision.slot)?;
        (Flight::begin(worker.clone(), u64::from(decision.new_tokens)), decision)
    };

    shared.decisions.count(&decision);
    if plan.by_prefix {
        shared.index.insert(decision.slot, &plan.hashes);
        if tried.is_empty() {
            shared.metrics.prompt_tokens.inc_by(u64::from(plan.prompt_tokens));
            shared.metrics.matched_tokens.inc_by(u64::from(decision.matched_tokens));
        }
    }
    if let Some(map) = &shared.decisions_map {
        let circumstances = Circumstances {
            request_id,
            candidates,
            tried: tried.len(),
            prompt_tokens: plan.prompt_tokens,
            matched_blocks: matches.blocks(decision.slot),
        };
        map.record(&decided::record(&decision, &circumstances));
    }
    Some(Choice { flight, matched_blocks: matches.blocks(decision.slot), decision })
}

fn is_candidate(worker: &Worker, plan: &Plan, tried: &[WorkerSlot], now: Instant) -> bool {
    worker.is_routable(now) && worker.serves(plan.model) && !tried.contains(&worker.slot)
}

/// Whether a worker other than those in `tried` could take the request.
pub(super) fn another_is_routable(shared: &Shared, plan: &Plan, tried: &[WorkerSlot]) -> bool {
    let now = Instant::now();
    shared.fleet.workers().iter().any(|worker| is_candidate(worker, plan, tried, now))
}

/// The worker has not computed the prompt: what was expected there with `decision` is not.
pub(super) fn forget(shared: &Shared, plan: &Plan, decision: &Decision, matched_blocks: u32) {
    let new = plan.hashes.get(matched_blocks as usize..).unwrap_or_default();
    shared.index.remove(decision.slot, new);
}
