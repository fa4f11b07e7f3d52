//! Prefill apart from decode: a prompt is prefilled on a worker for prefill stages, its KV blocks are fetched by the worker
//! that decodes (vLLM's NIXL connector; `docs/disaggregation.md`).
//!
//! ```text
//! worth it?   uncached tokens ≥ the least that pays       else one worker does it all
//! prefill     best prefill worker by the routing core → one token, and where the blocks are (kv_transfer_params)
//! decode      best worker for whole requests, by load → the client's own request with those parameters
//! ```
//!
//! Whatever goes wrong before the first byte of the answer, one worker does it all after that ([`super::tries`]). The
//! stages share the request's id and its deadline; each is a try with a record, a span and a count of its own. A client
//! that leaves drops the future of both, and with it the connection of the stage that is under way.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};

use super::{
    GatewayError, Shared,
    account::{Attempt, is_load},
    bodies::Held,
    choose::{self, Choice, Plan, Scratch},
    eligible::{Bounds, Stage, Wanted},
    route::Route,
    token_keys::MatchKind,
    tries::Tries,
};
use crate::{
    config::Config,
    fleet::Worker,
    kernel::now_ns,
    limits,
    prompt::{self, ApiKind},
    routing::Decision,
    telemetry::HandoffOutcome,
    traces::Phase,
    upstream::{self, SendError},
};

/// What of a request a try is, as its account has to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    Prefill,
    /// Of a prompt of which so many tokens were prefilled elsewhere, which began then ([`crate::kernel::now_ns`]).
    Decode {
        tokens: u32,
        began_ns: u64,
    },
}

/// A prompt that was prefilled: what its decode stage needs.
pub(super) struct Handed {
    /// Of the decode stage.
    pub(super) body: Bytes,
    /// Its memory.
    _held: Held,
    pub(super) part: Part,
    pub(super) worker: Arc<Worker>,
    /// How it came there.
    pub(super) decision: Decision,
    pub(super) match_kind: MatchKind,
}

/// What came of the prefill stage.
pub(super) enum Prefilled {
    /// There was none: one worker does it all.
    No,
    Yes(Box<Handed>),
    /// As [`Prefilled::No`], and a worker has been asked in vain.
    Failed,
}

/// Uncached tokens of a prompt, and the least that is prefilled apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Worth {
    pub(super) uncached: u32,
    pub(super) tokens_min: u32,
}

impl Worth {
    /// None where nothing is prefilled apart: the feature is off, there are no workers for it, the API knows nothing of it,
    /// or the client has chosen a worker.
    pub(super) fn of(
        shared: &Shared,
        config: &Config,
        scratch: &mut Scratch,
        plan: &Plan,
        route: Route,
    ) -> Option<Self> {
        let is_known = matches!(route, Route::Inference(ApiKind::Chat | ApiKind::Completions));
        if !(is_known && config.disaggregation.is_on && shared.fleet.has_prefill() && plan.only.is_none()) {
            return None;
        }
        let learned = || shared.fleet.speed().handoff_tokens_min();
        let tokens_min = config.disaggregation.tokens_min.unwrap_or_else(learned);
        shared.metrics.disaggregation.tokens_min.set(tokens_min.into());
        let all = plan.prompt_tokens();
        let uncached = if all < tokens_min { all } else { all - scratch.best_match(shared, plan).min(all) };
        Some(Self { uncached, tokens_min })
    }

    pub(super) fn is_worth_it(self) -> bool {
        self.uncached >= self.tokens_min
    }
}

