//! Request heads: parsed with `httparse`, kept to what the simulation acts on.

/// Headers in one request head.
const HEADERS_MAX: usize = 128;

/// A request head.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) method: String,
    /// The target up to `?`.
    pub(crate) path: String,
    /// The target from `?` on.
    pub(crate) query: String,
    pub(crate) host: String,
    pub(crate) content_type: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) session_id: Option<String>,
    pub(crate) load_metrics_format: Option<String>,
    pub(crate) body: BodyFraming,
    /// The connection ends after the response: asked for, or HTTP/1.0.
    pub(crate) close: bool,
    pub(crate) expects_continue: bool,
}

/// How the request body is framed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum BodyFraming {
    #[default]
    None,
    Length(usize),
    Chunked,
}

/// What a parse attempt yields.
pub(crate) enum Parsed {
    /// The head, and its length in the buffer.
    Complete(Box<Head>, usize),
    Partial,
    Invalid,
}

/// Parses the head at the front of `buffer`.
pub(crate) fn parse(buffer: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(buffer) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Invalid,
    };
    let target = request.path.unwrap_or("/");
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let mut head = Head {
        method: request.method.unwrap_or_default().to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        close: request.version == Some(0),
        ..Head::default()
    };
    for header in request.headers.iter() {
        let Ok(value) = std::str::from_utf8(header.value) else { continue };
        let value = value.trim();
        match header.name.to_ascii_lowercase().as_str() {
            "host" => value.clone_into(&mut head.host),
            "content-type" => head.content_type = Some(value.to_owned()),
            "authorization" => head.authorization = Some(value.to_owned()),
            "x-request-id" => head.request_id = Some(value.to_owned()),
            "x-session-id" => head.session_id = Some(value.to_owned()),
            "endpoint-load-metrics-format" => head.load_metrics_format = Some(value.to_owned()),
            "content-length" => match (value.parse(), head.body) {
                (Ok(0), BodyFraming::None) => {}
                (Ok(len), BodyFraming::None) => head.body = BodyFraming::Length(len),
                _ => return Parsed::Invalid,
            },
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => match head.body {
                // Both framings in one request are a smuggling attempt; llhttp refuses them too.
                BodyFraming::Length(_) => return Parsed::Invalid,
                BodyFraming::None | BodyFraming::Chunked => head.body = BodyFraming::Chunked,
            },
            "transfer-encoding" => return Parsed::Invalid,
            "connection" => head.close |= has_token(value, "close"),
            "expect" => head.expects_continue = value.eq_ignore_ascii_case("100-continue"),
            _ => {}
        }
    }
    Parsed::Complete(Box::new(head), len)
}

fn has_token(list: &str, token: &str) -> bool {
    list.split(',').any(|own| own.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(text: &str) -> Head {
        match parse(text.as_bytes()) {
            Parsed::Complete(head, len) => {
                assert_eq!(len, text.len());
                *head
            }
            Parsed::Partial => panic!("partial"),
            Parsed::Invalid => panic!("invalid"),
        }
    }

    #[test]
    fn http_1_0_closes_even_when_asked_to_stay() {
        assert!(complete("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").close);
        assert!(!complete("GET / HTTP/1.1\r\n\r\n").close);
        assert!(complete("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n").close);
    }

    #[test]
    fn two_framings_of_one_body_are_refused() {
        let text = "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(matches!(parse(text.as_bytes()), Parsed::Invalid));
    }

    #[test]
    fn a_head_may_come_in_pieces() {
        assert!(matches!(parse(b"GET /health HTTP/1.1\r\nHost:"), Parsed::Partial));
        assert!(matches!(parse(b"GARBAGE\r\n\r\n"), Parsed::Invalid));
    }
}
