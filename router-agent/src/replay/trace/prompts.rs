//! Traces with text, as llm-cache-router and other benchmarks write them: per line `messages` (OpenAI's) or `prompt` (a
//! string), `timestamp` (ms since the start, or RFC 3339; without it all go at once), the answer's length in tokens as
//! `output_length`, `output_tokens`, `completion_tokens` or `max_tokens` ([`OUTPUT_TOKENS`] without it), and `model`. Other
//! fields are ignored.

use serde_json::{Map, Value, json};

use super::{Body, OUTPUT_TOKENS, Request, TraceError, object};
use crate::prompt::BYTES_PER_TOKEN;

const LENGTHS: [&str; 4] = ["output_length", "output_tokens", "completion_tokens", "max_tokens"];

pub(super) fn parse(text: &str, line: usize) -> Result<Request, TraceError> {
    let object = object(text, line)?;
    let wrong = |field, reason: String| TraceError::Field { line, field, reason };
    let messages = match (object.get("messages"), object.get("prompt")) {
        (Some(messages @ Value::Array(list)), _) if !list.is_empty() => messages.clone(),
        (Some(other), _) => return Err(wrong("messages", format!("not a list of messages: {other}"))),
        (None, Some(Value::String(prompt))) => json!([{"role": "user", "content": prompt}]),
        (None, Some(other)) => return Err(wrong("prompt", format!("not a text: {other}"))),
        (None, None) => return Err(wrong("messages", "missing, and `prompt`, too".to_owned())),
    };
    let output_tokens = match LENGTHS.iter().find_map(|name| Some((*name, object.get(*name)?))) {
        None => OUTPUT_TOKENS,
        Some((field, value)) => {
            value.as_u64().ok_or_else(|| wrong(field, format!("not a non-negative integer: {value}")))?
        }
    };
    let messages = messages.to_string();
    Ok(Request {
        timestamp_ms: timestamp_ms(&object).map_err(|reason| wrong("timestamp", reason))?,
        input_tokens: (messages.len() / BYTES_PER_TOKEN).max(1) as u64,
        output_tokens,
        block_ids: [].into(),
        block_tokens: 0,
        body: Some(Body {
            model: object.get("model").and_then(Value::as_str).map(str::to_owned),
            messages: messages.into(),
        }),
    })
}

fn timestamp_ms(object: &Map<String, Value>) -> Result<u64, String> {
    let Some(value) = object.get("timestamp") else { return Ok(0) };
    let stamp = value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let ms = stamp.and_then(|stamp| u64::try_from(stamp.as_millisecond()).ok());
    ms.or_else(|| value.as_f64().filter(|ms| *ms >= 0.0).map(|ms| ms as u64))
        .ok_or_else(|| format!("neither milliseconds nor a time such as 2026-01-31T12:00:00Z: {value}"))
}

#[cfg(test)]
mod tests {
    use crate::replay::trace::read;

    #[test]
    fn messages_and_prompts_are_read_with_what_is_said_of_their_answers() {
        let text = "{\"prompt\":\"tell me\",\"max_tokens\":7,\"model\":\"m\"}\n\
                    {\"timestamp\":1500,\"messages\":[{\"role\":\"user\",\"content\":\"and?\"}]}\n";
        let trace = read(text.as_bytes(), 9).unwrap();
        let [first, second] = &trace.requests[..] else { panic!("two: {trace:?}") };
        assert!(!trace.is_coarse);
        assert_eq!((first.timestamp_ms, first.output_tokens, second.output_tokens), (0, 7, 128));
        let body = first.body.as_ref().unwrap();
        assert_eq!(body.model.as_deref(), Some("m"));
        assert_eq!(&body.messages[..], br#"[{"content":"tell me","role":"user"}]"#);
        let times = "{\"prompt\":\"a\",\"timestamp\":\"2026-01-31T12:00:00Z\"}\n{\"prompt\":\"a\",\"timestamp\":\"2026-01-31T12:00:01.5Z\"}";
        let times = read(times.as_bytes(), 9).unwrap().requests;
        assert_eq!(times[1].timestamp_ms - times[0].timestamp_ms, 1_500);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("{\"prompt\":7}", "line 1, field `prompt`: not a text"),
            ("{\"messages\":[]}", "line 1, field `messages`: not a list of messages"),
            ("{\"prompt\":\"a\",\"max_tokens\":\"x\"}", "line 1, field `max_tokens`"),
            ("{\"prompt\":\"a\",\"timestamp\":\"noon\"}", "line 1, field `timestamp`: neither milliseconds"),
            ("{\"prompt\":\"a\"}\n{\"timestamp\":1}", "line 2, field `messages`: missing"),
            ("{\"colour\":\"red\"}", "line 1: no form of trace"),
        ] {
            let error = read(text.as_bytes(), 9).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error:?} does not start with {expected:?}");
        }
    }
}
