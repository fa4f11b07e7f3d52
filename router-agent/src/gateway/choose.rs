//! From a request body to a worker: parse, hash, look up, decide, and count the request in.

use std::{borrow::Cow, cell::RefCell, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    GatewayError, Shared,
    decided::{self, Circumstances},
    eligible::{Stage, Wanted},
    known::Known,
    lmcache::Matched,
    model,
    overrides::Overrides,
    route::Route,
    token_keys::{Identity, MatchKind, TokenKeys, TokenMatch},
    tokens::Ask as AskTokens,
};
use crate::{
    config::Config,
    fleet::{Flight, Reservation, Worker},
    index::{Matches, WorkerSlot},
    kv_events::Prediction,
    prompt::{self, PromptSize},
    records::{self, Facts, Rosters},
    routing::{self, Ask, Candidate, Decision, Policy, Settings},
    telemetry::ModelMetrics,
    tenants::Tenant,
};

/// What routing needs to know of a request, kept over its tries.
#[derive(Debug)]
pub(super) struct Plan {
    /// Block hashes of the prompt; empty for requests without one.
    hashes: Vec<u64>,
    /// Bytes of a block.
    pub(super) block_bytes: usize,
    /// The same by tokens, where they are known: for workers whose KV events are followed.
    pub(super) token_keys: Option<TokenKeys>,
    identity: Identity,
    pub(super) size: PromptSize,
    prompt_tokens: u32,
    /// Of this prompt where its tokens are known, else what is usual.
    pub(super) bytes_per_token: f64,
    pub(super) by_prefix: bool,
    /// [`crate::fleet::model_key`] of the model that is served.
    pub(super) model: Option<u64>,
    /// The series of that model.
    pub(super) model_metrics: Option<Arc<ModelMetrics>>,
    /// The one that the client named, where that is another one.
    asked_model: Option<Arc<str>>,
    /// The one worker that the client asks for.
    pub(super) only: Option<WorkerSlot>,
    /// Those that it may go to, where somebody in front has said so.
    pub(super) among: Option<Box<[WorkerSlot]>>,
    /// How it is routed, where not as everything.
    pub(super) policy: Option<Policy>,
    /// Hash of the session's key.
    session: Option<u64>,
    /// vLLM's `priority`, where the body has one.
    pub(super) priority: Option<i64>,
    /// Where its token ids are to come from.
    ask_tokens: AskTokens,
    /// What the LMCache controller knows of the prompt, in place of the index.
    pub(super) lmcache: Option<Matched>,
    /// Whose request it is, and of which kind: for its record.
    tenant: Arc<str>,
    route: Route,
    /// Its trace wants the record, too.
    pub(super) is_traced: bool,
}

impl Plan {
    /// Of all its prompts, as far as they are known.
    pub(super) fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// What a policy needs of it.
    pub(super) fn ask(&self) -> Ask {
        Ask { prompt_tokens: self.prompt_tokens, session: self.session }
    }

    /// The model that is served; none where the request names none.
    pub(super) fn model_name(&self) -> Option<&str> {
        self.identity.model.as_deref()
    }

    /// The model that is served, where the body names another one.
    pub(super) fn model_instead(&self) -> Option<&Arc<str>> {
        self.identity.model.as_ref().filter(|_| self.asked_model.is_some())
    }

    /// Whether its policy is the one that goes by the LMCache controller, as far as it has one of its own.
    pub(super) fn asks_lmcache(&self) -> bool {
        self.by_prefix && self.policy.is_none_or(|policy| policy == Policy::Lmcache)
    }

    /// What [`super::tokens::learn`] needs; to be asked for once.
    pub(super) fn ask_tokens(&mut self) -> AskTokens {
        std::mem::replace(&mut self.ask_tokens, AskTokens::Nothing)
    }

    /// The prompt's tokens, as the engine will see it (of several prompts: the first's), have become known.
    pub(super) fn set_tokens(&mut self, shared: &Shared, tokens: &[u32]) {
        if self.size.tokens_exact.is_none() && !tokens.is_empty() {
            shared.bytes_per_token.observe(self.size.bytes, tokens.len());
        }
        self.suppose_tokens(shared, tokens);
    }

