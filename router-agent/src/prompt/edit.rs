//! Edits of a request body that change what they are about and no other byte.
//!
//! Only members of the outermost object are meant, by what their names say, escapes or not. Where a member is repeated
//! every one is changed: the last one counts in Python's `json`, another reader may take the first. Cost: one pass over
//! the body, and one copy of it if there is something to change.

use std::ops::Range;

use super::scan::{Bad, Scanner, Text};

/// The body with `name` as its `model`. None if it is no JSON object or has no such member.
pub fn set_model(body: &[u8], name: &str) -> Option<Vec<u8>> {
    let mut values: Vec<Range<usize>> = Vec::new();
    members(body, |key, value| {
        if key.is("model") {
            values.push(value);
        }
    })?;
    let name = serde_json::to_string(name).expect("a string serialises");
    let (mut edited, mut copied) = (Vec::with_capacity(body.len() + name.len()), 0);
    for value in &values {
        edited.extend_from_slice(&body[copied..value.start]);
        edited.extend_from_slice(name.as_bytes());
        copied = value.end;
    }
    edited.extend_from_slice(&body[copied..]);
    (!values.is_empty()).then_some(edited)
}

/// A member for [`add_missing`].
#[derive(Debug, Clone, Copy)]
pub struct Member<'m> {
    /// The name that it gets.
    pub name: &'m str,
    /// Its value, as JSON.
    pub json: &'m str,
    /// It is not added either where one of these is there.
    pub synonyms: &'m [&'m str],
}

/// The body with those of `wanted` that it does not have, in front of what it has. A null counts as being there. None if
/// there is nothing to add, or the body is no JSON object.
pub fn add_missing(body: &[u8], wanted: &[Member<'_>]) -> Option<Vec<u8>> {
    let mut is_there = vec![false; wanted.len()];
    let mut is_empty = true;
    let inside = members(body, |key, _| {
        is_empty = false;
        for (member, is_there) in wanted.iter().zip(&mut is_there) {
            *is_there |= key.is(member.name) || member.synonyms.iter().any(|name| key.is(name));
        }
    })?;
    let mut added = Vec::new();
    for (Member { name, json, .. }, _) in wanted.iter().zip(is_there).filter(|(_, is_there)| !is_there) {
        if !added.is_empty() {
            added.push(b',');
        }
        added.extend_from_slice(serde_json::to_string(name).expect("a string serialises").as_bytes());
        added.push(b':');
        added.extend_from_slice(json.as_bytes());
    }
    if added.is_empty() {
        return None;
    }
    if !is_empty {
        added.push(b',');
    }
    Some([&body[..inside], &added, &body[inside..]].concat())
}

/// The value of the last member `name`, as it stands in the body.
pub fn raw_member<'b>(body: &'b [u8], name: &str) -> Option<&'b [u8]> {
    let mut found = None;
    members(body, |key, value| {
        if key.is(name) {
            found = Some(value);
        }
    })?;
    found.map(|value| &body[value])
}

