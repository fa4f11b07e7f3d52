//! Random conversations and texts: pieces, from the cache or not, give the tokens of the whole.

use proptest::prelude::*;
use serde_json::json;

use super::{STYLES, fixtures};
use crate::{
    prompt::ApiKind,
    tokenize::{LocalTokenizer, TokenCache},
};

/// What texts are made of: words, what splits them, what tokenizers treat in a way of their own.
fn stretch() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[a-zA-Z]{1,9} ",
        2 => "[ \t\n\r]{1,4}",
        2 => "[0-9]{1,7}",
        1 => "[.,;:'\"!?(){}<>|/-]{1,4}",
        1 => "\\PC{1,6}",
        1 => Just("'s don't WE'LL".to_owned()),
        1 => Just("e\u{301} \u{e9}\u{323} \u{1100}\u{1161}".to_owned()),
        1 => prop_oneof![
            Just("<|im_end|>"), Just("<|im_start|>"), Just("<|eot_id|>"), Just("[INST]"), Just("[/INST]"),
            Just("</s>"), Just(" <mask> "), Just("  ENDMARK  "), Just("<|im_end"), Just("\u{2581}"), Just("</think>"),
        ].prop_map(str::to_owned),
        // Long enough to be cut behind words.
        1 => ("[a-z]{2,7}", 100..400_usize).prop_map(|(word, times)| format!("{word} ").repeat(times)),
        1 => ("[a-z0-9]{1,3}", 300..900_usize).prop_map(|(word, times)| word.repeat(times)),
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(stretch(), 0..24).prop_map(|stretches| stretches.concat())
}

fn conversation() -> impl Strategy<Value = Vec<serde_json::Value>> {
    let message =
        |role: &'static str| text().prop_map(move |content| json!({"role": role, "content": content}));
    let turn = (message("user"), message("assistant")).prop_map(|(user, assistant)| [user, assistant]);
    (prop::option::of(message("system")), prop::collection::vec(turn, 1..6))
        .prop_map(|(system, turns)| system.into_iter().chain(turns.into_iter().flatten()).collect())
}

fn tokenizers() -> Vec<(&'static str, LocalTokenizer)> {
    STYLES.iter().map(|style| (*style, LocalTokenizer::load(&fixtures().join(style)).expect(style))).collect()
}

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(count) }
}

#[test]
fn a_growing_conversation_has_the_tokens_of_its_whole() {
    let tokenizers = tokenizers();
    proptest!(cases(24), |(messages in conversation(), cut in 1..20_usize)| {
        for (style, tokenizer) in &tokenizers {
            let cache = TokenCache::new(1 << 20);
            // Every turn by itself, then with its middle gone: all pieces but the new ones come from the cache.
            let shortened: Vec<_> = messages.iter().enumerate().filter(|(i, _)| *i != cut).map(|(_, m)| m).collect();
            let turns = (1..=messages.len()).map(|count| json!({"messages": messages[..count]}));
            for body in turns.chain([json!({"messages": shortened})]) {
                let body = body.to_string();
                let got = tokenizer.tokens(ApiKind::Chat, body.as_bytes(), &cache).map(|all| all.tokens.to_vec());
                let whole = tokenizer.tokens_whole(ApiKind::Chat, body.as_bytes());
                prop_assert_eq!(got, whole, "{}: {}", style, body);
            }
        }
    });
}

#[test]
fn a_text_has_the_tokens_of_its_whole() {
    let tokenizers = tokenizers();
    proptest!(cases(64), |(first in text(), second in text(), special in any::<bool>())| {
        for (style, tokenizer) in &tokenizers {
            let cache = TokenCache::new(1 << 20);
            for prompt in [&first, &format!("{first}{second}"), &format!("{second}{first}")] {
                let body = json!({"prompt": prompt, "add_special_tokens": special}).to_string();
                let got = tokenizer.tokens(ApiKind::Completions, body.as_bytes(), &cache).map(|all| all.tokens.to_vec());
                let whole = tokenizer.tokens_whole(ApiKind::Completions, body.as_bytes());
                prop_assert_eq!(got, whole, "{}: {:?}", style, prompt);
            }
        }
    });
}

#[test]
fn the_next_turn_tokenises_only_what_is_new() {
    for (style, tokenizer) in tokenizers() {
        let cache = TokenCache::new(1 << 22);
        let mut messages = Vec::new();
        let mut before = 0;
        for turn in 0..8 {
            let question = format!("question {turn} ").repeat(60);
            messages.push(json!({"role": "user", "content": question}));
            let body = json!({"messages": messages}).to_string();
            let encoded = tokenizer.tokens(ApiKind::Chat, body.as_bytes(), &cache).expect(style);
            let fresh = encoded.tokens.len() - encoded.cached;
            let grown = encoded.tokens.len() - before;
            // What is new, and the uncut end of the turn before it.
            assert!(fresh <= grown + 400, "{style}, turn {turn}: {fresh} tokenised, {grown} new");
            assert!(turn == 0 || encoded.cached > 0, "{style}, turn {turn}");
            before = encoded.tokens.len();
            messages.push(json!({"role": "assistant", "content": format!("answer {turn} ").repeat(40)}));
        }
    }
}