    /// As [`Plan::set_tokens`], and nobody learns from it.
    pub(super) fn suppose_tokens(&mut self, shared: &Shared, tokens: &[u32]) {
        if self.size.tokens_exact.is_none() && !tokens.is_empty() {
            self.prompt_tokens = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
            self.bytes_per_token = self.size.bytes as f64 / tokens.len() as f64;
        }
        self.token_keys = TokenKeys::new(shared, &self.identity, tokens);
    }

    /// Looks its blocks up, by what was sent where and by the workers' own word.
    pub(super) fn look_up(&self, shared: &Shared, matches: &mut Matches, token_matches: &mut Vec<Matches>) {
        shared.index.lookup(&self.hashes, matches);
        if let Some(keys) = &self.token_keys {
            keys.lookup(shared, token_matches);
        }
    }
}

/// A worker, chosen and counted.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) flight: Flight,
    pub(super) decision: Decision,
    /// Leading blocks of the prompt that had been sent to the worker before.
    pub(super) sent_blocks: u32,
    /// Where [`Decision::matched_tokens`] is known from.
    pub(super) match_kind: MatchKind,
    /// The prompt in the worker's cache, before the worker says so. To be dropped when it has been prefilled.
    pub(super) prediction: Option<Prediction>,
    /// Of the decision, if anybody wants one.
    pub(super) record: Option<records::Open>,
}

/// Buffers that a thread's decisions share, so that deciding allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    matches: Matches,
    /// By key space.
    token_matches: Vec<Matches>,
    candidates: Vec<Candidate>,
    rosters: Rosters,
}

impl Scratch {
    /// Of the prompt, the tokens that a worker is believed to have that could serve the whole request: the most of any.
    pub(super) fn best_match(&mut self, shared: &Shared, plan: &Plan) -> u32 {
        let Self { matches, token_matches, .. } = self;
        plan.look_up(shared, matches, token_matches);
        let known = Known { plan, stage: Stage::Whole, matches, token_matches };
        let (workers, now) = (shared.fleet.workers(), Instant::now());
        let could = workers
            .iter()
            .filter(|worker| Stage::Whole.is_for(worker.role()) && worker.is_routable(now))
            .filter(|worker| worker.serves(plan.model));
        could.map(|worker| known.matched(worker).tokens).max().unwrap_or(0)
    }
}

