//! `weighted`: scorers with weights and a way to pick, for those who come from llm-d's scheduling profiles.
//!
//! Every scorer gives every candidate 0 to 1, and the sum of weight × score decides: the highest (`max`, of equals the one
//! chosen longest ago), or a draw with chances proportional to `sum ^ (1 / temperature)` (`weighted_random`). Scores that
//! compare candidates (`queue`, `load`) run from 1 for the least to 0 for the most, and are 1 for all where all are alike.
//!
//! `prefix` alone herds: where one worker holds a prefix, everybody goes there. Give `queue` or `load` a weight, too.

use std::{fmt, str::FromStr};

use super::{Adapter, Ask, Candidate, Choice, Reason, Router, session::affinity};

/// What is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scorer {
    /// The share of the prompt that the worker has.
    Prefix,
    /// Prefill tokens that wait there.
    Queue,
    /// Free KV cache, at the last scrape.
    KvUsage,
    /// Requests there.
    Load,
    /// 1 on the session's own worker.
    Session,
    /// 1 where the request's adapter runs, 0.6 where requests wait for it.
    Lora,
}

impl Scorer {
    pub const ALL: [Self; 6] =
        [Self::Prefix, Self::Queue, Self::KvUsage, Self::Load, Self::Session, Self::Lora];

    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Queue => "queue",
            Self::KvUsage => "kv_usage",
            Self::Load => "load",
            Self::Session => "session",
            Self::Lora => "lora",
        }
    }
}

impl fmt::Display for Scorer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scorer {
    type Err = UnknownScorer;

    fn from_str(name: &str) -> Result<Self, UnknownScorer> {
        let found = Self::ALL.into_iter().find(|scorer| scorer.name() == name);
        found.ok_or_else(|| UnknownScorer(name.to_owned()))
    }
}

/// A name that is no scorer's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no scorer is called `{0}`; there are {list}", list = Scorer::ALL.map(Scorer::name).join(", "))]
pub struct UnknownScorer(String);

/// How one of the scored candidates is taken.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// The highest.
    #[default]
    Max,
    /// A draw.
    WeightedRandom,
}

/// Settings of [`super::Policy::Weighted`].
#[derive(Debug, Clone, PartialEq)]
pub struct Weighted {
    /// Each with its weight, which is not negative.
    pub scorers: Vec<(Scorer, f64)>,
    pub pick: Pick,
    /// Above 0: the lower, the closer a draw is to `max`.
    pub temperature: f64,
}

impl Default for Weighted {
    /// llm-d's usual proportions.
    fn default() -> Self {
        let scorers = vec![(Scorer::Prefix, 2.0), (Scorer::Queue, 2.0), (Scorer::KvUsage, 1.0)];
        Self { scorers, pick: Pick::Max, temperature: 1.0 }
    }
}

/// Sums are compared as whole millionths, so that rounding makes no difference between equals.
const UNIT: f64 = 1e6;

/// What scores are relative to.
struct Field {
    queue: (u64, u64),
    load: (u64, u64),
    own: Option<u64>,
}

impl Field {
    fn of(ask: Ask, candidates: &[Candidate]) -> Self {
        let range = |figure: &dyn Fn(&Candidate) -> u64| {
            candidates
                .iter()
                .map(figure)
                .fold((u64::MAX, 0), |(least, most), figure| (least.min(figure), most.max(figure)))
        };
        Self {
            queue: range(&|candidate| candidate.queued_prefill_tokens),
            load: range(&|candidate| u64::from(candidate.batch())),
            own: ask
                .session
                .and_then(|session| candidates.iter().map(|candidate| affinity(session, candidate)).max()),
        }
    }

    fn score(&self, scorer: Scorer, ask: Ask, candidate: &Candidate) -> f64 {
        let less = |(least, most): (u64, u64), figure: u64| {
            if most == least { 1.0 } else { (most - figure) as f64 / (most - least) as f64 }
        };
        match scorer {
            Scorer::Prefix => {
                let matched = candidate.matched_tokens.min(ask.prompt_tokens);
                f64::from(matched) / f64::from(ask.prompt_tokens.max(1))
            }
            Scorer::Queue => less(self.queue, candidate.queued_prefill_tokens),
            Scorer::KvUsage => 1.0 - f64::from(candidate.kv_usage_permille.min(1000)) / 1000.0,
            Scorer::Load => less(self.load, u64::from(candidate.batch())),
            Scorer::Session => {
                let own = ask.session.map(|session| affinity(session, candidate));
                f64::from(u8::from(own.is_some() && own == self.own))
            }
            Scorer::Lora => match candidate.adapter {
                Adapter::Absent => 0.0,
                Adapter::Waiting => 0.6,
                Adapter::Running => 1.0,
            },
        }
    }
}

/// The candidates' sums as costs: the best possible sum less the candidate's, in millionths.
pub(super) fn costs<'s>(
    settings: &'s Weighted,
    ask: Ask,
    candidates: &[Candidate],
) -> impl Fn(&Candidate) -> u64 + use<'s> {
    let field = Field::of(ask, candidates);
    let scorers = &settings.scorers;
    let best: f64 = scorers.iter().map(|(_, weight)| weight).sum();
    move |candidate| {
        let score = |(scorer, weight): &(Scorer, f64)| weight * field.score(*scorer, ask, candidate);
        let sum: f64 = scorers.iter().map(score).sum();
        ((best - sum).max(0.0) * UNIT) as u64
    }
}

impl Router {
    pub(super) fn by_score(
        &mut self,
        ask: Ask,
        candidates: &[Candidate],
    ) -> Option<(Choice, Option<Reason>)> {
        let draw = self.random.f64();
        let Weighted { pick, temperature, scorers } = &self.settings.weighted;
        let cost = costs(&self.settings.weighted, ask, candidates);
        if *pick == Pick::Max {
            let choice = self.least(candidates, |candidate| (cost(candidate), 0))?;
            let reason = if choice.tied > 1 { Reason::TieLru } else { Reason::HighestScore };
            return Some((choice, Some(reason)));
        }
        let best: f64 = scorers.iter().map(|(_, weight)| weight).sum();
        let chance =
            |candidate: &Candidate| (best - cost(candidate) as f64 / UNIT).max(0.0).powf(1.0 / temperature);
        let total: f64 = candidates.iter().map(chance).sum();
        let mut passed = 0.0;
        let drawn = candidates.iter().position(|candidate| {
            passed += chance(candidate);
            draw * total < passed
        });
        // Where nobody scores, anybody will do.
        let at = drawn.unwrap_or((draw * candidates.len() as f64) as usize);
        let choice = Choice { at, cost: cost(candidates.get(at)?), runner_up: None, tied: 1 };
        Some((choice, Some(Reason::WeightedRandom)))
    }
}
