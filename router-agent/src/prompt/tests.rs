//! What the parser promises: the same JSON as `serde_json` accepts, the same blocks for the same conversation however
//! it is written, a conversation's turn as a prefix of the next.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Small blocks, so that short prompts have many.
const BLOCK: usize = 8;

fn hashes(kind: ApiKind, body: &str) -> Vec<u64> {
    let request = parse(kind, body.as_bytes()).unwrap_or_else(|error| panic!("{error}: {body}"));
    let mut out = Vec::new();
    request.hash_into(BLOCK, request.root_seed(), &mut out);
    out
}

fn chat(body: &Value) -> Vec<u64> {
    hashes(ApiKind::Chat, &body.to_string())
}

/// The stream that is cut into blocks.
fn stream(request: &Request<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    request.pieces.iter().for_each(|piece| piece.write(&mut |bytes| stream.extend_from_slice(bytes)));
    stream
}

// ---- what is JSON ----

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map("[a-z\"\\\\é]{0,6}", inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// One byte put in, taken out or replaced.
type Mutation = (prop::sample::Index, u8, u8);

fn mutation() -> impl Strategy<Value = Mutation> {
    let byte = prop_oneof![
        prop::sample::select(b"{}[]:,\"\\/ub0123456789-+.eEntf \n\t\x01\x80\xff".to_vec()),
        any::<u8>()
    ];
    (any::<prop::sample::Index>(), 0..3_u8, byte)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn accepts_exactly_what_serde_json_accepts(
        value in any_json(),
        pretty in any::<bool>(),
        mutations in prop::collection::vec(mutation(), 0..4),
    ) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
        let mut body = text.expect("a value is written").into_bytes();
        for (place, what, byte) in mutations {
            let place = place.index(body.len() + 1);
            match what {
                0 => body.insert(place, byte),
                1 if place < body.len() => drop(body.remove(place)),
                _ if place < body.len() => body[place] = byte,
                _ => {}
            }
        }
        // serde_json skips strings without looking at their UTF-8 where they are ignored.
        let valid = std::str::from_utf8(&body).is_ok()
            && serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
        for kind in [ApiKind::Chat, ApiKind::Completions, ApiKind::Responses, ApiKind::Messages] {
            let refused = matches!(parse(kind, &body), Err(ParseError::NotJson { .. }));
            prop_assert_eq!(refused, !valid, "{}", String::from_utf8_lossy(&body));
        }
    }

    #[test]
    fn never_panics_on_a_body_that_looks_like_a_request(
        key in prop::sample::select(vec![
            "model", "messages", "prompt", "input", "tools", "system", "instructions", "metadata", "stream",
            "max_tokens", "documents", "chat_template_kwargs",
        ]),
        value in any_json(),
        inner in prop::sample::select(vec!["role", "content", "type", "text", "tool_calls", "output", "summary"]),
    ) {
        for value in [value.clone(), json!([{ inner: value }]), json!([{ "role": "user", "content": [{ inner: value }] }])] {
            let body = json!({ key: value }).to_string();
            for kind in [ApiKind::Chat, ApiKind::Completions, ApiKind::Responses, ApiKind::Messages] {
                if let Ok(request) = parse(kind, body.as_bytes()) {
                    let size = request.hash_into(BLOCK, 0, &mut Vec::new());
                    prop_assert_eq!(size.bytes, stream(&request).len() as u64 + request.further_prompts.bytes);
                }
            }
        }
    }
}

