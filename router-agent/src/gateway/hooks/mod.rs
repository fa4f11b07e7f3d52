//! Hooks: services of the operator's that see a request before it is routed, and let it go on, refuse it, or change its
//! body and some of its header fields. One after the other, in the order of the configuration; see docs/shaping.md for
//! what is sent and answered.
//!
//! A hook can cost a request no more than its timeout and the gateway no more than its bounds: so many requests at a time
//! over all threads, bodies up to a length, answers up to a length. One that fails again and again is left alone for a
//! while (the breaker that workers have, by the same settings), so that nobody waits for what will not come.

mod exchange;
mod message;

use std::{sync::Arc, time::Instant};

use http::{HeaderMap, HeaderValue};
use tokio::sync::Semaphore;

pub(super) use self::exchange::HookClient;
use self::message::{About, Answer};
use super::{GatewayError, bodies::Collected};
use crate::{
    config::{Config, HookConfig},
    fleet::{Breaker, Outcome as Verdict},
    prompt::{self, ApiKind},
    telemetry::{HookMetrics, HookOutcome, HookSeries},
};

/// One hook of this gateway, over all threads.
#[derive(Debug)]
pub(super) struct Hook {
    config: HookConfig,
    places: Semaphore,
    breaker: Breaker,
    metrics: HookSeries,
}

/// The hooks of `config`; those of `before` that are the same go on as they are.
pub(super) fn hooks(config: &Config, before: &[Arc<Hook>], metrics: &HookMetrics) -> Vec<Arc<Hook>> {
    for gone in before.iter().filter(|hook| !config.hooks.iter().any(|new| new.name == hook.config.name)) {
        metrics.forget(&gone.config.name);
    }
    let now = Instant::now();
    let hook = |hook: &HookConfig| match before.iter().find(|before| before.config == *hook) {
        Some(same) => {
            same.breaker.configure(config.breaker, now);
            same.clone()
        }
        None => Arc::new(Hook {
            places: Semaphore::new(hook.concurrency),
            breaker: Breaker::new(config.breaker),
            metrics: metrics.of(&hook.name),
            config: hook.clone(),
        }),
    };
    config.hooks.iter().map(hook).collect()
}

/// A request on its way through the hooks.
pub(super) struct Passing<'a> {
    pub(super) kind: ApiKind,
    pub(super) path: &'a str,
    pub(super) tenant: &'a str,
    pub(super) request_id: &'a HeaderValue,
    /// What goes to workers, and what of it hooks may see.
    pub(super) headers: &'a mut HeaderMap,
    pub(super) body: &'a mut Collected,
    /// Bytes of a body, and of all.
    pub(super) body_bytes_max: usize,
    pub(super) bodies_bytes_max: usize,
    /// What was asked, and what came of it.
    pub(super) asked: &'a mut Vec<(Arc<str>, HookOutcome)>,
}

impl Passing<'_> {
    /// Asks every hook that is to see the request; an error if one refuses it, or cannot be asked and must be.
    pub(super) async fn through(
        mut self,
        hooks: &[Arc<Hook>],
        client: &HookClient,
    ) -> Result<(), GatewayError> {
        for hook in hooks {
            if hook.config.routes.contains(&self.kind) {
                self.pass(hook, client).await?;
            }
        }
        Ok(())
    }

    async fn pass(&mut self, hook: &Hook, client: &HookClient) -> Result<(), GatewayError> {
        let HookConfig { models, sends_body, body_bytes_max, .. } = &hook.config;
        // What no worker could answer no hook has to see.
        let request = prompt::parse(self.kind, &self.body.bytes)?;
        let model = request.model.as_deref();
        if !models.is_empty()
            && !models.iter().any(|pattern| model.is_some_and(|model| pattern.matches(model)))
        {
            return Ok(());
        }
        if *sends_body && self.body.bytes.len() > *body_bytes_max {
            let too_long =
                GatewayError::TooLongForHook { hook: hook.config.name.clone(), limit: *body_bytes_max };
            return self.without(hook, HookOutcome::TooLong, too_long);
        }
        let failed = || GatewayError::HookFailed(hook.config.name.clone());
        let Ok(_place) = hook.places.try_acquire() else {
            return self.without(hook, HookOutcome::Busy, failed());
        };
        let began = Instant::now();
        if !hook.breaker.admits(began) {
            return self.without(hook, HookOutcome::NotAsked, failed());
        }
        let about = About {
            request_id: self.request_id,
            tenant: self.tenant,
            kind: self.kind,
            path: self.path,
            model,
            headers: self.headers,
            extra_headers: &hook.config.headers,
            body: sends_body.then_some(&*self.body.bytes),
        };
        let role = hook.breaker.begin(began);
        let answer = client.ask(&hook.config, about.to_json(), self.body_bytes_max).await;
        hook.metrics.seconds.observe(began.elapsed().as_secs_f64());
        let verdict = if answer.is_ok() { Verdict::Success } else { Verdict::Fault };
        hook.breaker.ended(role, verdict, Instant::now());
        match answer {
            Ok(Answer::Allow) => self.note(hook, HookOutcome::Allowed),
            Ok(Answer::Reject { status, message }) => {
                self.note(hook, HookOutcome::Rejected);
                return Err(GatewayError::RejectedByHook { status, message });
            }
            Ok(Answer::Transform { body, headers }) => {
                self.note(hook, HookOutcome::Transformed);
                self.headers.extend(headers);
                if let Some(body) = body {
                    self.body.replace(body, self.bodies_bytes_max)?;
                }
            }
            Err(error) => {
                tracing::warn!(hook = &*hook.config.name, %error, "hook: no answer");
                let outcome = if error.is_late() { HookOutcome::Late } else { HookOutcome::Failed };
                return self.without(hook, outcome, failed());
            }
        }
        Ok(())
    }

    /// The hook has no say in this request.
    fn without(
        &mut self,
        hook: &Hook,
        outcome: HookOutcome,
        error: GatewayError,
    ) -> Result<(), GatewayError> {
        self.note(hook, outcome);
        if hook.config.passes_on_error { Ok(()) } else { Err(error) }
    }

    fn note(&mut self, hook: &Hook, outcome: HookOutcome) {
        hook.metrics.count(outcome);
        self.asked.push((hook.config.name.clone(), outcome));
    }
}

/// `x-warmpath-hooks`: names in their order, with what came of each (RFC 9651 section 3.1: a list of tokens with a
/// parameter).
pub(super) fn told(asked: &[(Arc<str>, HookOutcome)]) -> Option<HeaderValue> {
    let each: Vec<String> =
        asked.iter().map(|(name, outcome)| format!("{name};{}", outcome.label())).collect();
    (!each.is_empty())
        .then(|| HeaderValue::from_str(&each.join(", ")).expect("names are checked to be printable"))
}
