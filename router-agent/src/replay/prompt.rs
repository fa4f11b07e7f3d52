//! Prompt text from block ids, without building it.
//!
//! A block of 512 tokens is 2,048 bytes of text: a token is 4 bytes, as the simulated worker counts them. The text of block
//! `id` is the window of so many bytes that starts at byte `7 × id` of one random text: no two windows are equal at the
//! same place, so equal ids and only they give equal text, and a request's body is a list of slices of memory that all
//! requests share. A 120,000-token prompt costs 237 slices, not half a megabyte.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::trace::Request;

/// Bytes of text that count as one token.
pub const TOKEN_BYTES: u64 = 4;
/// Between the starts of neighbouring windows. Odd, so that neighbours do not align on tokens either.
const STRIDE_BYTES: u64 = 7;

/// The text that every prompt is cut from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TextPool(Bytes);

impl TextPool {
    /// For these requests: 7 bytes of memory for each id up to the largest. Plain lower-case words: nothing that JSON would escape.
    pub fn new(requests: &[Request]) -> Self {
        let ids = requests.iter().flat_map(|request| request.block_ids.iter());
        let block_tokens = requests.iter().map(|request| request.block_tokens).max().unwrap_or(0);
        Self::of(ids.copied().max().unwrap_or(0), block_tokens * TOKEN_BYTES)
    }

    fn of(id_max: u64, block_bytes: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(0x7761_726d);
        let length = id_max * STRIDE_BYTES + block_bytes;
        let text = (0..length).map(|_| if random.u8(..) < 40 { b' ' } else { random.u8(b'a'..=b'z') });
        Self(text.collect())
    }

    /// The first `length` bytes of a block's text, which are there.
    fn block(&self, id: u64, length: u64) -> Bytes {
        let start = (id * STRIDE_BYTES) as usize;
        self.0.slice(start..start + length as usize)
    }
}

/// A chat request as an HTTP body: head, one slice per block, tail.
#[derive(Debug)]
pub struct PromptBody {
    head: Option<Bytes>,
    pool: TextPool,
    block_ids: Arc<[u64]>,
    block_bytes: u64,
    block_next: usize,
    /// The whole prompt, where the trace has it.
    text: Option<Bytes>,
    /// Of the prompt's text, not yet sent.
    text_bytes: u64,
    tail: Option<Bytes>,
}

impl PromptBody {
    /// The request as it is sent, for the model that the trace names, or for this one.
    pub fn new(pool: &TextPool, model: &str, request: &Request) -> Self {
        let own = request.body.as_ref();
        let model = serde_json::Value::from(own.and_then(|body| body.model.as_deref()).unwrap_or(model));
        let (begin, end) = match own {
            Some(_) => ("", ""),
            None => (r#"[{"role":"user","content":""#, r#""}]"#),
        };
        let head = format!(r#"{{"model":{model},"messages":{begin}"#);
        let tail = format!(
            r#"{end},"stream":true,"stream_options":{{"include_usage":true}},"max_tokens":{},"ignore_eos":true}}"#,
            request.output_tokens
        );
        Self {
            head: Some(head.into()),
            pool: pool.clone(),
            block_ids: Arc::clone(&request.block_ids),
            block_bytes: request.block_tokens * TOKEN_BYTES,
            block_next: 0,
            text_bytes: own.map_or(request.input_tokens * TOKEN_BYTES, |body| body.messages.len() as u64),
            text: own.map(|body| body.messages.clone()),
            tail: Some(tail.into()),
        }
    }

    fn next(&mut self) -> Option<Bytes> {
        if let Some(head) = self.head.take() {
            return Some(head);
        }
        if let Some(text) = self.text.take() {
            self.text_bytes = 0;
            return Some(text);
        }
        if let Some(&id) = self.block_ids.get(self.block_next) {
            let slice = self.pool.block(id, self.text_bytes.min(self.block_bytes));
            self.block_next += 1;
            self.text_bytes -= slice.len() as u64;
            return Some(slice);
        }
        self.tail.take()
    }
}

impl HttpBody for PromptBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.tail.is_none()
    }

    /// Exact, so that the request carries a Content-Length.
    fn size_hint(&self) -> SizeHint {
        let ends = [&self.head, &self.tail].into_iter().flatten().map(|bytes| bytes.len() as u64);
        SizeHint::with_exact(ends.sum::<u64>() + self.text_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::trace::Body;

    fn text(pool: &TextPool, input_tokens: u64, ids: &[u64]) -> String {
        let request = Request::of_blocks(0, input_tokens, 9, ids.into());
        let mut body = PromptBody::new(pool, "m", &request);
        let expected = body.size_hint().exact().unwrap();
        let mut sent = Vec::new();
        while let Some(bytes) = body.next() {
            sent.extend_from_slice(&bytes);
        }
        assert!(body.is_end_stream());
        assert_eq!(sent.len() as u64, expected);
        let json: serde_json::Value = serde_json::from_slice(&sent).unwrap();
        assert_eq!(json["max_tokens"], 9);
        assert_eq!(json["stream"], true);
        json["messages"][0]["content"].as_str().unwrap().to_owned()
    }

    #[test]
    fn text_has_four_bytes_a_token_and_shares_exactly_the_shared_blocks() {
        let pool = TextPool::of(300, 2_048);
        let one = text(&pool, 1_500, &[0, 17, 18]);
        let two = text(&pool, 1_200, &[0, 17, 300]);
        assert_eq!((one.len(), two.len()), (6_000, 4_800));
        let common = one.bytes().zip(two.bytes()).take_while(|(a, b)| a == b).count();
        assert!((4_096..4_100).contains(&common), "{common} bytes in common");
    }

    #[test]
    fn a_prompt_of_the_trace_s_own_is_sent_as_it_is() {
        let body = Body {
            model: Some("a \"b\"".to_owned()),
            messages: r#"[{"role":"user","content":"hi"}]"#.into(),
        };
        let request = Request { body: Some(body), ..Request::of_blocks(0, 1, 3, [].into()) };
        let mut sent = Vec::new();
        let mut body = PromptBody::new(&TextPool::new(std::slice::from_ref(&request)), "m", &request);
        let expected = body.size_hint().exact().unwrap();
        while let Some(bytes) = body.next() {
            sent.extend_from_slice(&bytes);
        }
        assert_eq!(sent.len() as u64, expected);
        let json: serde_json::Value = serde_json::from_slice(&sent).unwrap();
        assert_eq!((&json["model"], &json["messages"][0]["content"]), (&"a \"b\"".into(), &"hi".into()));
    }

    #[test]
    fn every_block_starts_differently() {
        let pool = TextPool::of(50_000, 2_048);
        let mut starts: Vec<_> = (0..=50_000).map(|id| pool.block(id, 64)).collect();
        starts.sort();
        starts.dedup();
        assert_eq!(starts.len(), 50_001);
    }
}
