//! `POST /explain`: where a request would go, and why, without sending it.

use axum::{Json, extract::State, http::HeaderValue};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin,
    error::{ApiError, ApiResult, ErrorBody},
    extract::{Asked, Body},
};
use crate::{
    gateway::{self, Apart, Explanation, Part, Question},
    routing::Decision,
};

/// What would become of the request if it came now.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ExplanationView {
    /// Who decides.
    policy: &'static str,
    /// The API: chat, completions, responses, messages or other.
    route: &'static str,
    /// Tokens of the prompt.
    prompt_tokens: u32,
    /// Where its token ids are known from: `given`, `local` or `worker`; not there: lengths are estimated from bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_from: Option<&'static str>,
    /// What costs are counted in: `microseconds`, `token_requests` (speeds are not known yet), `requests` or
    /// `millionths_below_best`; not there for policies that compare none.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_unit: Option<&'static str>,
    /// Who would get it; not there: nobody can take it now, it would wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    winner: Option<Winner>,
    /// Whether it would be prefilled on one worker and decoded on another; not there without workers whose role is `prefill`.
    #[serde(skip_serializing_if = "Option::is_none")]
    disaggregation: Option<ApartView>,
    /// All workers: those that could get it by their cost, then those that could not.
    workers: Vec<PartView>,
}

/// Who would get the request, and why.
#[derive(Debug, Serialize, ToSchema)]
struct Winner {
    /// Its name.
    worker: String,
    /// The reason, as in `x-warmpath-reason`.
    reason: &'static str,
    /// What it would have to prefill.
    new_tokens: u32,
    /// The predicted time to the first token; not there while speeds are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    time_to_first_token_seconds: Option<f64>,
    /// Who would be next.
    #[serde(skip_serializing_if = "Option::is_none")]
    runner_up: Option<String>,
}

/// What speaks for and against prefilling the request apart.
#[derive(Debug, Serialize, ToSchema)]
struct ApartView {
    /// Tokens of the prompt that no worker for whole requests has cached.
    uncached_tokens: u32,
    /// From so many on a prompt is prefilled apart.
    min_tokens: u32,
    /// Who would prefill it, while `winner` decodes; not there: `winner` does it all.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill: Option<Winner>,
}

/// One worker's part.
#[derive(Debug, Serialize, ToSchema)]
struct PartView {
    /// Its name.
    worker: String,
    /// `both`, `prefill` or `decode`.
    role: &'static str,
    /// Whether it would get the request.
    wins: bool,
    /// Why it cannot get it: draining, leaving, unhealthy, hung, breaker_open, model_not_served, role, outlier, resting or no_room;
    /// not there: it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    excluded: Option<&'static str>,
    /// Tokens of the prompt that it is believed to have cached.
    matched_tokens: u32,
    /// Whether that is its own word (`exact`) or what was sent there (`approximate`).
    match_kind: &'static str,
    /// What it would have to prefill.
    new_tokens: u32,
    /// What waits for its prefill.
    queued_prefill_tokens: u64,
    /// Requests that it has.
    requests: u32,
    /// What the policy minimises; 0 for policies that do not.
    cost: u64,
    /// The predicted time to the first token there; not there while speeds are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    time_to_first_token_seconds: Option<f64>,
}

impl ExplanationView {
    fn of(explanation: Explanation) -> Self {
        let Explanation {
            policy,
            cost_unit,
            route,
            prompt_tokens,
            tokens_from,
            decision,
            apart,
            mut workers,
        } = explanation;
        let name =
            |slot| workers.iter().find(|part| part.worker.slot == slot).map(|part| part.worker.name.clone());
        let winner_of = |decision: Decision| {
            Some(Winner {
                worker: name(decision.slot)?,
                reason: decision.reason.label(),
                new_tokens: decision.new_tokens,
                time_to_first_token_seconds: decision.time_to_first_token_s,
                runner_up: decision.runner_up.and_then(name),
            })
        };
        let winner = decision.and_then(winner_of);
        let prefill = apart.as_ref().and_then(|apart| apart.prefill);
        let disaggregation = apart.map(|Apart { uncached_tokens, tokens_min, prefill }| ApartView {
            uncached_tokens,
            min_tokens: tokens_min,
            prefill: prefill.and_then(winner_of),
        });
        let wins = |part: &Part| {
            [decision, prefill].into_iter().flatten().any(|decision| decision.slot == part.worker.slot)
        };
        workers.sort_by_key(|part| (part.excluded.is_some(), !wins(part), part.score.cost));
        Self {
            policy: policy.name(),
            route,
            prompt_tokens,
            tokens_from,
            cost_unit,
            winner,
            disaggregation,
            workers: workers.iter().map(|part| PartView::of(part, wins(part))).collect(),
        }
    }
}

