//! What clients decide themselves by headers, where they may: the worker, the policy, the session.

use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue};
use xxhash_rust::xxh3::xxh3_64;

use super::{GatewayError, headers};
use crate::{config, fleet::Fleet, index::WorkerSlot, routing::Policy};

/// The session's key, in front of `routing.session.header` and of the body.
const SESSION: HeaderName = HeaderName::from_static("x-warmpath-session");

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Overrides {
    /// By name.
    pub(super) worker: Option<HeaderValue>,
    pub(super) policy: Option<Policy>,
    /// Hash of the key.
    pub(super) session: Option<u64>,
}

impl Overrides {
    /// Of a client that may decide as much as `allowed`; one that decides more is told so.
    pub(super) fn read(headers: &HeaderMap, allowed: config::Overrides) -> Result<Self, GatewayError> {
        let said = |name: HeaderName, is_allowed: bool, key| match headers.get(name) {
            Some(_) if !is_allowed => Err(GatewayError::OverrideNotAllowed(key)),
            value => Ok(value.filter(|value| !value.is_empty())),
        };
        let worker = said(headers::WORKER, allowed.worker, "worker")?.cloned();
        let policy = said(headers::POLICY, allowed.policy, "policy")?;
        let policy = policy.map(|name| name.to_str().unwrap_or_default().parse()).transpose()?;
        let session = said(SESSION, allowed.session, "session")?;
        Ok(Self { worker, policy, session: session.map(|key| xxh3_64(key.as_bytes())) })
    }

    /// The worker that is asked for, if it can take a request for this model now.
    pub(super) fn worker_of(
        &self,
        fleet: &Fleet,
        model: Option<u64>,
    ) -> Result<Option<WorkerSlot>, GatewayError> {
        let Some(name) = &self.worker else { return Ok(None) };
        let shown = || String::from_utf8_lossy(name.as_bytes()).into_owned();
        match fleet.workers().iter().find(|worker| worker.name_header == name) {
            None => Err(GatewayError::UnknownWorker(shown())),
            Some(worker) if !worker.serves(model) => Err(GatewayError::WorkerLacksModel(shown())),
            Some(worker) if !worker.is_routable(Instant::now()) => {
                Err(GatewayError::WorkerUnavailable(shown()))
            }
            Some(worker) => Ok(Some(worker.slot)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        fields: &[(&'static str, &'static str)],
        allowed: config::Overrides,
    ) -> Result<Overrides, String> {
        let map = fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        Overrides::read(&map.collect(), allowed).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_allowed_is_read_and_what_is_not_is_refused() {
        let all = config::Overrides::ALL;
        assert_eq!(
            read(&[("x-warmpath-priority", "1")], config::Overrides::default()),
            Ok(Overrides::default())
        );
        let found = read(&[("x-warmpath-worker", "w"), ("x-warmpath-policy", "random")], all).unwrap();
        assert_eq!(
            (found.worker.unwrap(), found.policy),
            (HeaderValue::from_static("w"), Some(Policy::Random))
        );
        let session = |key| read(&[("x-warmpath-session", key)], all).unwrap().session;
        assert!(session("a").is_some() && session("a") != session("b") && session("").is_none());
        for name in ["worker", "policy", "session"] {
            let field = HeaderName::from_bytes(format!("x-warmpath-{name}").as_bytes()).unwrap();
            let headers = HeaderMap::from_iter([(field, HeaderValue::from_static("warm"))]);
            let refused = Overrides::read(&headers, config::Overrides::default()).unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
        let wrong = read(&[("x-warmpath-policy", "fastest")], all).unwrap_err();
        assert!(wrong.contains("fastest") && wrong.contains("round_robin"), "{wrong}");
    }
}
