//! Request bodies of any bytes: the scanner never panics, takes for JSON just what `serde_json` takes, and what it says of
//! a request fits together.
#![no_main]

use libfuzzer_sys::fuzz_target;
use router_agent::prompt::{self, ApiKind, ParseError};
use serde_json::Value;

const BLOCK_BYTES: usize = 16;
/// Deeper than this `serde_json` gives up; the scanner does not.
const SERDE_DEPTH_MAX: usize = 120;

fuzz_target!(|body: &[u8]| {
    let text = std::str::from_utf8(body).ok();
    // What the scanner takes beyond RFC 8259, as Python's json does: a byte order mark, NaN, infinities, lone surrogates.
    let beyond = |text: &str| {
        text.starts_with('\u{feff}') || ["NaN", "Infinity", "\\u"].iter().any(|word| text.contains(word))
    };
    let depth = body.iter().filter(|byte| matches!(byte, b'{' | b'[')).count();
    let value = text.and_then(|text| serde_json::from_str::<Value>(text).ok());
    for kind in [ApiKind::Chat, ApiKind::Completions, ApiKind::Responses, ApiKind::Messages] {
        match prompt::parse(kind, body) {
            Err(ParseError::NotJson { at_byte, .. }) => {
                assert!(at_byte <= body.len());
                assert!(value.is_none(), "serde_json takes it");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok(request) => {
                let text = text.expect("UTF-8");
                if let Some(Value::Object(value)) = &value {
                    assert_eq!(request.model.as_deref(), value.get("model").and_then(Value::as_str));
                    assert_eq!(prompt::model(body).as_deref(), request.model.as_deref());
                } else {
                    // Numbers beyond f64 are numbers to the scanner, and none to serde_json.
                    let strict = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
                    assert!(strict || beyond(text) || depth > SERDE_DEPTH_MAX, "serde_json does not take it");
                }
                let (mut hashes, mut again) = (Vec::new(), Vec::new());
                let size = request.hash_into(BLOCK_BYTES, request.root_seed(), &mut hashes);
                assert!(hashes.len() as u64 <= size.bytes / BLOCK_BYTES as u64);
                assert_eq!(request.hash_into(BLOCK_BYTES, request.root_seed(), &mut again), size);
                assert_eq!(hashes, again);
            }
        }
    }
});
