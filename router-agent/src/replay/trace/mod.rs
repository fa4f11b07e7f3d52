//! Traces: one JSON object per line, in one of three forms, told apart by the first line.
//!
//! | form | has |
//! |---|---|
//! | Mooncake's (`mooncake.rs`) | `timestamp`, `input_length`, `output_length`, `hash_ids` |
//! | prompts (`prompts.rs`) | `timestamp`, `messages` or `prompt`, and how long the answer is |
//! | our decision log (`decisions.rs`) | records with `prompt_hashes` |
//!
//! A line that does not hold together is an error that names the line and the field: a replay of half a trace would measure
//! something else.

mod ceiling;
pub mod decisions;
mod mooncake;
mod prompts;

use std::{io::BufRead, sync::Arc};

use bytes::Bytes;
use serde_json::{Map, Value};

pub use self::ceiling::{Ceiling, ceiling};

/// Tokens that one id of Mooncake's `hash_ids` stands for.
pub const BLOCK_TOKENS: u64 = 512;
/// Tokens of an answer of which nothing is known.
pub const OUTPUT_TOKENS: u64 = 128;

/// One request of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Since the start of the trace.
    pub timestamp_ms: u64,
    /// Estimated where the trace has the text.
    pub input_tokens: u64,
    /// At least 1.
    pub output_tokens: u64,
    /// One per [`Request::block_tokens`] of the prompt, the last one possibly short: text is made of them.
    pub block_ids: Arc<[u64]>,
    pub block_tokens: u64,
    /// The body to send, where the trace has the text.
    pub body: Option<Body>,
}

/// A chat request of a trace that has text, but for its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// The model that the trace names.
    pub model: Option<String>,
    /// `messages`, as JSON.
    pub messages: Bytes,
}

impl Request {
    /// In Mooncake's blocks.
    pub fn of_blocks(
        timestamp_ms: u64,
        input_tokens: u64,
        output_tokens: u64,
        block_ids: Arc<[u64]>,
    ) -> Self {
        Self { timestamp_ms, input_tokens, output_tokens, block_ids, block_tokens: BLOCK_TOKENS, body: None }
    }
}

/// A trace as it was read.
#[derive(Debug, Clone)]
pub struct Trace {
    /// In the order of their times.
    pub requests: Vec<Request>,
    /// Its clock ticks every few seconds: requests of one tick are to be spread over it.
    pub is_coarse: bool,
}

/// Why a trace cannot be replayed. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("line {line}: {source}")]
    Read { line: usize, source: std::io::Error },
    #[error("line {line}: not a JSON object ({reason})")]
    NotAnObject { line: usize, reason: String },
    #[error("line {line}: no record of a decision ({reason})")]
    NotARecord { line: usize, reason: String },
    #[error("line {line}, field `{field}`: {reason}")]
    Field { line: usize, field: &'static str, reason: String },
    #[error(
        "line {line}: no form of trace that is known: it has neither `hash_ids` (Mooncake), nor `messages` or `prompt`, nor is \
         it a line of a decision log"
    )]
    UnknownForm { line: usize },
    #[error(
        "line {line}: the record has no `prompt_hashes`, so nothing is known of prefixes: log with `decision_log: \
         {{prompts: hashes}}`"
    )]
    NoHashes { line: usize },
    #[error("the trace has no requests")]
    Empty,
}

/// How the lines of one trace are read.
enum Form {
    Mooncake,
    Prompts,
    Decisions,
}

impl Form {
    fn of(text: &str, line: usize) -> Result<Self, TraceError> {
        let object = object(text, line)?;
        let has = |key| object.contains_key(key);
        if has("schema") && has("candidate_count") {
            Ok(Self::Decisions)
        } else if has("messages") || has("prompt") {
            Ok(Self::Prompts)
        } else if has("hash_ids") || has("input_length") {
            Ok(Self::Mooncake)
        } else {
            Err(TraceError::UnknownForm { line })
        }
    }
}

/// The lines that are not blank, with their numbers.
fn lines(lines: impl BufRead) -> impl Iterator<Item = Result<(usize, String), TraceError>> {
    lines
        .lines()
        .enumerate()
        .map(|(index, text)| {
            let line = index + 1;
            text.map(|text| (line, text)).map_err(|source| TraceError::Read { line, source })
        })
        .filter(|line| line.as_ref().map_or(true, |(_, text)| !text.trim().is_empty()))
}

fn object(text: &str, line: usize) -> Result<Map<String, Value>, TraceError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(TraceError::NotAnObject { line, reason: other.to_string() }),
        Err(error) => Err(TraceError::NotAnObject { line, reason: error.to_string() }),
    }
}

/// Reads the first `limit` requests. Blank lines are skipped.
pub fn read(source: impl BufRead, limit: usize) -> Result<Trace, TraceError> {
    let mut lines = lines(source).peekable();
    let form = match lines.peek() {
        None => return Err(TraceError::Empty),
        Some(Ok((line, text))) => Form::of(text, *line)?,
        Some(Err(_)) => Form::Mooncake, // the error comes again below
    };
    if let Form::Decisions = form {
        let requests = decisions::requests(lines, limit)?;
        return Ok(Trace { requests, is_coarse: false });
    }
    let mut requests: Vec<Request> = Vec::new();
    while requests.len() < limit
        && let Some(next) = lines.next()
    {
        let (line, text) = next?;
        let mut request = match form {
            Form::Mooncake => mooncake::parse(&text, line)?,
            Form::Prompts | Form::Decisions => prompts::parse(&text, line)?,
        };
        if let Some(before) = requests.last()
            && before.timestamp_ms > request.timestamp_ms
        {
            let reason = format!("{} after {}", request.timestamp_ms, before.timestamp_ms);
            return Err(TraceError::Field { line, field: "timestamp", reason });
        }
        request.output_tokens = request.output_tokens.max(1);
        requests.push(request);
    }
    if requests.is_empty() {
        return Err(TraceError::Empty);
    }
    Ok(Trace { requests, is_coarse: matches!(form, Form::Mooncake) })
}
