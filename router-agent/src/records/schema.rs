//! A record as JSON: what `/decisions` answers, what its followers get, and a line of the decision log.
//!
//! Fields are added without a new [`SCHEMA`]; a field that goes or means something else gets one. A reader passes over
//! fields that it does not know. Times are seconds, hashes 16 hexadecimal digits (JSON's numbers end at 2^53).

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{End, Outcome, Record};
use crate::{
    index::WorkerSlot,
    routing::{Adapter, Candidate, Score, Speed, cost_unit, explain},
};

/// The version of what is written here.
pub const SCHEMA: u32 = 1;

/// How much of a record is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Without the candidates.
    Brief,
    /// Everything.
    Full,
}

/// One try of one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DecisionRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `x-request-id`: the client's own, or one that the gateway made.
    pub request_id: String,
    /// When it was decided, UTC.
    #[schema(value_type = String, format = DateTime)]
    pub time: jiff::Timestamp,
    /// The name of the API key; `default` where there are none.
    pub tenant: String,
    /// The model that the client named.
    pub asked_model: Option<String>,
    /// The model that the worker was asked for.
    pub model: Option<String>,
    /// `chat`, `completions`, `responses`, `messages`, `other`.
    pub route: String,
    /// What of the request the worker does: `whole`, `prefill`, or `decode` (docs/disaggregation.md).
    #[serde(default = "whole")]
    pub stage: String,
    /// Of a decode stage: the worker that has prefilled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_worker: Option<String>,
    pub policy: String,
    pub reason: String,
    /// 1 for the first worker that is tried.
    pub attempt: u32,
    /// The chosen worker.
    pub worker: String,
    /// The one that would have been next, if the policy has an order.
    pub runner_up: Option<String>,
    /// Estimated from bytes unless the ids are known.
    pub prompt_tokens: u32,
    /// How `matched_tokens` is known: `exact` (the worker's own KV events), `approximate` (what was sent there).
    #[serde(rename = "match")]
    pub match_kind: String,
    /// Of the prompt, what the chosen worker was believed to have.
    pub matched_tokens: u32,
    /// The most that any candidate was believed to have.
    pub best_matched_tokens: u32,
    /// Tokens that the chosen worker has to prefill.
    pub new_tokens: u32,
    /// Candidates that cost the same as the chosen one, itself included.
    pub tied: u32,
    /// What costs are: `microseconds`, `token_requests`, `requests`, `millionths_below_best`; none: not compared.
    pub cost_unit: Option<String>,
    pub cost: u64,
    pub runner_up_cost: Option<u64>,
    pub predicted_time_to_first_token_seconds: Option<f64>,
    /// Workers that were in question.
    pub candidate_count: u32,
    /// Every one of them, with all that the policy knew of it. Left out of brief records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<CandidateRecord>,
    /// Hash of the session's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub session_hash: Option<Hash>,
    /// Bytes of prompt per hash.
    pub block_bytes: u32,
    /// One per block, each of all blocks up to it; only in logs that ask for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub prompt_hashes: Option<Vec<Hash>>,
    /// None while the try is under way.
    pub outcome: Option<OutcomeRecord>,
}

/// What the policy knew of one worker, and what it made of that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CandidateRecord {
    pub worker: String,
    /// 0 for policies that compare none.
    pub cost: u64,
    pub predicted_time_to_first_token_seconds: Option<f64>,
    pub matched_tokens: u32,
    pub matched_blocks: u32,
    pub new_tokens: u32,
    /// Requests that this gateway had there.
    pub in_flight_requests: u32,
    /// Of these, requests without a byte of their answer.
    pub pending_requests: u32,
    pub queued_prefill_tokens: u64,
    /// In flight, and what the last scrape showed beyond that.
    pub batch_requests: u32,
    /// At the last scrape.
    pub engine_running_requests: u32,
    pub engine_waiting_requests: u32,
    pub in_flight_requests_at_scrape: u32,
    /// 0 to 1, at the last scrape.
    pub kv_cache_usage: f64,
    /// `absent`, `waiting`, `running`.
    pub adapter: String,
    pub speed: Option<SpeedRecord>,
}

/// What had been learned of a worker's speed. Seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SpeedRecord {
    /// Prefill of one token.
    pub token_seconds: f64,
    /// The same on an average worker.
    pub fleet_token_seconds: f64,
    /// What a prompt takes whatever its length.
    pub fixed_seconds: f64,
    /// What one more running request costs each of the others until it ends.
    pub batch_seconds: f64,
}

/// What became of a try.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OutcomeRecord {
    /// `completed`, `failed`, `rejected`, `cancelled`.
    pub end: String,
    /// HTTP status of the worker's answer, if there was one.
    pub status: Option<u16>,
    /// What went wrong: `connect`, `broken`, `timeout`, `hung`, `status`, `broken_stream`, …
    pub fault: Option<String>,
    /// Request sent to first byte of the body.
    pub first_byte_seconds: Option<f64>,
    /// The same of event streams, where that byte is the first token.
    pub time_to_first_token_seconds: Option<f64>,
    /// Decision to end.
    pub duration_seconds: f64,
    /// By the worker's `usage`, where this gateway could read it.
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    /// Events of an event stream.
    pub events: Option<u64>,
}

/// 64 bits, written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hash(pub u64);

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let hash = u64::from_str_radix(&text, 16).ok().filter(|_| digits).map(Self);
        hash.ok_or_else(|| D::Error::custom(format!("{text:?} is no hash: 16 hexadecimal digits")))
    }
}

/// The stage of records that are older than stages.
fn whole() -> String {
    "whole".to_owned()
}

