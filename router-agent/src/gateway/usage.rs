//! What a worker says that an answer cost: `usage`, at the end of a body that this process copies.

use memchr::memmem;

use crate::records::Usage;

/// The end of a body that is kept. vLLM writes `usage` there, before a few short fields.
const TAIL_BYTES: usize = 2048;

/// The end of a body under way.
#[derive(Debug, Default)]
pub(super) struct UsageTail {
    bytes: Vec<u8>,
}

impl UsageTail {
    /// The body goes on with `data`.
    pub(super) fn push(&mut self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(TAIL_BYTES)..];
        if self.bytes.len() + data.len() > 2 * TAIL_BYTES {
            let surplus = self.bytes.len().saturating_sub(TAIL_BYTES);
            self.bytes.drain(..surplus);
        }
        self.bytes.extend_from_slice(data);
    }

    /// The last `usage` in it.
    pub(super) fn usage(&self) -> Option<Usage> {
        const KEY: &[u8] = b"\"usage\":";
        let value = memmem::rfind(&self.bytes, KEY)? + KEY.len();
        let mut values = serde_json::Deserializer::from_slice(&self.bytes[value..]).into_iter();
        values.next()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(pieces: &[&str]) -> Option<u64> {
        let mut tail = UsageTail::default();
        for piece in pieces {
            tail.push(piece.as_bytes());
        }
        tail.usage().and_then(Usage::total)
    }

    #[test]
    fn usage_is_found_in_answers_and_in_streams_of_both_apis() {
        let answer = r#"{"choices":[],"usage":{"prompt_tokens":5,"total_tokens":9,"completion_tokens":4,"prompt_tokens_details":null},"prompt_logprobs":null}"#;
        assert_eq!(total(&[answer]), Some(9));
        assert_eq!(total(&[&answer[..20], &answer[20..40], &answer[40..]]), Some(9));
        let long = format!("{}{answer}", " ".repeat(10_000));
        assert_eq!(total(&[&long]), Some(9));
        let stream = "data: {\"usage\": {\"input_tokens\": 7, \"output_tokens\": 3}}\n\ndata: [DONE]\n\n";
        assert_eq!(total(&[&"x".repeat(3000), stream]), Some(10));
        assert_eq!(total(&["{\"usage\":null}"]), None);
        assert_eq!(total(&["{\"usage\":{\"output_tokens\":3}}"]), None, "the prompt's are not said");
        assert_eq!(total(&[r#"{"usage":{"total_"#]), None);
        assert_eq!(total(&[]), None);
    }

    #[test]
    fn no_more_than_the_end_is_kept() {
        let mut tail = UsageTail::default();
        for length in [1, 100, TAIL_BYTES, 5 * TAIL_BYTES, 3000, 10] {
            tail.push(&vec![b'x'; length]);
            assert!(tail.bytes.len() <= 2 * TAIL_BYTES);
        }
    }
}
