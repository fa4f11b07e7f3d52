//! One worker after the other, until one begins to answer.
//!
//! Nothing has reached the client before a response head is passed on, so until then another worker may be tried. The
//! head of a stream is held until the stream's first byte: vLLM sends it at once, long before the first token, and a
//! worker that dies while it prefills would take the request with it (docs/decisions/0006). A request that must not be
//! processed twice is tried again only where the worker has seen nothing of it.
//!
//! Retries cost from a budget, so that an outage is not multiplied. Waiting before one helps only where a worker says so:
//! a 429 or 503 with `Retry-After`, and nobody else to ask. Then the request waits that long, and a random time more that
//! doubles ("full jitter"), if that is within its time.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::body::Body as _;

use super::{
    GatewayError, Shared,
    account::{Attempt, is_fault, is_load},
    admission::{self, Bid},
    choose::{self, Choice, Plan},
    disaggregation::{Handed, Prefilled},
    eligible::{Bounds, Stage, Wanted},
    outgoing::Outgoing,
    route::Route,
    thread::ThreadContext,
    token_keys::MatchKind,
};
use crate::{
    config::Config,
    index::WorkerSlot,
    limits,
    routing::Decision,
    telemetry::HandoffOutcome,
    traces::{Phase, Trace},
    upstream::{self, SendError, Sent},
};

/// A worker's response head, with what its body needs on its way.
pub(super) struct Answer {
    pub(super) sent: Sent,
    pub(super) attempt: Attempt,
    pub(super) decision: Decision,
    pub(super) match_kind: MatchKind,
    /// Who prefilled the prompt, where that was another worker.
    pub(super) handed: Option<Box<Handed>>,
}

/// A request that is ready to be sent.
pub(super) struct Tries<'a> {
    pub(super) context: &'a Rc<ThreadContext>,
    pub(super) config: &'a Config,
    pub(super) route: Route,
    pub(super) outgoing: &'a Outgoing,
    pub(super) plan: &'a Plan,
    /// What parsing and hashing took.
    pub(super) planning: Duration,
    pub(super) request_id: &'a HeaderValue,
    pub(super) bid: Bid,
    /// When it began to look for a worker.
    pub(super) began: Instant,
    pub(super) trace: Option<&'a Trace>,
}

