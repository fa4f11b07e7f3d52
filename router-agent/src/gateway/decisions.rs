//! Decisions counted by policy and reason; the counters of a policy are looked up once.

use std::sync::{Arc, OnceLock};

use prometheus::IntCounter;

use crate::{
    routing::{Decision, Policy, Reason},
    telemetry::Metrics,
};

/// A counter per reason, for the policies that this gateway has decided by.
pub(super) struct DecisionCounters {
    metrics: Arc<Metrics>,
    /// As [`Policy::ALL`].
    by_policy: [OnceLock<Vec<IntCounter>>; Policy::ALL.len()],
}

impl DecisionCounters {
    /// For the configured policy, the one that it falls back to, and that of requests without a prompt.
    pub(super) fn new(metrics: &Arc<Metrics>, configured: Policy) -> Self {
        let counters = Self { metrics: metrics.clone(), by_policy: Default::default() };
        counters.expect(configured);
        counters.expect(Policy::LeastLoaded);
        counters
    }

    /// Shows the counters of a policy from now on, before it has decided anything.
    pub(super) fn expect(&self, configured: Policy) {
        self.of(configured);
        if configured == Policy::Lmcache {
            self.of(Policy::Warm);
        }
    }

    pub(super) fn count(&self, decision: &Decision) {
        self.of(decision.policy)[decision.reason as usize].inc();
    }

    /// All of them, over the policies.
    pub(super) fn by_reason(&self) -> [u64; Reason::ALL.len()] {
        let mut counts = [0; Reason::ALL.len()];
        for counters in self.by_policy.iter().filter_map(OnceLock::get) {
            for (count, counter) in counts.iter_mut().zip(counters) {
                *count += counter.get();
            }
        }
        counts
    }

    fn of(&self, policy: Policy) -> &[IntCounter] {
        self.by_policy[policy as usize].get_or_init(|| {
            Reason::ALL.iter().map(|reason| self.metrics.decisions(policy.name(), *reason)).collect()
        })
    }
}
