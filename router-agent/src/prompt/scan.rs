//! A JSON scanner that validates everything it passes and copies nothing.
//!
//! Promises: one pass, no allocation (but for nesting deeper than 64), no recursion, so no nesting overflows the
//! stack; every byte that is skipped has been checked against RFC 8259. What Python's `json` (which the workers
//! use) takes beyond the RFC is taken here too: `NaN`, `Infinity`, `-Infinity` and lone surrogate escapes.
//! The caller has checked that the bytes are UTF-8.
//!
//! Cost: strings, which are nearly all of a prompt, go by at the speed of [`find_special`] (32 bytes per step).
//! `docs/routing.md` has the figures beside `sonic-rs` and `serde_json`, and why neither is used.

use std::borrow::Cow;

use super::{
    unescape::HEX,
    word::{below, equal, first_byte},
};

/// Where the text stops being JSON, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) at: usize,
    pub(super) why: &'static str,
}

type Scan<T> = Result<T, Bad>;

/// The contents of a JSON string, without its quotes, as it stands in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Text<'a> {
    pub(super) raw: &'a [u8],
    /// Holds at least one backslash, so `raw` is not yet the text.
    pub(super) escaped: bool,
}

impl<'a> Text<'a> {
    /// The text itself; copied only if it holds escapes (a lone surrogate becomes U+FFFD).
    pub(super) fn to_str(self) -> Cow<'a, str> {
        if self.escaped {
            let mut text = Vec::with_capacity(self.raw.len());
            super::unescape::unescape(self.raw, &mut |bytes| text.extend_from_slice(bytes));
            Cow::Owned(String::from_utf8_lossy(&text).into_owned())
        } else {
            String::from_utf8_lossy(self.raw)
        }
    }

    /// Equality with a name that needs no escapes; a key is hardly ever written with them.
    pub(super) fn is(self, name: &str) -> bool {
        if self.escaped { self.to_str() == name } else { self.raw == name.as_bytes() }
    }
}

/// One validated value. Containers are spans, brackets included, to be scanned again one level down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Number(&'a [u8]),
    String(Text<'a>),
    Array(&'a [u8]),
    Object(&'a [u8]),
}

impl<'a> Value<'a> {
    /// How an error message names it.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        }
    }

    pub(super) fn as_text(self) -> Option<Text<'a>> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}

/// A cursor over JSON text.
pub(super) struct Scanner<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { body, at: 0 }
    }

    /// Bytes that are behind it.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// The next byte that is not white space, not consumed.
    pub(super) fn peek(&mut self) -> Option<u8> {
        while let Some(&byte) = self.body.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    fn bad<T>(&self, why: &'static str) -> Scan<T> {
        Err(Bad { at: self.at, why })
    }

    /// Nothing but white space may follow.
    pub(super) fn end(&mut self) -> Scan<()> {
        if self.peek().is_some() { self.bad("something follows the end of the JSON value") } else { Ok(()) }
    }

    /// Calls `member` for every member of the object that starts here. `member` finds the scanner in front of the
    /// value and must consume exactly it.
    pub(super) fn object(&mut self, mut member: impl FnMut(Text<'a>, &mut Self) -> Scan<()>) -> Scan<()> {
        if self.peek() != Some(b'{') {
            return self.bad("expected an object");
        }
        self.at += 1;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let key = self.key()?;
            member(key, self)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.bad("expected `,` or `}` after a member"),
            }
        }
    }

    /// As [`Scanner::object`], for the array that starts here.
    pub(super) fn array(&mut self, mut element: impl FnMut(&mut Self) -> Scan<()>) -> Scan<()> {
        if self.peek() != Some(b'[') {
            return self.bad("expected an array");
        }
        self.at += 1;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            element(self)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.bad("expected `,` or `]` after an element"),
            }
        }
    }

    /// Consumes and validates one value of any kind and depth.
    pub(super) fn value(&mut self) -> Scan<Value<'a>> {
        match self.peek() {
            Some(b'{') => self.container().map(Value::Object),
            Some(b'[') => self.container().map(Value::Array),
            _ => self.scalar(),
        }
    }

    /// Consumes an array or object: a loop over an explicit stack of one bit per open bracket.
    fn container(&mut self) -> Scan<&'a [u8]> {
        let start = self.at;
        let mut open = Brackets::default();
        loop {
            match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    open.push(true);
                    if self.peek() == Some(b'}') {
                        self.at += 1;
                        open.pop();
                    } else {
                        self.key()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.at += 1;
                    open.push(false);
                    if self.peek() == Some(b']') {
                        self.at += 1;
                        open.pop();
                    } else {
                        continue;
                    }
                }
                _ => {
                    self.scalar()?;
                }
            }
            // A value has ended; close what closes here.
            loop {
                let Some(in_object) = open.top() else {
                    return Ok(&self.body[start..self.at]);
                };
                match (self.peek(), in_object) {
                    (Some(b','), true) => {
                        self.at += 1;
                        self.key()?;
                        break;
                    }
                    (Some(b','), false) => {
                        self.at += 1;
                        break;
                    }
                    (Some(b'}'), true) | (Some(b']'), false) => {
                        self.at += 1;
                        open.pop();
                    }
                    (_, true) => return self.bad("expected `,` or `}` after a member"),
                    (_, false) => return self.bad("expected `,` or `]` after an element"),
                }
            }
        }
    }

    fn key(&mut self) -> Scan<Text<'a>> {
        if self.peek() != Some(b'"') {
            return self.bad("expected a member name in double quotes");
        }
        self.at += 1;
        let key = self.string_rest()?;
        if self.peek() != Some(b':') {
            return self.bad("expected `:` after a member name");
        }
        self.at += 1;
        Ok(key)
    }

    fn scalar(&mut self) -> Scan<Value<'a>> {
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                self.string_rest().map(Value::String)
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal(b"true", Value::Bool(true)),
            Some(b'f') => self.literal(b"false", Value::Bool(false)),
            Some(b'n') => self.literal(b"null", Value::Null),
            Some(b'N') => self.literal(b"NaN", Value::Number(b"NaN")),
            Some(b'I') => self.literal(b"Infinity", Value::Number(b"Infinity")),
            Some(_) => self.bad("expected a value"),
            None => self.bad("the text ends where a value was expected"),
        }
    }

    fn literal(&mut self, word: &'static [u8], value: Value<'a>) -> Scan<Value<'a>> {
        if self.body[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(value)
        } else {
            self.bad("expected a value")
        }
    }

    fn number(&mut self) -> Scan<Value<'a>> {
        let start = self.at;
        if self.body[self.at] == b'-' {
            self.at += 1;
            if self.body.get(self.at) == Some(&b'I') {
                return self.literal(b"Infinity", Value::Number(b"-Infinity"));
            }
        }
        if self.body.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.body.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.body.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.body.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(Value::Number(&self.body[start..self.at]))
    }

    /// Consumes a plain number below a billion: nearly every token id. Whatever else stands here, a bad number
    /// included, is left to [`Scanner::value`].
    pub(super) fn small_integer(&mut self) -> Option<u32> {
        self.peek();
        let text = self.body[self.at..].first_chunk::<10>()?;
        let len = text.iter().position(|byte| !byte.is_ascii_digit())?;
        let plain = matches!(text[len], b',' | b']') && len > 0 && (text[0] != b'0' || len == 1);
        plain.then(|| {
            self.at += len;
            text[..len].iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0'))
        })
    }

    fn digits(&mut self) -> Scan<()> {
        let start = self.at;
        while matches!(self.body.get(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { self.bad("expected a digit") } else { Ok(()) }
    }

    /// The rest of a string whose opening quote has been consumed.
    fn string_rest(&mut self) -> Scan<Text<'a>> {
        let start = self.at;
        let mut escaped = false;
        loop {
            self.at += find_special(&self.body[self.at..]);
            match self.body.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Text { raw: &self.body[start..self.at - 1], escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    // Outside ASCII, escapes stand in rows.
                    while self.body.get(self.at) == Some(&b'\\') {
                        self.escape()?;
                    }
                }
                Some(_) => return self.bad("a control character stands in a string"),
                None => return self.bad("a string is not closed"),
            }
        }
    }

    fn escape(&mut self) -> Scan<()> {
        match self.body.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') => {
                let digits = self.body[self.at + 2..].first_chunk::<4>();
                let hex = digits.map(|digits| digits.map(|digit| HEX[usize::from(digit)]));
                if hex.is_none_or(|[a, b, c, d]| a | b | c | d > 0xf) {
                    return self.bad("`\\u` needs four hexadecimal digits");
                }
                self.at += 6;
            }
            _ => return self.bad("an escape that JSON does not know"),
        }
        Ok(())
    }
}

