//! Decisions counted by policy and reason; the counters are looked up once.

use prometheus::IntCounter;

use crate::{
    routing::{Decision, Policy, Reason},
    telemetry::Metrics,
};

/// A counter per reason, for the policies that this gateway decides by.
pub(super) struct DecisionCounters(Vec<(Policy, Vec<IntCounter>)>);

impl DecisionCounters {
    /// For the configured policy, the one that it falls back to, and that of requests without a prompt.
    pub(super) fn new(metrics: &Metrics, configured: Policy) -> Self {
        let mut policies = vec![configured, Policy::LeastLoaded];
        if configured == Policy::Lmcache {
            policies.push(Policy::Warm);
        }
        policies.dedup();
        let counters = |policy: Policy| {
            Reason::ALL.iter().map(|reason| metrics.decisions(policy.name(), *reason)).collect()
        };
        Self(policies.into_iter().map(|policy| (policy, counters(policy))).collect())
    }

    pub(super) fn count(&self, decision: &Decision) {
        if let Some((_, counters)) = self.0.iter().find(|(policy, _)| *policy == decision.policy) {
            counters[decision.reason as usize].inc();
        }
    }
}
