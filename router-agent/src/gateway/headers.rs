//! Headers on their way through: what is passed on, what is dropped, what is added.
//!
//! Hop-by-hop fields end here on both sides (RFC 9110 section 7.6.1), and nobody else says `x-warmpath-…`. Everything else
//! passes as it came, in its order.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::fleet::Worker;

/// `x-request-id`: taken from the client or made here, given to the worker and back to the client.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The worker that answered.
pub(super) const WORKER: HeaderName = HeaderName::from_static("x-warmpath-worker");
/// Why it was chosen.
pub(super) const REASON: HeaderName = HeaderName::from_static("x-warmpath-reason");
/// The policy that chose it.
pub(super) const POLICY: HeaderName = HeaderName::from_static("x-warmpath-policy");
/// Prompt tokens that the index expected in its cache.
pub(super) const MATCHED_TOKENS: HeaderName = HeaderName::from_static("x-warmpath-matched-tokens");
/// How those tokens are known: `exact` by the worker's own KV events, `approximate` by what was sent there.
pub(super) const MATCH: HeaderName = HeaderName::from_static("x-warmpath-match");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const REQUEST_ID_BYTES_MAX: usize = 256;

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
    while let Some(name) = headers.keys().find(|name| name.as_str().starts_with(OWN)).cloned() {
        headers.remove(name);
    }
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
const END_TO_END: [HeaderName; 5] =
    [header::HOST, header::AUTHORIZATION, header::CONTENT_LENGTH, header::CONTENT_TYPE, REQUEST_ID];

/// The headers of the request to a worker, apart from `Host`, from those of the client's request.
pub(super) fn for_worker(mut headers: HeaderMap, client: IpAddr) -> (HeaderMap, HeaderValue) {
    strip(&mut headers);
    headers.remove(header::CONTENT_LENGTH); // the body's own length is written
    headers.remove(header::EXPECT); // the body is here already
    let request_id = match headers.get(REQUEST_ID) {
        Some(id) if !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX => id.clone(),
        _ => {
            let id = new_request_id();
            headers.insert(REQUEST_ID, id.clone());
            id
        }
    };
    let forwarded = match headers.get(FORWARDED_FOR).and_then(|value| value.to_str().ok()) {
        Some(earlier) => format!("{earlier}, {client}"),
        None => client.to_string(),
    };
    if let Ok(forwarded) = HeaderValue::from_str(&forwarded) {
        headers.insert(FORWARDED_FOR, forwarded);
    }
    (headers, request_id)
}

/// `Host` of the worker: vLLM does not look at it, proxies in front of a worker do.
pub(super) fn set_host(headers: &mut HeaderMap, worker: &Worker) {
    headers.insert(header::HOST, worker.host_header.clone());
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
        ]);
        strip(&mut map);
        assert_eq!(map, headers(&[("authorization", "Bearer k"), ("x-other", "2")]));
    }

    #[test]
    fn a_request_keeps_its_id_or_gets_one() {
        let client = IpAddr::from([10, 0, 0, 1]);
        let (map, id) = for_worker(headers(&[("x-request-id", "mine"), ("content-length", "3")]), client);
        assert_eq!(id, "mine");
        assert_eq!(map, headers(&[("x-request-id", "mine"), ("x-forwarded-for", "10.0.0.1")]));
        let (map, id) = for_worker(headers(&[("x-forwarded-for", "1.2.3.4")]), client);
        assert_eq!(id.len(), 32);
        assert_eq!(map[REQUEST_ID], id);
        assert_eq!(map[FORWARDED_FOR], "1.2.3.4, 10.0.0.1");
    }
}
