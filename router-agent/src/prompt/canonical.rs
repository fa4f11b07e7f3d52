//! A request body in the one form that all bodies have that ask for the same, for the response cache.
//!
//! Left out is what does not change an answer: white space, how a character is escaped, the order of the outermost members,
//! `"stream": false`, and members that say who asks and how urgent it is ([`SILENT`]). Of repeated members the last one
//! counts, as in Python's `json`. Everything else is kept as it is, the order of members further in, too: a tool's schema
//! is part of the prompt in the order that it is written in.

use std::ops::Range;

use super::{edit::members, piece::write_json, scan::Text};

/// Members that say nothing of the answer.
const SILENT: [&str; 7] = [
    "metadata",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "session_id",
    "user",
];
/// Members by which an answer is one part of something that a worker keeps.
const STATEFUL: [&str; 3] = ["background", "kv_transfer_params", "previous_response_id"];

/// A body in that form, and what it says of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canonical {
    /// The same for no two bodies that ask for different things.
    pub bytes: Vec<u8>,
    /// It asks for one answer that is always the same: temperature 0, or a seed.
    pub is_deterministic: bool,
    /// The answer belongs to something that a worker keeps.
    pub is_stateful: bool,
}

/// The form of `body`, behind `start`. None if it is no JSON object. Cost: one pass over it, and a copy.
pub fn canonical(start: &[u8], body: &[u8]) -> Option<Canonical> {
    let mut all: Vec<(Text<'_>, Range<usize>)> = Vec::new();
    members(body, |key, value| all.push((key, value)))?;
    let mut named: Vec<_> = all.into_iter().map(|(key, value)| (key.to_str(), &body[value])).collect();
    named.sort_by(|(a, _), (b, _)| a.cmp(b)); // stable: the last of a name stays the last
    let (mut is_zero, mut is_seeded, mut is_one, mut is_stateful) = (false, false, true, false);
    let mut bytes = Vec::with_capacity(start.len() + body.len());
    bytes.extend_from_slice(start);
    for (at, (key, value)) in named.iter().enumerate() {
        if named.get(at + 1).is_some_and(|(next, _)| next == key) {
            continue;
        }
        match &**key {
            "stream" if *value == b"false" => continue,
            silent if SILENT.contains(&silent) => continue,
            "temperature" => is_zero = number(value) == Some(0.0),
            "seed" => is_seeded = number(value).is_some(),
            "n" | "best_of" => is_one &= *value == b"1" || *value == b"null",
            name => is_stateful |= STATEFUL.contains(&name) && *value != b"null",
        }
        // No text holds these bytes, so nothing that a client writes looks like the end of a name or a value.
        bytes.push(0xff);
        bytes.extend_from_slice(key.as_bytes());
        bytes.push(0xff);
        write_json(value, &mut |piece| bytes.extend_from_slice(piece));
    }
    Some(Canonical { bytes, is_deterministic: is_one && (is_zero || is_seeded), is_stateful })
}

fn number(value: &[u8]) -> Option<f64> {
    let is_number = value.first().is_some_and(|byte| matches!(byte, b'-' | b'0'..=b'9'));
    std::str::from_utf8(value).ok().filter(|_| is_number)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn of(body: &str) -> Canonical {
        canonical(b"tenant", body.as_bytes()).unwrap()
    }

    #[test]
    fn bodies_that_ask_for_the_same_are_the_same() {
        let one = of(r#"{"model":"m","messages":[{"role":"user","content":"é\n"}],"seed":1}"#);
        for same in [
            r#" {"seed": 1, "messages" : [ { "role":"user" ,"content":"\u00e9\u000A"} ],"m\u006fdel":"m"}"#,
            r#"{"seed":2,"model":"m","messages":[{"role":"user","content":"é\n"}],"seed":1,"stream":false}"#,
            r#"{"model":"m","messages":[{"role":"user","content":"é\n"}],"seed":1,"user":"u","priority":3,"metadata":{"a":1}}"#,
        ] {
            assert_eq!(of(same), one, "{same}");
        }
        for other in [
            r#"{"model":"m","messages":[{"content":"é\n","role":"user"}],"seed":1}"#,
            r#"{"model":"m","messages":[{"role":"user","content":"é\\n"}],"seed":1}"#,
            r#"{"model":"m","messages":[{"role":"user","content":"é\n"}],"seed":1,"stream":true}"#,
            r#"{"model":"m","messages":[{"role":"user","content":"é\n"}],"seed":1,"cache_salt":"s"}"#,
            r#"{"model":"m","messages":[{"role":"user","content":"é\n","user":"u"}],"seed":1}"#,
            r#"{"model":"m\",\"n","messages":[{"role":"user","content":"é\n"}],"seed":1}"#,
        ] {
            assert_ne!(of(other).bytes, one.bytes, "{other}");
        }
        assert_ne!(canonical(b"a", b"{}"), canonical(b"b", b"{}"));
        for none in ["", "[]", "{", "{} {}", "1"] {
            assert_eq!(canonical(b"", none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn an_answer_is_deterministic_at_temperature_zero_or_with_a_seed_if_it_is_one() {
        let is = |body: &str| of(body).is_deterministic;
        for yes in [
            r#"{"temperature":0}"#,
            r#"{"temperature":0.0}"#,
            r#"{"temperature":-0e5,"n":1}"#,
            r#"{"seed":7,"temperature":1}"#,
            r#"{"temperature":1,"temperature":0,"n":null}"#,
        ] {
            assert!(is(yes), "{yes}");
        }
        for no in [
            "{}",
            r#"{"temperature":0.1}"#,
            r#"{"temperature":null,"seed":null}"#,
            r#"{"temperature":"0"}"#,
            r#"{"seed":"7"}"#,
            r#"{"temperature":0,"n":2}"#,
            r#"{"temperature":0,"best_of":3}"#,
            r#"{"temperature":0,"temperature":1}"#,
            r#"{"x":{"temperature":0}}"#,
            r#"{"temperature":NaN}"#,
        ] {
            assert!(!is(no), "{no}");
        }
        assert!(
            of(r#"{"kv_transfer_params":{}}"#).is_stateful
                && !of(r#"{"kv_transfer_params":null}"#).is_stateful
        );
    }

    proptest! {
        #[test]
        fn what_differs_in_meaning_differs_and_what_differs_in_writing_does_not(
            a in proptest::collection::btree_map("[a-c]|\\PC*", "\\PC*|[\"\\\\\\n]*", 0..4),
            b in proptest::collection::btree_map("[a-c]|\\PC*", "\\PC*|[\"\\\\\\n]*", 0..4),
            rotation in 0_usize..4,
        ) {
            let written = |members: &std::collections::BTreeMap<String, String>, rotation: usize, is_ascii: bool| {
                let text = |text: &str| if is_ascii {
                    let units: Vec<_> = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
                    format!("\"{}\"", units.concat())
                } else {
                    json!(text).to_string()
                };
                let mut all: Vec<_> = members.iter().map(|(key, value)| format!("{} :\t{}", text(key), text(value))).collect();
                if !all.is_empty() {
                    let by = rotation % all.len();
                    all.rotate_left(by);
                }
                format!("{{{}}}", all.join("\n,"))
            };
            let silent = |members: &std::collections::BTreeMap<String, String>| {
                members.iter().filter(|(key, _)| !SILENT.contains(&key.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>()
            };
            let plain = of(&written(&a, 0, false));
            prop_assert_eq!(&of(&written(&a, rotation, true)).bytes, &plain.bytes);
            prop_assert_eq!(plain.bytes == of(&written(&b, 0, false)).bytes, silent(&a) == silent(&b));
        }

        #[test]
        fn no_bytes_make_it_panic(body: Vec<u8>, value: i64) {
            let _ = canonical(b"", &body);
            let nested = json!({"n": value, "x": [{"y": body}]}).to_string();
            let read: Value = serde_json::from_str(&nested).unwrap();
            prop_assert_eq!(of(&nested), of(&read.to_string()));
        }
    }
}
