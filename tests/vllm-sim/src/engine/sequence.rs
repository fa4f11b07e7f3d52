//! One sequence in the engine, and the mailbox through which its output reaches the HTTP side.
//!
//! Generated tokens are a pure function of (seed, prompt, position), so the mailbox carries a *count*, not tokens: a
//! reader that comes late finds several tokens at once and writes them as one event, as vLLM's output collector does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::block_pool::BlockId;
use super::hashing::{BlockHash, ExtraKeys};
use crate::kv_transfer::Kept;
use crate::rng::mix64;
use crate::tokenizer::{TOKEN_BYTES, WORDS, word};

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model said its end-of-sequence token.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// The server is shutting down.
    Abort,
    /// The engine died.
    Error,
}

impl Finish {
    /// OpenAI's `finish_reason`.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// What becomes of a sequence's blocks, and where they come from.
#[derive(Clone, Debug, Default)]
pub(crate) enum KvBlocks {
    /// Computed here, for here.
    #[default]
    Own,
    /// Kept beyond the sequence's end, if that is its length.
    Keep(Arc<Kept>),
    /// The prompt's were fetched from another worker.
    Loaded,
}

/// What the HTTP side asks of the engine, for one choice of one request.
pub(crate) struct SequenceSpec {
    pub(crate) prompt: Arc<Vec<u32>>,
    pub(crate) extra: ExtraKeys,
    pub(crate) session_id: Option<String>,
    /// `vllm_xargs.kv_cache_report_mode == "full"`: publish `BlockStored` for cache hits too.
    pub(crate) report_hits: bool,
    /// Output ends after so many tokens at the latest.
    pub(crate) max_tokens: usize,
    /// The model's own end: after so many tokens it says end-of-sequence.
    pub(crate) stop_after: Option<usize>,
    pub(crate) text: OutputText,
    pub(crate) kv_blocks: KvBlocks,
}

/// The text that the model says: word `i` follows from a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputText {
    pub(crate) key: u64,
}

impl OutputText {
    /// The four ASCII bytes of output token `index`.
    pub(crate) fn word(self, index: usize) -> [u8; TOKEN_BYTES] {
        word(mix64(self.key ^ mix64(index as u64)) % WORDS)
    }

    /// Appends the text of output tokens `range`.
    pub(crate) fn append(self, range: std::ops::Range<usize>, out: &mut String) {
        for index in range {
            out.push_str(std::str::from_utf8(&self.word(index)).expect("words are ASCII"));
        }
    }
}

/// The engine's view of one sequence.
pub(crate) struct Sequence {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) choice: usize,
    /// Prompt, then output.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_len: usize,
    pub(crate) hashes: Vec<BlockHash>,
    pub(crate) extra: ExtraKeys,
    pub(crate) session_id: Option<String>,
    pub(crate) report_hits: bool,
    pub(crate) max_tokens: usize,
    pub(crate) stop_after: Option<usize>,
    pub(crate) text: OutputText,
    pub(crate) blocks: Vec<BlockId>,
    pub(crate) kv_blocks: KvBlocks,
    /// Leading blocks that are registered in the pool.
    pub(crate) registered: usize,
    /// Tokens whose KV entries exist.
    pub(crate) computed: usize,
    /// Tokens that the current step computes.
    pub(crate) scheduled: usize,
    /// Prompt tokens found in the cache when first scheduled.
    pub(crate) cached: Option<usize>,
    pub(crate) preemptions: u32,
    pub(crate) arrived: Instant,
    pub(crate) started: Option<Instant>,
    pub(crate) first_token: Option<Instant>,
    pub(crate) last_token: Option<Instant>,
}

impl Sequence {
    pub(crate) fn output_len(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.mailbox.aborted.load(Ordering::Acquire)
    }
}

/// The state of one choice, as the HTTP side sees it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Output tokens so far.
    pub(crate) tokens: usize,
    pub(crate) cached: usize,
    pub(crate) finish: Option<Finish>,
}

/// Shared by the engine and the connection of one HTTP request.
pub(crate) struct Mailbox {
    progress: Mutex<Vec<Progress>>,
    /// Wake the reader for every token, not only for a choice's end.
    streamed: bool,
    notify: Notify,
    aborted: AtomicBool,
}

impl Mailbox {
    pub(crate) fn new(choices: usize, streamed: bool) -> Self {
        Self {
            streamed,
            progress: Mutex::new(vec![Progress::default(); choices]),
            notify: Notify::new(),
            aborted: AtomicBool::new(false),
        }
    }

    /// Engine side: changes one choice's state and wakes the reader.
    pub(crate) fn update(&self, choice: usize, change: impl FnOnce(&mut Progress)) {
        let mut progress = self.progress.lock();
        change(&mut progress[choice]);
        if self.streamed || progress[choice].finish.is_some() {
            self.notify.notify_one();
        }
    }
}

/// The HTTP side's end. Dropping it before the end aborts the request.
pub(crate) struct Generation {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) pending_aborts: Arc<AtomicUsize>,
    /// What was handed out already, per choice.
    pub(crate) seen: Vec<Progress>,
}

/// New output of one choice.
#[derive(Clone, Debug)]
pub(crate) struct Delta {
    pub(crate) choice: usize,
    /// Output positions that are new.
    pub(crate) range: std::ops::Range<usize>,
    pub(crate) cached: usize,
    pub(crate) finish: Option<Finish>,
}

impl Generation {
    /// Waits for output. Returns every choice's news, in order of choice; empty once all choices have ended.
    ///
    /// Cancel safe: nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self, deltas: &mut Vec<Delta>) {
        deltas.clear();
        if self.is_finished() {
            return;
        }
        loop {
            {
                let progress = self.mailbox.progress.lock();
                for (choice, (now, seen)) in progress.iter().zip(&mut self.seen).enumerate() {
                    if now.tokens != seen.tokens || now.finish != seen.finish {
                        deltas.push(Delta {
                            choice,
                            range: seen.tokens..now.tokens,
                            cached: now.cached,
                            finish: now.finish,
                        });
                        *seen = *now;
                    }
                }
            }
            if !deltas.is_empty() {
                return;
            }
            self.mailbox.notify.notified().await;
        }
    }

    /// True once every choice has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.seen.iter().all(|progress| progress.finish.is_some())
    }

    /// Waits until every choice has ended.
    pub(crate) async fn finished(&mut self) {
        let mut deltas = Vec::new();
        while !self.is_finished() {
            self.next(&mut deltas).await;
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let ended = self.mailbox.progress.lock().iter().all(|progress| progress.finish.is_some());
        if !ended {
            self.mailbox.aborted.store(true, Ordering::Release);
            self.pending_aborts.fetch_add(1, Ordering::AcqRel);
        }
    }
}
