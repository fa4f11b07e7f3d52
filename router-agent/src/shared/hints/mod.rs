//! Prefix hints: which worker has which prefix, as far as any gateway has sent it there.
//!
//! A block's hash names the whole prefix that it ends, so a worker that was sent a prompt is written down under the hashes
//! of a few of its blocks only ([`marks`]): the sorted set `PREFIXp:HASH` has the URLs of the workers that were sent that
//! prefix last, with the second of it. A request whose prefix this gateway does not know well is looked up by the marks of
//! its own prompt, in one round trip. What is found counts as the mark's number of blocks, which is never more than what was
//! sent, and is called a hint wherever the decision is shown.
//!
//! A hint is dropped that is older than `ttl`, or older than the last time that the worker's cache was seen to be empty.

mod marks;
mod read;
mod write;

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::SharedState;
use crate::{
    fleet::{Breaker, Outcome, Worker},
    index::WorkerSlot,
    limits::{SHARED_HINT_READS_MAX, SHARED_HINTS_WAITING},
    telemetry::{HintOutcome, SharedCondition, SharedOutcome, SharedUse},
};

pub(super) use self::{read::answer, write::write};

/// A prefix is known well enough here if some worker has this share of its blocks (numerator, denominator).
const STRONG_MATCH: (usize, usize) = (3, 4);
/// One prompt in so many is written down whole, so that what everybody begins with does not expire while it is used.
const REFRESH_ONE_IN: u32 = 32;

/// Leading blocks of a prompt by worker, as others say.
pub type Hinted = Vec<(WorkerSlot, u32)>;

/// What data threads leave for the thread that speaks with the server.
#[derive(Debug)]
pub(super) struct Hints {
    asks: mpsc::Sender<Ask>,
    notes: Mutex<Notes>,
    /// Whether looking for hints is worth while now.
    breaker: Breaker,
}

/// A look for hints.
#[derive(Debug)]
pub(super) struct Ask {
    /// Blocks, and the hash of the last of them; the shortest first.
    marks: Vec<(u32, u64)>,
    reply: oneshot::Sender<Hinted>,
}

/// What is to be written.
#[derive(Debug, Default)]
struct Notes {
    waiting: Vec<(Arc<Worker>, Vec<u64>)>,
    marks: usize,
}

impl Hints {
    /// With the other end of the asks.
    pub(super) fn new() -> (Self, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(SHARED_HINT_READS_MAX);
        (Self { asks, notes: Mutex::default(), breaker: Breaker::new(read::BREAKER) }, asked)
    }
}

impl SharedState {
    /// What other gateways say of a prompt whose longest match here is `best` blocks. Empty where nobody says anything, it
    /// is known well enough here, or there is no answer in time.
    pub async fn hints(&self, hashes: &[u64], best: u32) -> Hinted {
        let Some(hints) = &self.hints else { return Hinted::new() };
        let (share, of) = STRONG_MATCH;
        if best as usize * of >= hashes.len() * share {
            return Hinted::new();
        }
        let marks: Vec<_> = marks::of(hashes).filter(|(blocks, _)| *blocks > best).collect();
        if marks.is_empty() {
            return Hinted::new();
        }
        let metrics = &self.metrics.shared;
        let now = std::time::Instant::now();
        let is_there = matches!(self.condition(), SharedCondition::Up | SharedCondition::Full);
        if !is_there || !hints.breaker.admits(now) {
            metrics.count(SharedUse::HintRead, SharedOutcome::Dropped);
            metrics.looked(HintOutcome::Unknown);
            return Hinted::new();
        }
        let (reply, answer) = oneshot::channel();
        if hints.asks.try_send(Ask { marks, reply }).is_err() {
            metrics.count(SharedUse::HintRead, SharedOutcome::Dropped);
            metrics.looked(HintOutcome::Unknown);
            return Hinted::new();
        }
        let role = hints.breaker.begin(now);
        let limit = self.settings.hints.deadline;
        let hinted = tokio::time::timeout(limit, answer).await.ok().and_then(Result::ok);
        let verdict = if hinted.is_some() { Outcome::Success } else { Outcome::Fault };
        hints.breaker.ended(role, verdict, std::time::Instant::now());
        metrics.looked(match &hinted {
            None => HintOutcome::Unknown,
            Some(hinted) if hinted.is_empty() => HintOutcome::Nothing,
            Some(_) => HintOutcome::Found,
        });
        hinted.unwrap_or_default()
    }

    /// A prompt of these blocks was sent to the worker, of which this gateway knew the first `known` to be there.
    pub fn sent(&self, worker: &Arc<Worker>, hashes: &[u64], known: u32) {
        let Some(hints) = &self.hints else { return };
        let known = if fastrand::u32(..REFRESH_ONE_IN) == 0 { 0 } else { known };
        let new: Vec<u64> =
            marks::of(hashes).filter(|(blocks, _)| *blocks > known).map(|(_, hash)| hash).collect();
        if new.is_empty() {
            return;
        }
        let mut notes = hints.notes.lock();
        if notes.marks + new.len() > SHARED_HINTS_WAITING {
            drop(notes);
            self.metrics.shared.count(SharedUse::HintWrite, SharedOutcome::Dropped);
            return;
        }
        notes.marks += new.len();
        notes.waiting.push((worker.clone(), new));
    }

    fn hint_key(&self, hash: u64) -> String {
        format!("{}p:{hash:016x}", self.settings.key_prefix)
    }
}

/// Seconds since 1970: what hints are dated by.
fn now_s() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
