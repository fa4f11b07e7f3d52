//! Entries of maps as lines of a table, and as JSON.

use router_common::{Cell, MapValue};
use serde_json::{Map, Value, json};

/// A row to print: each column's name, text and JSON.
pub(super) type Line = Vec<(&'static str, String, Value)>;

/// An entry, its key first. Times are ages in the text and numbers in JSON; hashes are hexadecimal in both, since many
/// readers of JSON round numbers beyond 53 bits.
pub(super) fn line(key: Option<(&'static str, u64)>, value: &impl MapValue, now_ns: u64) -> Line {
    let mut line = Line::new();
    let mut push = |name: &'static str, cell: Cell<'_>| {
        let (text, value) = match cell {
            Cell::Number(number) if name.ends_with("hash") => (hex(number), json!(hex(number))),
            Cell::Number(number) if name.ends_with("_ns") => (age(number, now_ns), json!(number)),
            Cell::Number(number) => (number.to_string(), json!(number)),
            Cell::Name(variant) => (variant.to_owned(), json!(variant)),
            Cell::Bytes(bytes) => {
                let text = until_nul(bytes);
                (text.clone(), json!(text))
            }
            Cell::Set(words) => {
                let members = members(words);
                let text: Vec<String> = members.iter().map(u32::to_string).collect();
                (text.join(","), json!(members))
            }
        };
        line.push((name, text, value));
    };
    if let Some((name, key)) = key {
        push(name, Cell::Number(key));
    }
    value.visit(&mut push);
    line
}

/// The same as a list of names and values, one per row.
pub(super) fn list(line: &Line) -> String {
    let width = line.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    let row = |(name, text, _): &(&'static str, String, Value)| format!("{:<width$}  {text}", header(name));
    let rows: Vec<String> = line.iter().map(row).collect();
    rows.join("\n") + "\n"
}

/// A field's name where its value is shown as an age.
fn header(name: &'static str) -> &'static str {
    name.strip_suffix("_ns").unwrap_or(name)
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}

fn members(words: &[u64]) -> Vec<u32> {
    let numbers = (0..).step_by(64).zip(words);
    numbers
        .flat_map(|(from, word)| (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| from + bit))
        .collect()
}

pub(in crate::cli) fn until_nul(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    // A name is shown on a terminal, and was given from outside.
    String::from_utf8_lossy(&bytes[..end]).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// How long ago `then_ns` was.
pub(super) fn age(then_ns: u64, now_ns: u64) -> String {
    if then_ns == 0 {
        return "never".to_owned();
    }
    let seconds = now_ns.saturating_sub(then_ns) as f64 / 1e9;
    match seconds {
        ..1.0 => format!("{:.0} ms", seconds * 1e3),
        ..120.0 => format!("{seconds:.1} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

/// Aligned columns, numbers to the right.
pub(super) fn table(lines: &[Line]) -> String {
    let Some(first) = lines.first() else { return String::new() };
    let headers = first.iter().map(|(name, ..)| header(name));
    let columns: Vec<(&str, usize, bool)> = headers
        .enumerate()
        .map(|(column, header)| {
            let widest = lines.iter().map(|line| line[column].1.chars().count()).max().unwrap_or(0);
            (header, widest.max(header.len()), first[column].2.is_number())
        })
        .collect();
    let mut text = String::new();
    let mut push = |cells: &mut dyn Iterator<Item = &str>| {
        let row: Vec<String> = cells
            .zip(&columns)
            .map(
                |(cell, (_, width, right))| {
                    if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
                },
            )
            .collect();
        text.push_str(row.join("  ").trim_end());
        text.push('\n');
    };
    push(&mut columns.iter().map(|(header, ..)| *header));
    for line in lines {
        push(&mut line.iter().map(|(_, text, _)| text.as_str()));
    }
    text
}

pub(super) fn object(line: Line) -> Value {
    Value::Object(line.into_iter().map(|(name, _, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

pub(super) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn ages_have_units() {
        assert_eq!(age(0, SECOND), "never");
        assert_eq!(age(SECOND - 5_000_000, SECOND), "5 ms");
        assert_eq!(age(SECOND, 11 * SECOND), "10.0 s");
        assert_eq!(age(SECOND, 601 * SECOND), "10 min");
        assert_eq!(age(SECOND, 36_001 * SECOND), "10.0 h");
        assert_eq!(age(2 * SECOND, SECOND), "0 ms", "clocks of two CPUs");
    }

    #[test]
    fn columns_are_aligned() {
        let line = |name: &str, number: u32| {
            vec![("map", name.to_owned(), json!(name)), ("entries", number.to_string(), json!(number))]
        };
        assert_eq!(
            table(&[line("workers", 3), line("é", 1024)]),
            "map      entries\nworkers        3\né           1024\n"
        );
    }

    #[test]
    fn members_of_a_set_are_listed() {
        assert_eq!(members(&[1 | 1 << 63, 0, 4]), [0, 63, 130]);
    }
}
