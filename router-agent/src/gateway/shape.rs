//! The steps between a body and its plan, and what they leave in the response's head: the tenant's defaults are added, hooks
//! are asked, and the model that is served takes the place of the one that was named.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};

use super::{
    GatewayError, Shared,
    bodies::Collected,
    headers,
    hooks::{self, Passing},
    outgoing::Outgoing,
    route::Route,
    thread::ThreadContext,
};
use crate::{
    config::Config,
    prompt, shaping,
    telemetry::{CacheOutcome, HookOutcome},
    tenants::Tenant,
};

/// What was made of a request that its client is told.
#[derive(Debug, Default)]
pub(super) struct Shaped {
    /// The model that was served instead of the one that it named.
    model: Option<HeaderValue>,
    /// What the response cache was to it, where it is on.
    cache: Option<CacheOutcome>,
    /// The hooks that it was shown to.
    hooks: Vec<(Arc<str>, HookOutcome)>,
}

/// Whose request it is, and what kind of one.
pub(super) struct Whose<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) route: Route,
    pub(super) request_id: &'a HeaderValue,
}

impl Shaped {
    /// Takes a request with a prompt through its tenant's defaults and the hooks.
    pub(super) async fn before_planning(
        &mut self,
        context: &ThreadContext,
        config: &Config,
        Whose { tenant, route, request_id }: Whose<'_>,
        outgoing: &mut Outgoing,
        body: &mut Collected,
    ) -> Result<(), GatewayError> {
        let Route::Inference(kind) = route else { return Ok(()) };
        if !tenant.defaults.is_empty()
            && let Some(edited) = shaping::with_defaults(kind, &body.bytes, &tenant.defaults)
        {
            body.replace(edited, config.limits.bodies_bytes)?;
        }
        if config.hooks.is_empty() {
            return Ok(());
        }
        let hooks = context.shared.hooks.load_full();
        let passing = Passing {
            kind,
            path: outgoing.uri.path(),
            tenant: &tenant.name,
            request_id,
            headers: &mut outgoing.headers,
            body,
            body_bytes_max: config.limits.body_bytes,
            bodies_bytes_max: config.limits.bodies_bytes,
            asked: &mut self.hooks,
        };
        // Boxed: requests without hooks have no room for this.
        Box::pin(passing.through(&hooks, &context.hooks)).await
    }

    /// Puts `model` in place of the one that the body names.
    pub(super) fn set_model(
        &mut self,
        body: &mut Collected,
        model: &str,
        bodies_bytes_max: usize,
    ) -> Result<(), GatewayError> {
        if let Some(edited) = prompt::set_model(&body.bytes, model) {
            body.replace(edited, bodies_bytes_max)?;
        }
        self.model = HeaderValue::from_str(model).ok(); // from the configuration, where it is checked to be one
        Ok(())
    }

    /// Counts what the response cache was to it.
    pub(super) fn cached(&mut self, shared: &Shared, outcome: CacheOutcome) {
        shared.metrics.cache.count(outcome);
        self.cache = Some(outcome);
    }

    /// Says so in the response's head.
    pub(super) fn tell(self, head: &mut HeaderMap) {
        if let Some(model) = self.model {
            head.insert(headers::MODEL, model);
        }
        if let Some(cache) = self.cache {
            head.insert(headers::CACHE, HeaderValue::from_static(cache.label()));
        }
        if let Some(hooks) = hooks::told(&self.hooks) {
            head.insert(headers::HOOKS, hooks);
        }
    }
}
