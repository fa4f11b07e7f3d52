//! The prompt as pieces that borrow from the body, and the one byte stream that they stand for.
//!
//! The stream is what gets cut into blocks. Each piece is written as `0xFF`, its tag, its contents. No contents
//! hold `0xFF` (texts are UTF-8, numbers and brackets ASCII, media a fixed length after its tag), so two different
//! prompts never give the same stream (a scalar and the string that spells it count as the same), and nothing closes a piece, so a prompt that goes on where another one
//! ended has that other one's stream as a prefix.

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use super::{
    scan::{Text, Value},
    unescape::unescape,
};

/// An image, sound or file counts as this many tokens: what a 336-pixel vision tower makes of one image. The true
/// number depends on the model and is between a hundred and some thousands.
pub const MEDIA_TOKENS: usize = 576;

/// Bytes that stand for one token where a count has to be written as bytes.
pub const BYTES_PER_TOKEN: usize = 4;

/// What a piece is, as it is written into the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    Tool = b'T',
    System = b'S',
    Role = b'M',
    Name = b'N',
    Id = b'I',
    Content = b'C',
    Reasoning = b'R',
    Calls = b'K',
    Media = b'V',
    /// A member that no rule knows: its name, then its value.
    Other = b'O',
    /// Generation options that change the end of the template.
    Option = b'G',
    /// The text of a completion: written without `0xFF` and tag, as the engine sees it without a template.
    Plain = 0,
}

/// One stretch of the prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece<'a> {
    pub tag: Tag,
    pub form: Form<'a>,
}

/// How a piece's contents stand in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form<'a> {
    /// Text, ready as it stands.
    Text(&'a [u8]),
    /// String contents with escapes.
    Escaped(&'a [u8]),
    /// A JSON value, written without its white space and with its strings unescaped between `0xFE`s.
    Json(&'a [u8]),
    /// An image, sound or file, by its hash.
    Media(u128),
    /// Token ids, as little-endian `u32`s.
    Tokens(Box<[u8]>),
}

impl<'a> Piece<'a> {
    pub(super) fn text(tag: Tag, text: Text<'a>) -> Self {
        let form = if text.escaped { Form::Escaped(text.raw) } else { Form::Text(text.raw) };
        Self { tag, form }
    }

    /// A value of any kind; a string is the same piece as its text.
    pub(super) fn value(tag: Tag, value: Value<'a>) -> Self {
        let form = match value {
            Value::String(text) => return Self::text(tag, text),
            Value::Null => Form::Text(b"null"),
            Value::Bool(true) => Form::Text(b"true"),
            Value::Bool(false) => Form::Text(b"false"),
            Value::Number(digits) => Form::Text(digits),
            Value::Array(raw) | Value::Object(raw) => Form::Json(raw),
        };
        Self { tag, form }
    }

    /// Hands the piece's bytes of the stream to `sink`, in order.
    pub fn write(&self, sink: &mut impl FnMut(&[u8])) {
        if self.tag != Tag::Plain {
            sink(&[0xff, self.tag as u8]);
        }
        match &self.form {
            Form::Text(text) => sink(text),
            Form::Escaped(raw) => unescape(raw, sink),
            Form::Json(raw) => write_json(raw, sink),
            Form::Media(hash) => {
                let hash = hash.to_le_bytes();
                for _ in 0..MEDIA_TOKENS * BYTES_PER_TOKEN / hash.len() {
                    sink(&hash);
                }
            }
            Form::Tokens(tokens) => sink(tokens),
        }
    }
}

/// The hash of one more member of a media part.
pub(super) fn media_hash(so_far: u128, name: &[u8], value: Value<'_>) -> u128 {
    let raw = match value {
        Value::String(text) => text.raw,
        Value::Number(raw) | Value::Array(raw) | Value::Object(raw) => raw,
        Value::Null | Value::Bool(_) => value.describe().as_bytes(),
    };
    xxh3_128_with_seed(raw, xxh3_64_with_seed(name, so_far as u64))
}

/// `raw` is one validated JSON value.
pub(super) fn write_json(raw: &[u8], sink: &mut impl FnMut(&[u8])) {
    let mut rest = raw;
    while !rest.is_empty() {
        let plain = rest
            .iter()
            .position(|byte| matches!(byte, b'"' | b' ' | b'\n' | b'\r' | b'\t'))
            .unwrap_or(rest.len());
        if plain > 0 {
            sink(&rest[..plain]);
        }
        rest = &rest[plain..];
        match rest.first() {
            Some(b'"') => {
                let contents = &rest[1..];
                let end = closing_quote(contents);
                sink(&[0xfe]);
                unescape(&contents[..end], sink);
                sink(&[0xfe]);
                rest = contents.get(end + 1..).unwrap_or_default();
            }
            Some(_) => rest = &rest[1..],
            None => {}
        }
    }
}

/// Index of the quote that closes the string whose contents start `text`.
fn closing_quote(text: &[u8]) -> usize {
    let mut at = 0;
    while let Some(found) = text.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found;
        if text[at] == b'"' {
            return at;
        }
        at += 2;
    }
    text.len()
}
