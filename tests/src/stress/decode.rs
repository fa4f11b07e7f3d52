//! Body framing as a client reads it (RFC 9112 section 7.1), byte by byte where it is a line. Written for itself: what
//! it judges must not be what it is made of.

/// Longest chunk-size or trailer line.
const LINE_MAX: usize = 4096;

/// A body on its way.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    line: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// So many bytes of a Content-Length body are left.
    Length(u64),
    /// In the line that starts a chunk.
    Size,
    /// So many bytes of a chunk are left.
    Data(u64),
    /// In the empty line that ends a chunk.
    DataEnd,
    /// In a line behind the last chunk.
    Trailer,
    Done,
}

impl Decoder {
    /// A body of `bytes` bytes.
    pub fn length(bytes: u64) -> Self {
        Self { state: if bytes == 0 { State::Done } else { State::Length(bytes) }, line: Vec::new() }
    }

    /// A chunked body.
    pub fn chunked() -> Self {
        Self { state: State::Size, line: Vec::new() }
    }

    /// Whether the last byte has been seen.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes bytes up to the body's end and gives its content to `data`; how many it took, or what is wrong.
    pub fn feed(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<usize, String> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if let State::Length(left) | State::Data(left) = &mut self.state {
                let count = (*left).min((bytes.len() - at) as u64);
                *left -= count;
                data(&bytes[at..at + count as usize]);
                at += count as usize;
                match &self.state {
                    State::Length(0) => self.state = State::Done,
                    State::Data(0) => self.state = State::DataEnd,
                    _ => {}
                }
                continue;
            }
            self.line.push(bytes[at]);
            at += 1;
            if self.line.len() > LINE_MAX {
                return Err(self.broken("a line without end"));
            }
            if self.line.ends_with(b"\n") {
                self.take_line()?;
            }
        }
        Ok(at)
    }

    fn take_line(&mut self) -> Result<(), String> {
        let Some(line) = self.line.strip_suffix(b"\r\n") else {
            return Err(self.broken("a line that ends without CR"));
        };
        self.state = match self.state {
            State::Size => {
                let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
                let size =
                    std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
                match size {
                    Some(0) => State::Trailer,
                    Some(size) => State::Data(size),
                    None => return Err(self.broken("no chunk size")),
                }
            }
            State::DataEnd if line.is_empty() => State::Size,
            State::DataEnd => return Err(self.broken("a chunk longer than it says")),
            State::Trailer if line.is_empty() => State::Done,
            State::Trailer => State::Trailer,
            State::Length(_) | State::Data(_) | State::Done => unreachable!("no lines there"),
        };
        self.line.clear();
        Ok(())
    }

    fn broken(&self, what: &str) -> String {
        let shown = &self.line[..self.line.len().min(100)];
        format!("{what}: {:?}", String::from_utf8_lossy(shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_extensions_and_trailers_cut_anywhere() {
        let body = b"5;a=\"b\"\r\nhello\r\n0001\r\n \r\n05\r\nworld\r\n0;last\r\nx-trailer: 1\r\n\r\n";
        for cut in 0..body.len() {
            let mut decoder = Decoder::chunked();
            let mut content: Vec<u8> = Vec::new();
            assert_eq!(decoder.feed(&body[..cut], |data| content.extend(data)), Ok(cut));
            assert!(!decoder.is_done());
            let rest = [&body[cut..], b"behind"].concat();
            assert_eq!(decoder.feed(&rest, |data| content.extend(data)), Ok(body.len() - cut));
            assert!(decoder.is_done());
            assert_eq!(content, b"hello world");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (body, said) in [
            (&b"x\r\n"[..], "no chunk size"),
            (b"1\n", "without CR"),
            (b"1\r\nab\r\n", "longer than it says"),
            (&[b'0'; 5000], "without end"),
        ] {
            let error = Decoder::chunked().feed(body, |_| {}).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
