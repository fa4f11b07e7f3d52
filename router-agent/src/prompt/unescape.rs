//! JSON string contents to text, in pieces handed to a sink, for contents that [`super::scan`] has validated.

/// Hands the text of `raw` to `sink`, stretch by stretch. A lone surrogate is written as Python's `surrogatepass`
/// writes it (three bytes, not UTF-8), so that no two texts become the same bytes.
pub(super) fn unescape(raw: &[u8], sink: &mut impl FnMut(&[u8])) {
    let mut rest = raw;
    while let Some(plain) = memchr::memchr(b'\\', rest) {
        if plain > 0 {
            sink(&rest[..plain]);
        }
        rest = &rest[plain..];
        let single = match rest.get(1) {
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'r') => b'\r',
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'u') => {
                rest = unicode(rest, sink);
                continue;
            }
            Some(&other) => other,
            None => return,
        };
        sink(&[single]);
        rest = &rest[2..];
    }
    if !rest.is_empty() {
        sink(rest);
    }
}

/// One `\uXXXX`, or two that are a surrogate pair, at the start of `rest`. Returns what follows.
fn unicode<'a>(rest: &'a [u8], sink: &mut impl FnMut(&[u8])) -> &'a [u8] {
    let Some(first) = code_unit(rest) else { return &[] };
    let after = &rest[6..];
    if (0xd800..0xdc00).contains(&first)
        && let Some(second) = code_unit(after)
        && (0xdc00..0xe000).contains(&second)
    {
        let point = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        if let Some(character) = char::from_u32(point) {
            sink(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
        return &after[6..];
    }
    match char::from_u32(first) {
        Some(character) => sink(character.encode_utf8(&mut [0; 4]).as_bytes()),
        None => {
            sink(&[
                0xe0 | (first >> 12) as u8,
                0x80 | (first >> 6 & 0x3f) as u8,
                0x80 | (first & 0x3f) as u8,
            ]);
        }
    }
    after
}

/// The value of the `\uXXXX` that `rest` starts with, if it does.
fn code_unit(rest: &[u8]) -> Option<u32> {
    let escape = rest.first_chunk::<6>()?;
    if escape[..2] != *b"\\u" {
        return None;
    }
    escape[2..].iter().try_fold(0, |value, &digit| Some(value << 4 | char::from(digit).to_digit(16)?))
}
