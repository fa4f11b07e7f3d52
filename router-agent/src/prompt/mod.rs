//! What routing needs to know of a request body: model, stream, length limits, and the prompt's bytes in the order
//! in which the engine will see them.
//!
//! [`parse`] checks the whole body (UTF-8, JSON, nothing after it) and borrows from it; the body itself goes to the
//! worker untouched. [`hash_into`] cuts the prompt into blocks for the prefix index.
//!
//! The order is: tools, then system or instructions, then every message (role, name, reasoning, content, calls),
//! then the options that change the end of the chat template. So the blocks of a conversation's turn are a prefix
//! of its next turn's blocks, whatever order the client writes its keys in. What changes a prompt from the start
//! (model, cache salt, a chat template of the request's own) is in [`Request::root_seed`], in front of block one.
//!
//! Of a body's repeated keys the last one counts, as in Python's `json`. Unknown fields pass.

mod blocks;
mod canonical;
mod edit;
mod error;
mod fields;
mod handoff;
mod messages;
mod piece;
mod scan;
#[cfg(test)]
mod tests;
mod token_blocks;
mod unescape;
mod word;

use std::borrow::Cow;

use xxhash_rust::xxh3::Xxh3;

pub use self::{
    blocks::{BLOCK_BYTES, BLOCK_BYTES_MAX, PromptSize, hash_into},
    canonical::{Canonical, canonical},
    edit::{Member, add_missing, raw_member, set_model},
    error::ParseError,
    handoff::{Whole, decode_body, prefill_body, transfer_params},
    piece::{BYTES_PER_TOKEN, Form, MEDIA_TOKENS, Piece, Tag},
    token_blocks::{TokenBlockHasher, hash_tokens_into, token_root},
};
use self::{fields::Fields, scan::Scanner};

/// Which API the body belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApiKind {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
    /// `/v1/messages`, Anthropic's
    Messages,
}

impl ApiKind {
    /// A bounded label for metrics, and the name in the configuration.
    pub fn label(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Responses => "responses",
            Self::Messages => "messages",
        }
    }
}

/// A request body, as far as routing reads it. Borrows from the body.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request<'a> {
    pub model: Option<Cow<'a, str>>,
    pub stream: bool,
    /// The client's bound on the answer, in tokens.
    pub max_tokens: Option<u32>,
    /// `session_id`, else OpenAI's `prompt_cache_key`.
    pub session: Option<Cow<'a, str>>,
    /// `user`, else Anthropic's `metadata.user_id`.
    pub user: Option<Cow<'a, str>>,
    /// vLLM's `priority`: lower is sooner.
    pub priority: Option<i64>,
    /// The response that this one goes on from (Responses API). Only the worker that made it has it.
    pub previous_response: Option<Cow<'a, str>>,
    pub cache_salt: Option<Cow<'a, str>>,
    /// The prompt, in the engine's order. Of several prompts: the first.
    pub pieces: Vec<Piece<'a>>,
    /// Of several prompts: the others together. Zero for one prompt.
    pub further_prompts: PromptSize,
    /// Hash of the request's own settings that change the prompt from its first token.
    template: u64,
    domain: Domain,
}

/// Prompts of different domains never share a prefix, even if their bytes are alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Domain {
    #[default]
    Templated,
    Plain,
    TokenIds,
}

