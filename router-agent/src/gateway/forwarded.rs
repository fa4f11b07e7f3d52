//! `X-Forwarded-For`, `-Proto`, `-Host` and `Forwarded` (RFC 7239): whom this gateway has a request from.

use std::{fmt::Write as _, net::IpAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::headers::Sender;

/// The fields that are set here; what a trusted proxy has said in them is kept.
pub(super) const NAMES: [&str; 4] = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"];
const FOR: HeaderName = HeaderName::from_static(NAMES[0]);
const PROTO: HeaderName = HeaderName::from_static(NAMES[1]);
const HOST: HeaderName = HeaderName::from_static(NAMES[2]);

/// Adds the sender to what is left in `headers`. `Host` is the client's, still.
pub(super) fn add(headers: &mut HeaderMap, sender: Sender) {
    let proto = if sender.is_tls { "https" } else { "http" };
    let ip = sender.ip.to_canonical();
    append(headers, FOR, &ip.to_string());
    let host = headers.get(header::HOST).filter(|host| !host.is_empty()).cloned();

    let mut element = match ip {
        IpAddr::V4(ip) => format!("for={ip};proto={proto}"),
        IpAddr::V6(ip) => format!("for=\"[{ip}]\";proto={proto}"),
    };
    // A host has no quotes in it: it was checked to be one.
    if let Some(host) = host.as_ref().and_then(|host| host.to_str().ok()) {
        let _ = write!(element, ";host=\"{host}\"");
    }
    append(headers, header::FORWARDED, &element);
    if !headers.contains_key(PROTO) {
        headers.insert(PROTO, HeaderValue::from_static(proto));
    }
    if let Some(host) = host.filter(|_| !headers.contains_key(HOST)) {
        headers.insert(HOST, host);
    }
}

/// Adds to a list, which is one field afterwards.
fn append(headers: &mut HeaderMap, name: HeaderName, last: &str) {
    let earlier = headers.get_all(&name).iter().filter_map(|value| value.to_str().ok());
    let list = earlier.chain([last]).collect::<Vec<_>>().join(", ");
    if let Ok(list) = HeaderValue::from_str(&list) {
        headers.insert(name, list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(fields: &[(&'static str, &'static str)], ip: &str, is_tls: bool) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_static(value));
        }
        let sender = Sender { ip: ip.parse().unwrap(), is_tls, is_trusted: true, has_key: false };
        add(&mut map, sender);
        map
    }

    #[test]
    fn the_first_gateway_says_everything() {
        let map = added(&[("host", "api.example:8080")], "2001:db8::1", true);
        assert_eq!(map[FOR], "2001:db8::1");
        assert_eq!(map[PROTO], "https");
        assert_eq!(map[HOST], "api.example:8080");
        assert_eq!(map[header::FORWARDED], "for=\"[2001:db8::1]\";proto=https;host=\"api.example:8080\"");
        assert_eq!(added(&[], "::ffff:10.0.0.1", false)[FOR], "10.0.0.1", "of a listener of both families");
    }

    #[test]
    fn a_proxys_word_is_kept_and_added_to() {
        let map = added(
            &[
                ("host", "inner"),
                ("x-forwarded-for", "1.1.1.1"),
                ("x-forwarded-for", "2.2.2.2"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "outer"),
            ],
            "10.0.0.1",
            false,
        );
        assert_eq!(map[FOR], "1.1.1.1, 2.2.2.2, 10.0.0.1");
        assert_eq!(map.get_all(FOR).iter().count(), 1);
        assert_eq!((&map[PROTO], &map[HOST]), (&"https".parse().unwrap(), &"outer".parse().unwrap()));
    }
}
