//! The trace: one JSON object per line, in the form published with Mooncake (FAST'25), and what a perfect cache could
//! make of it.
//!
//! Fields: `timestamp` (ms since the start), `input_length` and `output_length` (tokens), `hash_ids` (one id per
//! [`BLOCK_TOKENS`] tokens of the prompt, the last one possibly short; equal ids mean an equal prefix up to and
//! including that block). Other fields are ignored. A line that does not hold together is an error that names the line
//! and the field: a replay of half a trace would measure something else.

use std::collections::{BTreeMap, HashMap};
use std::io::BufRead;
use std::sync::Arc;

use serde_json::Value;

/// Tokens that one id of `hash_ids` stands for.
pub(crate) const BLOCK_TOKENS: u64 = 512;

/// One request of the trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// Since the start of the trace, not yet spread over its group ([`super::schedule`]).
    pub(crate) timestamp_ms: u64,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    /// Exactly `input_tokens` / 512 of them, rounded up.
    pub(crate) block_ids: Arc<[u64]>,
}

/// Why a trace cannot be replayed. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error("line {line}: {source}")]
    Read { line: usize, source: std::io::Error },
    #[error("line {line}: not a JSON object ({reason})")]
    NotAnObject { line: usize, reason: String },
    #[error("line {line}, field `{field}`: {reason}")]
    Field { line: usize, field: &'static str, reason: String },
    #[error("the trace has no requests")]
    Empty,
}

/// Reads the first `limit` requests. Blank lines are skipped.
pub(crate) fn read(lines: impl BufRead, limit: usize) -> Result<Vec<Request>, TraceError> {
    let mut requests: Vec<Request> = Vec::new();
    for (index, text) in lines.lines().enumerate() {
        if requests.len() == limit {
            break;
        }
        let line = index + 1;
        let text = text.map_err(|source| TraceError::Read { line, source })?;
        if text.trim().is_empty() {
            continue;
        }
        let request = parse(&text, line)?;
        if let Some(before) = requests.last()
            && before.timestamp_ms > request.timestamp_ms
        {
            let reason = format!("{} after {}", request.timestamp_ms, before.timestamp_ms);
            return Err(TraceError::Field { line, field: "timestamp", reason });
        }
        requests.push(request);
    }
    if requests.is_empty() { Err(TraceError::Empty) } else { Ok(requests) }
}

fn parse(text: &str, line: usize) -> Result<Request, TraceError> {
    let object = match serde_json::from_str(text) {
        Ok(Value::Object(object)) => object,
        Ok(other) => return Err(TraceError::NotAnObject { line, reason: other.to_string() }),
        Err(error) => return Err(TraceError::NotAnObject { line, reason: error.to_string() }),
    };
    let wrong = |field, reason: String| TraceError::Field { line, field, reason };
    let number = |field| match object.get(field) {
        None => Err(wrong(field, "missing".to_owned())),
        Some(value) => {
            value.as_u64().ok_or_else(|| wrong(field, format!("not a non-negative integer: {value}")))
        }
    };
    let input_tokens = number("input_length")?;
    if input_tokens == 0 {
        return Err(wrong("input_length", "an empty prompt".to_owned()));
    }
    let ids = match object.get("hash_ids") {
        None => return Err(wrong("hash_ids", "missing".to_owned())),
        Some(Value::Array(ids)) => ids,
        Some(other) => return Err(wrong("hash_ids", format!("not an array: {other}"))),
    };
    let block_ids = ids
        .iter()
        .map(|id| id.as_u64().ok_or_else(|| wrong("hash_ids", format!("not a non-negative integer: {id}"))))
        .collect::<Result<Arc<[u64]>, _>>()?;
    if block_ids.len() as u64 != input_tokens.div_ceil(BLOCK_TOKENS) {
        let reason = format!("{} ids for {input_tokens} tokens", block_ids.len());
        return Err(wrong("hash_ids", reason));
    }
    Ok(Request {
        timestamp_ms: number("timestamp")?,
        input_tokens,
        output_tokens: number("output_length")?.max(1),
        block_ids,
    })
}

/// What one cache, shared by the whole fleet and filled the moment a request arrives, would serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ceiling {
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
}

impl Ceiling {
    pub(crate) fn share(self) -> f64 {
        self.cached_tokens as f64 / self.prompt_tokens as f64
    }
}

