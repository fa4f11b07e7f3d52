//! What would become of a request that came now: every worker's part in the decision, and who would win. Nothing is sent,
//! counted, learned or remembered: the policy is asked in a copy of itself, so that neither its turn nor its random numbers
//! move on, and a look-up leaves the index as it is.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};

use super::{
    GatewayError, Shared,
    choose::{self, Plan, Scratch},
    disaggregation::Worth,
    eligible::{Bounds, Stage, Wanted},
    known::Known,
    overrides::Overrides,
    route::Route,
    tokens,
};
use crate::{
    config::WorkerRole,
    fleet::{Health, Pulse, Standing, Worker},
    index::Matches,
    prompt,
    routing::{self, Decision, Policy, Score},
    telemetry::TokensFrom,
    tenants::Tenant,
};

/// A request to be explained.
#[derive(Debug)]
pub struct Question {
    /// Of the API, such as `/v1/chat/completions`.
    pub path: String,
    /// The value of the session header, where the request would have one.
    pub session: Option<HeaderValue>,
    /// Who would ask.
    pub tenant: Arc<Tenant>,
    /// As a client would send it.
    pub body: Bytes,
}

/// See the module.
#[derive(Debug)]
pub struct Explanation {
    /// Who would decide.
    pub policy: Policy,
    /// What costs are counted in; none where the policy compares none.
    pub cost_unit: Option<&'static str>,
    /// The API, as metrics label it.
    pub route: &'static str,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Where its token ids are known from; none: they are not, and lengths are estimated from bytes.
    pub tokens_from: Option<&'static str>,
    /// The choice; none if nobody could take the request now. Where it is prefilled apart, of its decode stage.
    pub decision: Option<Decision>,
    /// What speaks for and against prefilling it apart, where there are workers for that.
    pub apart: Option<Apart>,
    /// All workers, in the fleet's order.
    pub workers: Vec<Part>,
}

/// Whether a request is prefilled on one worker and decoded on another.
#[derive(Debug)]
pub struct Apart {
    /// Tokens of its prompt that no worker for whole requests has cached.
    pub uncached_tokens: u32,
    /// From so many on it is.
    pub tokens_min: u32,
    /// Of its prefill stage; none: one worker does it all.
    pub prefill: Option<Decision>,
}

/// One worker's part.
#[derive(Debug)]
pub struct Part {
    /// The worker.
    pub worker: Arc<Worker>,
    /// What it was compared by, whether it may be chosen or not.
    pub score: Score,
    /// Whether its matched tokens are its own word (`exact`) or what was sent there (`approximate`).
    pub match_kind: &'static str,
    /// Why it cannot be chosen; none: it can.
    pub excluded: Option<&'static str>,
}

/// Explains what would become of the request. Errors are those that the client would get.
pub async fn explain(shared: &Shared, question: Question) -> Result<Explanation, GatewayError> {
    let Question { path, session, tenant, body } = question;
    let config = shared.config.get();
    let route = Route::of(&Method::POST, &path);
    let headers = HeaderMap::from_iter(session.map(|key| (config.routing.session_header.clone(), key)));
    let overrides = Overrides::default();
    let mut plan = choose::plan(shared, &config, &tenant, route, &headers, &overrides, &body)?;
    let ask_tokens = plan.ask_tokens();
    let tokens = tokens::look(shared, &config, ask_tokens, &body).await;
    if let Some((_, tokens)) = &tokens {
        plan.suppose_tokens(shared, tokens);
    }
    if let Some(controller) = shared.lmcache_control.load_full().filter(|_| plan.asks_lmcache())
        && let Some((_, tokens)) = &tokens
    {
        plan.lmcache = controller.look(shared, tokens).await;
    }
    let bounds = Bounds::of(&config.limits);
    let wanted = |stage| Wanted {
        stage,
        prefilled_by: None,
        model: plan.model,
        only: plan.only,
        among: None,
        tried: &[],
        bounds,
    };
    let worth = Worth::of(shared, &config, &mut Scratch::default(), &plan, route);
    let is_suitable = || prompt::prefill_body(&body).is_ok();
    let prefill = worth
        .filter(|worth| worth.is_worth_it() && is_suitable())
        .map(|_| decide(shared, &plan, &wanted(Stage::Prefill)))
        .filter(|verdict| verdict.decision.is_some());
    let stage = if prefill.is_some() { Stage::Decode } else { Stage::Whole };
    let Verdict { policy, cost_unit, decision, mut workers } = decide(shared, &plan, &wanted(stage));
    let apart = worth.map(|Worth { uncached: uncached_tokens, tokens_min }| Apart {
        uncached_tokens,
        tokens_min,
        prefill: prefill.as_ref().and_then(|verdict| verdict.decision),
    });
    // Each as it is compared in the stage that it is there for.
    for part in prefill.into_iter().flat_map(|verdict| verdict.workers) {
        let other = workers.iter_mut().find(|other| other.worker.id == part.worker.id);
        if let Some(other) = other.filter(|_| part.worker.role() == WorkerRole::Prefill) {
            *other = part;
        }
    }
    Ok(Explanation {
        policy,
        cost_unit,
        route: route.label(),
        prompt_tokens: plan.prompt_tokens(),
        tokens_from: tokens.map(|(from, _)| TokensFrom::label(from)),
        decision,
        apart,
        workers,
    })
}

