//! One tenant: what it may do, and what it has used.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::bucket::{Bucket, Rate, Short, Source, Standing};
use crate::{
    config::{AllowedModels, BodyDefault, CacheMode, KeyConfig, Overrides},
    routing::Policy,
    telemetry::TenantMetrics,
};

/// A client with keys of its own, or everyone where no keys are configured. Replaced by a reload; what it has used stays.
#[derive(Debug)]
pub struct Tenant {
    /// What it is called in metrics and logs.
    pub name: Arc<str>,
    /// Its share beside others' where requests have to wait; at least 1.
    pub weight: u32,
    /// Of its requests that name none, and the most urgent that they may name; lower is sooner, as in vLLM.
    pub priority: i64,
    /// Whether it may use every path that workers have.
    pub all_paths: bool,
    /// Whether its requests come with a key, which is for this gateway only.
    pub has_key: bool,
    /// How its requests with a prompt are routed that say nothing else; none: as everybody's.
    pub policy: Option<Policy>,
    /// Members that its requests get where they have none.
    pub defaults: Vec<BodyDefault>,
    /// What its requests may decide by headers; none: as everybody's.
    overrides: Option<Overrides>,
    /// Which of its answers are given again; none: as everybody's.
    pub cache: Option<CacheMode>,
    models: AllowedModels,
    requests: Option<Rate>,
    tokens: Option<Rate>,
    concurrent: Option<u32>,
    used: Arc<Used>,
}

/// What a tenant uses, kept over reloads.
#[derive(Debug)]
pub(super) struct Used {
    requests: Bucket,
    tokens: Bucket,
    in_flight: AtomicU32,
    metrics: TenantMetrics,
}

impl Used {
    pub(super) fn new(metrics: TenantMetrics, now: Instant) -> Arc<Self> {
        let bucket = || Bucket::new(now);
        Arc::new(Self { requests: bucket(), tokens: bucket(), in_flight: AtomicU32::new(0), metrics })
    }
}

/// Which limit a request has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `requests_per_second`.
    Requests,
    /// `concurrent`.
    Concurrent,
    /// `tokens_per_minute`.
    Tokens,
}

impl Limit {
    /// The key of the configuration, and the label in metrics.
    pub fn key(self) -> &'static str {
        match self {
            Self::Requests => "requests_per_second",
            Self::Concurrent => "concurrent",
            Self::Tokens => "tokens_per_minute",
        }
    }
}

/// Why a request is not taken now.
#[derive(Debug, Clone, thiserror::Error)]
#[error("Rate limit reached for {} on {}: limit {limit}{}{}", tenant.name, kind.key(), asked(*requested), again(*retry_after))]
pub struct OverLimit {
    /// Whose limit.
    pub tenant: Arc<Tenant>,
    /// Which one.
    pub kind: Limit,
    /// As configured.
    pub limit: f64,
    /// Tokens that the request needs; none of the other limits.
    pub requested: Option<u32>,
    /// When it would be taken. None: never, it asks for more than the limit at once.
    pub retry_after: Option<Duration>,
    /// What the bucket of all gateways would have to give; none where that is not asked.
    pub lease: Option<Lease>,
}

/// What a request needs of the bucket that all gateways have together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lease {
    /// At least.
    pub missing: f64,
    /// What a full bucket holds.
    pub capacity: f64,
    /// What comes in.
    pub per_second: f64,
}

fn asked(requested: Option<u32>) -> String {
    requested.map_or_else(String::new, |tokens| format!(", requested {tokens}"))
}

fn again(after: Option<Duration>) -> String {
    after.map_or_else(
        || ". The request is too large for this limit; make it shorter.".to_owned(),
        |after| format!(". Please try again in {:.3}s.", after.as_secs_f64()),
    )
}

/// How a tenant's limits stand; none where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Standings {
    /// `requests_per_second` and its burst.
    pub requests: Option<Standing>,
    /// `tokens_per_minute`.
    pub tokens: Option<Standing>,
}

/// When a place for one more request is free nobody knows: a guess that does not invite a storm.
const CONCURRENT_RETRY: Duration = Duration::from_secs(1);