impl Tries<'_> {
    /// The first answer that is worth passing on.
    pub(super) async fn run(&self) -> Result<Answer, GatewayError> {
        let Self { context, config, plan, .. } = self;
        let shared = &context.shared;
        let mut tried: Vec<WorkerSlot> = Vec::new();
        let (mut tries, mut waits) = (0, 0);
        let mut handed = None;
        if shared.fleet.has_prefill() {
            // Boxed: other requests have no room for it.
            match Box::pin(self.prefill_apart()).await? {
                Prefilled::No => {}
                Prefilled::Yes(to_decode) => handed = Some(to_decode),
                Prefilled::Failed => tries = 1,
            }
        }
        let mut choice = self.choose(&tried, &mut handed).await?;
        shared.retries.pay_in();
        loop {
            let Choice { flight, decision, sent_blocks, match_kind, prediction, record } = choice;
            let mut attempt = Attempt::new(
                shared.clone(),
                flight,
                decision.time_to_first_token_s,
                plan.model_metrics.clone(),
                prediction,
                record,
                &context.cuts,
            );
            if let Some(handed) = &handed {
                attempt.is_part(handed.part);
            }
            let traceparent = self.trace.map(|trace| attempt.traced(trace));
            let worker = attempt.worker().clone();
            tries += 1;
            let sent = self.send(&attempt, handed.as_deref(), traceparent.as_ref()).await?;
            let is_handoff_fault = handed.is_some() && is_handoff_fault(&sent);
            if is_handoff_fault {
                attempt.not_handed_over();
            } else {
                tried.push(worker.slot); // who could not take over may do all of it yet
            }
            let is_another = || {
                tries < config.limits.tries
                    && self.wanted(&tried, None).is_served(&shared.fleet.workers(), Instant::now())
            };
            let mut wait = None;
            let retry_reason = match sent {
                Ok(sent) => {
                    let status = sent.response.status();
                    attempt.responded(status);
                    if is_load(status) || status.is_server_error() {
                        choose::forget(shared, plan, &decision, sent_blocks);
                    }
                    if is_load(status) {
                        let rest = retry_after(sent.response.headers()).unwrap_or(limits::REST);
                        worker.rest.ask(Instant::now(), rest.min(limits::REST_MAX));
                    }
                    let is_worth_it = self.is_repeatable() && is_worth_another_worker(status);
                    if is_worth_it && !is_another() {
                        wait = self.time_to_wait(&sent, tries, waits);
                    }
                    let may = is_worth_it && (wait.is_some() || is_another()) && shared.may_retry();
                    if !may {
                        if handed.is_some() {
                            let failed = is_load(status) || is_fault(status);
                            shared.metrics.disaggregation.count(if failed {
                                HandoffOutcome::DecodeFailed
                            } else {
                                HandoffOutcome::HandedOver
                            });
                        }
                        return Ok(Answer { sent, attempt, decision, match_kind, handed });
                    }
                    attempt.complete(status);
                    if is_load(status) { "load" } else { "status" }
                }
                Err(error) if error.is_out_of_sockets() => {
                    choose::forget(shared, plan, &decision, sent_blocks);
                    return Err(GatewayError::OutOfSockets { last: error });
                }
                Err(error) => {
                    attempt.fail(error.kind());
                    choose::forget(shared, plan, &decision, sent_blocks);
                    tracing::debug!(worker = %worker.name, %error, "worker failed before answering");
                    let harmless = self.is_repeatable() || !error.may_have_been_processed();
                    if !(harmless && is_another() && shared.may_retry()) {
                        return Err(GatewayError::Failed { tries, last: error });
                    }
                    error.kind()
                }
            };
            drop(attempt); // its load is off the worker before the next decision
            if handed.take().is_some() {
                shared.metrics.disaggregation.count(HandoffOutcome::DecodeFailed);
            }
            shared.metrics.retries.with_label_values(&[retry_reason]).inc();
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
                waits += 1;
                tried.clear();
            }
            choice = self.choose(&tried, &mut handed).await?;
        }
    }

    /// May be processed by several workers.
    fn is_repeatable(&self) -> bool {
        self.route != Route::Other || self.outgoing.method.is_idempotent()
    }

    pub(super) fn wanted<'t>(&'t self, tried: &'t [WorkerSlot], handed: Option<&Handed>) -> Wanted<'t> {
        let bounds = if self.is_bounded() { Bounds::of(&self.config.limits) } else { Bounds::default() };
        Wanted {
            stage: if handed.is_some() { Stage::Decode } else { Stage::Whole },
            prefilled_by: handed.map(|handed| handed.worker.slot),
            model: self.plan.model,
            only: self.plan.only,
            among: self.plan.among.as_deref(),
            tried,
            bounds,
        }
    }

    /// Asking for a version or a list makes no worker work.
    fn is_bounded(&self) -> bool {
        !self.outgoing.method.is_safe()
    }

    /// A worker that has not been tried, when there is room on one and it is this request's turn. Where nobody is there to
    /// decode what was prefilled, `handed` is given up.
    pub(super) async fn choose(
        &self,
        tried: &[WorkerSlot],
        handed: &mut Option<Box<Handed>>,
    ) -> Result<Choice, GatewayError> {
        let Self { context, config, plan, request_id, outgoing, bid, .. } = self;
        let mut wanted = self.wanted(tried, handed.as_deref());
        if handed.is_some() && !wanted.is_served(&context.shared.fleet.workers(), Instant::now()) {
            context.shared.metrics.disaggregation.count(HandoffOutcome::DecodeFailed);
            *handed = None;
            wanted = self.wanted(tried, None);
        }
        let waits_until = self.began + config.timeouts.queue;
        let request = admission::Request {
            bid: bid.clone(),
            wanted,
            is_bounded: self.is_bounded(),
            until: outgoing.wishes.deadline.map_or(waits_until, |deadline| deadline.min(waits_until)),
            limit: config.limits.queue,
        };
        let shared: &Arc<Shared> = &context.shared;
        let deciding = self.trace.map(|trace| (trace, Instant::now()));
        let chosen = admission::admit(shared, request, |own| {
            let choosing = Instant::now();
            let choice = choose::choose(shared, &context.scratch, plan, request_id, &wanted, own);
            if choice.is_some() && plan.by_prefix && tried.is_empty() {
                shared.metrics.decision.observe((self.planning + choosing.elapsed()).as_secs_f64());
            }
            choice
        })
        .await;
        if let Some((trace, began)) = deciding {
            trace.step(Phase::Decide, began);
        }
        chosen
    }

    /// Sends the request, or its decode stage, to the worker, and waits until it begins to answer: for the head, and of a
    /// stream for its first byte, as long as the head may be held. The outer error is the client's deadline.
    async fn send(
        &self,
        attempt: &Attempt,
        handed: Option<&Handed>,
        traceparent: Option<&HeaderValue>,
    ) -> Result<Result<Sent, SendError>, GatewayError> {
        let worker = attempt.worker();
        let Self { context, config, outgoing, .. } = self;
        let timeouts = &config.timeouts;
        let body = handed.map_or(&outgoing.body, |handed| &handed.body);
        let begin = async {
            let sent = upstream::send(
                &context.pool,
                worker,
                self.is_repeatable(),
                outgoing.hold,
                timeouts.response_head,
                || outgoing.request(worker, body.clone(), traceparent),
            )
            .await?;
            let has_body = !sent.response.body().is_end_stream();
            if has_body
                && self.is_repeatable()
                && upstream::is_event_stream(sent.response.headers())
                && sent.response.status() == StatusCode::OK
            {
                let patience = timeouts.first_byte.unwrap_or(timeouts.hold_head);
                match tokio::time::timeout(patience, sent.first_byte()).await {
                    Ok(came) => came.map_err(SendError::Empty)?,
                    Err(_) if timeouts.first_byte.is_some() => return Err(SendError::Silent(patience)),
                    Err(_) => {} // the client gets its head; from now on there is no other worker
                }
                // vLLM says so where the KV blocks could not be fetched.
                if handed.is_some() && sent.begins_with_error() {
                    return Err(SendError::ErrorEvent);
                }
            }
            Ok(sent)
        };
        self.within(attempt, begin).await
    }

    /// What the worker makes of it, unless the request or the worker comes to an end before. The outer error is the
    /// client's deadline.
    pub(super) async fn within<T>(
        &self,
        attempt: &Attempt,
        begin: impl Future<Output = Result<T, SendError>>,
    ) -> Result<Result<T, SendError>, GatewayError> {
        let (worker, outgoing) = (attempt.worker(), self.outgoing);
        let deadline = async {
            match outgoing.wishes.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            sent = begin => Ok(sent),
            () = worker.liveness.until_hung() => Ok(Err(SendError::Hung)),
            () = attempt.cut().cut() => Ok(Err(SendError::Removed)),
            () = deadline => {
                self.context.shared.metrics.queue.refused("deadline_exceeded");
                Err(GatewayError::Deadline)
            }
        }
    }

    /// How long to wait before a worker that has too much to do is asked again; `None` if that is not worth while.
    fn time_to_wait(&self, Sent { response, .. }: &Sent, tries: usize, waits: u32) -> Option<Duration> {
        if !is_load(response.status()) || tries >= self.config.limits.tries {
            return None;
        }
        let wait = retry_after(response.headers())? + backoff(waits);
        let now = Instant::now();
        let until = self.began + self.config.timeouts.queue;
        let until = self.outgoing.wishes.deadline.map_or(until, |deadline| deadline.min(until));
        (now.checked_add(wait)? < until).then_some(wait)
    }
}

