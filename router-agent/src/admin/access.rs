//! Who may use the operators' port.
//!
//! With `admin_token` every request but `/health`, `/ready` and the files of the web page, which say nothing of this
//! gateway (and `/metrics`, where `admin_open_metrics` says so), has to show it: `Authorization: Bearer TOKEN`. Its SHA-256
//! is compared in constant time. Without a token the port is for this host, or for who has a client certificate
//! (`admin_tls.client_ca`); a configuration that leaves it open to others is refused at the start. What is left then is an
//! operator's browser that a strange page talks into asking. Refused are: requests of another origin, changes by a browser
//! without [`PAGE_HEADER`], which no other origin's page can add without being allowed to, and on this host requests for a
//! host name that somebody may have made up to point here.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Admin, error::ApiError, page};
use crate::{
    config::{Config, SecretDigest},
    tenants::bearer,
};

/// Lets a request through, or answers it.
pub(super) async fn check(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let config = admin.shared.config.get();
    match judge(&config, request.method(), request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err((status, message)) => refuse(status, message),
    }
}

/// What the web page adds to every request.
const PAGE_HEADER: &str = "x-warmpath-page";

type Refusal = (StatusCode, &'static str);

fn judge(config: &Config, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    let is_open = matches!(path, "/health" | "/ready")
        || page::is_file(path)
        || (path == "/metrics" && config.admin_open_metrics);
    match &config.admin_token {
        _ if is_open => Ok(()),
        Some(token) => {
            let shown = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
            if shown.is_some_and(|shown| SecretDigest::of(shown) == *token) {
                return Ok(());
            }
            Err((StatusCode::UNAUTHORIZED, "this needs the admin token: Authorization: Bearer TOKEN"))
        }
        None if config.admin_tls.is_some() => is_of_no_strange_page(method, headers),
        None => is_of_this_host(headers).and_then(|()| is_of_no_strange_page(method, headers)),
    }
}

fn host(headers: &HeaderMap) -> &str {
    headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Asked for by an address or as `localhost`.
fn is_of_this_host(headers: &HeaderMap) -> Result<(), Refusal> {
    let host = host(headers);
    let name = host.parse::<Authority>().map(|host| host.host().trim_matches(['[', ']']).to_owned());
    let is_local = |name: &str| name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok();
    if !host.is_empty() && !name.is_ok_and(|name| is_local(&name)) {
        return Err((
            StatusCode::FORBIDDEN,
            "without an admin token this port is asked for by its address or as localhost (set admin_token)",
        ));
    }
    Ok(())
}

/// By no page of another origin, and for a change by no page that cannot show that it is ours.
fn is_of_no_strange_page(method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    let host = host(headers);
    let is_ours = |origin: &HeaderValue| {
        origin.to_str().is_ok_and(|origin| origin.split_once("://").is_some_and(|(_, from)| from == host))
    };
    if headers.get(header::ORIGIN).is_some_and(|origin| !is_ours(origin)) {
        return Err((
            StatusCode::FORBIDDEN,
            "a page of another origin may not ask this port (set admin_token)",
        ));
    }
    let is_browser =
        [header::ORIGIN.as_str(), "sec-fetch-site"].iter().any(|name| headers.contains_key(*name));
    if is_browser && !method.is_safe() && !headers.contains_key(PAGE_HEADER) {
        return Err((
            StatusCode::FORBIDDEN,
            "without an admin token a page changes something only with the header x-warmpath-page, as ours does",
        ));
    }
    Ok(())
}

fn refuse(status: StatusCode, message: &str) -> Response {
    let mut response = ApiError::new(status, message).into_response();
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ServerTls, TlsVersion};

    fn status(config: &Config, path: &str, fields: &[(&'static str, &'static str)]) -> u16 {
        by(&Method::GET, config, path, fields)
    }

    fn by(method: &Method, config: &Config, path: &str, fields: &[(&'static str, &'static str)]) -> u16 {
        let map = fields.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        judge(config, method, path, &map.collect()).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn with_a_token_everything_but_health_needs_it() {
        let token = Some(SecretDigest::of(b"t0ken"));
        let config = Config { admin_token: token, ..Config::default() };
        for path in ["/health", "/ready", "/", "/page/main.js"] {
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
        let from = |origin| status(&config, "/workers", &[("host", "localhost:9090"), ("origin", origin)]);
        assert_eq!(from("http://localhost:9090"), 200, "a page of the port itself");
        assert_eq!(from("http://elsewhere.example"), 403);
        assert_eq!(from("null"), 403);
    }

    #[test]
    fn without_a_token_a_browser_changes_nothing_without_the_page_s_header() {
        let host = ("host", "localhost:9090");
        let certificate = ServerTls {
            certificate: "crt".into(),
            key: "key".into(),
            client_ca: Some("ca".into()),
            min_version: TlsVersion::default(),
        };
        let by_certificate = Config { admin_tls: Some(certificate), ..Config::default() };
        for config in [&Config::default(), &by_certificate] {
            let post = |fields: &[(&'static str, &'static str)]| {
                by(&Method::POST, config, "/workers/w/drain", &[&[host], fields].concat())
            };
            assert_eq!(post(&[]), 200, "no browser");
            for browser in [("origin", "http://localhost:9090"), ("sec-fetch-site", "none")] {
                assert_eq!(post(&[browser]), 403, "{browser:?}");
                assert_eq!(post(&[browser, ("x-warmpath-page", "1")]), 200, "{browser:?}");
            }
            assert_eq!(post(&[("origin", "http://elsewhere.example"), ("x-warmpath-page", "1")]), 403);
        }
        let token = Config { admin_token: Some(SecretDigest::of(b"t")), ..Config::default() };
        let shown = [("authorization", "Bearer t"), ("origin", "http://localhost:9090")];
        assert_eq!(
            by(&Method::POST, &token, "/admin/reload", &shown),
            200,
            "who has the token is no browser's prey"
        );
    }
}