impl PartView {
    fn of(part: &Part, wins: bool) -> Self {
        let Part { worker, score, match_kind, excluded } = part;
        Self {
            worker: worker.name.clone(),
            role: worker.role().label(),
            wins,
            excluded: *excluded,
            matched_tokens: score.matched_tokens,
            match_kind,
            new_tokens: score.new_tokens,
            queued_prefill_tokens: score.queued_prefill_tokens,
            requests: score.batch,
            cost: score.cost,
            time_to_first_token_seconds: score.time_to_first_token_s,
        }
    }
}

/// Of `POST /explain`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asking {
    /// Of the API; left out: what the body's members say (`messages`: chat, `prompt`: completions, `input`: responses).
    #[param(example = "/v1/chat/completions")]
    path: Option<String>,
    /// The value of the session header, where the request would have one.
    session: Option<String>,
    /// Whose request it would be; left out: of somebody who may use every model.
    tenant: Option<String>,
}

/// Where a request would go, and why: the body is one that a client would send. Nothing is sent, counted or remembered.
#[utoipa::path(
    post, path = "/explain", tag = "state", params(Asking), request_body = Object,
    responses(
        (status = 200, description = "every worker's part, and who would win", body = ExplanationView),
        (status = 400, description = "the query or the body is wrong", body = ErrorBody),
        (status = 403, description = "the tenant may not use this model", body = ErrorBody),
        (status = 404, description = "no worker serves this model, or there is no such tenant", body = ErrorBody),
        (status = 413, description = "the body is too long", body = ErrorBody),
    )
)]
pub(super) async fn explain(
    State(admin): State<Admin>,
    Asked(asking): Asked<Asking>,
    Body(body): Body,
) -> ApiResult<Json<ExplanationView>> {
    let Asking { path, session, tenant } = asking;
    let path = match path {
        Some(path) => path,
        None => path_of(&body)?.to_owned(),
    };
    let session = session
        .map(|key| {
            HeaderValue::try_from(key).map_err(|_| ApiError::bad_request("session: no value of a header"))
        })
        .transpose()?;
    let tenants = &admin.shared.tenants;
    let tenant = match tenant {
        None => tenants.everyone(),
        Some(name) => tenants.list().into_iter().find(|tenant| *tenant.name == *name).ok_or_else(|| {
            ApiError::not_found(format!("there is no tenant {name:?} (GET /tenants lists them)"))
        })?,
    };
    let explained = gateway::explain(&admin.shared, Question { path, session, tenant, body }).await;
    explained.map(ExplanationView::of).map(Json).map_err(|error| ApiError::new(error.status(), error))
}

/// The API that a body is for, by its members.
fn path_of(body: &[u8]) -> ApiResult<&'static str> {
    #[derive(Deserialize)]
    struct Members {
        messages: Option<serde::de::IgnoredAny>,
        prompt: Option<serde::de::IgnoredAny>,
        input: Option<serde::de::IgnoredAny>,
    }
    let members: Members = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("{error}; wanted the body of an OpenAI request")))?;
    match members {
        Members { messages: Some(_), .. } => Ok("/v1/chat/completions"),
        Members { prompt: Some(_), .. } => Ok("/v1/completions"),
        Members { input: Some(_), .. } => Ok("/v1/responses"),
        _ => Err(ApiError::bad_request(
            "the body has no messages, prompt or input: send one that a client would send, or say path=/v1/…",
        )),
    }
}