impl Tenant {
    /// Everyone, where no keys are configured: no limits.
    pub(super) fn everyone(used: Arc<Used>) -> Self {
        Self {
            name: super::DEFAULT.into(),
            weight: 1,
            priority: 0,
            all_paths: true,
            has_key: false,
            policy: None,
            defaults: Vec::new(),
            overrides: None,
            cache: None,
            models: AllowedModels::All,
            requests: None,
            tokens: None,
            concurrent: None,
            used,
        }
    }

    pub(super) fn new(config: &KeyConfig, used: Arc<Used>) -> Self {
        let requests = |per_second| Rate { capacity: f64::from(config.burst), per_second };
        let tokens = |tokens| Rate { capacity: tokens as f64, per_second: tokens as f64 / 60.0 };
        Self {
            name: config.name.clone(),
            weight: config.weight,
            priority: config.priority,
            all_paths: config.all_paths,
            has_key: true,
            policy: config.policy,
            defaults: config.defaults.clone(),
            overrides: config.overrides,
            cache: config.cache,
            models: config.models.clone(),
            requests: config.requests_per_second.map(requests),
            tokens: config.tokens_per_minute.map(tokens),
            concurrent: config.concurrent,
            used,
        }
    }

    pub(super) fn used(&self) -> &Arc<Used> {
        &self.used
    }

    /// Whether it may use this model. Who may not use every model must name one: the worker's own choice could be any.
    pub fn allows(&self, model: Option<&str>) -> bool {
        match (&self.models, model) {
            (AllowedModels::All, _) => true,
            (only, Some(model)) => only.allow(model),
            (_, None) => false,
        }
    }

    /// The priority of a request that names `asked`. Who has a key may put its requests back, not in front of what the key
    /// is worth; where there are no keys there is nobody to protect.
    pub fn priority_of(&self, asked: Option<i64>) -> i64 {
        match asked {
            None => self.priority,
            Some(asked) if self.has_key => asked.max(self.priority),
            Some(asked) => asked,
        }
    }

    /// What its requests may decide by headers, where everybody's may as much as `everybody`. Nothing said: everything
    /// without a key, nothing with one.
    pub fn overrides(&self, everybody: Option<Overrides>) -> Overrides {
        let unsaid = if self.has_key { Overrides::default() } else { Overrides::ALL };
        self.overrides.or(everybody).unwrap_or(unsaid)
    }

    /// Whether what its answers cost has to be known.
    pub fn counts_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// How its limits stand now.
    pub fn standings(&self, now: Instant) -> Standings {
        let Used { requests, tokens, .. } = &*self.used;
        Standings {
            requests: self.requests.map(|rate| requests.standing(rate, now)),
            tokens: self.tokens.map(|rate| tokens.standing(rate, now)),
        }
    }

    /// The models that it may name.
    pub fn models(&self) -> &AllowedModels {
        &self.models
    }