/// The open brackets, one bit each (1 = object). The first 64 levels live in a register; deeper text, which no
/// client sends in earnest, takes an eighth of a byte of heap per level.
#[derive(Default)]
struct Brackets {
    top: u64,
    depth: usize,
    spilled: Vec<u64>,
}

impl Brackets {
    fn push(&mut self, object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.spilled.push(self.top);
        }
        self.top = self.top << 1 | u64::from(object);
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.top >>= 1;
        self.depth -= 1;
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.top = self.spilled.pop().expect("one word was spilled per 64 levels");
        }
    }

    fn top(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.top & 1 == 1)
    }
}

/// Index of the first byte that ends a plain stretch of a string (`"`, `\`, below 0x20), or the length.
///
/// The first words are looked at one by one, since escapes stand close together where they stand at all; then 32
/// bytes at a time, written as a fold that the compiler turns into vector compares.
fn find_special(text: &[u8]) -> usize {
    let mut at = 0;
    for _ in 0..SHORT_WORDS {
        let Some(chunk) = text[at..].first_chunk() else { break };
        match special(*chunk) {
            0 => at += 8,
            found => return at + first_byte(found),
        }
    }
    while let Some(chunk) = text[at..].first_chunk::<32>() {
        let found = chunk.iter().fold(0_u8, |found, &byte| {
            found | u8::from(byte == b'"') | u8::from(byte == b'\\') | u8::from(byte < 0x20)
        });
        if found != 0 {
            break;
        }
        at += 32;
    }
    while let Some(chunk) = text[at..].first_chunk() {
        match special(*chunk) {
            0 => at += 8,
            found => return at + first_byte(found),
        }
    }
    text[at..]
        .iter()
        .position(|&byte| byte == b'"' || byte == b'\\' || byte < 0x20)
        .map_or(text.len(), |place| at + place)
}

const SHORT_WORDS: usize = 2;

fn special(chunk: [u8; 8]) -> u64 {
    let word = u64::from_le_bytes(chunk);
    equal(word, b'"') | equal(word, b'\\') | below(word, 0x20)
}