/// Reads the prompt, and what else of the request a decision needs. A model that no worker
/// serves, or that the tenant may not use, is refused here.
pub(super) fn plan(
    shared: &Shared,
    config: &Config,
    tenant: &Tenant,
    route: Route,
    headers: &HeaderMap,
    overrides: &Overrides,
    body: &Bytes,
) -> Result<Plan, GatewayError> {
    // Of models that are served: whoever asks for others gets an error before this counts.
    let series = |key: Option<u64>, model: Option<&str>| {
        shared.metrics.models.of(key.unwrap_or(0), model.unwrap_or("none"))
    };
    let Route::Inference(kind) = route else {
        let asked = prompt::model(body);
        if asked.is_none() && !tenant.allows(None) && !body.is_empty() {
            return Err(GatewayError::ModelNotNamed);
        }
        let sticky = || overrides.session.unwrap_or_else(|| xxh3_64(body));
        let served = model::serve(shared, config, tenant, asked.as_deref(), sticky)?;
        let name = served.instead.or(asked.as_deref());
        return Ok(Plan {
            hashes: Vec::new(),
            block_bytes: config.index.block_bytes,
            token_keys: None,
            identity: Identity { model: name.map(Arc::from), cache_salt: None },
            size: PromptSize::default(),
            prompt_tokens: 0,
            bytes_per_token: shared.bytes_per_token.get(),
            by_prefix: false,
            model: served.key,
            model_metrics: name.map(|name| series(served.key, Some(name))),
            asked_model: served.instead.and(asked.as_deref()).map(Arc::from),
            only: overrides.worker_of(&shared.fleet, served.key)?,
            among: None,
            policy: overrides.policy,
            session: overrides.session,
            priority: None,
            ask_tokens: AskTokens::Nothing,
            lmcache: None,
            tenant: tenant.name.clone(),
            route,
            is_traced: false,
        });
    };
    let mut request = prompt::parse(kind, body)?;
    let asked = request.model.take();
    if asked.is_none() && !tenant.allows(None) {
        return Err(GatewayError::ModelNotNamed);
    }
    let header = headers.get(&config.routing.session_header).map(HeaderValue::as_bytes);
    let in_body = request.session.as_deref().or(request.user.as_deref()).map(str::as_bytes);
    let session = overrides.session.or_else(|| header.or(in_body).map(xxh3_64));
    let sticky = || session.unwrap_or_else(|| request.conversation());
    let served = model::serve(shared, config, tenant, asked.as_deref(), sticky)?;
    request.model = served.instead.or(asked.as_deref()).map(Cow::Borrowed);
    let block_bytes = config.index.block_bytes;
    let mut hashes = Vec::new();
    let size = request.hash_into(block_bytes, request.root_seed(), &mut hashes);
    let bytes_per_token = shared.bytes_per_token.get();
    Ok(Plan {
        hashes,
        block_bytes,
        token_keys: None,
        identity: Identity {
            model: request.model.as_deref().map(Arc::from),
            cache_salt: request.cache_salt.as_deref().map(Box::from),
        },
        size,
        prompt_tokens: size.tokens(bytes_per_token),
        bytes_per_token,
        by_prefix: true,
        model: served.key,
        model_metrics: Some(series(served.key, request.model.as_deref())),
        asked_model: served.instead.and(asked.as_deref()).map(Arc::from),
        only: overrides.worker_of(&shared.fleet, served.key)?,
        among: None,
        policy: overrides.policy.or(tenant.policy),
        session,
        priority: request.priority,
        ask_tokens: AskTokens::of(shared, kind, &request),
        lmcache: None,
        tenant: tenant.name.clone(),
        route,
        is_traced: false,
    })
}