/// The leading blocks of each request, in the trace's order, that an LRU cache of `capacity_blocks` (of
/// [`BLOCK_TOKENS`]) holds. With `usize::MAX` no policy can beat it. With the fleet's own capacity it is what a policy
/// reaches that wastes nothing on copies; one that guesses better than LRU could still beat that.
pub(crate) fn ceiling(requests: &[Request], capacity_blocks: usize) -> Ceiling {
    let mut used_at: HashMap<u64, u64> = HashMap::new();
    let mut by_use: BTreeMap<u64, u64> = BTreeMap::new();
    let mut now = 0;
    let mut total = Ceiling { prompt_tokens: 0, cached_tokens: 0 };
    for request in requests {
        let leading = request.block_ids.iter().take_while(|id| used_at.contains_key(*id)).count() as u64;
        total.prompt_tokens += request.input_tokens;
        total.cached_tokens += request.input_tokens.min(leading * BLOCK_TOKENS);
        // Last block first: a prefix is worth nothing without its start, so the end is older and leaves first.
        for &id in request.block_ids.iter().rev() {
            now += 1;
            if let Some(before) = used_at.insert(id, now) {
                by_use.remove(&before);
            }
            by_use.insert(now, id);
        }
        while used_at.len() > capacity_blocks
            && let Some((_, id)) = by_use.pop_first()
        {
            used_at.remove(&id);
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Request>, TraceError> {
        read(text.as_bytes(), usize::MAX)
    }

    #[test]
    fn reads_requests_and_skips_blank_lines() {
        let text = "{\"timestamp\":0,\"input_length\":513,\"output_length\":4,\"hash_ids\":[7,9]}\n\n\
                    {\"timestamp\":3000,\"input_length\":512,\"output_length\":0,\"hash_ids\":[7],\"x\":1}\n";
        let requests = read_text(text).unwrap();
        assert_eq!(requests.len(), 2);
        assert_eq!(*requests[0].block_ids, [7, 9]);
        assert_eq!(requests[0].input_tokens, 513);
        assert_eq!(requests[1].timestamp_ms, 3000);
        assert_eq!(requests[1].output_tokens, 1, "a request asks for one token at least");
    }

    #[test]
    fn stops_at_the_limit_before_a_bad_line() {
        let text = "{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"hash_ids\":[1]}\nnonsense";
        assert_eq!(read(text.as_bytes(), 1).unwrap().len(), 1);
        assert!(read(text.as_bytes(), 2).is_err());
    }

    #[test]
    fn errors_name_line_and_field() {
        let good = "{\"timestamp\":5,\"input_length\":1,\"output_length\":1,\"hash_ids\":[1]}\n";
        for (bad, expected) in [
            ("{\"timestamp\":5,\"input_length\":1", "line 2: not a JSON object"),
            ("[1]", "line 2: not a JSON object ([1])"),
            (
                "{\"input_length\":1,\"output_length\":1,\"hash_ids\":[1]}",
                "line 2, field `timestamp`: missing",
            ),
            (
                "{\"timestamp\":5,\"input_length\":\"a\",\"output_length\":1,\"hash_ids\":[1]}",
                "line 2, field `input_length`: not a non-negative integer: \"a\"",
            ),
            (
                "{\"timestamp\":5,\"input_length\":0,\"output_length\":1,\"hash_ids\":[]}",
                "line 2, field `input_length`: an empty prompt",
            ),
            (
                "{\"timestamp\":5,\"input_length\":1,\"output_length\":-1,\"hash_ids\":[1]}",
                "line 2, field `output_length`: not a non-negative integer: -1",
            ),
            (
                "{\"timestamp\":5,\"input_length\":1,\"output_length\":1,\"hash_ids\":7}",
                "line 2, field `hash_ids`: not an array: 7",
            ),
            (
                "{\"timestamp\":5,\"input_length\":1,\"output_length\":1,\"hash_ids\":[1.5]}",
                "line 2, field `hash_ids`: not a non-negative integer: 1.5",
            ),
            (
                "{\"timestamp\":5,\"input_length\":600,\"output_length\":1,\"hash_ids\":[1]}",
                "line 2, field `hash_ids`: 1 ids for 600 tokens",
            ),
            (
                "{\"timestamp\":4,\"input_length\":1,\"output_length\":1,\"hash_ids\":[1]}",
                "line 2, field `timestamp`: 4 after 5",
            ),
        ] {
            let error = read_text(&format!("{good}{bad}")).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error:?} does not start with {expected:?}");
        }
        assert!(matches!(read_text("\n"), Err(TraceError::Empty)));
    }

    fn request(input_tokens: u64, ids: &[u64]) -> Request {
        Request { timestamp_ms: 0, input_tokens, output_tokens: 1, block_ids: ids.into() }
    }

    #[test]
    fn the_ceiling_counts_leading_blocks_seen_before() {
        let requests = [
            request(1000, &[0, 1]),    // nothing seen yet
            request(1536, &[0, 1, 2]), // two blocks: 1,024
            request(700, &[0, 1]),     // all of it, the last block short: 700, not 1,024
            request(1024, &[5, 0]),    // block 0 was seen, but not at the head of this prompt
        ];
        assert_eq!(ceiling(&requests, usize::MAX), Ceiling { prompt_tokens: 4260, cached_tokens: 1724 });
    }

    #[test]
    fn a_full_cache_drops_the_least_recently_used_ends_first() {
        let requests = [
            request(1024, &[0, 1]),
            request(1024, &[0, 2]), // block 0: 512; the cache is full: 0, 2, 1 by last use
            request(1024, &[3, 4]), // drops 1, then 2
            request(1024, &[0, 2]), // block 0 is left: 512
            request(1024, &[3, 4]), // block 4 had to go for 2, block 3 is there: 512
        ];
        assert_eq!(ceiling(&requests, 3).cached_tokens, 3 * 512);
        assert_eq!(ceiling(&requests, 5).cached_tokens, 512 + 1024 + 1024);
        assert_eq!(ceiling(&requests, 0).cached_tokens, 0);
    }

    #[test]
    fn the_committed_sample_is_whole() {
        let file = std::fs::File::open(super::super::SAMPLE).unwrap();
        let requests = read(std::io::BufReader::new(file), usize::MAX).unwrap();
        assert_eq!(requests.len(), 1_000);
        let ceiling = ceiling(&requests, usize::MAX);
        assert_eq!(ceiling.prompt_tokens, 13_732_944);
        assert!((ceiling.share() - 0.2157).abs() < 0.0001, "{}", ceiling.share());
    }
}
