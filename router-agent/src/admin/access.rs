//! Who may use the operators' port.
//!
//! With `admin_token` every request but `/health` and `/ready` (and `/metrics`, where `admin_open_metrics` says so) has to
//! show it: `Authorization: Bearer TOKEN`. Its SHA-256 is compared in constant time. Without a token the port is for this
//! host, or for who has a client certificate (`admin_tls.client_ca`); a configuration that leaves it open to others is
//! refused at the start. What is left then is a browser on this host that a strange page talks into asking: requests of
//! another origin, and requests for a host name that somebody may have made up to point here, are refused.

use std::net::IpAddr;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::Admin;
use crate::{
    config::{Config, SecretDigest},
    tenants::bearer,
};

/// Lets a request through, or answers it.
pub(super) async fn check(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let config = admin.shared.config.get();
    match judge(&config, request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err((status, message)) => refuse(status, message),
    }
}

type Refusal = (StatusCode, &'static str);

fn judge(config: &Config, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    let is_open = matches!(path, "/health" | "/ready") || (path == "/metrics" && config.admin_open_metrics);
    match &config.admin_token {
        _ if is_open => Ok(()),
        Some(token) => {
            let shown = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
            if shown.is_some_and(|shown| SecretDigest::of(shown) == *token) {
                return Ok(());
            }
            Err((StatusCode::UNAUTHORIZED, "this needs the admin token: Authorization: Bearer TOKEN"))
        }
        None if config.admin_tls.is_some() => Ok(()),
        None => is_of_this_host(headers),
    }
}

/// Asked for by an address or as `localhost`, and not by a page of another origin.
fn is_of_this_host(headers: &HeaderMap) -> Result<(), Refusal> {
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = host.parse::<Authority>().map(|host| host.host().trim_matches(['[', ']']).to_owned());
    let is_local = |name: &str| name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok();
    if !host.is_empty() && !name.is_ok_and(|name| is_local(&name)) {
        return Err((
            StatusCode::FORBIDDEN,
            "without an admin token this port is asked for by its address or as localhost (set admin_token)",
        ));
    }
    let is_ours = |origin: &HeaderValue| {
        origin.to_str().is_ok_and(|origin| origin.split_once("://").is_some_and(|(_, from)| from == host))
    };
    if headers.get(header::ORIGIN).is_some_and(|origin| !is_ours(origin)) {
        return Err((
            StatusCode::FORBIDDEN,
            "a page of another origin may not ask this port (set admin_token)",
        ));
    }
    Ok(())
}

fn refuse(status: StatusCode, message: &str) -> Response {
    let mut response = (status, Json(json!({"error": message}))).into_response();
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(config: &Config, path: &str, fields: &[(&'static str, &'static str)]) -> u16 {
        let map = fields.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        judge(config, path, &map.collect()).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn with_a_token_everything_but_health_needs_it() {
        let token = Some(SecretDigest::of(b"t0ken"));
        let config = Config { admin_token: token, ..Config::default() };
        for path in ["/health", "/ready"] {
            assert_eq!(status(&config, path, &[]), 200, "{path}");
        }
        for path in ["/metrics", "/workers", "/admin/reload", "/guard/rules", "/nothing"] {
            assert_eq!(status(&config, path, &[]), 401, "{path}");
            assert_eq!(status(&config, path, &[("authorization", "Bearer wrong")]), 401);
            assert_eq!(status(&config, path, &[("authorization", "Basic t0ken")]), 401);
            assert_eq!(status(&config, path, &[("authorization", "Bearer t0ken"), ("host", "any")]), 200);
        }
        let open = Config { admin_open_metrics: true, ..config };
        assert_eq!((status(&open, "/metrics", &[]), status(&open, "/workers", &[])), (200, 401));
    }

    #[test]
    fn without_a_token_the_port_is_for_this_host_and_for_no_strange_page() {
        let config = Config::default();
        for host in ["127.0.0.1:9090", "localhost:9090", "[::1]:9090", "10.0.0.1", ""] {
            assert_eq!(status(&config, "/workers", &[("host", host)]), 200, "{host}");
        }
        assert_eq!(status(&config, "/workers", &[]), 200);
        assert_eq!(status(&config, "/workers", &[("host", "rebound.example:9090")]), 403);
        let from =
            |origin| status(&config, "/admin/reload", &[("host", "localhost:9090"), ("origin", origin)]);
        assert_eq!(from("http://localhost:9090"), 200, "a page of the port itself");
        assert_eq!(from("http://elsewhere.example"), 403);
        assert_eq!(from("null"), 403);
    }
}
