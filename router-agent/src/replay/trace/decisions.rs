//! Our decision log: each request's first try, in the order of the decisions (lines stand in the order of the ends).
//!
//! A block of the log is `block_bytes` of prompt. A line that is cut off, as a crash may leave one, is passed over.

use std::{collections::HashMap, io::BufRead};

use super::{OUTPUT_TOKENS, Request, TraceError};
use crate::{
    prompt::BYTES_PER_TOKEN,
    records::{DecisionRecord, SCHEMA},
};

/// The first tries with a prompt, with the numbers of their lines, in the order of the decisions.
pub fn records(source: impl BufRead) -> Result<Vec<(usize, DecisionRecord)>, TraceError> {
    first_tries(super::lines(source))
}

fn first_tries(
    lines: impl Iterator<Item = Result<(usize, String), TraceError>>,
) -> Result<Vec<(usize, DecisionRecord)>, TraceError> {
    let mut records = Vec::new();
    for line in lines {
        let (line, text) = line?;
        let record: DecisionRecord = match serde_json::from_str(&text) {
            Ok(record) => record,
            Err(error) if error.is_eof() => continue,
            Err(error) => return Err(TraceError::NotARecord { line, reason: error.to_string() }),
        };
        if record.schema != SCHEMA {
            let reason = format!("{}, where this program knows {SCHEMA}", record.schema);
            return Err(TraceError::Field { line, field: "schema", reason });
        }
        if record.attempt == 1 && record.prompt_tokens > 0 {
            records.push((line, record));
        }
    }
    records.sort_by_key(|(_, record)| record.time);
    if records.is_empty() { Err(TraceError::Empty) } else { Ok(records) }
}

/// Tokens of the answer, as far as the record says it.
pub fn output_tokens(record: &DecisionRecord) -> Option<u64> {
    let outcome = record.outcome.as_ref().filter(|outcome| outcome.is_complete())?;
    outcome.completion_tokens.or(outcome.events).filter(|tokens| *tokens > 0)
}

pub(super) fn requests(
    lines: impl Iterator<Item = Result<(usize, String), TraceError>>,
    limit: usize,
) -> Result<Vec<Request>, TraceError> {
    // Small numbers in place of hashes: text is made of them.
    let mut numbers: HashMap<u64, u64> = HashMap::new();
    let records = first_tries(lines)?;
    let start = records[0].1.time;
    let request = |(line, record): (usize, DecisionRecord)| {
        let hashes = record.prompt_hashes.as_deref().ok_or(TraceError::NoHashes { line })?;
        let mut number = |hash: u64| {
            let next = numbers.len() as u64;
            *numbers.entry(hash).or_insert(next)
        };
        let mut ids: Vec<u64> = hashes.iter().map(|hash| number(hash.0)).collect();
        if ids.is_empty() {
            ids.push(number(record.time.as_nanosecond() as u64)); // less than a block, which nobody shares
        }
        let block_tokens = (u64::from(record.block_bytes) / BYTES_PER_TOKEN as u64).max(1);
        Ok(Request {
            timestamp_ms: u64::try_from(record.time.as_millisecond() - start.as_millisecond()).unwrap_or(0),
            input_tokens: ids.len() as u64 * block_tokens,
            output_tokens: output_tokens(&record).unwrap_or(OUTPUT_TOKENS),
            block_ids: ids.into(),
            block_tokens,
            body: None,
        })
    };
    records.into_iter().take(limit).map(request).collect()
}
