//! W3C Trace Context (Recommendation, 23 November 2021): who the client says that the request's parent is.

use http::{HeaderMap, HeaderName, HeaderValue};

/// `traceparent`.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `tracestate`: passed on as it is.
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The span that a request belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace_id: u128,
    pub(super) span_id: u64,
    pub(super) is_sampled: bool,
    pub(super) state: Option<HeaderValue>,
}

/// What `traceparent` says. One that is malformed says nothing (section 3.2).
pub(super) fn parent(headers: &HeaderMap) -> Option<Parent> {
    let mut values = headers.get_all(&TRACEPARENT).iter();
    let text = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let mut parts = text.split('-');
    let (version, trace_id, span_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let version = hex(version, 2)?;
    if version == 0xff || (version == 0 && parts.next().is_some()) {
        return None;
    }
    let (trace_id, span_id) = (hex(trace_id, 32)?, hex(span_id, 16)? as u64);
    if trace_id == 0 || span_id == 0 {
        return None;
    }
    let state = headers.get(&TRACESTATE).cloned();
    Some(Parent { trace_id, span_id, is_sampled: hex(flags, 2)? & 1 == 1, state })
}

/// Exactly so many digits, in lower case.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (text.len() == digits && is_hex).then(|| u128::from_str_radix(text, 16).ok())?
}

/// What a worker is told.
pub(super) fn traceparent(trace_id: u128, span_id: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("00-{trace_id:032x}-{span_id:016x}-01"))
        .expect("hexadecimal digits are a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static str) -> Option<Parent> {
        parent(&HeaderMap::from_iter([(TRACEPARENT, HeaderValue::from_static(text))]))
    }

    #[test]
    fn a_parent_is_read_as_it_is_written() {
        let parent = read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert_eq!((parent.span_id, parent.is_sampled), (0xb7ad_6b71_6920_3331, true));
        let written = traceparent(parent.trace_id, parent.span_id);
        assert_eq!(written, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert!(!read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02").unwrap().is_sampled);
        let later = read("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future-holds");
        assert!(later.is_some(), "a later version begins alike");
    }

    #[test]
    fn what_is_malformed_says_nothing() {
        for text in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        let two = [0, 1].map(|_| (TRACEPARENT, HeaderValue::from_static("00-1-1-01")));
        assert_eq!(parent(&two.into_iter().collect()), None);
    }
}