/// Whether a decode stage came to nothing, and its worker is there all the same.
fn is_handoff_fault(sent: &Result<Sent, SendError>) -> bool {
    match sent {
        Ok(sent) => is_fault(sent.response.status()),
        Err(error) => matches!(error, SendError::ErrorEvent),
    }
}

/// Failures that another worker may not have: its own faults, and its load.
fn is_worth_another_worker(status: StatusCode) -> bool {
    is_load(status)
        || matches!(
            status,
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT
        )
}

/// In seconds; a date is not looked at, vLLM sends none.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Any time up to a bound that doubles with each wait ("full jitter": M. Brooker, *Exponential Backoff And Jitter*, 2015).
fn backoff(waits: u32) -> Duration {
    let bound = limits::BACKOFF_BASE.saturating_mul(1 << waits.min(16)).min(limits::BACKOFF_MAX);
    bound.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_of_the_backoff_doubles_up_to_a_limit() {
        for (waits, bound) in [(0, 100), (1, 200), (3, 800), (6, 5_000), (60, 5_000)] {
            let longest = (0..2_000).map(|_| backoff(waits)).max().expect("some");
            let bound = Duration::from_millis(bound);
            assert!(longest <= bound && longest > bound.mul_f64(0.9), "{waits}: {longest:?}");
        }
        assert!((0..2_000).any(|_| backoff(6) < Duration::from_millis(100)), "full jitter starts at nothing");
    }

    #[test]
    fn only_seconds_say_when_to_come_again() {
        let after = |text: &'static str| {
            retry_after(&HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static(text))]))
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), None);
        assert_eq!(after("-1"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
