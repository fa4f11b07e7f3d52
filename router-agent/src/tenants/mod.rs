//! API keys: who asks, what they may ask for, and how much of it.
//!
//! A key is known by its SHA-256 only. It comes as `Authorization: Bearer KEY` or, as Anthropic's clients send it, as
//! `x-api-key: KEY`; its digest is looked up and compared in constant time. It ends here: workers are sent keys of their
//! own. Without keys in the configuration everyone is one tenant, [`DEFAULT`], without limits, and clients' keys pass to the
//! workers as they are.
//!
//! Limits are per tenant, and per gateway unless several of them share their limits ([`crate::shared`]): requests per second (a token bucket with a burst), requests at the same time, and
//! tokens per minute (a token bucket of one minute). The prompt's tokens are taken when they are known, before a worker is
//! chosen; the answer's when it has ended, by the worker's `usage` where that could be read, else by its events, one token
//! each. So the bucket may go into debt, by no more than the answers under way; then the next request waits. A request that
//! no worker has answered costs no tokens.
//!
//! Cost: one SHA-256 of the key and one hash look-up per request, under 1 µs.

mod bucket;
mod tenant;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, header};

use self::tenant::Used;
use crate::{
    config::{KeyConfig, SecretDigest},
    limits,
    telemetry::Metrics,
};

pub use self::{
    bucket::{Source, Standing},
    tenant::{Admission, Lease, Limit, OverLimit, Standings, Tenant},
};

/// The tenant that everyone is where no keys are configured.
pub const DEFAULT: &str = "default";
/// In metrics, those beyond [`limits::TENANT_SERIES_MAX`].
pub const OTHERS: &str = "other";

/// Anthropic's field for a key.
pub const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Why a request has no tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unauthorized {
    /// No key in either field.
    #[error(
        "You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY` or as `x-api-key: YOUR_KEY`."
    )]
    Missing,
    /// Not one of ours.
    #[error("Incorrect API key provided.")]
    Unknown,
}

/// All tenants; replaced as a whole by a reload.
#[derive(Debug)]
pub struct Tenants {
    current: ArcSwap<Directory>,
    metrics: Arc<Metrics>,
}

/// The tenants of one configuration.
#[derive(Debug)]
struct Directory {
    /// By [`SecretDigest::prefix`]. Empty: no keys are configured.
    by_key: HashMap<u64, (SecretDigest, Arc<Tenant>)>,
    by_name: HashMap<Arc<str>, Arc<Tenant>>,
    everyone: Arc<Tenant>,
}

impl Tenants {
    /// Of these entries; none: everyone may ask.
    pub fn new(keys: &[KeyConfig], metrics: Arc<Metrics>) -> Self {
        let everyone = Arc::new(Tenant::everyone(Used::new(metrics.tenants.of(DEFAULT), Instant::now())));
        let none = Directory { by_key: HashMap::new(), by_name: HashMap::new(), everyone };
        let tenants = Self { current: ArcSwap::from_pointee(none), metrics };
        tenants.replace(keys);
        tenants
    }

    /// Puts other entries in place. Tenants that are in both keep what they have used, and requests under way go on
    /// by the old ones.
    pub fn replace(&self, keys: &[KeyConfig]) {
        let old = self.current.load();
        let now = Instant::now();
        let (mut by_key, mut by_name) = (HashMap::new(), HashMap::new());
        for (number, key) in keys.iter().enumerate() {
            let new = || {
                let series = if number < limits::TENANT_SERIES_MAX { &key.name } else { OTHERS };
                Used::new(self.metrics.tenants.of(series), now)
            };
            let used = old.by_name.get(&key.name).map_or_else(new, |tenant| tenant.used().clone());
            let tenant = Arc::new(Tenant::new(key, used));
            for digest in &key.digests {
                by_key.insert(digest.prefix(), (*digest, tenant.clone()));
            }
            by_name.insert(key.name.clone(), tenant);
        }
        for name in old.by_name.keys().filter(|name| !by_name.contains_key(*name)) {
            self.metrics.tenants.forget(name);
        }
        let everyone = old.everyone.clone();
        self.current.store(Arc::new(Directory { by_key, by_name, everyone }));
    }

    /// A tenant that may ask for anything, as there is where no keys are configured.
    pub fn everyone(&self) -> Arc<Tenant> {
        self.current.load().everyone.clone()
    }

    /// Everyone who may ask, by name: the configured ones, or [`DEFAULT`] alone where there are none.
    pub fn list(&self) -> Vec<Arc<Tenant>> {
        let directory = self.current.load();
        let mut list: Vec<_> = directory.by_name.values().cloned().collect();
        if list.is_empty() {
            list.push(directory.everyone.clone());
        }
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// Whose key is in these headers.
    pub fn identify(&self, headers: &HeaderMap) -> Result<Arc<Tenant>, Unauthorized> {
        let directory = self.current.load();
        if directory.by_key.is_empty() {
            return Ok(directory.everyone.clone());
        }
        let shown = SecretDigest::of(key_of(headers).ok_or(Unauthorized::Missing)?);
        match directory.by_key.get(&shown.prefix()) {
            Some((digest, tenant)) if *digest == shown => Ok(tenant.clone()),
            _ => Err(Unauthorized::Unknown),
        }
    }
}

/// The key in a request's head. Where both fields are there, `Authorization` counts.
pub fn key_of(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    let key = bearer.or_else(|| headers.get(X_API_KEY).map(|value| value.as_bytes().trim_ascii()));
    key.filter(|key| !key.is_empty())
}

/// The token of a `Bearer` credential (RFC 6750 section 2.1); the scheme's case does not matter.
pub fn bearer(credentials: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = credentials.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}