struct Verdict {
    policy: Policy,
    cost_unit: Option<&'static str>,
    decision: Option<Decision>,
    workers: Vec<Part>,
}

fn decide(shared: &Shared, plan: &Plan, wanted: &Wanted<'_>) -> Verdict {
    let (mut matches, mut token_matches) = (Matches::new(), Vec::new());
    plan.look_up(shared, &mut matches, &mut token_matches);
    let known = Known { plan, stage: wanted.stage, matches: &matches, token_matches: &token_matches };
    let (now, ask) = (Instant::now(), known.ask());
    let workers = shared.fleet.workers();
    let may_be_chosen: Vec<_> = wanted.with_room(&workers, now, None).cloned().collect();

    let mut router = {
        let routers = shared.routers.lock();
        if plan.by_prefix { routers.by_prefix.clone() } else { routers.plain.clone() }
    };
    let mut scores = Vec::new();
    let all: Vec<_> = workers.iter().map(|worker| known.candidate(worker)).collect();
    // As for a request: without the controller's answer this gateway goes by what it knows itself.
    let policy = match plan.policy.unwrap_or_else(|| router.policy()) {
        Policy::Lmcache if plan.lmcache.is_none() => Policy::Warm,
        policy => policy,
    };
    let settings = router.settings().clone();
    routing::explain(policy, &settings, &ask, &all, &mut scores);
    let candidates: Vec<_> = may_be_chosen.iter().map(|worker| known.candidate(worker)).collect();
    // As they compare among themselves, where the others have no say.
    let mut compared = Vec::new();
    routing::explain(policy, &settings, &ask, &candidates, &mut compared);
    for score in &mut scores {
        if let Some(other) = compared.iter().find(|other| other.slot == score.slot) {
            *score = *other;
        }
    }
    let decision = router.decide_by(policy, &ask, &candidates);

    let parts = workers.iter().zip(scores).map(|(worker, score)| Part {
        match_kind: known.matched(worker).kind.label(),
        excluded: (!may_be_chosen.iter().any(|other| other.id == worker.id))
            .then(|| why_not(worker, wanted, now)),
        worker: worker.clone(),
        score,
    });
    let cost_unit = routing::cost_unit(policy, &candidates);
    Verdict { policy, cost_unit, decision, workers: parts.collect() }
}

/// The first thing that keeps a worker from being chosen.
fn why_not(worker: &Worker, wanted: &Wanted<'_>, now: Instant) -> &'static str {
    match worker.standing() {
        Standing::Unready { .. } => "unready",
        Standing::Draining { .. } => "draining",
        Standing::Leaving { .. } => "leaving",
        Standing::Serving if worker.health() == Health::Unhealthy => "unhealthy",
        Standing::Serving if worker.liveness.pulse() == Pulse::Hung => "hung",
        Standing::Serving if !worker.breaker.admits(now) => "breaker_open",
        Standing::Serving if !worker.serves(wanted.model) => "model_not_served",
        Standing::Serving if !wanted.stage.is_for(worker.role()) => "role",
        Standing::Serving if worker.record.is_ejected() => "outlier",
        Standing::Serving if worker.rest.holds(now) => "resting",
        Standing::Serving => "no_room",
    }
}
