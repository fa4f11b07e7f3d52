//! Headers on their way through: what is passed on, what is dropped, what is added.
//!
//! Hop-by-hop fields end here on both sides (RFC 9110 section 7.6.1), and nobody else says `x-warmpath-…`. Who the client
//! is, workers are told by this gateway: `X-Forwarded-For`, `-Proto`, `-Host` and `Forwarded` (RFC 7239) of a client are
//! dropped, of a trusted proxy kept and added to. A name with underscores is taken for the one with dashes, because there
//! are servers that do. Everything else passes as it came, in its order.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};

use super::forwarded;
use crate::{fleet::Worker, tenants::X_API_KEY};

/// `x-request-id`: taken from the client or made here, given to the worker and back to the client.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The worker that answered.
pub(super) const WORKER: HeaderName = HeaderName::from_static("x-warmpath-worker");
/// The worker that prefilled the prompt, where that was another one.
pub(super) const PREFILL_WORKER: HeaderName = HeaderName::from_static("x-warmpath-prefill-worker");
/// Why it was chosen.
pub(super) const REASON: HeaderName = HeaderName::from_static("x-warmpath-reason");
/// The policy that chose it.
pub(super) const POLICY: HeaderName = HeaderName::from_static("x-warmpath-policy");
/// Prompt tokens that the index expected in the cache of the worker that prefilled them.
pub(super) const MATCHED_TOKENS: HeaderName = HeaderName::from_static("x-warmpath-matched-tokens");
/// How those tokens are known: `exact` by the worker's own KV events, `approximate` by what was sent there.
pub(super) const MATCH: HeaderName = HeaderName::from_static("x-warmpath-match");
/// W3C Trace Context: the span that a request belongs to.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// And what its vendors say of it.
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// The model that was served, where it is another one than the client named.
pub(super) const MODEL: HeaderName = HeaderName::from_static("x-warmpath-model");
/// The hooks that were asked, and what came of it.
pub(super) const HOOKS: HeaderName = HeaderName::from_static("x-warmpath-hooks");
/// What the response cache was to the request.
pub(super) const CACHE: HeaderName = HeaderName::from_static("x-warmpath-cache");
const REQUEST_ID_BYTES_MAX: usize = 256;

/// Whom a request comes from, as far as its head's fields depend on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sender {
    /// The other end of the connection.
    pub(super) ip: IpAddr,
    /// The connection is encrypted.
    pub(super) is_tls: bool,
    /// A proxy that says truly whom it speaks for.
    pub(super) is_trusted: bool,
    /// Its key is for this gateway, and no worker's business.
    pub(super) has_key: bool,
}

/// Removes what concerns one connection only, and what only this gateway may say.
pub(super) fn strip(headers: &mut HeaderMap) {
    // What `Connection` names is hop-by-hop too; the usual values name nothing that is not removed anyway.
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.eq_ignore_ascii_case("close") && !token.eq_ignore_ascii_case("keep-alive"))
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| !END_TO_END.contains(name))
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    remove_where(headers, |name| begins(name, OWN));
}

/// What the names of this gateway's own fields begin with.
const OWN: &str = "x-warmpath-";

const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Fields that a `Connection` header must not be able to remove.
const END_TO_END: [HeaderName; 6] = [
    header::HOST,
    header::AUTHORIZATION,
    X_API_KEY,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    REQUEST_ID,
];

/// Removes the fields whose names `is_wrong` says.
fn remove_where(headers: &mut HeaderMap, is_wrong: impl Fn(&str) -> bool) {
    while let Some(name) = headers.keys().find(|name| is_wrong(name.as_str())).cloned() {
        headers.remove(name);
    }
}

/// Whether a field's name begins so, underscores being dashes.
fn begins(name: &str, start: &str) -> bool {
    let same = |(a, b): (u8, u8)| a == b || (a == b'_' && b == b'-');
    name.len() >= start.len() && name.bytes().zip(start.bytes()).all(same)
}

/// The headers of the request to a worker, apart from `Host` and the worker's own key, from those of the client's request.
pub(super) fn for_worker(mut headers: HeaderMap, sender: Sender) -> (HeaderMap, HeaderValue) {
    strip(&mut headers);
    headers.remove(header::CONTENT_LENGTH); // the body's own length is written
    headers.remove(header::EXPECT); // the body is here already
    if sender.has_key {
        headers.remove(header::AUTHORIZATION);
        headers.remove(X_API_KEY);
    }
    let request_id = match headers.get(REQUEST_ID) {
        Some(id) if !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX => id.clone(),
        _ => {
            let id = new_request_id();
            headers.insert(REQUEST_ID, id.clone());
            id
        }
    };
    let kept = |name: &str| sender.is_trusted && forwarded::NAMES.contains(&name);
    remove_where(&mut headers, |name| {
        !kept(name) && ["x-forwarded-", "forwarded", "x-real-ip"].iter().any(|start| begins(name, start))
    });
    forwarded::add(&mut headers, sender);
    (headers, request_id)
}

