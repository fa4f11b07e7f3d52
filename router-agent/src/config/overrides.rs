//! `overrides:`: what clients may decide themselves by headers.

use serde::Deserialize;

/// What may be decided by a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Override {
    /// `x-warmpath-worker`.
    Worker,
    /// `x-warmpath-policy`.
    Policy,
    /// `x-warmpath-session`.
    Session,
}

/// The headers that are obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Overrides {
    /// `x-warmpath-worker`.
    pub worker: bool,
    /// `x-warmpath-policy`.
    pub policy: bool,
    /// `x-warmpath-session`.
    pub session: bool,
}

impl Overrides {
    /// Every one: where there are no keys there is nobody to protect.
    pub const ALL: Self = Self { worker: true, policy: true, session: true };

    /// As in the file.
    pub(super) fn names(self) -> Vec<&'static str> {
        [("worker", self.worker), ("policy", self.policy), ("session", self.session)]
            .into_iter()
            .filter_map(|(name, is_obeyed)| is_obeyed.then_some(name))
            .collect()
    }
}

impl From<Vec<Override>> for Overrides {
    fn from(list: Vec<Override>) -> Self {
        let has = |one| list.contains(&one);
        Self { worker: has(Override::Worker), policy: has(Override::Policy), session: has(Override::Session) }
    }
}
