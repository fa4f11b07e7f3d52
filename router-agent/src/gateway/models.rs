//! `GET /v1/models`: what all workers together serve.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::{
    fleet::{Fleet, Models},
    tenants::Tenant,
};

/// The union of the workers' lists, as far as the tenant may use them, by id, each entry as its first worker wrote it. None while no worker has told one:
/// then the request is any worker's to answer (it may want a key that this gateway does not have).
pub(super) fn list(fleet: &Fleet, tenant: &Tenant) -> Option<Response<Full<Bytes>>> {
    let lists: Vec<_> = fleet.workers().iter().filter_map(|worker| worker.models()).collect();
    if lists.is_empty() {
        return None;
    }
    let mut data = BTreeMap::<&str, &Value>::new();
    for entry in lists.iter().flat_map(|models| Models::entries(models)) {
        let id = entry["id"].as_str().unwrap_or_default();
        if tenant.allows(Some(id)) {
            data.entry(id).or_insert(entry);
        }
    }
    let body = json!({"object": "list", "data": data.into_values().collect::<Vec<_>>()}).to_string();
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Some(response)
}