impl Request<'_> {
    /// What stands in front of the first block, for the model that the body names.
    pub fn root_seed(&self) -> u64 {
        self.root_seed_as(self.model.as_deref().unwrap_or_default())
    }

    /// As [`Request::root_seed`], where the request is served by another model than it names (alias, default).
    /// An adapter is a model of its own here, as it is in vLLM.
    pub fn root_seed_as(&self, model: &str) -> u64 {
        let mut root = Xxh3::new();
        root.update(&[self.domain as u8]);
        root.update(&self.template.to_le_bytes());
        root.update(model.as_bytes());
        root.update(&[0xff]);
        if let Some(salt) = &self.cache_salt {
            root.update(salt.as_bytes());
            root.update(&[0xff]);
        }
        root.digest()
    }

    /// The same for all turns of a conversation, and for others as a rule not: the prompt up to the end of the first
    /// message that is the user's, of a completion the first [`BLOCK_BYTES`] bytes.
    pub fn conversation(&self) -> u64 {
        let mut hash = Xxh3::new();
        let mut is_users = false;
        for piece in &self.pieces {
            let is_role = piece.tag == Tag::Role;
            if is_users && is_role {
                break;
            }
            is_users |= is_role && matches!(piece.form, Form::Text(b"user"));
            if piece.tag == Tag::Plain {
                let mut room = BLOCK_BYTES;
                piece.write(&mut |bytes| {
                    let taken = bytes.len().min(room);
                    hash.update(&bytes[..taken]);
                    room -= taken;
                });
            } else {
                piece.write(&mut |bytes| hash.update(bytes));
            }
        }
        hash.digest()
    }

    /// The prompt's tokens, where the client gave token ids. Of several prompts: the first's.
    pub fn token_ids(&self) -> Option<Vec<u32>> {
        let [Piece { form: Form::Tokens(ids), .. }] = self.pieces.as_slice() else { return None };
        let id = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("chunks of four"));
        Some(ids.chunks_exact(4).map(id).collect())
    }

    /// Hashes the prompt's blocks into `out` (emptied first) and measures all prompts.
    pub fn hash_into(&self, block_bytes: usize, root: u64, out: &mut Vec<u64>) -> PromptSize {
        let first = hash_into(&self.pieces, block_bytes, root, out);
        PromptSize {
            bytes: first.bytes + self.further_prompts.bytes,
            tokens_exact: match (first.tokens_exact, self.further_prompts.tokens_exact) {
                (Some(first), further) => Some(first + further.unwrap_or(0)),
                (None, _) => None,
            },
        }
    }
}

/// Reads a request body. Cost: one pass over it; see `docs/routing.md`.
pub fn parse(kind: ApiKind, body: &[u8]) -> Result<Request<'_>, ParseError> {
    let text = without_mark(body);
    let skipped = body.len() - text.len();
    parse_text(kind, text).map_err(|error| match error {
        ParseError::NotJson { at_byte, why } => ParseError::NotJson { at_byte: at_byte + skipped, why },
        other => other,
    })
}

/// A byte order mark may stand in front: Python's json takes it, too.
pub(crate) fn without_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

/// The model that a body names, if the body is a JSON object and names one. Cost: one pass over it.
pub fn model(body: &[u8]) -> Option<Cow<'_, str>> {
    let body = without_mark(body);
    simdutf8::basic::from_utf8(body).ok()?;
    let mut scanner = Scanner::new(body);
    let mut model = None;
    let read = scanner.peek() == Some(b'{')
        && scanner
            .object(|key, scanner| {
                let value = scanner.value()?;
                if key.to_str() == "model" {
                    model = fields::string(value);
                }
                Ok(())
            })
            .is_ok();
    model.filter(|_| read)
}

fn parse_text(kind: ApiKind, text: &[u8]) -> Result<Request<'_>, ParseError> {
    if simdutf8::basic::from_utf8(text).is_err() {
        let at_byte = std::str::from_utf8(text).map_or_else(|error| error.valid_up_to(), str::len);
        return Err(ParseError::NotJson { at_byte, why: "not UTF-8" });
    }
    let mut scanner = Scanner::new(text);
    if scanner.peek().is_none() {
        return Err(ParseError::NotJson { at_byte: text.len(), why: "the body is empty" });
    }
    if scanner.peek() != Some(b'{') {
        let found = scanner.value()?.describe();
        scanner.end()?;
        return Err(ParseError::NotAnObject { found });
    }
    let mut fields = Fields::new(kind);
    scanner.object(|key, scanner| fields.read(key, scanner))?;
    scanner.end()?;
    fields.finish()
}
