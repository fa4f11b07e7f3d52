//! One record as the data threads write it: copies, to be told apart when somebody reads it.

use std::{
    sync::{Arc, OnceLock},
    time::{Instant, SystemTime},
};

use serde::Deserialize;

use super::{Recorder, Roster};
use crate::{
    index::WorkerSlot,
    routing::{Ask, Candidate, Decision, Settings},
};

/// What a record is made of.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// `x-request-id`.
    pub request_id: &'a [u8],
    /// The tenant's name.
    pub tenant: &'a Arc<str>,
    /// The model that the client named, if it named one.
    pub asked_model: Option<&'a Arc<str>>,
    /// The model that the worker is asked for.
    pub model: Option<&'a Arc<str>>,
    /// A bounded label: chat, completions, …
    pub route: &'static str,
    /// What of the request the worker does: `whole`, `prefill` or `decode`.
    pub stage: &'static str,
    /// Of a decode stage: who has prefilled it.
    pub prefilled_by: Option<WorkerSlot>,
    /// 1 for the first worker that is tried.
    pub attempt: u32,
    /// What the policy was asked.
    pub ask: Ask,
    /// How the chosen worker's matched tokens are known.
    pub match_kind: &'static str,
    /// What it was told of every worker.
    pub candidates: &'a [Candidate],
    /// What it went by.
    pub settings: &'a Arc<Settings>,
    /// What it said.
    pub decision: Decision,
    /// Their names.
    pub roster: &'a Arc<Roster>,
    /// Hashes of the prompt's blocks, and their length.
    pub hashes: &'a [u64],
    /// Bytes of a block.
    pub block_bytes: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Record {
    pub(super) time: SystemTime,
    request_id: Box<str>,
    tenant: Arc<str>,
    asked_model: Option<Arc<str>>,
    model: Option<Arc<str>>,
    pub(super) route: &'static str,
    stage: &'static str,
    prefilled_by: Option<WorkerSlot>,
    pub(super) attempt: u32,
    pub(super) ask: Ask,
    pub(super) match_kind: &'static str,
    pub(super) candidates: Box<[Candidate]>,
    pub(super) settings: Arc<Settings>,
    pub(super) decision: Decision,
    pub(super) roster: Arc<Roster>,
    /// Where the log wants them.
    pub(super) hashes: Option<Box<[u64]>>,
    pub(super) block_bytes: u32,
    is_logged: bool,
    outcome: OnceLock<Outcome>,
}

impl Record {
    pub(super) fn new(facts: &Facts<'_>, is_logged: bool, with_hashes: bool) -> Self {
        Self {
            time: SystemTime::now(),
            request_id: String::from_utf8_lossy(facts.request_id).into(),
            tenant: facts.tenant.clone(),
            asked_model: facts.asked_model.cloned(),
            model: facts.model.cloned(),
            route: facts.route,
            stage: facts.stage,
            prefilled_by: facts.prefilled_by,
            attempt: facts.attempt,
            ask: facts.ask,
            match_kind: facts.match_kind,
            candidates: facts.candidates.into(),
            settings: facts.settings.clone(),
            decision: facts.decision,
            roster: facts.roster.clone(),
            hashes: with_hashes.then(|| facts.hashes.into()),
            block_bytes: facts.block_bytes,
            is_logged,
            outcome: OnceLock::new(),
        }
    }

    /// `x-request-id`.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The tenant's name.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The model that the client named.
    pub fn asked_model(&self) -> Option<&str> {
        self.asked_model.as_deref()
    }

    /// The model that the worker was asked for.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// What of the request the worker does: `whole`, `prefill` or `decode`.
    pub fn stage(&self) -> &'static str {
        self.stage
    }

    /// Of a decode stage: the name of the worker that has prefilled it.
    pub fn prefill_worker(&self) -> Option<&str> {
        self.prefilled_by.map(|slot| self.roster.name(slot))
    }

    /// 1 for the first worker that is tried.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How the chosen worker's matched tokens are known.
    pub fn match_kind(&self) -> &'static str {
        self.match_kind
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> u32 {
        self.ask.prompt_tokens
    }

    /// Workers that were in question.
    pub fn candidate_count(&self) -> usize {
        self.candidates.len()
    }

    /// What was decided.
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// The name of the chosen worker.
    pub fn worker(&self) -> &str {
        self.roster.name(self.decision.slot)
    }

    /// What became of it; none while it is under way.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    /// Whether the decision log takes it.
    pub(super) fn is_logged(&self) -> bool {
        self.is_logged
    }

    /// Memory that is its own.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.request_id.len()
            + size_of_val::<[Candidate]>(&self.candidates)
            + self.hashes.as_deref().map_or(0, size_of_val::<[u64]>)
    }
}

