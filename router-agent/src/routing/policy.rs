//! The policies by name.

use std::{fmt, str::FromStr};

/// How a worker is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Least `(queued + new prefill tokens) × (batch + 1)`.
    #[default]
    Warm,
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
    pub const ALL: [Self; 5] =
        [Self::Warm, Self::RoundRobin, Self::Random, Self::LeastLoaded, Self::PowerOfTwo];

    /// The name in configuration, headers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
            Self::LeastLoaded => "least_loaded",
            Self::PowerOfTwo => "power_of_two",
        }
    }

    /// Whether the policy looks at what workers have cached: otherwise hashing the prompt can be left out.
    pub fn reads_matches(self) -> bool {
        self == Self::Warm
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
