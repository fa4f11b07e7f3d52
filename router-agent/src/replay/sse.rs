//! Reads a streamed chat answer (server-sent events) as it arrives and keeps what the replay reports: when the first and
//! the last token came, the usage, and how it ended.
//!
//! A chunk is scanned in place; only an event that is cut by the end of a chunk is copied.

use std::time::Instant;

use memchr::memmem;
use serde::Deserialize;

/// vLLM's `usage` object, the part that matters here. Tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<PromptTokensDetails>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
struct PromptTokensDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl Usage {
    pub fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0)
    }
}

/// What a stream has shown so far.
#[derive(Debug, Default)]
pub struct Stream {
    partial: Vec<u8>,
    pub first_token: Option<Instant>,
    pub last_token: Option<Instant>,
    pub usage: Option<Usage>,
    /// Events with a piece of the answer.
    pub events: u64,
    /// `data: [DONE]` has been seen.
    pub done: bool,
    /// The message of an error event.
    pub error: Option<String>,
}

impl Stream {
    /// Takes in the bytes that arrived at `now`.
    pub fn feed(&mut self, mut chunk: &[u8], now: Instant) {
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(chunk);
            let joined = std::mem::take(&mut self.partial);
            let rest = self.events(&joined, now);
            self.partial = joined[joined.len() - rest..].to_vec();
            return;
        }
        let rest = self.events(chunk, now);
        chunk = &chunk[chunk.len() - rest..];
        self.partial.extend_from_slice(chunk);
    }

    /// Handles all complete events and returns how many bytes are left over.
    fn events(&mut self, mut bytes: &[u8], now: Instant) -> usize {
        while let Some(end) = memmem::find(bytes, b"\n\n") {
            if let Some(data) = bytes[..end].strip_prefix(b"data: ") {
                self.event(data, now);
            } // else a comment (": keep-alive")
            bytes = &bytes[end + 2..];
        }
        bytes.len()
    }

    fn event(&mut self, data: &[u8], now: Instant) {
        if data == b"[DONE]" {
            self.done = true;
        } else if data.starts_with(b"{\"error\"") {
            self.error = Some(String::from_utf8_lossy(&data[..data.len().min(200)]).into_owned());
        } else if memmem::find(data, b"\"choices\":[]").is_some() {
            #[derive(Deserialize)]
            struct Last {
                usage: Option<Usage>,
            }
            match serde_json::from_slice::<Last>(data) {
                Ok(last) => self.usage = last.usage.or(self.usage),
                Err(error) => self.error = Some(format!("usage event: {error}")),
            }
        } else {
            self.first_token.get_or_insert(now);
            self.last_token = Some(now);
            self.events += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = concat!(
        ": keep-alive\n\n",
        "data: {\"id\":\"a\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"x\"}}]}\n\n",
        "data: {\"id\":\"a\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"y\"},\"finish_reason\":\"length\"}]}\n\n",
        "data: {\"id\":\"a\",\"choices\":[],\"usage\":{\"prompt_tokens\":33,\"total_tokens\":35,\"completion_tokens\":2,",
        "\"prompt_tokens_details\":{\"cached_tokens\":16}}}\n\n",
        "data: [DONE]\n\n"
    );

    #[test]
    fn any_cut_gives_the_same_result() {
        for cut in 0..ANSWER.len() {
            let mut stream = Stream::default();
            let (one, two) = ANSWER.as_bytes().split_at(cut);
            stream.feed(one, Instant::now());
            stream.feed(two, Instant::now());
            let usage = stream.usage.expect("usage was sent");
            assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens()), (33, 2, 16));
            assert!(stream.done && stream.error.is_none() && stream.partial.is_empty(), "cut at {cut}");
        }
    }

    #[test]
    fn a_byte_at_a_time_is_the_same_and_times_are_of_tokens() {
        let mut stream = Stream::default();
        let mut moments = Vec::new();
        for byte in ANSWER.as_bytes() {
            let now = Instant::now();
            moments.push(now);
            stream.feed(&[*byte], now);
        }
        let ends: Vec<usize> = memmem::find_iter(ANSWER.as_bytes(), b"\n\n").collect();
        assert_eq!(stream.first_token, Some(moments[ends[1] + 1]), "not the comment");
        assert_eq!(stream.last_token, Some(moments[ends[2] + 1]), "not the usage event");
        assert!(stream.done);
    }

    #[test]
    fn an_error_event_is_kept() {
        let mut stream = Stream::default();
        stream.feed(
            b"data: {\"error\": {\"message\":\"boom\",\"code\":500}}\n\ndata: [DONE]\n\n",
            Instant::now(),
        );
        assert!(stream.error.expect("an error").contains("boom"));
        assert!(stream.first_token.is_none());
    }
}
