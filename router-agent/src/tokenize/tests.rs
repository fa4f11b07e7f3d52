//! Tokens held against those of real vLLM, and pieces against wholes.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{LocalTokenizer, TokenCache, Unknown};
use crate::prompt::ApiKind;

mod pieces;

/// The small tokenizers of tests/fixtures/tokenize, each built like a family that is in use.
const STYLES: [&str; 3] = ["chatml", "headers", "parts"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenize")
}

/// One line of a recording (tests/real-vllm/record_tokens.py).
#[derive(Deserialize)]
struct Recorded {
    path: String,
    template: Option<String>,
    /// As it was written: the order of members counts.
    request: Box<RawValue>,
    tokens: Option<Vec<u32>>,
}

impl Recorded {
    fn kind(&self) -> ApiKind {
        if self.path == "/v1/completions" { ApiKind::Completions } else { ApiKind::Chat }
    }

    /// What vLLM makes of that is its own affair: the request counts as not known.
    fn sets_a_variable_of_vllm(&self) -> bool {
        self.request.get().contains(r#""chat_template_kwargs": {"tokenize""#)
    }

    /// Token ids are taken as given, not tokenised.
    fn is_given(&self) -> bool {
        let request: Value = serde_json::from_str(self.request.get()).expect("a request");
        let prompt = &request["prompt"];
        prompt[0].is_number() || prompt[0].is_array()
    }
}

#[test]
fn tokens_are_those_that_vllm_gave_its_engine() {
    for style in STYLES {
        let directory = fixtures().join(style);
        let own = LocalTokenizer::load(&directory).expect(style);
        let recordings = std::fs::read_to_string(directory.join("recordings.jsonl")).expect(style);
        let cache = TokenCache::new(1 << 20);
        let mut equal = 0;
        // Twice: from the text, and from the cache.
        for line in recordings.lines().chain(recordings.lines()) {
            let recorded: Recorded = serde_json::from_str(line).expect(line);
            let (Some(expected), false) = (&recorded.tokens, recorded.is_given()) else { continue };
            let with_template;
            let tokenizer = match &recorded.template {
                None => &own,
                Some(file) => {
                    let source = std::fs::read_to_string(fixtures().join(file)).expect(file);
                    with_template = LocalTokenizer::load(&directory).expect(style).with_template(&source);
                    &with_template
                }
            };
            let body = recorded.request.get();
            let (kind, body) = (recorded.kind(), body.as_bytes());
            let text = tokenizer.text(kind, body);
            let got = tokenizer.tokens(kind, body, &cache).map(|encoded| encoded.tokens.to_vec());
            if recorded.sets_a_variable_of_vllm() {
                assert!(matches!(got, Err(Unknown::Unsupported(_))), "{style}: {line}");
                continue;
            }
            assert_eq!(got.as_ref(), Ok(expected), "{style}: {line}\nrendered as {text:?}");
            assert_eq!(tokenizer.tokens_whole(kind, body).as_ref(), Ok(expected), "{style}: {line}");
            equal += 1;
        }
        assert!(equal >= 2 * 50, "{style}: {equal} recordings were compared");
    }
}
