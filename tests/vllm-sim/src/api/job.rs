//! One generation under way: its parameters, its prompts, and the figures that responses report.

use std::fmt::Write as _;
use std::sync::Arc;

use super::params::{Api, Params};
use super::responses::Echo;
use crate::engine::sequence::{Delta, Finish, OutputText, Progress};
use crate::kv_transfer::Kept;
use crate::rng::mix64;
use crate::tokenizer::{IM_END, Tokenizer};

/// See the module's documentation.
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) created_s: u64,
    pub(crate) fingerprint: String,
    pub(crate) params: Params,
    /// `params.n` choices for each prompt, in order.
    pub(crate) prompts: Vec<Arc<Vec<u32>>>,
    pub(crate) texts: Vec<OutputText>,
    pub(crate) progress: Vec<Progress>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) block_size: usize,
    pub(crate) prompt_details: bool,
    /// The limit that the first choice got.
    pub(crate) max_tokens: usize,
    /// Its blocks, where they are to be kept.
    pub(crate) kept: Option<Arc<Kept>>,
    /// `kv_transfer_params` of the answer.
    pub(crate) kv_transfer: Option<serde_json::Value>,
    /// Set for `/v1/responses` alone.
    pub(crate) echo: Option<Echo>,
}

impl Job {
    pub(crate) fn echo(&self) -> &Echo {
        self.echo.as_ref().expect("a job of /v1/responses keeps what it repeats")
    }

    pub(crate) fn prompt_of(&self, choice: usize) -> &[u32] {
        &self.prompts[choice / self.params.n]
    }

    /// Notes what a choice has come to.
    pub(crate) fn note(&mut self, delta: &Delta) {
        let progress = &mut self.progress[delta.choice];
        progress.tokens = delta.range.end;
        progress.cached = delta.cached;
        progress.finish = delta.finish;
    }

    /// Output positions of `delta` that have text: all but an end-of-sequence token.
    fn spoken(delta: &Delta) -> std::ops::Range<usize> {
        let silent = usize::from(delta.finish == Some(Finish::Stop) && !delta.range.is_empty());
        delta.range.start..delta.range.end - silent
    }

    /// Appends the text of `delta`. The words hold nothing that JSON escapes.
    pub(crate) fn push_text(&self, delta: &Delta, out: &mut String) {
        self.texts[delta.choice].append(Self::spoken(delta), out);
    }

    /// A choice from its first token to now, as one delta.
    pub(crate) fn whole(&self, choice: usize) -> Delta {
        let progress = self.progress[choice];
        Delta { choice, range: 0..progress.tokens, cached: progress.cached, finish: progress.finish }
    }

    /// Appends the token ids of `delta` as a JSON array, or `null` where they were not asked for.
    pub(crate) fn push_token_ids(&self, delta: &Delta, out: &mut String) {
        if !self.params.return_token_ids {
            out.push_str("null");
            return;
        }
        let text = self.texts[delta.choice];
        let spoken = Self::spoken(delta);
        let stop = (spoken.end < delta.range.end).then_some(IM_END);
        push_ids(spoken.map(|index| self.tokenizer.id(&text.word(index))).chain(stop), out);
    }

    /// Appends a choice's prompt ids, or `null` where they were not asked for.
    pub(crate) fn push_prompt_ids(&self, choice: usize, out: &mut String) {
        if self.params.return_token_ids {
            push_ids(self.prompt_of(choice).iter().copied(), out);
        } else {
            out.push_str("null");
        }
    }

    /// Appends `"kv_transfer_params":…`.
    pub(crate) fn push_kv_transfer(&self, out: &mut String) {
        let params = self.kv_transfer.as_ref().map_or("null".to_owned(), ToString::to_string);
        let _ = write!(out, "\"kv_transfer_params\":{params}"); // writing to a String cannot fail
    }

    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.len()).sum()
    }

    pub(crate) fn output_tokens(&self) -> usize {
        self.progress.iter().map(|progress| progress.tokens).sum()
    }

    pub(crate) fn cached_tokens(&self) -> usize {
        self.progress.iter().step_by(self.params.n).map(|progress| progress.cached).sum()
    }

    /// Chat alone reports how many prompt tokens are new in the cache.
    pub(crate) fn created_cache_tokens(&self) -> Option<usize> {
        let full =
            self.prompts.iter().map(|prompt| prompt.len() / self.block_size * self.block_size).sum::<usize>();
        (self.params.api == Api::Chat).then(|| full.saturating_sub(self.cached_tokens()))
    }

    /// Appends `"usage":{…}` with the three counts, and `details` before the closing brace.
    pub(crate) fn push_usage(&self, details: &str, out: &mut String) {
        let (prompt, output) = (self.prompt_tokens(), self.output_tokens());
        let total = prompt + output;
        let _ = write!(
            out,
            "\"usage\":{{\"prompt_tokens\":{prompt},\"total_tokens\":{total},\"completion_tokens\":{output}{details}}}"
        ); // writing to a String cannot fail
    }

    /// The details of a whole response's usage: every member, set or not.
    pub(crate) fn usage_details(&self) -> String {
        if !self.prompt_details {
            return ",\"prompt_tokens_details\":null,\"completion_tokens_details\":null".to_owned();
        }
        let created = self.created_cache_tokens().map_or("null".to_owned(), |tokens| tokens.to_string());
        format!(
            ",\"prompt_tokens_details\":{{\"cached_tokens\":{},\"created_cache_tokens\":{created},\
             \"multimodal_tokens\":null}},\"completion_tokens_details\":null",
            self.cached_tokens()
        )
    }

    /// The details of a stream's last usage: members that are set.
    pub(crate) fn stream_usage_details(&self) -> String {
        if !self.prompt_details {
            return String::new();
        }
        let created = self
            .created_cache_tokens()
            .map_or(String::new(), |own| format!(",\"created_cache_tokens\":{own}"));
        format!(",\"prompt_tokens_details\":{{\"cached_tokens\":{}{created}}}", self.cached_tokens())
    }

    /// A log probability for output token `index`: made up, below zero, reproducible.
    pub(crate) fn logprob(&self, choice: usize, index: usize, rank: usize) -> f64 {
        let noise = mix64(self.texts[choice].key ^ (index as u64) << 8) % 1000;
        -(0.25 + noise as f64 / 1000.0 + rank as f64)
    }

    /// The word at a rank among the alternatives for output token `index`; rank 0 is the one said.
    pub(crate) fn alternative(&self, choice: usize, index: usize, rank: usize) -> String {
        let text = self.texts[choice];
        let other = OutputText { key: text.key ^ (rank as u64).wrapping_mul(0x9e37_79b9) };
        let word = if rank == 0 { text } else { other }.word(index);
        String::from_utf8_lossy(&word).into_owned()
    }
}

/// Appends a string as JSON.
pub(crate) fn push_json(text: &str, out: &mut String) {
    out.push_str(&serde_json::to_string(text).expect("a string serialises"));
}

fn push_ids(ids: impl Iterator<Item = u32>, out: &mut String) {
    out.push('[');
    for (index, id) in ids.enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{id}"); // writing to a String cannot fail
    }
    out.push(']');
}
