//! One stream, followed: every number in order, what is missing asked for, and nothing claimed that cannot be known.
//!
//! | what is seen | what is done |
//! |---|---|
//! | connected | ask for what was published since the last message, that one included: if it is not the same any longer, it is another process, whose history is read from its start |
//! | the next number | apply |
//! | a number too high | ask for what is between; not to be had: forget the worker's blocks and go on from here, state `gap` |
//! | a number too low | another process behind the same connection: as when connected |
//! | a scrape that does not fit | see [`super::vigil`] |
//!
//! The state is `exact` while the history is complete: from number 0, or from an `AllBlocksCleared`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    checker::Checker,
    live::{ConnectionId, Live},
    mirror::Mirror,
    replay::{Replay, ReplayError, number_and_payload},
    states::RankState,
    vigil::{Emptied, Vigil},
    wire::{self, Event},
    zmtp::Endpoint,
};
use crate::{
    fleet::{KvFacts, KvState, Worker},
    telemetry::KvWorkerMetrics,
};

/// Pauses between tries of a replay that was not answered.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// Follows one rank of one worker.
pub(super) struct Follower {
    pub(super) worker: Arc<Worker>,
    pub(super) mirror: Arc<Mutex<Mirror>>,
    pub(super) metrics: KvWorkerMetrics,
    pub(super) checker: Option<Checker>,
    pub(super) state: RankState,
    pub(super) rank: u32,
    pub(super) replay: Option<Endpoint>,
    pub(super) live: mpsc::Receiver<Live>,
    pub(super) position: Position,
}

/// How far the stream has been read.
#[derive(Default)]
pub(super) struct Position {
    connection: Option<ConnectionId>,
    /// The last message applied.
    last: Option<Last>,
    /// Whether nothing is missing before it.
    is_complete: bool,
    /// Since the last replay a message has come in its turn: what comes with a lower number is no longer one that the
    /// replay had, too.
    is_settled: bool,
    messages: u64,
    vigil: Vigil,
    retry: Option<(Instant, Duration)>,
}

struct Last {
    number: u64,
    /// Of the payload, which begins with the time: no other process has the same.
    digest: u64,
}

/// What a replay gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CaughtUp {
    /// The stream goes on from the last message.
    Continued,
    /// It was read from its start.
    FromStart,
    /// It was read from as far back as the worker could.
    Cut,
    /// Nothing.
    No,
}

