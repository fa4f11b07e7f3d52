//! The grammar of a chunked body, written down once more and as plainly as can be: what the scanner is held against, by
//! the tests and by the fuzz target.

/// The data of a chunked body, by the letter of RFC 9112 section 7.1 and without any cleverness: `None` if the framing is
/// wrong or incomplete. Also how many bytes it was.
pub fn reference(wire: &[u8]) -> Option<(Vec<u8>, usize)> {
    let line = |from: usize| -> Option<(&[u8], usize)> {
        let end = from + wire.get(from..)?.iter().position(|byte| *byte == b'\n')?;
        let line = wire[from..end].strip_suffix(b"\r")?;
        (!line.contains(&b'\r')).then_some((line, end + 1))
    };
    let (mut data, mut at) = (Vec::new(), 0);
    loop {
        let (size_line, next) = line(at)?;
        let digits = size_line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let rest = &size_line[digits..];
        let spaces = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        if digits == 0 || !(rest.len() == spaces || rest[spaces] == b';') {
            return None;
        }
        let digits = std::str::from_utf8(&size_line[..digits]).ok()?;
        let size = usize::try_from(u64::from_str_radix(digits, 16).ok()?).ok()?;
        at = next;
        if size == 0 {
            break;
        }
        let chunk = wire.get(at..at.checked_add(size)?)?;
        data.extend_from_slice(chunk);
        at += size;
        if wire.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    loop {
        let (trailer, next) = line(at)?;
        at = next;
        if trailer.is_empty() {
            return Some((data, at));
        }
    }
}