/// A millionth of a second is as much as a log needs.
fn seconds(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

impl Record {
    /// The record as JSON has it.
    pub fn view(&self, detail: Detail) -> DecisionRecord {
        let Self { decision, ask, candidates, .. } = self;
        let name = |slot: WorkerSlot| self.roster.name(slot).to_owned();
        let mut scores = Vec::new();
        if detail == Detail::Full {
            explain(decision.policy, &self.settings, ask, candidates, &mut scores);
        }
        DecisionRecord {
            schema: SCHEMA,
            request_id: self.request_id().to_owned(),
            time: jiff::Timestamp::try_from(self.time).unwrap_or_default(),
            tenant: self.tenant().to_owned(),
            asked_model: self.asked_model().map(str::to_owned),
            model: self.model().map(str::to_owned),
            route: self.route.to_owned(),
            stage: self.stage().to_owned(),
            prefill_worker: self.prefill_worker().map(str::to_owned),
            policy: decision.policy.name().to_owned(),
            reason: decision.reason.label().to_owned(),
            attempt: self.attempt,
            worker: name(decision.slot),
            runner_up: decision.runner_up.map(name),
            prompt_tokens: ask.prompt_tokens,
            match_kind: self.match_kind.to_owned(),
            matched_tokens: decision.matched_tokens,
            best_matched_tokens: decision.best_matched_tokens,
            new_tokens: decision.new_tokens,
            tied: decision.tied,
            cost_unit: cost_unit(decision.policy, candidates).map(str::to_owned),
            cost: decision.cost,
            runner_up_cost: decision.runner_up.map(|_| decision.runner_up_cost),
            predicted_time_to_first_token_seconds: decision.time_to_first_token_s.map(seconds),
            candidate_count: candidates.len() as u32,
            candidates: scores
                .iter()
                .zip(candidates)
                .map(|(score, candidate)| CandidateRecord::new(name(score.slot), score, candidate))
                .collect(),
            session_hash: ask.session.map(Hash),
            block_bytes: self.block_bytes,
            prompt_hashes: match (&self.hashes, detail) {
                (Some(hashes), Detail::Full) => Some(hashes.iter().copied().map(Hash).collect()),
                _ => None,
            },
            outcome: self.outcome().map(OutcomeRecord::new),
        }
    }
}

impl CandidateRecord {
    /// Of the worker called so.
    pub fn new(worker: String, score: &Score, candidate: &Candidate) -> Self {
        let Score { matched_tokens, new_tokens, queued_prefill_tokens, batch, cost, .. } = *score;
        Self {
            worker,
            cost,
            predicted_time_to_first_token_seconds: score.time_to_first_token_s.map(seconds),
            matched_tokens,
            matched_blocks: candidate.matched_blocks,
            new_tokens,
            in_flight_requests: candidate.in_flight,
            pending_requests: candidate.pending,
            queued_prefill_tokens,
            batch_requests: batch,
            engine_running_requests: candidate.running,
            engine_waiting_requests: candidate.waiting,
            in_flight_requests_at_scrape: candidate.in_flight_at_scrape,
            kv_cache_usage: f64::from(candidate.kv_usage_permille) / 1000.0,
            adapter: match candidate.adapter {
                Adapter::Absent => "absent",
                Adapter::Waiting => "waiting",
                Adapter::Running => "running",
            }
            .to_owned(),
            speed: candidate.speed.map(SpeedRecord::new),
        }
    }
}

impl SpeedRecord {
    fn new(Speed { token_s, fleet_token_s, fixed_s, batch_s }: Speed) -> Self {
        Self {
            token_seconds: token_s,
            fleet_token_seconds: fleet_token_s,
            fixed_seconds: fixed_s,
            batch_seconds: batch_s,
        }
    }
}

impl OutcomeRecord {
    fn new(outcome: &Outcome) -> Self {
        let usage = outcome.usage.unwrap_or_default();
        Self {
            end: outcome.end.label().to_owned(),
            status: outcome.status,
            fault: outcome.fault.map(str::to_owned),
            first_byte_seconds: outcome.first_byte_s.map(seconds),
            time_to_first_token_seconds: outcome.time_to_first_token_s.map(seconds),
            duration_seconds: seconds(outcome.duration_s),
            prompt_tokens: usage.prompt,
            completion_tokens: usage.completion,
            cached_tokens: usage.cached(),
            events: outcome.events,
        }
    }

    /// Whether the worker has given its whole answer.
    pub fn is_complete(&self) -> bool {
        self.end == End::Completed.label()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::record::tests::record;

    #[test]
    fn a_record_is_read_as_it_was_written_and_what_is_unknown_is_passed_over() {
        let full = record("abc", 3).view(Detail::Full);
        let mut json = serde_json::to_value(&full).expect("it is JSON");
        assert_eq!(json["prompt_hashes"][1], "ffffffffffffffff");
        assert_eq!((&json["schema"], &json["candidate_count"]), (&1.into(), &3.into()));
        assert_eq!(json["candidates"][2]["cost"], 100);
        json["from_the_future"] = true.into();
        assert_eq!(serde_json::from_value::<DecisionRecord>(json).expect("a record"), full);
        let brief = record("abc", 3).view(Detail::Brief);
        assert!(brief.candidates.is_empty() && brief.prompt_hashes.is_none());
    }

    #[test]
    fn a_hash_is_sixteen_digits() {
        for wrong in ["\"+00000000000000f\"", "\"f\"", "\"fffffffffffffffff\"", "7"] {
            assert!(serde_json::from_str::<Hash>(wrong).is_err(), "{wrong}");
        }
    }
}