#[test]
fn names_what_is_wrong() {
    let message = |body: &str| parse(ApiKind::Chat, body.as_bytes()).expect_err(body).to_string();
    assert_eq!(message(""), "the request body is not valid JSON: the body is empty (at byte 0)");
    assert_eq!(message("[1]"), "the request body must be a JSON object, but it is an array");
    assert_eq!(message(r#"{"model": 5}"#), "`model` must be a string, but it is a number");
    assert_eq!(
        message(r#"{"a": 1} x"#),
        "the request body is not valid JSON: something follows the end of the JSON value (at byte 9)"
    );
    assert_eq!(
        parse(ApiKind::Chat, b"\xef\xbb\xbf{\"a\": \"\xff\"}"),
        Err(ParseError::NotJson { at_byte: 10, why: "not UTF-8" })
    );
    assert_eq!(parse(ApiKind::Chat, br#"{"model": []}"#).expect_err("a list").param(), Some("model"));
}

#[test]
fn takes_what_pythons_json_takes_beyond_the_rfc() {
    for body in [
        r#"{"temperature": NaN, "a": [Infinity, -Infinity]}"#,
        r#"{"messages": [{"role": "user", "content": "\ud800 alone"}]}"#,
        "\u{feff}{}",
    ] {
        assert!(parse(ApiKind::Chat, body.as_bytes()).is_ok(), "{body}");
    }
}

#[test]
fn leaves_to_the_worker_what_the_worker_can_answer() {
    for body in [
        "{}",
        r#"{"messages": null}"#,
        r#"{"messages": "text"}"#,
        r#"{"messages": [1, null, []]}"#,
        r#"{"messages": [{"content": 5}]}"#,
        r#"{"max_tokens": "many", "stream": {}, "priority": [], "user": 7}"#,
        r#"{"model": null, "tools": {}}"#,
    ] {
        for kind in [ApiKind::Chat, ApiKind::Completions, ApiKind::Responses, ApiKind::Messages] {
            assert!(parse(kind, body.as_bytes()).is_ok(), "{body}");
        }
    }
}

#[test]
fn nesting_of_any_depth_takes_no_stack() {
    let depth = 1_000_000;
    let deep = "[{\"a\":".repeat(depth) + "1" + &"}]".repeat(depth);
    let bodies = [
        format!("{{\"x\": {deep}}}"),
        format!("{{\"messages\": [{{\"role\": \"user\", \"content\": {deep}}}]}}"),
        format!("{{\"tools\": {deep}}}"),
        format!("{{\"messages\": [{}", "[".repeat(depth)),
    ];
    let outcomes = std::thread::Builder::new()
        .stack_size(256 << 10)
        .spawn(move || {
            bodies.map(|body| {
                parse(ApiKind::Chat, body.as_bytes())
                    .map(|request| request.hash_into(BLOCK_BYTES, 0, &mut Vec::new()).bytes)
                    .is_ok()
            })
        })
        .expect("a thread starts")
        .join()
        .expect("the parser's stack suffices");
    assert_eq!(outcomes, [true, true, true, false]);
}

// ---- fields ----

#[test]
fn reads_the_fields() {
    let body = json!({
        "model": "m", "stream": true, "max_tokens": 5, "max_completion_tokens": 7, "priority": -2, "user": "u",
        "session_id": "s", "prompt_cache_key": "k", "cache_salt": "pepper", "unknown": {"x": [1]},
        "messages": [{"role": "user", "content": "hi"}],
    })
    .to_string();
    let request = parse(ApiKind::Chat, body.as_bytes()).expect("valid");
    assert_eq!(request.model.as_deref(), Some("m"));
    assert!(request.stream);
    assert_eq!((request.max_tokens, request.priority), (Some(7), Some(-2)));
    assert_eq!((request.user.as_deref(), request.session.as_deref()), (Some("u"), Some("s")));
    assert_eq!(request.cache_salt.as_deref(), Some("pepper"));
    assert_eq!(stream(&request), b"\xffMuser\xffChi");
}

#[test]
fn reads_types_as_loosely_as_the_worker_does() {
    let request =
        parse(ApiKind::Chat, br#"{"stream": "true", "max_tokens": "12", "priority": 3.0}"#).expect("valid");
    assert!(request.stream);
    assert_eq!((request.max_tokens, request.priority), (Some(12), Some(3)));
}

#[test]
fn the_last_of_repeated_keys_counts() {
    let once = r#"{"model": "b", "messages": [{"role": "user", "content": "two"}]}"#;
    let twice = r#"{"model": "a", "messages": [{"role": "user", "content": "one"}], "model": "b", "mod\u0065l": "b",
        "messages": [{"role": "x", "content": "one", "role": "user", "content": "two"}]}"#;
    let (once, twice) = (parse(ApiKind::Chat, once.as_bytes()), parse(ApiKind::Chat, twice.as_bytes()));
    let (once, twice) = (once.expect("valid"), twice.expect("valid"));
    assert_eq!(once.model, twice.model);
    assert_eq!(once.pieces, twice.pieces);
}

#[test]
fn borrows_from_the_body() {
    let body = br#"{"messages": [{"role": "user", "content": "no escapes here"}], "model": "m"}"#;
    let request = parse(ApiKind::Chat, body).expect("valid");
    let inside = |text: &[u8]| body.as_ptr_range().contains(&text.as_ptr());
    assert!(matches!(request.model, Some(Cow::Borrowed(model)) if inside(model.as_bytes())));
    assert!(request.pieces.iter().all(|piece| matches!(piece.form, Form::Text(text) if inside(text))));
}

// ---- the order and the separators ----

#[test]
fn the_prompt_comes_in_the_engines_order() {
    let body = json!({
        "chat_template_kwargs": {"enable_thinking": false},
        "messages": [
            {"content": "be brief", "role": "system"},
            {"content": [{"type": "text", "text": "what is"}, {"type": "text", "text": "this?"}], "role": "user"},
            {"tool_calls": [{"id": "1", "function": {"arguments": "{}", "name": "f"}}], "content": null, "role": "assistant"},
            {"content": "42", "tool_call_id": "1", "role": "tool"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    })
    .to_string();
    let request = parse(ApiKind::Chat, body.as_bytes()).expect("valid");
    let expected = [
        "<T>function<T>{~name~:~f~,~parameters~:{}}",
        "<M>system<C>be brief<M>user<C>what is<C>this?",
        "<M>assistant<K>[{~function~:{~arguments~:~{}~,~name~:~f~},~id~:~1~}]",
        "<M>tool<I>1<C>42",
        "<G>chat_template_kwargs<G>{~enable_thinking~:false}",
    ]
    .concat();
    let shown: String = {
        let stream = stream(&request);
        let mut bytes = stream.iter();
        let mut shown = String::new();
        while let Some(byte) = bytes.next() {
            match byte {
                0xff => shown.extend(['<', char::from(*bytes.next().expect("a tag")), '>']),
                0xfe => shown.push('~'),
                byte => shown.push(char::from(*byte)),
            }
        }
        shown
    };
    assert_eq!(shown, expected);
}

#[test]
fn pieces_do_not_run_into_each_other() {
    let two = |first: &str, second: &str| {
        parse_owned(&json!({"messages": [{"role": "user", "content": [
            {"type": "text", "text": first}, {"type": "text", "text": second}]}]}))
    };
    assert_ne!(two("ab", "c"), two("a", "bc"));
    assert_ne!(two("abc", ""), two("", "abc"));
    let ask = |messages: Value| parse_owned(&json!({ "messages": messages }));
    assert_ne!(ask(json!([{"role": "ab", "content": "c"}])), ask(json!([{"role": "a", "content": "bc"}])));
    assert_ne!(
        ask(json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])),
        ask(json!([{"role": "user", "content": "ab"}])),
    );
    assert_eq!(
        ask(json!([{"role": "user", "content": "ab"}])),
        ask(json!([{"role": "user", "content": [{"type": "text", "text": "ab"}]}])),
        "a string is the same prompt as a list of one text",
    );
}

fn parse_owned(body: &Value) -> Vec<u8> {
    let body = body.to_string();
    stream(&parse(ApiKind::Chat, body.as_bytes()).expect("valid"))
}

#[test]
fn what_changes_the_prompts_start_changes_every_block() {
    let base = json!({"model": "m", "messages": [{"role": "user", "content": "a text of some length"}]});
    let plain = chat(&base);
    for (key, value) in [
        ("model", json!("adapter")),
        ("cache_salt", json!("pepper")),
        ("chat_template", json!("{{ messages }}")),
        ("documents", json!([{"text": "a"}])),
    ] {
        let mut other = base.clone();
        other[key] = value;
        let other = chat(&other);
        assert_eq!(plain.len(), other.len(), "{key}");
        assert!(plain.iter().zip(&other).all(|(a, b)| a != b), "{key}");
    }
    let completion = hashes(ApiKind::Completions, r#"{"model": "m", "prompt": "\u00ffMuser"}"#);
    assert!(plain.iter().all(|hash| !completion.contains(hash)));
}

#[test]
fn media_count_by_their_hash() {
    let image = |data: &str, control: bool| {
        let mut part =
            json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}});
        if control {
            part["cache_control"] = json!({"type": "ephemeral"});
        }
        let body =
            json!({"messages": [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}]});
        parse_owned(&body)
    };
    let big = "QUFB".repeat(100_000);
    assert_eq!(image("QUFB", false).len(), image(&big, false).len(), "the size of the file does not count");
    assert_eq!(image("QUFB", false).len(), 2 + 4 + 2 + MEDIA_TOKENS * BYTES_PER_TOKEN + 2 + 5);
    assert_ne!(image("QUFB", false), image("QUFC", false));
    assert_eq!(image("QUFB", false), image("QUFB", true));
}

// ---- prompts that are not messages ----

#[test]
fn completions_take_text_ids_and_lists_of_either() {
    let size = |body: &str| {
        let request = parse(ApiKind::Completions, body.as_bytes()).expect("valid");
        let mut out = Vec::new();
        let size = request.hash_into(BLOCK, request.root_seed(), &mut out);
        (size, out)
    };
    let (text, one) = size(r#"{"prompt": "0123456789abcdef"}"#);
    assert_eq!((text, one.len()), (PromptSize { bytes: 16, tokens_exact: None }, 2));
    let (texts, first) = size(r#"{"prompt": ["0123456789abcdef", "more", "\n"]}"#);
    assert_eq!((texts.bytes, first), (21, one), "routed by the first, measured by all");

    let (ids, first) = size(r#"{"prompt": [1, 2, 3, 4, 5]}"#);
    assert_eq!((ids, first.len()), (PromptSize { bytes: 20, tokens_exact: Some(5) }, 2));
    let (lists, same) = size(r#"{"prompt": [[1, 2, 3, 4, 5], [6, 7], []]}"#);
    assert_eq!((lists, same), (PromptSize { bytes: 28, tokens_exact: Some(7) }, first));
    assert_eq!(ids.tokens(3.3), 5);
    assert_eq!(ids.tokens_of_blocks(2, BLOCK, 3.3), 4);

    let (nothing, none) = size(r#"{"prompt": []}"#);
    assert_eq!((nothing, none.len()), (PromptSize::default(), 0));
}

#[test]
fn sizes_become_tokens_by_measure() {
    let size = PromptSize { bytes: 1000, tokens_exact: None };
    assert_eq!(size.tokens(4.0), 250);
    assert_eq!(size.tokens_of_blocks(2, 128, 4.0), 64);
    assert_eq!(size.tokens_of_blocks(100, 128, 4.0), 250, "never more than the prompt has");
}

#[test]
fn responses_and_anthropic_conversations_grow_by_prefix() {
    let items = json!([
        {"role": "user", "content": "weather in Rome?"},
        {"type": "function_call", "call_id": "c1", "name": "get", "arguments": "{\"city\": \"Rome\"}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny, 31 degrees"},
        {"type": "message", "id": "m1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "It is sunny.", "annotations": []}]},
    ]);
    let items = items.as_array().expect("a list");
    let turn = |count: usize| {
        hashes(ApiKind::Responses, &json!({"instructions": "be kind", "input": items[..count]}).to_string())
    };
    for count in 1..items.len() {
        assert!(turn(count + 1).starts_with(&turn(count)));
        assert!(turn(count + 1).len() > turn(count).len());
    }
    let text = hashes(ApiKind::Responses, r#"{"instructions": "be kind", "input": "weather in Rome?"}"#);
    assert_eq!(text, turn(1));

    // Anthropic's clients move the cache mark to the last message of every turn.
    let first = json!({"system": [{"type": "text", "text": "be kind"}], "messages": [
        {"role": "user", "content": [{"type": "text", "text": "weather in Rome?", "cache_control": {"type": "ephemeral"}}]},
    ]});
    let second = json!({"system": "be kind", "messages": [
        {"role": "user", "content": [{"type": "text", "text": "weather in Rome?"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "get", "input": {"city": "Rome"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1",
            "content": [{"type": "text", "text": "sunny"}], "cache_control": {"type": "ephemeral"}}]},
    ]});
    let (first, second) = (first.to_string(), second.to_string());
    let (first, second) = (hashes(ApiKind::Messages, &first), hashes(ApiKind::Messages, &second));
    assert!(!first.is_empty() && second.starts_with(&first) && second.len() > first.len() + 2);
}

// ---- the same prompt, written differently ----

/// Writes a JSON string, choosing among the ways to write each character.
fn write_string(text: &str, ways: &mut impl Iterator<Item = u8>) -> String {
    let mut out = String::from('"');
    for character in text.chars() {
        let way = ways.next().unwrap_or(0);
        let short = match character {
            '"' => Some("\\\""),
            '\\' => Some("\\\\"),
            '/' => Some("\\/"),
            '\n' => Some("\\n"),
            '\r' => Some("\\r"),
            '\t' => Some("\\t"),
            '\u{8}' => Some("\\b"),
            '\u{c}' => Some("\\f"),
            _ => None,
        };
        let must = character < ' ' || character == '"' || character == '\\';
        match short {
            Some(short) if way % 3 == 1 => out.push_str(short),
            _ if way % 3 == 2 || must => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let digits = format!("{unit:04x}");
                    out.push_str("\\u");
                    out.push_str(&if way < 128 { digits.to_uppercase() } else { digits });
                }
            }
            _ => out.push(character),
        }
    }
    out.push('"');
    out
}

type Message = (&'static str, String);

fn conversation() -> impl Strategy<Value = Vec<Message>> {
    let role = prop::sample::select(vec!["system", "user", "assistant", "tool"]);
    let content = prop_oneof![".{0,60}", "[a-z \n\"\\\\/é漢🦀]{0,60}"];
    prop::collection::vec((role, content), 1..6)
}

/// A request with this conversation, in a form that `ways` chooses: order of keys, escapes, white space, parts.
fn write_request(messages: &[Message], ways: &mut impl Iterator<Item = u8>) -> String {
    let mut list = Vec::new();
    for (role, content) in messages {
        let mut content = write_string(content, ways);
        if ways.next().unwrap_or(0) % 2 == 1 {
            content = format!("[{{\"type\": \"text\",\n\"text\": {content}}}]");
        }
        let mut members =
            [format!("\"role\": {}", write_string(role, ways)), format!("\"content\":{content}")];
        if ways.next().unwrap_or(0) % 2 == 1 {
            members.reverse();
        }
        list.push(format!("{{{}}}", members.join(", ")));
    }
    let mut members = [
        "\"model\": \"m\"".to_owned(),
        format!("\"messages\" : [{}]", list.join(" ,")),
        format!("\"tools\":[{{\"a\" :{}}}]", write_string("a tool/\n", ways)),
    ];
    members.rotate_left(usize::from(ways.next().unwrap_or(0)) % 3);
    format!("{{{}}}", members.join(","))
}

proptest! {
    #[test]
    fn the_same_conversation_has_the_same_blocks_however_it_is_written(
        messages in conversation(),
        ways in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let plain = hashes(ApiKind::Chat, &write_request(&messages, &mut std::iter::empty()));
        let other = hashes(ApiKind::Chat, &write_request(&messages, &mut ways.into_iter()));
        prop_assert_eq!(plain, other);
    }

    #[test]
    fn a_turns_blocks_are_a_prefix_of_the_next_turns(messages in conversation(), ways in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut ways = ways.into_iter();
        let turns: Vec<Vec<u64>> = (1..=messages.len())
            .map(|turn| hashes(ApiKind::Chat, &write_request(&messages[..turn], &mut ways)))
            .collect();
        for pair in turns.windows(2) {
            prop_assert!(pair[1].starts_with(&pair[0]));
        }
    }

    #[test]
    fn a_changed_conversation_shares_no_block_from_the_change_on(
        messages in conversation(), at in any::<prop::sample::Index>(),
    ) {
        let mut changed = messages.clone();
        let at = at.index(messages.len());
        changed[at].1.insert(0, '#');
        let body = |messages: &[Message]| write_request(messages, &mut std::iter::empty());
        let (one, other) = (hashes(ApiKind::Chat, &body(&messages)), hashes(ApiKind::Chat, &body(&changed)));
        let before = {
            let body = body(&messages[..at]);
            let request = parse(ApiKind::Chat, body.as_bytes()).expect("valid");
            stream(&request).len() + 2 + messages[at].0.len() + 2
        };
        let same = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
        // Inserting `#` in front of `##...` shows only where the run of `#` ends.
        let same_text = messages[at].1.chars().take_while(|c| *c == '#').count();
        prop_assert!(same * BLOCK <= before + same_text);
        prop_assert!(one[same..].iter().all(|hash| !other.contains(hash)));
    }

    #[test]
    fn blocks_do_not_depend_on_how_the_stream_is_cut(
        text in prop::collection::vec(1..128_u8, 0..600),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        block_bytes in 1..200_usize,
    ) {
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        places.extend([0, text.len()]);
        places.sort_unstable();
        let piece = |text| Piece { tag: Tag::Plain, form: Form::Text(text) };
        let pieces: Vec<Piece<'_>> = places.windows(2).map(|pair| piece(&text[pair[0]..pair[1]])).collect();
        let (mut whole, mut cut) = (Vec::new(), Vec::new());
        prop_assert_eq!(
            hash_into(&[piece(&text)], block_bytes, 1, &mut whole),
            hash_into(&pieces, block_bytes, 1, &mut cut)
        );
        prop_assert_eq!(whole.len(), text.len() / block_bytes);
        prop_assert_eq!(whole, cut);
    }
}