    /// Its limits as configured; none where there is none: requests per second and at once after a pause, requests at the
    /// same time, tokens per minute.
    pub fn limits(&self) -> (Option<(f64, f64)>, Option<u32>, Option<f64>) {
        let requests = self.requests.map(|rate| (rate.per_second, rate.capacity));
        (requests, self.concurrent, self.tokens.map(|rate| rate.capacity))
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u32 {
        self.used.in_flight.load(Relaxed)
    }

    /// Its counters. Beyond [`crate::limits::TENANT_SERIES_MAX`] tenants share some.
    pub fn metrics(&self) -> &TenantMetrics {
        &self.used.metrics
    }

    /// A lease has come from the bucket of all gateways, which has `left`.
    pub fn grant(&self, kind: Limit, amount: f64, left: f64, now: Instant) {
        match kind {
            Limit::Requests => self.used.requests.grant(amount, left, now),
            Limit::Tokens => self.used.tokens.grant(amount, left, now),
            Limit::Concurrent => {}
        }
    }

    /// Counts a request in, if its limits allow one more. `source`: of its buckets.
    pub fn admit(self: &Arc<Self>, source: Source, now: Instant) -> Result<Admission, OverLimit> {
        let Used { requests, in_flight, metrics, .. } = &*self.used;
        let limit = self.concurrent.unwrap_or(u32::MAX);
        let one_more = |count: u32| (count < limit).then_some(count + 1);
        if in_flight.fetch_update(Relaxed, Relaxed, one_more).is_err() {
            let after = Some(CONCURRENT_RETRY);
            return Err(self.over(Limit::Concurrent, f64::from(limit), None, (after, None)));
        }
        metrics.in_flight.inc();
        // From here on its drop counts the request out.
        let admission = Admission { tenant: self.clone(), charged: 0, used: None };
        if let Some(rate) = self.requests {
            let over =
                |short| self.over(Limit::Requests, rate.per_second, None, asked_for(short, rate, source));
            requests.take(rate, 1.0, source, now).map_err(over)?;
        }
        metrics.admitted.inc();
        Ok(admission)
    }

    fn over(
        self: &Arc<Self>,
        kind: Limit,
        limit: f64,
        requested: Option<u32>,
        (retry_after, lease): (Option<Duration>, Option<Lease>),
    ) -> OverLimit {
        let over = OverLimit { tenant: self.clone(), kind, limit, requested, retry_after, lease };
        if lease.is_none() {
            over.count();
        }
        over
    }
}

impl OverLimit {
    /// It is refused. One that may still get a lease counts when it has got none.
    pub fn count(&self) {
        self.tenant.used.metrics.refused(self.kind).inc();
    }
}

/// When it will be taken, and what would have to be leased.
fn asked_for(short: Short, rate: Rate, source: Source) -> (Option<Duration>, Option<Lease>) {
    let Rate { capacity, per_second } = rate;
    let may_lease = source == Source::Leases && short.after.is_some();
    (short.after, may_lease.then_some(Lease { missing: short.missing, capacity, per_second }))
}

/// A request that was counted in. Dropping it counts it out and settles its tokens: the prompt's and, as far as they are
/// known, the answer's; a client that leaves early has cost its prompt all the same.
#[derive(Debug)]
pub struct Admission {
    tenant: Arc<Tenant>,
    /// Tokens taken so far.
    charged: u64,
    used: Option<u64>,
}

impl Admission {
    /// Whose request it is.
    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.tenant
    }

    /// Takes the prompt's tokens out of the minute's, if they are there. The answer's are taken when they are known.
    /// `source`: of the bucket.
    pub fn charge_prompt(&mut self, tokens: u32, source: Source, now: Instant) -> Result<(), OverLimit> {
        let Tenant { tokens: rate, used, .. } = &*self.tenant;
        if let Some(rate) = *rate {
            let over = |short| {
                let asked = asked_for(short, rate, source);
                self.tenant.over(Limit::Tokens, rate.capacity, Some(tokens), asked)
            };
            // Even no tokens have to wait while there is a debt.
            used.tokens.take(rate, f64::from(tokens.max(1)), source, now).map_err(over)?;
            used.tokens.settle(rate, f64::from(tokens) - f64::from(tokens.max(1)), now);
        }
        self.charged = tokens.into();
        Ok(())
    }

    /// No worker has answered it with success: it costs nothing.
    pub fn unserved(&mut self) {
        self.used = Some(0);
    }

    /// Prompt and answer had this many tokens, by the worker's own word.
    pub fn used(&mut self, tokens: u64) {
        self.used = Some(tokens);
    }

    /// The answer had this many tokens beside the prompt's.
    pub fn generated(&mut self, tokens: u64) {
        self.used = Some(self.charged + tokens);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let Tenant { tokens: rate, used, .. } = &*self.tenant;
        used.in_flight.fetch_sub(1, Relaxed);
        used.metrics.in_flight.dec();
        let tokens = self.used.unwrap_or(self.charged);
        used.metrics.tokens.inc_by(tokens);
        if let Some(rate) = *rate {
            used.tokens.settle(rate, tokens as f64 - self.charged as f64, Instant::now());
        }
    }
}
