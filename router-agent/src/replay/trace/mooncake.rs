//! Mooncake's form (FAST'25): `timestamp` (ms since the start), `input_length` and `output_length` (tokens), `hash_ids` (one
//! id per [`BLOCK_TOKENS`] tokens of the prompt, the last one possibly short; equal ids mean an equal prefix up to and
//! including that block). Other fields are ignored.

use std::sync::Arc;

use serde_json::Value;

use super::{BLOCK_TOKENS, Request, TraceError, object};

pub(super) fn parse(text: &str, line: usize) -> Result<Request, TraceError> {
    let object = object(text, line)?;
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
    let output_tokens = number("output_length")?.max(1);
    Ok(Request::of_blocks(number("timestamp")?, input_tokens, output_tokens, block_ids))
}

#[cfg(test)]
mod tests {
    use super::super::*;

    fn read_text(text: &str) -> Result<Vec<Request>, TraceError> {
        read(text.as_bytes(), usize::MAX).map(|trace| trace.requests)
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
        assert_eq!(read(text.as_bytes(), 1).unwrap().requests.len(), 1);
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
}
