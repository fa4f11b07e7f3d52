//! Which model a request gets: the one that it names, unless an alias says otherwise. A tenant's models are the names that
//! it may say; what an alias makes of one of them is the operator's business.

use std::time::Instant;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{GatewayError, Shared};
use crate::{
    config::{Aliases, Config},
    fleet::{Fleet, model_key},
    shaping::{self, Serving},
    tenants::Tenant,
};

/// What a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Served<'a> {
    /// [`model_key`] of the model; none where the request names none.
    pub(super) key: Option<u64>,
    /// The model, where it is another one than the request names.
    pub(super) instead: Option<&'a str>,
}

impl Serving for Fleet {
    fn is_routable(&self, model: &str) -> bool {
        let (key, now) = (Some(model_key(model)), Instant::now());
        self.workers().iter().any(|worker| worker.serves(key) && worker.is_routable(now))
    }

    fn is_served(&self, model: &str) -> bool {
        self.serves(Some(model_key(model)))
    }
}

/// What a request that names `asked` gets, or why it gets nothing. `sticky`: the same for what belongs together.
pub(super) fn serve<'a>(
    shared: &Shared,
    config: &'a Config,
    tenant: &Tenant,
    asked: Option<&'a str>,
    sticky: impl FnOnce() -> u64,
) -> Result<Served<'a>, GatewayError> {
    let Some(asked) = asked else { return Ok(Served { key: None, instead: None }) };
    if !tenant.allows(Some(asked)) {
        return Err(GatewayError::ModelNotAllowed(asked.to_owned()));
    }
    let model = aliased(&config.aliases, asked, sticky, &*shared.fleet);
    let key = Some(model_key(model));
    if !shared.fleet.serves(key) {
        return Err(GatewayError::NoSuchModel(asked.to_owned()));
    }
    Ok(Served { key, instead: Some(model).filter(|model| *model != asked) })
}

fn aliased<'a>(
    aliases: &'a Aliases,
    asked: &'a str,
    sticky: impl FnOnce() -> u64,
    serving: &impl Serving,
) -> &'a str {
    match aliases.find(asked) {
        // Not the same conversations for every canary.
        Some(alias) => {
            let sticky = || xxh3_64_with_seed(alias.name().as_bytes(), sticky());
            shaping::target(alias, asked, sticky, serving)
        }
        None => asked,
    }
}