impl Tries<'_> {
    /// Has the prompt prefilled on a worker for that, where it is worth it.
    pub(super) async fn prefill_apart(&self) -> Result<Prefilled, GatewayError> {
        let Self { context, config, plan, request_id, outgoing, .. } = self;
        let shared = &context.shared;
        let metrics = &shared.metrics.disaggregation;
        let worth = Worth::of(shared, config, &mut context.scratch.borrow_mut(), plan, self.route);
        let Some(worth) = worth else { return Ok(Prefilled::No) };
        if !worth.is_worth_it() {
            metrics.count(HandoffOutcome::Short);
            return Ok(Prefilled::No);
        }
        let mut held = Held::new(&shared.bodies);
        let body = match prompt::prefill_body(&outgoing.body) {
            Ok(body) if held.grow_to(body.len(), config.limits.bodies_bytes) => Bytes::from(body),
            Ok(_) => {
                metrics.count(HandoffOutcome::Unsuitable); // no memory for another body
                return Ok(Prefilled::No);
            }
            Err(why) => {
                tracing::debug!(?request_id, %why, "not prefilled apart");
                metrics.count(HandoffOutcome::Unsuitable);
                return Ok(Prefilled::No);
            }
        };

        let deciding = self.trace.map(|trace| (trace, Instant::now()));
        let wanted = Wanted {
            stage: Stage::Prefill,
            prefilled_by: None,
            model: plan.model,
            only: None,
            among: None,
            tried: &[],
            bounds: Bounds::of(&config.limits),
        };
        let choice = choose::choose(shared, &context.scratch, plan, request_id, &wanted, None);
        if let Some((trace, began)) = deciding {
            trace.step(Phase::Decide, began);
        }
        let Some(choice) = choice else {
            metrics.count(HandoffOutcome::NoWorker);
            return Ok(Prefilled::No);
        };
        let Choice { flight, decision, sent_blocks, match_kind, prediction, record } = choice;
        let predicted_s = decision.time_to_first_token_s;
        let model = plan.model_metrics.clone();
        let mut attempt =
            Attempt::new(shared.clone(), flight, predicted_s, model, prediction, record, &context.cuts);
        attempt.is_part(Part::Prefill);
        let traceparent = self.trace.map(|trace| attempt.traced(trace));
        let worker = attempt.worker().clone();
        let began_ns = attempt.sent_ns();

        let request = || {
            let mut request = outgoing.request(&worker, body.clone(), traceparent.as_ref());
            request.headers_mut().remove(header::ACCEPT_ENCODING); // its answer is read here
            request
        };
        let answer = match self.within(&attempt, self.ask(&worker, request)).await? {
            Ok((status, answer)) => {
                attempt.responded(status);
                if status.is_success() {
                    attempt.body_data(&answer);
                    metrics.prefill.observe(now_ns().saturating_sub(began_ns) as f64 / 1e9);
                }
                attempt.complete(status);
                if is_load(status) {
                    worker.rest.ask(Instant::now(), limits::REST);
                }
                if status.is_success() { Ok(answer) } else { Err(status.to_string()) }
            }
            Err(error) if error.is_out_of_sockets() => {
                choose::forget(shared, plan, &decision, sent_blocks);
                return Err(GatewayError::OutOfSockets { last: error });
            }
            Err(error) => {
                attempt.fail(error.kind());
                Err(error.to_string())
            }
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => {
                tracing::debug!(worker = %worker.name, why, "the prefill stage failed: one worker does it all");
                choose::forget(shared, plan, &decision, sent_blocks);
                metrics.count(HandoffOutcome::PrefillFailed);
                return Ok(Prefilled::Failed);
            }
        };
        let handed = prompt::transfer_params(&answer)
            .and_then(|params| prompt::decode_body(&outgoing.body, params))
            .filter(|body| held.grow_to(body.len(), config.limits.bodies_bytes));
        let Some(body) = handed.map(Bytes::from) else {
            metrics.count(HandoffOutcome::NoBlocks);
            return Ok(Prefilled::Failed);
        };
        let part = Part::Decode { tokens: decision.new_tokens, began_ns };
        Ok(Prefilled::Yes(Box::new(Handed { body, _held: held, part, worker, decision, match_kind })))
    }

    /// The whole answer of a prefill stage.
    async fn ask(
        &self,
        worker: &Worker,
        request: impl Fn() -> Request<Bytes>,
    ) -> Result<(StatusCode, Bytes), SendError> {
        let Self { context, config, .. } = self;
        let timeout = config.timeouts.response_head;
        let sent =
            upstream::send(&context.pool, worker, true, upstream::Hold::EventStreams, timeout, request)
                .await?;
        sent.lease.open_body();
        let status = sent.response.status();
        let body = Limited::new(sent.response.into_body(), limits::PREFILL_ANSWER_BYTES_MAX);
        let body = tokio::time::timeout(timeout, body.collect()).await;
        let body = body.map_err(|_| SendError::Timeout(timeout))?;
        let body =
            body.map_err(|_| SendError::Malformed("the answer of a prefill stage is broken or too long"))?;
        sent.lease.put_back();
        Ok((status, body.to_bytes()))
    }
}