impl Follower {
    /// Follows until the live side is gone.
    pub(super) async fn run(mut self) {
        let mut scrapes = self.worker.kv_cache.scrapes();
        self.state.set(KvState::Connecting);
        loop {
            let retry_at = self.position.retry.map(|(at, _)| at);
            tokio::select! {
                live = self.live.recv() => match live {
                    Some(live) => self.on_live(live).await,
                    None => return,
                },
                changed = scrapes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let facts = scrapes.borrow_and_update().clone();
                    if let Some(facts) = facts {
                        self.on_scrape(&facts).await;
                    }
                }
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    self.position.last = None;
                    self.catch_up().await;
                    self.say_state();
                }
            }
        }
    }

    async fn on_live(&mut self, live: Live) {
        match live {
            Live::Connected(id) => {
                self.position.connection = Some(id);
                self.state.set(KvState::CatchingUp);
                self.catch_up().await;
                self.say_state();
            }
            Live::Disconnected(id) if self.position.connection == Some(id) => {
                self.position.connection = None;
                self.state.set(KvState::Connecting);
            }
            Live::Message(id, frames) if self.position.connection == Some(id) => {
                self.on_message(&frames).await;
            }
            Live::Disconnected(_) | Live::Message(..) => {} // of a connection that another has replaced
        }
    }

    async fn on_message(&mut self, frames: &[Bytes]) {
        let Some((number, payload)) = number_and_payload(frames) else {
            self.metrics.undecodable.inc();
            return;
        };
        match self.position.last.as_ref().map(|last| last.number) {
            None if number == 0 => {
                self.position.is_complete = true;
                self.position.vigil.start_over(true);
                self.accept(number, payload);
            }
            None => self.close_gap(number, payload).await,
            Some(last) if number == last + 1 => {
                self.position.is_settled = true;
                self.accept(number, payload);
            }
            Some(last) if number > last => self.close_gap(number, payload).await,
            Some(_) if !self.position.is_settled => {} // the replay had it
            Some(_) => {
                self.catch_up().await;
            }
        }
        self.say_state();
    }

    async fn close_gap(&mut self, number: u64, payload: &Bytes) {
        let caught_up = self.catch_up().await;
        let last = self.position.last.as_ref().map(|last| last.number);
        let reached = last.is_some_and(|last| last + 1 >= number);
        if matches!(caught_up, CaughtUp::Continued | CaughtUp::FromStart) && reached {
            self.metrics.gaps_repaired.inc();
        } else {
            self.metrics.gaps_unrepaired.inc();
            tracing::warn!(worker = %self.worker.name, number, "KV events are missing and could not be had again");
        }
        if !reached {
            self.forget();
            self.accept(number, payload);
        } else if last.is_some_and(|last| last + 1 == number) {
            self.accept(number, payload);
        }
    }

    /// Asks for what was published since the last message, or from the start.
    async fn catch_up(&mut self) -> CaughtUp {
        self.position.is_settled = false;
        let Some(endpoint) = self.replay.clone() else {
            self.forget();
            return CaughtUp::No;
        };
        let result = self.replayed(&endpoint).await;
        match &result {
            Ok(CaughtUp::Cut) => self.metrics.replays_cut.inc(),
            Ok(_) => self.metrics.replays_complete.inc(),
            Err(error) => {
                self.metrics.replays_failed.inc();
                tracing::warn!(worker = %self.worker.name, %endpoint, %error, "KV events: no replay");
                self.forget();
                let pause =
                    self.position.retry.map_or(RETRY_FIRST, |(_, pause)| (pause * 2).min(RETRY_LONGEST));
                self.position.retry = Some((Instant::now() + pause, pause));
                return CaughtUp::No;
            }
        }
        self.position.retry = None;
        result.unwrap_or(CaughtUp::No)
    }

    async fn replayed(&mut self, endpoint: &Endpoint) -> Result<CaughtUp, ReplayError> {
        if let Some(last) = &self.position.last {
            let mut replay = Replay::open(endpoint, last.number).await?;
            match replay.next().await? {
                Some((number, payload)) if number == last.number && xxh3_64(&payload) == last.digest => {
                    return self.take(replay, CaughtUp::Continued).await;
                }
                // Too long ago for the worker to have it; or another process, that has come farther.
                Some((number, payload)) if number > last.number => {
                    self.forget();
                    self.accept(number, &payload);
                    return self.take(replay, CaughtUp::Cut).await;
                }
                _ => {
                    tracing::info!(worker = %self.worker.name, "KV events begin anew: its cache is forgotten");
                    self.metrics.cleared_restart.inc();
                    self.mirror.lock().clear(self.rank);
                }
            }
        }
        self.forget();
        let mut replay = Replay::open(endpoint, 0).await?;
        match replay.next().await? {
            None => {
                self.position.is_complete = true;
                self.position.vigil.start_over(true);
                Ok(CaughtUp::FromStart)
            }
            Some((number, payload)) => {
                self.position.is_complete = number == 0;
                self.position.vigil.start_over(number == 0);
                self.accept(number, &payload);
                let so_far = if number == 0 { CaughtUp::FromStart } else { CaughtUp::Cut };
                self.take(replay, so_far).await
            }
        }
    }

    /// Applies the rest of a replay.
    async fn take(&mut self, mut replay: Replay, mut so_far: CaughtUp) -> Result<CaughtUp, ReplayError> {
        while let Some((number, payload)) = replay.next().await? {
            let expected = self.position.last.as_ref().map_or(0, |last| last.number + 1);
            if number < expected {
                continue;
            }
            if number > expected {
                self.forget();
                so_far = CaughtUp::Cut;
            }
            self.accept(number, &payload);
        }
        Ok(so_far)
    }

    /// Applies the message that is next.
    fn accept(&mut self, number: u64, payload: &Bytes) {
        self.position.messages += 1;
        self.position.last = Some(Last { number, digest: xxh3_64(payload) });
        let batch = match wire::decode(payload) {
            Ok(batch) => batch,
            Err(error) => {
                tracing::warn!(worker = %self.worker.name, number, %error, "KV events cannot be read");
                self.metrics.undecodable.inc();
                self.forget_blocks();
                return;
            }
        };
        self.metrics.batches.inc();
        self.metrics.undecodable.inc_by(batch.undecodable.into());
        for event in &batch.events {
            if let (Event::Stored(stored), Some(checker)) = (event, &mut self.checker) {
                checker.check(stored);
            }
            if *event == Event::Cleared {
                self.position.is_complete = true;
                self.position.vigil.heard_clear();
            }
            if self.mirror.lock().apply(self.rank, event).is_err() {
                tracing::warn!(worker = %self.worker.name, "KV events add up to more blocks than there are: forgotten");
                self.metrics.cleared_overflow.inc();
                self.forget_blocks();
            }
        }
    }

    /// Nothing that was known is certain any longer, nor where the stream stands.
    fn forget(&mut self) {
        self.position.last = None;
        self.position.vigil.missed_messages();
        self.forget_blocks();
    }

    fn forget_blocks(&mut self) {
        self.position.is_complete = false;
        self.mirror.lock().forget(self.rank);
    }

    async fn on_scrape(&mut self, facts: &KvFacts) {
        if let Some(blocks) = facts.blocks {
            self.mirror.lock().set_physical_max(blocks * facts.computed_tokens.len().max(1) as u64);
        }
        let block_tokens = facts.block_tokens.unwrap_or(1);
        let position = &mut self.position;
        let verdict = position.vigil.scraped(facts, self.rank as usize, position.messages, block_tokens);
        if let Some(emptied) = verdict.emptied {
            match emptied {
                Emptied::Asleep => self.metrics.cleared_asleep.inc(),
                Emptied::Reset => self.metrics.cleared_by_scrape.inc(),
                Emptied::ResetUnheard => {
                    self.metrics.cleared_by_scrape.inc();
                    self.position.is_complete = false;
                }
            }
            tracing::info!(worker = %self.worker.name, ?emptied, "KV events: its cache is forgotten");
            self.mirror.lock().clear(self.rank);
            if self.state.get().is_sound() {
                self.say_state();
            }
        }
        if verdict.probe && self.position.connection.is_some() {
            let before = self.position.messages;
            if self.replay.is_some()
                && self.catch_up().await == CaughtUp::Continued
                && self.position.messages > before
            {
                self.metrics.gaps_repaired.inc();
            }
            if verdict.silent && self.position.messages <= before {
                self.state.set(KvState::Silent);
            } else if self.state.get() != KvState::Silent || self.position.messages > before {
                self.say_state();
            }
        }
    }

    /// How things stand while connected.
    fn say_state(&self) {
        if self.position.connection.is_some() {
            self.state.set(if self.position.is_complete { KvState::Exact } else { KvState::Gap });
        }
    }
}
