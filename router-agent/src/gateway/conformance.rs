//! What of a request's head hyper takes and this gateway does not: heads that two servers in a row may read differently.
//!
//! hyper refuses what is no HTTP (RFC 9112): bytes that no field may hold, white space before a colon, folded lines, two
//! lengths, chunks with broken sizes, a last coding that is not `chunked`. Where `Content-Length` stands beside
//! `Transfer-Encoding` it reads by the latter and closes the connection behind the answer (section 6.1), and it takes a
//! bare LF for the end of a line (section 2.2). Nothing of this reaches a worker: what is sent there is written anew.

use http::{
    HeaderMap, HeaderValue, Method, Uri, Version, header,
    request::Parts,
    uri::{Authority, Scheme},
};

use super::GatewayError;

/// Says what is wrong with a request's head, if something is.
pub(super) fn check(parts: &Parts) -> Result<(), GatewayError> {
    if parts.method == Method::CONNECT {
        return Err(GatewayError::Connect);
    }
    target(&parts.uri)?;
    host(&parts.headers, parts.version)?;
    if parts.version == Version::HTTP_2 {
        authority(&parts.headers, &parts.uri)?;
    }
    codings(&parts.headers)?;
    expectation(&parts.headers)
}

/// The origin form, the absolute form of HTTP, or the asterisk (RFC 9112 section 3.2).
fn target(uri: &Uri) -> Result<(), GatewayError> {
    match (uri.scheme(), uri.authority()) {
        (None, Some(_)) => {
            Err(GatewayError::Malformed("the request target names a host only; a path is needed"))
        }
        (Some(scheme), _) if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS => {
            Err(GatewayError::Malformed("the request target is neither a path nor an http or https URL"))
        }
        _ => Ok(()),
    }
}

/// One `Host` field in HTTP/1.1, at most one before, with a host in it or nothing (RFC 9112 section 3.2).
fn host(headers: &HeaderMap, version: Version) -> Result<(), GatewayError> {
    let mut fields = headers.get_all(header::HOST).iter();
    let Some(first) = fields.next() else {
        let needs_one = version == Version::HTTP_11;
        return if needs_one { Err(GatewayError::Malformed("the Host field is missing")) } else { Ok(()) };
    };
    if fields.next().is_some() {
        return Err(GatewayError::Malformed("there is more than one Host field"));
    }
    let is_host = |value: &HeaderValue| {
        let authority = Authority::try_from(value.as_bytes());
        value.is_empty() || authority.is_ok_and(|authority| !authority.as_str().contains('@'))
    };
    if is_host(first) { Ok(()) } else { Err(GatewayError::Malformed("the Host field names no host")) }
}

/// Over HTTP/2 the host is in the target; a `Host` field that says another one would be read by some and not by others
/// (RFC 9113 section 8.3.1).
fn authority(headers: &HeaderMap, uri: &Uri) -> Result<(), GatewayError> {
    let authority = uri.authority().map(Authority::as_str);
    if authority.is_some_and(|authority| authority.contains('@')) {
        return Err(GatewayError::Malformed("the authority of the request names a user"));
    }
    match (authority, headers.get(header::HOST)) {
        (Some(authority), Some(host)) if !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) => {
            Err(GatewayError::Malformed("the Host field and the authority of the request differ"))
        }
        _ => Ok(()),
    }
}

/// `chunked` and nothing else: a body that is compressed on top would arrive as another one.
fn codings(headers: &HeaderMap) -> Result<(), GatewayError> {
    let fields = headers.get_all(header::TRANSFER_ENCODING);
    let mut codings = fields.iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b','));
    let is_chunked = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if is_chunked(coding) => Ok(()),
        _ => Err(GatewayError::TransferCoding),
    }
}

fn expectation(headers: &HeaderMap) -> Result<(), GatewayError> {
    let mut fields = headers.get_all(header::EXPECT).iter();
    if fields.all(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        Ok(())
    } else {
        Err(GatewayError::Expectation)
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn refused(target: &str, fields: &[(&str, &str)]) -> Option<u16> {
        refused_in(Version::HTTP_11, target, fields)
    }

    fn refused_in(version: Version, target: &str, fields: &[(&str, &str)]) -> Option<u16> {
        let mut request = Request::get(target).version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        check(&parts).err().map(|error| error.status().as_u16())
    }

    #[test]
    fn hosts() {
        assert_eq!(refused("/", &[("host", "a")]), None);
        assert_eq!(refused("/", &[("host", "[::1]:80")]), None);
        assert_eq!(refused("/", &[("host", "")]), None);
        assert_eq!(refused("/", &[]), Some(400));
        for wrong in ["a b", "u@a", "a/b"] {
            assert_eq!(refused("/", &[("host", wrong)]), Some(400), "{wrong}");
        }
        assert_eq!(refused("/", &[("host", "a"), ("host", "a")]), Some(400));
    }

    #[test]
    fn targets() {
        for right in ["/a?b", "//a", "*", "http://a/b", "https://a"] {
            assert_eq!(refused(right, &[("host", "a")]), None, "{right}");
        }
        for wrong in ["a:80", "ftp://a/b"] {
            assert_eq!(refused(wrong, &[("host", "a")]), Some(400), "{wrong}");
        }
    }

    #[test]
    fn over_http_2_the_target_names_the_host_and_a_field_may_only_say_the_same() {
        let refused = |target: &str, fields: &[(&str, &str)]| refused_in(Version::HTTP_2, target, fields);
        assert_eq!(refused("https://a/b", &[]), None);
        assert_eq!(refused("http://a:80/b", &[("host", "A:80")]), None);
        assert_eq!(refused("https://a/b", &[("host", "other")]), Some(400));
        assert_eq!(refused("https://u@a/b", &[]), Some(400));
    }

    #[test]
    fn codings_and_expectations() {
        let coding = |fields: &[&str]| {
            let mut all = vec![("host", "a")];
            all.extend(fields.iter().map(|value| ("transfer-encoding", *value)));
            refused("/", &all)
        };
        assert_eq!(coding(&["Chunked"]), None);
        for wrong in [&["gzip, chunked"][..], &["chunked", "chunked"], &["chunked, identity"], &[""]] {
            assert_eq!(coding(wrong), Some(501), "{wrong:?}");
        }
        assert_eq!(refused("/", &[("host", "a"), ("expect", "100-Continue")]), None);
        assert_eq!(refused("/", &[("host", "a"), ("expect", "a miracle")]), Some(417));
    }
}
