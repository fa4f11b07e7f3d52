//! `GET /v1/models`: what all workers together serve.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::{
    config::{Alias, Aliases},
    fleet::{Fleet, Models},
    tenants::Tenant,
};

/// The union of the workers' lists and of the aliases that have a name, as far as the tenant may use them, by id, each entry
/// as its first worker wrote it; an alias has that of the first of its models that is there. None while no worker has told
/// a list: then the request is any worker's to answer (it may want a key that this gateway does not have).
pub(super) fn list(fleet: &Fleet, aliases: &Aliases, tenant: &Tenant) -> Option<Response<Full<Bytes>>> {
    let lists: Vec<_> = fleet.workers().iter().filter_map(|worker| worker.models()).collect();
    if lists.is_empty() {
        return None;
    }
    let mut data = BTreeMap::<&str, &Value>::new();
    for entry in lists.iter().flat_map(|models| Models::entries(models)) {
        data.entry(entry["id"].as_str().unwrap_or_default()).or_insert(entry);
    }
    let named: Vec<(&str, Value)> =
        aliases.named().iter().filter_map(|alias| of_alias(alias, &data)).collect();
    for (name, entry) in &named {
        data.entry(name).or_insert(entry);
    }
    data.retain(|id, _| tenant.allows(Some(id)));
    let body = json!({"object": "list", "data": data.into_values().collect::<Vec<_>>()}).to_string();
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Some(response)
}

/// An alias as a model.
fn of_alias<'a>(alias: &'a Alias, data: &BTreeMap<&str, &Value>) -> Option<(&'a str, Value)> {
    let mut models = alias.to.iter().map(|target| &target.model).chain(&alias.fallback);
    let mut entry = Value::clone(models.find_map(|model| data.get(model.as_str()))?);
    entry["id"] = alias.name().into();
    Some((alias.name(), entry))
}
