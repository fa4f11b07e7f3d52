//! Metrics of API keys, by tenant.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::metrics::{Maker, Result};
use crate::tenants::Limit;

/// The families; a tenant's series are made when it is configured and go with it.
#[derive(Debug)]
pub struct TenantFamilies {
    requests: IntCounterVec,
    tokens: IntCounterVec,
    in_flight: IntGaugeVec,
}

/// Those of one tenant, looked up once.
#[derive(Debug)]
pub struct TenantMetrics {
    /// Requests within its limits.
    pub admitted: IntCounter,
    refused: [IntCounter; 3],
    /// Tokens of prompts and answers, as they were counted against `tokens_per_minute`.
    pub tokens: IntCounter,
    /// Requests under way.
    pub in_flight: IntGauge,
}

const ADMITTED: &str = "admitted";
const LIMITS: [Limit; 3] = [Limit::Requests, Limit::Concurrent, Limit::Tokens];

impl TenantFamilies {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        Ok(Self {
            requests: make.counters(
                "warmpath_tenant_requests_total",
                "Requests by API key and outcome: admitted, or the limit that they met.",
                &["tenant", "outcome"],
            )?,
            tokens: make.counters(
                "warmpath_tenant_tokens_total",
                "Tokens of prompts and answers, by API key, as counted against tokens_per_minute.",
                &["tenant"],
            )?,
            in_flight: make.gauges(
                "warmpath_tenant_in_flight_requests",
                "Requests under way, by API key.",
                &["tenant"],
            )?,
        })
    }

    /// The series of a tenant.
    pub fn of(&self, tenant: &str) -> TenantMetrics {
        let requests = |outcome| self.requests.with_label_values(&[tenant, outcome]);
        TenantMetrics {
            admitted: requests(ADMITTED),
            refused: LIMITS.map(|limit| requests(limit.key())),
            tokens: self.tokens.with_label_values(&[tenant]),
            in_flight: self.in_flight.with_label_values(&[tenant]),
        }
    }

    /// A tenant is gone, and its series with it.
    pub fn forget(&self, tenant: &str) {
        for outcome in LIMITS.map(Limit::key).into_iter().chain([ADMITTED]) {
            let _ = self.requests.remove_label_values(&[tenant, outcome]);
        }
        let _ = self.tokens.remove_label_values(&[tenant]);
        let _ = self.in_flight.remove_label_values(&[tenant]);
    }
}

impl TenantMetrics {
    /// Requests that met this limit.
    pub fn refused(&self, limit: Limit) -> &IntCounter {
        &self.refused[LIMITS.iter().position(|other| *other == limit).unwrap_or_default()]
    }
}
