//! Just enough ELF (64-bit, little-endian) to say which sections of two objects differ.

use std::collections::BTreeMap;

/// The sections of an object by name; `None` if it is none.
fn sections(object: &[u8]) -> Option<BTreeMap<String, &[u8]>> {
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let slice = object.get(at..at.checked_add(bytes)?)?;
        let value = slice.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    };
    if object.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count, names) =
        (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let content = |index: usize| -> Option<&[u8]> {
        let header = table.checked_add(index.checked_mul(size)?)?;
        let (offset, length) = (number(header + 0x18, 8)?, number(header + 0x20, 8)?);
        object.get(offset..offset.checked_add(length)?)
    };
    let names = content(names)?;
    let mut sections = BTreeMap::new();
    for index in 1..count {
        let name = names.get(number(table + index * size, 4)?..)?;
        let name = name.split(|byte| *byte == 0).next()?;
        sections.insert(String::from_utf8_lossy(name).into_owned(), content(index)?);
    }
    Some(sections)
}

/// The names of the sections that only one object has, or that differ; empty if both are the same, or no ELF.
pub(crate) fn differing(a: &[u8], b: &[u8]) -> Vec<String> {
    let (Some(a), Some(b)) = (sections(a), sections(b)) else { return Vec::new() };
    let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    names.into_iter().filter(|name| a.get(*name) != b.get(*name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_of_the_committed_object_are_read_and_compared() {
        let object = std::fs::read(crate::record::object()).expect("committed");
        let found = sections(&object).expect("an ELF object");
        assert!(found.contains_key(".maps") && found.contains_key(".BTF"), "{:?}", found.keys());
        assert_eq!(found["license"], b"Dual MIT/GPL\0");
        assert!(differing(&object, &object).is_empty());

        let mut other = object.clone();
        let at = object.windows(5).position(|bytes| bytes == b"Dual ").expect("the license");
        other[at] = b'X';
        assert_eq!(differing(&object, &other), ["license"]);
        assert!(differing(&object, b"no object").is_empty());
        assert_eq!(sections(&object[..100]), None);
    }
}