/// Hands every member to `each`, by its name and where its value stands. Says where the object's first member would
/// stand. None if the body is anything else than one JSON object.
pub(super) fn members<'b>(body: &'b [u8], mut each: impl FnMut(Text<'b>, Range<usize>)) -> Option<usize> {
    let text = super::without_mark(body);
    let skipped = body.len() - text.len();
    simdutf8::basic::from_utf8(text).ok()?;
    let mut scanner = Scanner::new(text);
    if scanner.peek() != Some(b'{') {
        return None;
    }
    let inside = skipped + scanner.position() + 1;
    let read = scanner.object(|key, scanner| {
        scanner.peek(); // white space in front of the value
        let start = scanner.position();
        scanner.value()?;
        each(key, skipped + start..skipped + scanner.position());
        Ok(())
    });
    read.and_then(|()| scanner.end()).map_or_else(|_: Bad| None, |()| Some(inside))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn model(body: &str, name: &str) -> Option<String> {
        set_model(body.as_bytes(), name).map(|edited| String::from_utf8(edited).unwrap())
    }

    #[test]
    fn exactly_the_outermost_model_is_replaced() {
        for (body, edited) in [
            (r#"{"model":"a","n":1}"#, r#"{"model":"b","n":1}"#),
            (
                r#" { "model" :  "a" , "x" : {"model":"a"} } "#,
                r#" { "model" :  "b" , "x" : {"model":"a"} } "#,
            ),
            (r#"{"mod\u0065l":"a\"\\"}"#, r#"{"mod\u0065l":"b"}"#),
            (r#"{"model":"a","model":null,"models":"a"}"#, r#"{"model":"b","model":"b","models":"a"}"#),
            (
                r#"{"messages":[{"model":"a"}],"model":{"model":"a"}}"#,
                r#"{"messages":[{"model":"a"}],"model":"b"}"#,
            ),
            ("\u{feff}{\"model\":\"a\"}", "\u{feff}{\"model\":\"b\"}"),
        ] {
            assert_eq!(model(body, "b").as_deref(), Some(edited), "{body}");
        }
        for body in [
            "",
            "[]",
            "{}",
            "\"model\"",
            r#"{"n":1}"#,
            r#"{"model":"a"} x"#,
            r#"{"model":"a""#,
            "{\"model\":1,}",
        ] {
            assert_eq!(model(body, "b"), None, "{body}");
        }
        assert_eq!(set_model(b"{\"model\":\"\xff\"}", "b"), None);
        assert_eq!(model(r#"{"model":"a"}"#, "q\"\\\u{1}ü").unwrap(), r#"{"model":"q\"\\\u0001ü"}"#);
    }

    fn add(body: &str, wanted: &[(&str, &str)]) -> Option<String> {
        let wanted: Vec<_> =
            wanted.iter().map(|(name, json)| Member { name, json, synonyms: &["same"] }).collect();
        add_missing(body.as_bytes(), &wanted).map(|edited| String::from_utf8(edited).unwrap())
    }

    #[test]
    fn only_what_is_missing_is_added() {
        let wanted = [("a", "1"), ("b", "[2]")];
        assert_eq!(add("{}", &wanted).as_deref(), Some(r#"{"a":1,"b":[2]}"#));
        assert_eq!(add(r#" {"x":0}"#, &wanted).as_deref(), Some(r#" {"a":1,"b":[2],"x":0}"#));
        assert_eq!(add(r#"{"\u0061":null}"#, &wanted).as_deref(), Some(r#"{"b":[2],"\u0061":null}"#));
        assert_eq!(add(r#"{"x":{"a":1}}"#, &wanted).as_deref(), Some(r#"{"a":1,"b":[2],"x":{"a":1}}"#));
        for body in [r#"{"b":0,"a":0}"#, r#"{"same":0}"#, "[]", "", "{} {}", "{\"a\"}"] {
            assert_eq!(add(body, &wanted), None, "{body}");
        }
    }

    #[test]
    fn a_member_is_found_as_it_stands() {
        let body = br#"{"body": 1, "x": {"body": 2}, "body" : {"a": [ ] } }"#;
        assert_eq!(raw_member(body, "body"), Some(&br#"{"a": [ ] }"#[..]));
        assert_eq!(raw_member(body, "none"), None);
        assert_eq!(raw_member(b"{\"body\": 1", "body"), None);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![any::<i64>().prop_map(Value::from), ".*".prop_map(Value::from), Just(Value::Null)];
        leaf.prop_recursive(3, 24, 4, |inner| {
            let object = proptest::collection::btree_map("model|a|\\PC*", inner.clone(), 0..4);
            prop_oneof![
                proptest::collection::vec(inner, 0..4).prop_map(Value::from),
                object.prop_map(|members| json!(members)),
            ]
        })
    }

    proptest! {
        #[test]
        fn an_edit_is_what_a_json_library_makes_of_it(
            members in proptest::collection::btree_map("model|a|max_tokens|\\PC*", value(), 0..6),
            name in "\\PC*",
            is_pretty: bool,
        ) {
            let object = json!(members);
            let body = if is_pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) };
            let body = body.unwrap();
            let mut expected = object.clone();
            let edited = set_model(body.as_bytes(), &name);
            prop_assert_eq!(edited.is_some(), members.contains_key("model"));
            if let Some(edited) = edited {
                expected["model"] = json!(name);
                prop_assert_eq!(serde_json::from_slice::<Value>(&edited).unwrap(), expected);
                prop_assert!(body.len() + serde_json::to_string(&name).unwrap().len() >= edited.len());
            }
            let wanted = [Member { name: "max_tokens", json: "7", synonyms: &["a"] }];
            let is_there = members.contains_key("max_tokens") || members.contains_key("a");
            let added = add_missing(body.as_bytes(), &wanted);
            prop_assert_eq!(added.is_none(), is_there);
            if let Some(added) = added {
                let mut expected = object.clone();
                expected["max_tokens"] = json!(7);
                prop_assert_eq!(serde_json::from_slice::<Value>(&added).unwrap(), expected);
            }
        }

        #[test]
        fn no_bytes_make_an_edit_panic(body: Vec<u8>, cut in 0_usize..40) {
            let whole = br#"{"model":"a","x":[1,{"y":"\u00e9\n"}]}"#;
            let _ = set_model(&whole[..cut.min(whole.len())], "b");
            let _ = set_model(&body, "b");
            let _ = raw_member(&body, "model");
        }
    }
}
