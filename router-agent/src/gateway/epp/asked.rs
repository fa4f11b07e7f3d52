//! What Envoy tells: heads as HTTP has them, and the metadata of the endpoint picker protocol.

use std::net::SocketAddr;

use envoy_types::pb::{
    envoy::{
        config::core::v3::{HeaderMap as EnvoyHeaders, HeaderValue as EnvoyHeader, Metadata},
        extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode,
        service::ext_proc::v3::{HttpHeaders, ProcessingRequest, ProtocolConfiguration},
    },
    google::protobuf::{Value, value::Kind},
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version, header, request::Parts};

/// Namespace and name of the workers that a request may go to.
const SUBSET: (&str, &str) = ("envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset");
/// Of the worker that has served it.
const SERVED: (&str, &str) = ("envoy.lb", "x-gateway-destination-endpoint-served");

/// How bodies come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Modes {
    pub(super) request: BodySendMode,
    pub(super) response: BodySendMode,
}

impl Modes {
    /// As the first message says; the protocol's own where an older Envoy says nothing.
    pub(super) fn of(config: Option<&ProtocolConfiguration>) -> Self {
        let Some(config) = config else {
            return Self {
                request: BodySendMode::FullDuplexStreamed,
                response: BodySendMode::FullDuplexStreamed,
            };
        };
        Self { request: config.request_body_mode(), response: config.response_body_mode() }
    }

    /// Whether a body can be read before it is said where it goes.
    pub(super) fn reads_requests(self) -> bool {
        matches!(self.request, BodySendMode::FullDuplexStreamed | BodySendMode::Buffered)
    }
}

fn value(header: &EnvoyHeader) -> &[u8] {
    if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value }
}

fn fields(headers: &HttpHeaders) -> &[EnvoyHeader] {
    headers.headers.as_ref().map_or(&[], |map: &EnvoyHeaders| &map.headers)
}

fn pseudo<'h>(headers: &'h HttpHeaders, name: &str) -> Option<&'h str> {
    let field = fields(headers).iter().find(|field| field.key == name)?;
    std::str::from_utf8(value(field)).ok()
}

/// A request's head; none if it is none that a server could have.
pub(super) fn head(headers: &HttpHeaders) -> Option<Parts> {
    let mut request = Request::builder()
        .version(Version::HTTP_2)
        .method(pseudo(headers, ":method")?)
        .uri(pseudo(headers, ":path")?)
        .body(())
        .ok()?;
    *request.headers_mut() = map(headers);
    if let Some(authority) = pseudo(headers, ":authority").and_then(|host| HeaderValue::from_str(host).ok()) {
        request.headers_mut().insert(header::HOST, authority);
    }
    Some(request.into_parts().0)
}

fn map(headers: &HttpHeaders) -> HeaderMap {
    let field = |field: &EnvoyHeader| {
        let name = HeaderName::from_bytes(field.key.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(value(field)).ok()?))
    };
    let mut map = HeaderMap::new();
    for (name, value) in fields(headers).iter().filter(|field| !field.key.starts_with(':')).filter_map(field)
    {
        map.append(name, value);
    }
    map
}

/// A response's status and fields.
pub(super) fn response_head(headers: &HttpHeaders) -> (StatusCode, HeaderMap) {
    let status = pseudo(headers, ":status").and_then(|status| status.parse().ok());
    (status.unwrap_or(StatusCode::BAD_GATEWAY), map(headers))
}

fn metadata<'m>(of: Option<&'m Metadata>, (namespace, name): (&str, &str)) -> Option<&'m Value> {
    of?.filter_metadata.get(namespace)?.fields.get(name)
}

/// The addresses that a request may go to, where the data plane says so: a list, or a text with commas. What is no address
/// is nobody's.
pub(super) fn subset(request: &ProcessingRequest) -> Option<Vec<SocketAddr>> {
    fn texts<'v>(value: &'v Value, into: &mut Vec<&'v str>) {
        match &value.kind {
            Some(Kind::StringValue(text)) => into.extend(text.split(',').map(str::trim)),
            Some(Kind::ListValue(list)) => list.values.iter().for_each(|value| texts(value, into)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    texts(metadata(request.metadata_context.as_ref(), SUBSET)?, &mut found);
    Some(found.iter().filter_map(|text| text.parse().ok()).collect())
}

/// The address that has answered, where the data plane says so.
pub(super) fn served(request: &ProcessingRequest) -> Option<SocketAddr> {
    match &metadata(request.metadata_context.as_ref(), SERVED)?.kind {
        Some(Kind::StringValue(text)) => text.trim().parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::{ListValue, Struct};

    use super::*;

    fn text(text: &str) -> Value {
        Value { kind: Some(Kind::StringValue(text.to_owned())) }
    }

    fn hinted(value: Value) -> ProcessingRequest {
        let hint = Struct { fields: [(SUBSET.1.to_owned(), value)].into() };
        let filter_metadata = [(SUBSET.0.to_owned(), hint)].into();
        ProcessingRequest {
            metadata_context: Some(Metadata { filter_metadata, ..Metadata::default() }),
            ..ProcessingRequest::default()
        }
    }

    #[test]
    fn a_subset_is_a_list_or_a_text_and_without_one_there_is_none() {
        let both: Vec<SocketAddr> = vec!["10.0.0.1:80".parse().unwrap(), "[::1]:81".parse().unwrap()];
        assert_eq!(subset(&hinted(text("10.0.0.1:80, [::1]:81"))), Some(both.clone()));
        let values = vec![text("10.0.0.1:80"), text("[::1]:81"), text("somewhere")];
        let list = Value { kind: Some(Kind::ListValue(ListValue { values })) };
        assert_eq!(subset(&hinted(list)), Some(both));
        assert_eq!(subset(&hinted(text(""))), Some(Vec::new()), "nobody is not everybody");
        assert_eq!(subset(&ProcessingRequest::default()), None);
    }

    #[test]
    fn heads_are_read_from_raw_and_plain_values() {
        let field = |key: &str, value: &str, raw: &[u8]| EnvoyHeader {
            key: key.to_owned(),
            value: value.to_owned(),
            raw_value: raw.to_vec(),
        };
        let headers = |fields| HttpHeaders {
            headers: Some(EnvoyHeaders { headers: fields }),
            ..HttpHeaders::default()
        };
        let parts = head(&headers(vec![
            field(":method", "", b"POST"),
            field(":path", "/v1/completions?x=1", b""),
            field(":authority", "", b"model.example"),
            field("x-a", "", b"1"),
            field("x-a", "2", b""),
        ]))
        .expect("a head");
        assert_eq!((parts.method.as_str(), parts.uri.path()), ("POST", "/v1/completions"));
        assert_eq!(parts.headers[header::HOST], "model.example");
        assert_eq!(parts.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert!(head(&headers(vec![field(":method", "GET", b"")])).is_none());
        assert_eq!(response_head(&headers(vec![field(":status", "", b"204")])).0, StatusCode::NO_CONTENT);
    }
}
