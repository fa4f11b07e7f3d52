//! The step between a body and its plan, and what it leaves in the response's head: the tenant's defaults are added, and
//! the model that is served takes the place of the one that was named.

use http::{HeaderMap, HeaderValue};

use super::{GatewayError, bodies::Collected, headers, route::Route};
use crate::{prompt, shaping, tenants::Tenant};

/// What was made of a request that its client is told.
#[derive(Debug, Default)]
pub(super) struct Shaped {
    /// The model that was served instead of the one that it named.
    model: Option<HeaderValue>,
}

impl Shaped {
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

    /// Says so in the response's head.
    pub(super) fn tell(self, head: &mut HeaderMap) {
        if let Some(model) = self.model {
            head.insert(headers::MODEL, model);
        }
    }
}

/// Adds what the tenant's requests with a prompt have where they say nothing.
pub(super) fn add_defaults(
    body: &mut Collected,
    tenant: &Tenant,
    route: Route,
    bodies_bytes_max: usize,
) -> Result<(), GatewayError> {
    let Route::Inference(kind) = route else { return Ok(()) };
    if tenant.defaults.is_empty() {
        return Ok(());
    }
    match shaping::with_defaults(kind, &body.bytes, &tenant.defaults) {
        Some(edited) => body.replace(edited, bodies_bytes_max),
        None => Ok(()),
    }
}
