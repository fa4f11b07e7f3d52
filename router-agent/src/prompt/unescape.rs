//! JSON string contents to text, in pieces handed to a sink, for contents that [`super::scan`] has validated.
//!
//! Prompts are full of escapes (every line of code ends in one), so the text between two of them is copied sixteen
//! bytes at a time into a small buffer and the sink is called for stretches, not for fragments.

use super::word::{equal, first_byte};

/// The sink gets at least this much at a time, but for the last one.
const BUFFER: usize = 512;

/// A stretch this long without an escape is worth a search for the next one, and then no copy.
const LONG: usize = 96;

const STEP: usize = 16;

/// Hands the text of `raw` to `sink`, stretch by stretch. A lone surrogate is written as Python's `surrogatepass`
/// writes it (three bytes, not UTF-8), so that no two texts become the same bytes.
pub(super) fn unescape(raw: &[u8], sink: &mut impl FnMut(&[u8])) {
    let mut buffer = [0; BUFFER + STEP];
    let (mut at, mut len, mut plain_run) = (0, 0, 0);
    loop {
        if len >= BUFFER {
            sink(&buffer[..len]);
            len = 0;
        }
        if let Some(chunk) = raw[at..].first_chunk::<STEP>() {
            buffer[len..len + STEP].copy_from_slice(chunk);
            let plain = plain_bytes(chunk);
            at += plain;
            len += plain;
            if plain == STEP {
                plain_run += STEP;
                if plain_run >= LONG {
                    let rest = &raw[at..];
                    let plain = memchr::memchr(b'\\', rest).unwrap_or(rest.len());
                    if plain >= LONG {
                        sink(&buffer[..len]);
                        sink(&rest[..plain]);
                        len = 0;
                        at += plain;
                    }
                    plain_run = 0;
                }
                continue;
            }
        } else {
            match raw.get(at) {
                None => break,
                Some(b'\\') => {}
                Some(&byte) => {
                    buffer[len] = byte;
                    at += 1;
                    len += 1;
                    continue;
                }
            }
        }
        plain_run = 0;
        let out = buffer[len..].first_chunk_mut().expect("the buffer ends a step behind its limit");
        let (read, written) = escape(&raw[at..], out);
        at += read;
        len += written;
    }
    if len > 0 {
        sink(&buffer[..len]);
    }
}

/// How many bytes of the step stand before the first backslash.
fn plain_bytes(chunk: &[u8; STEP]) -> usize {
    let (words, _) = chunk.as_chunks::<8>();
    match equal(u64::from_le_bytes(words[0]), b'\\') {
        0 => 8 + first_byte(equal(u64::from_le_bytes(words[1]), b'\\')),
        found => first_byte(found),
    }
}

/// Reads one escape, or two that are a surrogate pair, and writes the character. Returns bytes read and written.
fn escape(raw: &[u8], out: &mut [u8; 4]) -> (usize, usize) {
    out[0] = match raw.get(1) {
        Some(b'n') => b'\n',
        Some(b't') => b'\t',
        Some(b'r') => b'\r',
        Some(b'b') => 0x08,
        Some(b'f') => 0x0c,
        Some(b'u') => return unicode(raw, out),
        Some(&other) => other,
        None => return (raw.len(), 0),
    };
    (2, 1)
}

fn unicode(raw: &[u8], out: &mut [u8; 4]) -> (usize, usize) {
    let Some(first) = code_unit(raw) else { return (raw.len(), 0) };
    match first {
        0..0x80 => {
            out[0] = first as u8;
            (6, 1)
        }
        0x80..0x800 => {
            out[..2].copy_from_slice(&[0xc0 | (first >> 6) as u8, continued(first)]);
            (6, 2)
        }
        0xd800..0xdc00 if let Some(second @ 0xdc00..0xe000) = code_unit(&raw[6..]) => {
            let point = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
            *out =
                [0xf0 | (point >> 18) as u8, continued(point >> 12), continued(point >> 6), continued(point)];
            (12, 4)
        }
        _ => {
            out[..3].copy_from_slice(&[0xe0 | (first >> 12) as u8, continued(first >> 6), continued(first)]);
            (6, 3)
        }
    }
}

/// A continuation byte with the lowest six bits.
fn continued(bits: u32) -> u8 {
    0x80 | (bits & 0x3f) as u8
}

/// The value of the `\uXXXX` that `raw` starts with, if it does.
fn code_unit(raw: &[u8]) -> Option<u32> {
    let &[b'\\', b'u', a, b, c, d] = raw.first_chunk()? else { return None };
    let digit = |byte: u8| u32::from(HEX[usize::from(byte)]);
    Some(digit(a) << 12 | digit(b) << 8 | digit(c) << 4 | digit(d))
}

/// The value of a hexadecimal digit; 0xff for what is none.
pub(super) static HEX: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut value = 0;
    while value < 16 {
        table[b"0123456789abcdef"[value] as usize] = value as u8;
        table[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    table
};
