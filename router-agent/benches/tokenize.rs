//! What the exact tokens of a prompt cost: a conversation of 32 k tokens, its next turn of 200, and what of that is
//! parsing and rendering. By the tokenizers of tests/fixtures/tokenize, and by one of full size where `WARMPATH_TOKENIZER`
//! names its directory.
//!
//! `cargo xtask bench tokenize`; the figures are in docs/tokens.md.

use std::path::{Path, PathBuf};

use router_agent::{
    prompt::ApiKind,
    tokenize::{LocalTokenizer, TokenCache},
};
use serde_json::{Value, json};

#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod support;
use support::{Times, time};

const CONVERSATION_TOKENS: usize = 32_000;
const TURN_TOKENS: usize = 200;
const CACHE_BYTES: usize = 64 << 20;
const TRIALS: usize = 60;

/// Prose of the words that the vocabulary has, some four bytes a token as with vocabularies of full size; now and then
/// something else. The same in every run.
struct Writer {
    random: fastrand::Rng,
    words: Vec<String>,
}

impl Writer {
    fn new(directory: &Path, seed: u64) -> Self {
        let json = std::fs::read(directory.join("tokenizer.json")).expect("a tokenizer");
        let json: Value = serde_json::from_slice(&json).expect("a tokenizer");
        let vocabulary = json["model"]["vocab"].as_object().expect("a vocabulary of tokens and ids");
        let word = |token: &String| {
            let word = token.strip_prefix(['\u{120}', '\u{2581}']).unwrap_or(token);
            (word.len() >= 3 && word.bytes().all(|byte| byte.is_ascii_alphabetic())).then(|| word.to_owned())
        };
        let mut words: Vec<String> = vocabulary.keys().filter_map(word).collect();
        words.sort_unstable();
        Self { random: fastrand::Rng::with_seed(seed), words }
    }

    fn text(&mut self, bytes: usize) -> String {
        let mut text = String::new();
        while text.len() < bytes {
            text.push_str(match self.random.u8(0..40) {
                0 => ".\n\n",
                1..=3 => ",",
                4 => " 12",
                5 => "\n    rarely",
                _ => "",
            });
            text.push(' ');
            text.push_str(&self.words[self.random.usize(0..self.words.len())]);
        }
        text
    }
}

/// A conversation, turn by turn.
struct Conversation<'t> {
    tokenizer: &'t LocalTokenizer,
    writer: Writer,
    messages: Vec<Value>,
    bytes_per_token: f64,
}

impl<'t> Conversation<'t> {
    fn new(tokenizer: &'t LocalTokenizer, directory: &Path, seed: u64) -> Self {
        let mut writer = Writer::new(directory, seed);
        let sample = json!({"prompt": writer.text(20_000)}).to_string();
        let tokens = tokenizer.tokens_whole(ApiKind::Completions, sample.as_bytes()).expect("a text");
        let bytes_per_token = 20_000.0 / tokens.len() as f64;
        Self { tokenizer, writer, messages: Vec::new(), bytes_per_token }
    }

    /// An answer and a question, together of about so many tokens.
    fn turn(&mut self, tokens: usize) {
        let bytes = (tokens as f64 / 2.0 * self.bytes_per_token) as usize;
        if !self.messages.is_empty() {
            let answer = self.writer.text(bytes);
            self.messages.push(json!({"role": "assistant", "content": answer}));
        }
        let question = self.writer.text(bytes);
        self.messages.push(json!({"role": "user", "content": question}));
    }

    fn body(&self) -> Vec<u8> {
        json!({"model": "m", "stream": true, "messages": self.messages}).to_string().into_bytes()
    }

    fn count(&self) -> usize {
        self.tokenizer.tokens_whole(ApiKind::Chat, &self.body()).expect("a chat").len()
    }
}

fn main() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenize");
    let mut directories: Vec<PathBuf> =
        ["chatml", "headers", "parts"].iter().map(|style| fixtures.join(style)).collect();
    directories.extend(std::env::var_os("WARMPATH_TOKENIZER").map(PathBuf::from));
    for directory in directories {
        let tokenizer = LocalTokenizer::load(&directory).expect("a tokenizer");
        println!("\n{}", directory.file_name().unwrap_or_default().display());
        for (name, first, turn) in [("80 messages", 800, 800), ("one long message and 20 more", 24_000, 800)]
        {
            measure(&tokenizer, &directory, name, first, turn);
        }
    }
}

fn measure(tokenizer: &LocalTokenizer, directory: &Path, name: &str, first: usize, turn: usize) {
    let mut next = Vec::new();
    let mut fresh = 0;
    let mut shown = None;
    for trial in 0..TRIALS {
        let mut conversation = Conversation::new(tokenizer, directory, trial as u64);
        conversation.turn(2 * first);
        let mut tokens = first;
        while tokens < CONVERSATION_TOKENS {
            conversation.turn(turn);
            tokens += turn;
        }
        let cache = TokenCache::new(CACHE_BYTES);
        tokenizer.tokens(ApiKind::Chat, &conversation.body(), &cache).expect("a chat");
        conversation.turn(TURN_TOKENS);
        let body = conversation.body();
        let begin = std::time::Instant::now();
        let encoded = tokenizer.tokens(ApiKind::Chat, &body, &cache).expect("a chat");
        next.push(begin.elapsed());
        fresh = encoded.tokens.len() - encoded.cached;
        shown = Some((conversation, body));
    }
    let (conversation, body) = shown.expect("there was a trial");
    println!(" {name}: {} tokens, {} bytes of JSON, {fresh} tokens new", conversation.count(), body.len());
    let next = Times::new(next);
    let us = |share| next.at(share).as_nanos() as f64 / 1000.0;
    println!("  {:<56} min {:>9.2}  p50 {:>9.2}  p99 {:>9.2} us", "next turn", us(0.0), us(50.0), us(99.0));
    time("  of that: parsing and rendering", 300, || tokenizer.text(ApiKind::Chat, &body).is_ok());
    let cache = TokenCache::new(CACHE_BYTES);
    time("  the same prompt again", 300, || tokenizer.tokens(ApiKind::Chat, &body, &cache).is_ok());
    time("  all of it, nothing in the cache", 600, || {
        tokenizer.tokens(ApiKind::Chat, &body, &TokenCache::new(CACHE_BYTES)).is_ok()
    });
    time("  all of it in one go, no pieces", 600, || tokenizer.tokens_whole(ApiKind::Chat, &body).is_ok());
}
