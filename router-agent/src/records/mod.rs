//! Records of decisions: what a policy saw of every worker, what it chose, and what became of that.
//!
//! Each try of a request has a record of its own. The data thread that decided makes it, a copy of figures that are in
//! its cache: no formatting, no system call, nobody waits. It ends with the try, in a guard ([`Open`]), whatever way that
//! goes. Who wants records reads them elsewhere: the ring of the last ones ([`Ring`]) and the followers by the admin port,
//! the decision log on a thread of its own ([`log`]). As JSON a record is a [`DecisionRecord`], everywhere the same.
//!
//! A record holds no key and no text of a prompt; hashes of its blocks only where the log asks for them.

mod filter;
pub mod log;
mod record;
mod ring;
mod roster;
mod schema;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::broadcast;

use self::{log::Log, ring::Ring};
use crate::{config, limits, telemetry::RecordMetrics};

pub use self::{
    filter::{Filter, WrongFilter},
    record::{End, Facts, Open, Outcome, Record, Usage},
    roster::{Roster, Rosters},
    schema::{CandidateRecord, DecisionRecord, Detail, OutcomeRecord, SCHEMA, SpeedRecord},
};

/// What followers are sent.
#[derive(Debug, Clone)]
pub enum Event {
    /// A worker was chosen.
    Decided(Arc<Record>),
    /// That try has ended.
    Ended(Arc<Record>),
}

impl Event {
    /// The name of the server-sent event.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Decided(_) => "decided",
            Self::Ended(_) => "ended",
        }
    }

    /// What it is about.
    pub fn record(&self) -> &Arc<Record> {
        match self {
            Self::Decided(record) | Self::Ended(record) => record,
        }
    }
}

/// Takes records in and hands them on. One for all data threads.
#[derive(Debug)]
pub struct Recorder {
    ring: Ring,
    log: Arc<Log>,
    events: broadcast::Sender<Event>,
    followers: AtomicUsize,
    metrics: RecordMetrics,
}

impl Recorder {
    /// As configured.
    pub fn new(config: &config::Config, metrics: RecordMetrics) -> Self {
        let config::Decisions { keep, bytes_max } = config.decisions;
        Self {
            ring: Ring::new(keep, bytes_max),
            log: Arc::new(Log::new(&config.decision_log, metrics.log.clone())),
            events: broadcast::Sender::new(limits::DECISION_EVENTS_WAITING),
            followers: AtomicUsize::new(0),
            metrics,
        }
    }

    /// Goes on with these settings; the log's file is opened anew, whether or not it is another one.
    pub fn reconfigure(&self, config: &config::Config) {
        let config::Decisions { keep, bytes_max } = config.decisions;
        self.ring.resize(keep, bytes_max);
        self.log.reopen(config.decision_log.clone());
    }

    /// The decision log.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// Whether anybody wants records at all.
    pub fn is_wanted(&self) -> bool {
        self.ring.is_on() || self.log.is_on() || self.followers.load(Relaxed) > 0
    }

    /// Begins the record of a decision that somebody wants.
    pub fn open(self: &Arc<Self>, facts: &Facts<'_>) -> Open {
        let is_logged = self.log.takes_one();
        let record = Arc::new(Record::new(facts, is_logged, is_logged && self.log.wants_hashes()));
        self.ring.push(record.clone());
        if self.followers.load(Relaxed) > 0 {
            let _ = self.events.send(Event::Decided(record.clone())); // the last one may just have left
        }
        Open::new(self.clone(), record)
    }

    fn ended(&self, record: Arc<Record>) {
        if self.followers.load(Relaxed) > 0 {
            let _ = self.events.send(Event::Ended(record.clone())); // as above
        }
        if record.is_logged() {
            self.log.push(record);
        }
    }

    /// The newest `limit` records that `filter` lets through, newest first.
    pub fn newest(&self, filter: &Filter, limit: usize) -> Vec<Arc<Record>> {
        self.ring.newest(limit, |record| filter.matches(record))
    }

    /// Sees decisions from now on; none if too many do already.
    pub fn follow(self: &Arc<Self>) -> Option<Follower> {
        let joined = self.followers.fetch_update(Relaxed, Relaxed, |followers| {
            (followers < limits::DECISION_FOLLOWERS_MAX).then_some(followers + 1)
        });
        joined.ok()?;
        self.metrics.followers.inc();
        Some(Follower { events: self.events.subscribe(), recorder: self.clone() })
    }
}

/// One who follows decisions.
#[derive(Debug)]
pub struct Follower {
    events: broadcast::Receiver<Event>,
    recorder: Arc<Recorder>,
}

/// What a follower sees next.
#[derive(Debug, Clone)]
pub enum Seen {
    /// Something happened.
    Event(Event),
    /// The follower was too slow: so many events are gone.
    Lost(u64),
}

impl Follower {
    /// Waits for the next event. The recorder outlives its followers, so there is always one to wait for.
    pub async fn next(&mut self) -> Option<Seen> {
        match self.events.recv().await {
            Ok(event) => Some(Seen::Event(event)),
            Err(broadcast::error::RecvError::Lagged(count)) => {
                self.recorder.metrics.follow_lost.inc_by(count);
                Some(Seen::Lost(count))
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.recorder.followers.fetch_sub(1, Relaxed);
        self.recorder.metrics.followers.dec();
    }
}
