//! What goes into a decision and what comes out of it.

use super::{Policy, Speed};
use crate::index::WorkerSlot;

/// The request, as far as the decision needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ask {
    /// Tokens of the prompt, estimated or exact. 0 where there is no prompt to speak of.
    pub prompt_tokens: u32,
    /// Hash of the session's key, where the request has one.
    pub session: Option<u64>,
}

/// Whether a worker has the adapter that the request names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Adapter {
    /// It runs none of its requests now, or the request names none, or it is not known.
    #[default]
    Absent,
    /// Requests wait for it.
    Waiting,
    /// It is loaded: requests run with it.
    Running,
}

/// A worker that may get the request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    pub slot: WorkerSlot,
    /// Leading tokens of the prompt that the worker is believed to have cached.
    pub matched_tokens: u32,
    /// The same in blocks.
    pub matched_blocks: u32,
    /// Requests that have been sent there and have not ended: by this gateway, and by those that tell it theirs.
    pub in_flight: u32,
    /// Of these, requests whose first body byte has not come.
    pub pending: u32,
    /// Prefill tokens sent there, by the same, for requests whose first body byte has not come.
    pub queued_prefill_tokens: u64,
    /// `vllm:num_requests_running` at the last scrape; 0 if there was none.
    pub running: u32,
    /// `vllm:num_requests_waiting` at the last scrape; 0 if there was none.
    pub waiting: u32,
    /// `in_flight` as it was at the moment of that scrape.
    pub in_flight_at_scrape: u32,
    /// `vllm:kv_cache_usage_perc` × 1000 at the last scrape; 0 if there was none.
    pub kv_usage_permille: u32,
    /// The adapter that the request names, at the last scrape.
    pub adapter: Adapter,
    /// Hash of the worker's name: its place among the others for a session, whichever slot it has.
    pub identity: u64,
    /// None while too little is known of the fleet.
    pub speed: Option<Speed>,
}

impl Candidate {
    /// A worker of which nothing is known but its slot.
    pub fn idle(slot: WorkerSlot) -> Self {
        Self {
            slot,
            matched_tokens: 0,
            matched_blocks: 0,
            in_flight: 0,
            pending: 0,
            queued_prefill_tokens: 0,
            running: 0,
            waiting: 0,
            in_flight_at_scrape: 0,
            kv_usage_permille: 0,
            adapter: Adapter::Absent,
            identity: u64::from(slot.0),
            speed: None,
        }
    }

    /// Requests that the worker has now: ours, which are exact, and those of others (a gateway that tells nothing, a
    /// client of its own), which are what the last scrape showed beyond ours. With `in_flight_at_scrape` left equal to
    /// `in_flight` this is the larger of the two counts.
    pub fn batch(&self) -> u32 {
        let scraped = self.running.saturating_add(self.waiting);
        self.in_flight.saturating_add(scraped.saturating_sub(self.in_flight_at_scrape))
    }
}

/// A worker, and why it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    pub slot: WorkerSlot,
    pub policy: Policy,
    pub reason: Reason,
    /// Tokens that the worker is believed to have.
    pub matched_tokens: u32,
    /// Tokens that it will have to prefill: what the caller adds to its queue until the first body byte.
    pub new_tokens: u32,
    /// The longest match of any candidate.
    pub best_matched_tokens: u32,
    /// What the policy minimised, in its own unit (`warm`: microseconds, or token-requests while speeds are not known);
    /// 0 for policies that do not.
    pub cost: u64,
    /// The worker that would have been next.
    pub runner_up: Option<WorkerSlot>,
    /// What that one would have cost, in the same unit; 0 without one.
    pub runner_up_cost: u64,
    /// Candidates that cost the same as the chosen one, itself included.
    pub tied: u32,
    /// Seconds to the first token on the chosen worker, as the learned speeds have it; none while they are not known.
    pub time_to_first_token_s: Option<f64>,
}

/// Why a worker was chosen. A bounded set: it labels metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// There was no choice.
    OnlyCandidate,
    /// No other worker has a longer part of the prompt, and waiting there costs less than prefilling elsewhere.
    PrefixHit,
    /// Another worker has more of the prompt, but it is too busy for that to pay.
    LoadOverPrefix,
    /// No worker has any of the prompt: the least work and the smallest batch.
    LeastCost,
    /// Several workers were equally good: the one that was chosen longest ago.
    TieLru,
    LeastLoaded,
    PowerOfTwo,
    RoundRobin,
    Random,
    /// A worker with more of the prompt is at its limit of requests.
    Saturated,
    /// The session's own worker.
    Session,
    /// The session's own worker has more than its bound: the next one in the session's order.
    SessionOverflow,
    /// The highest sum of weighted scores.
    HighestScore,
    /// Drawn with chances by score.
    WeightedRandom,
    /// It made the response that this request goes on from.
    PreviousResponse,
}

impl Reason {
    pub const ALL: [Self; 15] = [
        Self::OnlyCandidate,
        Self::PrefixHit,
        Self::LoadOverPrefix,
        Self::LeastCost,
        Self::TieLru,
        Self::LeastLoaded,
        Self::PowerOfTwo,
        Self::RoundRobin,
        Self::Random,
        Self::Saturated,
        Self::Session,
        Self::SessionOverflow,
        Self::HighestScore,
        Self::WeightedRandom,
        Self::PreviousResponse,
    ];

    /// The name in metrics, headers and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::OnlyCandidate => "only_candidate",
            Self::PrefixHit => "prefix_hit",
            Self::LoadOverPrefix => "load_over_prefix",
            Self::LeastCost => "least_cost",
            Self::TieLru => "tie_lru",
            Self::LeastLoaded => "least_loaded",
            Self::PowerOfTwo => "power_of_two",
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
            Self::Saturated => "saturated",
            Self::Session => "session",
            Self::SessionOverflow => "session_overflow",
            Self::HighestScore => "highest_score",
            Self::WeightedRandom => "weighted_random",
            Self::PreviousResponse => "previous_response",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.label())
    }
}