/// Chooses among the workers that the request may go to, counts it there, and expects its prefix there from now on
/// ([`forget`] takes that back). None if there is no such worker. `own`: the place that is reserved for it.
pub(super) fn choose(
    shared: &Shared,
    scratch: &RefCell<Scratch>,
    plan: &Plan,
    request_id: &HeaderValue,
    wanted: &Wanted<'_>,
    own: Option<&Reservation>,
) -> Option<Choice> {
    let scratch = &mut *scratch.borrow_mut();
    let workers = shared.fleet.workers();
    let now = Instant::now();
    let Scratch { matches, token_matches, candidates, rosters } = scratch;
    plan.look_up(shared, matches, token_matches);
    let known = Known { plan, stage: wanted.stage, matches, token_matches };
    let ask = known.ask();

    let is_recorded = plan.is_traced || shared.records.is_wanted();
    let (flight, decision, settings) = {
        let mut routers = shared.routers.lock();
        let router = if plan.by_prefix { &mut routers.by_prefix } else { &mut routers.plain };
        candidates.clear();
        candidates.extend(wanted.with_room(&workers, now, own).map(|worker| known.candidate(worker)));
        // What the policy asks somebody else, and gets no answer to, this gateway knows itself.
        let policy = match plan.policy.unwrap_or_else(|| router.policy()) {
            Policy::Lmcache if plan.lmcache.is_none() => Policy::Warm,
            policy => policy,
        };
        let decision = router.decide_by(policy, &ask, candidates)?;
        let worker = workers.iter().find(|worker| worker.slot == decision.slot)?;
        let settings = is_recorded.then(|| decided_by(router.settings(), policy));
        let to_prefill = if wanted.stage == Stage::Decode { 0 } else { u64::from(decision.new_tokens) };
        (Flight::begin(worker.clone(), to_prefill), decision, settings)
    };

    shared.decisions.count(&decision);
    let TokenMatch { kind: match_kind, blocks: matched_blocks, .. } = known.matched(flight.worker());
    let mut prediction = None;
    if plan.by_prefix {
        shared.index.insert(decision.slot, &plan.hashes);
        prediction = plan.token_keys.as_ref().and_then(|keys| {
            let held = keys.match_of(flight.worker(), token_matches)?.blocks;
            shared.predictions.predict(decision.slot, keys.of_worker(flight.worker())?, held)
        });
        if wanted.tried.is_empty() {
            let metrics = &shared.metrics.kv_events;
            match match_kind {
                MatchKind::Exact => metrics.matches_exact.inc(),
                MatchKind::Approximate => metrics.matches_approximate.inc(),
            }
            shared.metrics.prompt_tokens.inc_by(u64::from(plan.prompt_tokens));
            shared.metrics.matched_tokens.inc_by(u64::from(decision.matched_tokens));
            if let Some(model) = &plan.model_metrics {
                model.prompt_tokens.inc_by(u64::from(plan.prompt_tokens));
                model.matched_tokens.inc_by(u64::from(decision.matched_tokens));
            }
        }
    }
    if let Some(map) = &shared.decisions_map {
        let circumstances = Circumstances {
            request_id,
            candidates,
            tried: wanted.tried.len(),
            prompt_tokens: ask.prompt_tokens,
            matched_blocks,
        };
        map.record(&decided::record(&decision, &circumstances));
    }
    let record = settings.map(|settings| {
        shared.records.open(&Facts {
            request_id: request_id.as_bytes(),
            tenant: &plan.tenant,
            asked_model: plan.asked_model.as_ref().or(plan.identity.model.as_ref()),
            model: plan.identity.model.as_ref(),
            route: plan.route.label(),
            stage: wanted.stage.label(),
            prefilled_by: wanted.prefilled_by,
            attempt: wanted.tried.len() as u32 + 1,
            ask,
            match_kind: match_kind.label(),
            candidates,
            settings: &settings,
            decision,
            roster: rosters.of(&workers),
            hashes: &plan.hashes,
            block_bytes: plan.block_bytes as u32,
        })
    });
    let sent_blocks = matches.blocks(decision.slot);
    Some(Choice { flight, decision, sent_blocks, match_kind, prediction, record })
}

/// Who could take it besides those that were tried, the best first: at most `count`. Nothing is counted.
pub(super) fn others(
    shared: &Shared,
    scratch: &RefCell<Scratch>,
    plan: &Plan,
    wanted: &Wanted<'_>,
    count: usize,
) -> Vec<Arc<Worker>> {
    let scratch = &mut *scratch.borrow_mut();
    let (workers, now) = (shared.fleet.workers(), Instant::now());
    let Scratch { matches, token_matches, candidates, .. } = scratch;
    plan.look_up(shared, matches, token_matches);
    let known = Known { plan, stage: wanted.stage, matches, token_matches };
    candidates.clear();
    candidates.extend(wanted.with_room(&workers, now, None).map(|worker| known.candidate(worker)));
    let (policy, settings) = {
        let routers = shared.routers.lock();
        let router = if plan.by_prefix { &routers.by_prefix } else { &routers.plain };
        (plan.policy.unwrap_or_else(|| router.policy()), router.settings().clone())
    };
    let mut scores = Vec::new();
    routing::explain(policy, &settings, &known.ask(), candidates, &mut scores);
    scores.sort_by_key(|score| (score.cost, score.batch));
    let of = |slot| workers.iter().find(|worker| worker.slot == slot).cloned();
    scores.iter().filter_map(|score| of(score.slot)).take(count).collect()
}

/// What a decision by `policy` went by.
fn decided_by(settings: &Arc<Settings>, policy: Policy) -> Arc<Settings> {
    if settings.policy == policy {
        settings.clone()
    } else {
        Arc::new(Settings { policy, ..Settings::clone(settings) })
    }
}

/// The worker has not computed the prompt: what was expected there with `decision` is not.
pub(super) fn forget(shared: &Shared, plan: &Plan, decision: &Decision, sent_blocks: u32) {
    let new = plan.hashes.get(sent_blocks as usize..).unwrap_or_default();
    shared.index.remove(decision.slot, new);
}