/// A request that names its host in its target, as all of HTTP/2 do, has it in `Host` from here on (RFC 9112 section 3.2.2,
/// RFC 9113 section 8.3.1).
pub(super) fn set_authority(headers: &mut HeaderMap, target: &Uri) {
    if let Some(host) = target.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        headers.insert(header::HOST, host);
    }
}

/// What every worker is told for itself: its `Host` (vLLM does not look at it, proxies in front of a worker do), and its
/// own key, if it has one.
pub(super) fn set_worker(headers: &mut HeaderMap, worker: &Worker) {
    headers.insert(header::HOST, worker.host_header.clone());
    if let Some(key) = &worker.access().authorization {
        headers.insert(header::AUTHORIZATION, key.clone());
    }
}

/// 128 random bits in hexadecimal.
fn new_request_id() -> HeaderValue {
    HeaderValue::from_str(&format!("{:032x}", fastrand::u128(..)))
        .expect("hexadecimal digits are a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    const CLIENT: Sender = Sender {
        ip: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)),
        is_tls: false,
        is_trusted: false,
        has_key: false,
    };

    #[test]
    fn hop_by_hop_fields_and_our_own_are_dropped_and_what_connection_names() {
        let mut map = headers(&[
            ("connection", "keep-alive, X-Secret, authorization"),
            ("x-secret", "1"),
            ("authorization", "Bearer k"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("x-other", "2"),
            ("x-warmpath-worker", "w"),
            ("x-warmpath-future", "f"),
            ("x_warmpath_worker", "w"),
            ("x-warm", "3"),
        ]);
        strip(&mut map);
        assert_eq!(map, headers(&[("authorization", "Bearer k"), ("x-other", "2"), ("x-warm", "3")]));
    }

    #[test]
    fn a_request_keeps_its_id_or_gets_one() {
        let (map, id) = for_worker(headers(&[("x-request-id", "mine"), ("content-length", "3")]), CLIENT);
        assert_eq!(id, "mine");
        assert!(!map.contains_key(header::CONTENT_LENGTH));
        let (map, id) = for_worker(headers(&[]), CLIENT);
        assert_eq!(id.len(), 32);
        assert_eq!(map[REQUEST_ID], id);
    }

    #[test]
    fn a_key_for_this_gateway_goes_no_further() {
        let sent = || headers(&[("authorization", "Bearer k"), ("x-api-key", "k")]);
        let (map, _) = for_worker(sent(), CLIENT);
        assert_eq!(
            (&map[header::AUTHORIZATION], &map[X_API_KEY]),
            (&"Bearer k".parse().unwrap(), &"k".parse().unwrap())
        );
        let (map, _) = for_worker(sent(), Sender { has_key: true, ..CLIENT });
        assert!(!map.contains_key(header::AUTHORIZATION) && !map.contains_key(X_API_KEY));
    }

    #[test]
    fn what_a_client_says_of_its_address_is_dropped_in_every_spelling() {
        let says = [
            ("x-forwarded-for", "1.2.3.4"),
            ("x_forwarded_for", "1.2.3.4"),
            ("x-forwarded-client-cert", "CN=root"),
            ("x-real-ip", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
        ];
        let (map, _) = for_worker(headers(&says), CLIENT);
        assert_eq!(map["x-forwarded-for"], "10.0.0.1");
        assert_eq!(map["forwarded"], "for=10.0.0.1;proto=http");
        for name in ["x_forwarded_for", "x-forwarded-client-cert", "x-real-ip"] {
            assert!(!map.contains_key(name), "{name}");
        }
        let (map, _) = for_worker(headers(&says), Sender { is_trusted: true, ..CLIENT });
        assert_eq!(map["x-forwarded-for"], "1.2.3.4, 10.0.0.1");
        assert_eq!(map["forwarded"], "for=1.2.3.4, for=10.0.0.1;proto=http");
        assert!(!map.contains_key("x_forwarded_for") && !map.contains_key("x-forwarded-client-cert"));
    }
}