/// How a try ended, by the names of `warmpath_worker_requests_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The response was passed on to its end.
    Completed,
    /// The worker failed.
    Failed,
    /// The worker has too much to do (429, 503).
    Rejected,
    /// The client has left, or waits no longer.
    Cancelled,
}

impl End {
    /// For logs and records.
    pub fn label(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Tokens as the worker counts them, by the names of OpenAI's APIs and of Anthropic's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    #[serde(rename = "total_tokens")]
    total: Option<u64>,
    /// Of the prompt.
    #[serde(rename = "prompt_tokens", alias = "input_tokens")]
    pub prompt: Option<u64>,
    /// Of the answer.
    #[serde(rename = "completion_tokens", alias = "output_tokens")]
    pub completion: Option<u64>,
    #[serde(rename = "prompt_tokens_details", alias = "input_tokens_details")]
    details: Option<Details>,
    cache_read_input_tokens: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

impl Usage {
    /// Prompt and answer together; none if the prompt's are not said.
    pub fn total(self) -> Option<u64> {
        self.total.or_else(|| Some(self.prompt? + self.completion.unwrap_or(0)))
    }

    /// Of the prompt, those that were in the worker's cache.
    pub fn cached(self) -> Option<u64> {
        self.details.and_then(|details| details.cached_tokens).or(self.cache_read_input_tokens)
    }
}

/// What became of a try.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// HTTP status of the worker's answer, if there was one.
    pub status: Option<u16>,
    pub end: End,
    /// What went wrong, by the names of `warmpath_errors_total{source="worker"}`.
    pub fault: Option<&'static str>,
    /// Request sent to first byte of the body.
    pub first_byte_s: Option<f64>,
    /// The same of event streams, where that byte is the first token.
    pub time_to_first_token_s: Option<f64>,
    /// Decision to end.
    pub duration_s: f64,
    pub usage: Option<Usage>,
    /// Events of an event stream.
    pub events: Option<u64>,
}

/// A record whose try is under way. Dropped, the try has ended: the client has left, if nothing else was said.
#[derive(Debug)]
pub struct Open {
    recorder: Arc<Recorder>,
    record: Arc<Record>,
    began: Instant,
    outcome: Outcome,
}

impl Open {
    pub(super) fn new(recorder: Arc<Recorder>, record: Arc<Record>) -> Self {
        let outcome = Outcome {
            status: None,
            end: End::Cancelled,
            fault: None,
            first_byte_s: None,
            time_to_first_token_s: None,
            duration_s: 0.0,
            usage: None,
            events: None,
        };
        Self { recorder, record, began: Instant::now(), outcome }
    }

    /// The record itself.
    pub fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// What became of the try so far.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The worker has answered with this status.
    pub fn responded(&mut self, status: u16) {
        self.outcome.status = Some(status);
    }

    /// The body's first byte has come, so many seconds after the request was sent.
    pub fn first_byte(&mut self, seconds: f64, is_first_token: bool) {
        self.outcome.first_byte_s = Some(seconds);
        self.outcome.time_to_first_token_s = is_first_token.then_some(seconds);
    }

    /// How it ends, and what went wrong.
    pub fn ends(&mut self, end: End, fault: Option<&'static str>) {
        (self.outcome.end, self.outcome.fault) = (end, fault);
    }

    /// What the worker says that it cost.
    pub fn used(&mut self, usage: Usage) {
        self.outcome.usage = Some(usage);
    }

    /// So many events have been in its stream.
    pub fn streamed(&mut self, events: u64) {
        self.outcome.events = Some(events);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.outcome.duration_s = self.began.elapsed().as_secs_f64();
        // Nobody else sets it.
        let _ = self.record.outcome.set(self.outcome);
        self.recorder.ended(self.record.clone());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::routing::{Policy, Router};

    /// Of a decision by `warm` among idle workers.
    pub(in crate::records) fn record(request_id: &str, workers: u16) -> Arc<Record> {
        let candidates: Vec<_> = (0..workers).map(|slot| Candidate::idle(WorkerSlot(slot))).collect();
        let mut router = Router::new(Settings::new(Policy::Warm), 1);
        let ask = Ask { prompt_tokens: 100, session: Some(7) };
        let [tenant, alias, model]: [Arc<str>; 3] = ["team-a".into(), "alias".into(), "m".into()];
        let settings = router.settings().clone();
        let facts = Facts {
            request_id: request_id.as_bytes(),
            tenant: &tenant,
            asked_model: Some(&alias),
            model: Some(&model),
            route: "chat",
            stage: "whole",
            prefilled_by: None,
            attempt: 1,
            ask,
            match_kind: "approximate",
            candidates: &candidates,
            settings: &settings,
            decision: router.decide(&ask, &candidates).expect("there are workers"),
            roster: &Arc::default(),
            hashes: &[1, u64::MAX],
            block_bytes: 128,
        };
        Arc::new(Record::new(&facts, true, true))
    }
}
