//! The policies by name, and what can be set of them.

use std::{fmt, str::FromStr};

use super::weighted::Weighted;

/// How a worker is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Least predicted time to the first token, with what the request costs others.
    #[default]
    Warm,
    /// The longest match, unless that worker has too many requests.
    Prefix,
    /// A session's own worker, unless that one has more than its share.
    Session,
    /// As `Warm`, with matches by the LMCache controller.
    Lmcache,
    /// The highest sum of weighted scores.
    Weighted,
    /// Each worker in its turn.
    RoundRobin,
    /// Any worker.
    Random,
    /// Fewest requests, then fewest prefill tokens that wait.
    LeastLoaded,
    /// The less loaded of two random workers.
    PowerOfTwo,
}

impl Policy {
    pub const ALL: [Self; 9] = [
        Self::Warm,
        Self::Prefix,
        Self::Session,
        Self::Lmcache,
        Self::Weighted,
        Self::RoundRobin,
        Self::Random,
        Self::LeastLoaded,
        Self::PowerOfTwo,
    ];

    /// The name in configuration, headers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Prefix => "prefix",
            Self::Session => "session",
            Self::Lmcache => "lmcache",
            Self::Weighted => "weighted",
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
            Self::LeastLoaded => "least_loaded",
            Self::PowerOfTwo => "power_of_two",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.name() == name)
            .ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}

/// A name that is no policy's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no policy is called `{0}`; there are {list}", list = Policy::ALL.map(Policy::name).join(", "))]
pub struct UnknownPolicy(String);

/// A policy and the settings of those that have any.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub policy: Policy,
    pub prefix: Prefix,
    pub session: Session,
    pub weighted: Weighted,
}

impl Settings {
    /// `policy` with the defaults.
    pub fn new(policy: Policy) -> Self {
        Self { policy, prefix: Prefix::default(), session: Session::default(), weighted: Weighted::default() }
    }
}

/// Settings of [`Policy::Prefix`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Blocks that must match for a match to count.
    pub blocks_min: u32,
    /// Requests of this gateway from which on a worker gets no more by its prefix.
    pub saturation: u32,
}

impl Default for Prefix {
    fn default() -> Self {
        Self { blocks_min: 2, saturation: 8 }
    }
}

/// Settings of [`Policy::Session`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Session {
    /// Requests that a worker may have, over the mean of all candidates.
    pub bound: f64,
}

impl Default for Session {
    fn default() -> Self {
        Self { bound: 1.25 }
    }
}
