//! What reading a 400 KB request body costs, beside other ways to read it.

use router_agent::prompt::{ApiKind, BLOCK_BYTES, parse};
use serde_json::{json, value::RawValue};

#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod support;
use support::time;

const BODY_BYTES: usize = 400_000;

/// Text of the wanted size, with what stands between its stretches.
fn text(stretch: &str, between: &str) -> String {
    let mut text = String::new();
    let mut number = 0_u32;
    while text.len() < BODY_BYTES {
        text.push_str(stretch);
        text.push_str(&number.to_string());
        text.push_str(between);
        number += 1;
    }
    text
}

fn one_message(text: &str) -> String {
    json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": text}]}).to_string()
}

fn many_messages(text: &str, count: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    let parts = characters.chunks(characters.len() / count).map(|part| part.iter().collect::<String>());
    let messages: Vec<_> = parts.map(|part| json!({"role": "user", "content": part})).collect();
    json!({"model": "m", "stream": true, "messages": messages}).to_string()
}

#[derive(serde::Deserialize)]
#[allow(dead_code, reason = "only read, to time the reading")]
struct Raw<'a> {
    model: Option<&'a str>,
    stream: Option<bool>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
}

fn main() {
    let prose = text("The quick brown fox jumps over the lazy dog and runs on. ", "\n\n");
    let words = text(&"The quick brown fox jumps over the lazy dog and runs on. ".repeat(20), "\n");
    let code = text("    let value = call(\"name\", ", ");\n");
    let cjk = text("快速的棕色狐狸跳过了懒狗，然后继续跑。", "\n");
    let ascii_only: String = one_message(&cjk)
        .chars()
        .map(|c| if c.is_ascii() { c.to_string() } else { format!("\\u{:04x}", c as u32) })
        .collect();
    let bodies = [
        ("one message, no escapes", one_message(&words.replace('\n', " "))),
        ("one message, plain (escape per 1,200 bytes)", one_message(&words)),
        ("one message, prose (escape per 60 bytes)", one_message(&prose)),
        ("one message, code (escape per 12 bytes)", one_message(&code)),
        ("200 messages, prose", many_messages(&prose, 200)),
        ("one message, CJK", one_message(&cjk)),
        ("one message, CJK as \\u escapes", ascii_only),
        (
            "100,000 token ids",
            json!({"model": "m", "prompt": (0..100_000).map(|id| id % 50_000).collect::<Vec<u32>>()})
                .to_string(),
        ),
    ];
    for (name, body) in &bodies {
        let body = body.as_bytes();
        println!("\n{name}: {} bytes", body.len());
        let kind = if name.ends_with("ids") { ApiKind::Completions } else { ApiKind::Chat };
        time("  simdutf8 alone", 200, || simdutf8::basic::from_utf8(body).is_ok());
        time("  parse", 500, || parse(kind, body).is_ok());
        let request = parse(kind, body).expect("valid");
        let mut hashes = Vec::new();
        time("  hash_into", 500, || request.hash_into(BLOCK_BYTES, request.root_seed(), &mut hashes));
        time("  parse + hash_into", 500, || {
            let request = parse(kind, body).expect("valid");
            request.hash_into(BLOCK_BYTES, request.root_seed(), &mut hashes)
        });
        time("  serde_json, RawValue of messages", 500, || serde_json::from_slice::<Raw<'_>>(body).is_ok());
        time("  serde_json, Value", 500, || serde_json::from_slice::<serde_json::Value>(body).is_ok());
        time("  sonic-rs, lazy, one level, checked", 500, || {
            sonic_rs::to_object_iter(body).take_while(Result::is_ok).count()
        });
        time("  sonic-rs, Value", 500, || sonic_rs::from_slice::<sonic_rs::Value>(body).is_ok());
    }
}
