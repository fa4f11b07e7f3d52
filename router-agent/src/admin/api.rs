//! Every endpoint of this port, and the OpenAPI document that its own handlers make (`GET /openapi.json`).

use std::sync::LazyLock;

use axum::{
    Json, Router,
    extract::DefaultBodyLimit,
    http::{Method, StatusCode, Uri},
    response::IntoResponse,
};
use utoipa::{
    OpenApi,
    openapi::{
        self, Content, Ref, RefOr, ResponseBuilder,
        path::Operation,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Admin, cache, config, decisions,
    error::{ApiError, ErrorBody},
    events, explain, guard, index, live, log_level, page, probes, reload, stats, tenants, workers,
};
use crate::limits;

/// What the document says beside the endpoints.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Warmpath admin API",
        description = "The operators' port of a Warmpath gateway. With `admin_token` configured, every request but to `/health` \
            and `/ready` (and `/metrics`, with `admin_open_metrics`) shows it: `Authorization: Bearer TOKEN`. Errors have one \
            shape: `{\"error\": \"what is wrong, and what would be right\"}`."
    ),
    components(schemas(ErrorBody)),
    security(("token" = [])),
    tags(
        (name = "workers", description = "The fleet"),
        (name = "state", description = "What happens now, and why"),
        (name = "configuration", description = "What is configured"),
        (name = "guard", description = "The XDP guard"),
        (name = "probes", description = "For probes and scrapers"),
    ),
)]
struct About;

/// The name of the bearer token in the document.
const TOKEN: &str = "token";

/// All endpoints, without who may use them.
pub(super) fn router() -> Router<Admin> {
    let (router, _) = documented().split_for_parts();
    router
        .merge(page::router())
        .fallback(async |uri: Uri| {
            ApiError::not_found(format!("there is no {} (GET /openapi.json lists what there is)", uri.path()))
        })
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            let message = format!(
                "{} is not asked for by {method} (GET /openapi.json lists what there is)",
                uri.path()
            );
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
        })
}

fn documented() -> OpenApiRouter<Admin> {
    let prompts = OpenApiRouter::new()
        .routes(routes!(explain::explain))
        .layer(DefaultBodyLimit::max(limits::BODY_BYTES_MAX));
    OpenApiRouter::with_openapi(About::openapi())
        .routes(routes!(probes::health))
        .routes(routes!(probes::ready))
        .routes(routes!(probes::metrics))
        .routes(routes!(workers::list, workers::add))
        .routes(routes!(workers::show, workers::remove))
        .routes(routes!(workers::drain))
        .routes(routes!(workers::undrain))
        .routes(routes!(reload::run))
        .routes(routes!(config::show))
        .routes(routes!(log_level::show, log_level::set))
        .routes(routes!(stats::show))
        .routes(routes!(stats::history))
        .routes(routes!(tenants::list))
        .routes(routes!(index::show))
        .routes(routes!(live::list))
        .routes(routes!(events::follow))
        .routes(routes!(cache::show, cache::clear))
        .routes(routes!(decisions::list))
        .routes(routes!(decisions::follow))
        .routes(routes!(decisions::show))
        .routes(routes!(guard::show))
        .routes(routes!(guard::add, guard::remove))
        .routes(routes!(document))
        .layer(DefaultBodyLimit::max(limits::ADMIN_BODY_BYTES_MAX))
        .merge(prompts)
}

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "probes",
    responses((status = 200, description = "the OpenAPI document", body = Object))
)]
async fn document() -> impl IntoResponse {
    static DOCUMENT: LazyLock<openapi::OpenApi> = LazyLock::new(openapi);
    Json(&*DOCUMENT)
}

/// The document: what the handlers say of themselves, and what holds for all of them.
fn openapi() -> openapi::OpenApi {
    let (_, mut document) = documented().split_for_parts();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(TOKEN, SecurityScheme::Http(bearer));
    for (path, item) in &mut document.paths.paths {
        let operations = [
            ("get", &mut item.get),
            ("put", &mut item.put),
            ("post", &mut item.post),
            ("delete", &mut item.delete),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            operation.operation_id = Some(operation_id(method, path));
            refuse_strangers(operation);
        }
    }
    document
}

/// What generated clients call an operation: `get_workers_name` for `GET /workers/{name}`.
fn operation_id(method: &str, path: &str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    std::iter::once(method).chain(words).collect::<Vec<_>>().join("_")
}

/// What `access.rs` answers to who may not ask.
fn refuse_strangers(operation: &mut Operation) {
    // An empty requirement of its own: open to everyone.
    if operation.security.is_some() {
        return;
    }
    for (status, why) in [
        ("401", "the admin token is missing or wrong"),
        ("403", "a page of another origin asks, or a name that is not this host's (without an admin token)"),
    ] {
        let body = Content::new(Some(RefOr::Ref(Ref::from_schema_name("ErrorBody"))));
        let response = ResponseBuilder::new().description(why).content("application/json", body).build();
        operation.responses.responses.entry(status.to_owned()).or_insert(RefOr::T(response));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn operations(document: &Value) -> Vec<(String, &Value)> {
        let paths = document["paths"].as_object().expect("paths");
        paths
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().expect("methods");
                methods.iter().map(move |(method, operation)| (format!("{method} {path}"), operation))
            })
            .collect()
    }

    #[test]
    fn every_operation_is_described_with_its_errors_and_who_may_ask() {
        let document = serde_json::to_value(openapi()).expect("JSON");
        let operations = operations(&document);
        assert!(operations.len() >= 20, "{}", operations.len());
        let mut ids = std::collections::HashSet::new();
        for (name, operation) in operations {
            let text = |key: &str| operation[key].as_str().is_some_and(|text| !text.is_empty());
            assert!(text("summary") || text("description"), "{name} says nothing of itself");
            assert!(
                ids.insert(operation["operationId"].as_str().expect("an id")),
                "{name}: its id is another's"
            );
            let responses = operation["responses"].as_object().expect("responses");
            let is_open = operation.get("security").is_some();
            assert_eq!(responses.contains_key("401") && responses.contains_key("403"), !is_open, "{name}");
            for (status, response) in responses {
                assert!(
                    response["description"].as_str().is_some_and(|text| !text.is_empty()),
                    "{name} {status}"
                );
                if status.starts_with('4') {
                    let schema = &response["content"]["application/json"]["schema"]["$ref"];
                    assert_eq!(schema, "#/components/schemas/ErrorBody", "{name} {status}");
                }
            }
        }
    }

    #[test]
    fn nothing_that_the_document_refers_to_is_missing() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(members) => members.iter().for_each(|(name, value)| match value.as_str() {
                    Some(to) if name == "$ref" => found.push(to.to_owned()),
                    _ => references(value, found),
                }),
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let document = serde_json::to_value(openapi()).expect("JSON");
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20);
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("of this document");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}
