//! The decision log: ended records as JSON lines in a file, which is rotated by size.
//!
//! Data threads put records into a bounded queue; a thread of the log's own looks into it every [`LOOK_EVERY`], so that no
//! request wakes it. A queue that is full, and a file that cannot be written, cost records, which are counted, and nothing
//! else: what is wrong with the file is said once, and it is tried again every [`RETRY_EVERY`].

mod file;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use self::file::LogFile;
use super::{Detail, Record};
use crate::{
    config::{DecisionLog, LoggedPrompts},
    limits,
    telemetry::DecisionLogMetrics,
};

/// How often the queue is looked into.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Pause before a file that could not be opened or written is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Where data threads leave records, and what the writer goes by.
#[derive(Debug)]
pub struct Log {
    is_on: AtomicBool,
    wants_hashes: AtomicBool,
    /// Bits of an `f64`.
    sample: AtomicU64,
    queue: Mutex<Vec<Arc<Record>>>,
    orders: Mutex<Orders>,
    ordered: Condvar,
    metrics: DecisionLogMetrics,
}

/// What the writer is told.
#[derive(Debug)]
struct Orders {
    config: DecisionLog,
    /// The file is to be opened anew.
    reopen: bool,
    stop: bool,
}

impl Log {
    pub(super) fn new(config: &DecisionLog, metrics: DecisionLogMetrics) -> Self {
        let log = Self {
            is_on: AtomicBool::new(false),
            wants_hashes: AtomicBool::new(false),
            sample: AtomicU64::new(0),
            queue: Mutex::default(),
            orders: Mutex::new(Orders { config: config.clone(), reopen: true, stop: false }),
            ordered: Condvar::new(),
            metrics,
        };
        log.heed(config);
        log
    }

    fn heed(&self, config: &DecisionLog) {
        self.wants_hashes.store(config.prompts == LoggedPrompts::Hashes, Relaxed);
        self.sample.store(config.sample.to_bits(), Relaxed);
        self.is_on.store(config.path.is_some(), Relaxed);
    }

    pub(super) fn reopen(&self, config: DecisionLog) {
        self.heed(&config);
        let mut orders = self.orders.lock();
        (orders.config, orders.reopen) = (config, true);
        self.ordered.notify_one();
    }

    /// Whether there is a log.
    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Relaxed)
    }

    /// Whether the next record is one of the sample.
    pub(super) fn takes_one(&self) -> bool {
        self.is_on() && {
            let share = f64::from_bits(self.sample.load(Relaxed));
            share >= 1.0 || fastrand::f64() < share
        }
    }

    pub(super) fn wants_hashes(&self) -> bool {
        self.wants_hashes.load(Relaxed)
    }

    pub(super) fn push(&self, record: Arc<Record>) {
        let mut queue = self.queue.lock();
        if queue.len() < limits::DECISION_LOG_WAITING {
            queue.push(record);
        } else {
            drop(queue);
            self.metrics.dropped.inc();
        }
    }

    /// Starts the thread that writes. To be called once.
    pub fn start(self: &Arc<Self>) -> io::Result<LogThread> {
        let log = self.clone();
        let handle = std::thread::Builder::new()
            .name("decision-log".to_owned())
            .spawn(move || Writer::new(log).run())?;
        Ok(LogThread { log: self.clone(), handle: Some(handle) })
    }
}

/// The thread that writes. Dropped, it writes what is in the queue and ends.
#[derive(Debug)]
pub struct LogThread {
    log: Arc<Log>,
    handle: Option<JoinHandle<()>>,
}

impl Drop for LogThread {
    fn drop(&mut self) {
        self.log.orders.lock().stop = true;
        self.log.ordered.notify_one();
        if let Some(handle) = self.handle.take() {
            let _ = handle.join(); // a panic is in the log
        }
    }
}

struct Writer {
    log: Arc<Log>,
    config: DecisionLog,
    file: Option<LogFile>,
    /// What is wrong with the file was said.
    is_told: bool,
    tried: Option<Instant>,
    batch: Vec<Arc<Record>>,
    text: Vec<u8>,
}

impl Writer {
    fn new(log: Arc<Log>) -> Self {
        let config = log.orders.lock().config.clone();
        Self { log, config, file: None, is_told: false, tried: None, batch: Vec::new(), text: Vec::new() }
    }

    fn run(mut self) {
        loop {
            let stop = self.wait();
            std::mem::swap(&mut self.batch, &mut self.log.queue.lock());
            self.write();
            if stop {
                return;
            }
        }
    }

    /// Until it is time to look, or something else is ordered. Whether this is the end.
    fn wait(&mut self) -> bool {
        let mut orders = self.log.orders.lock();
        if !orders.stop && !orders.reopen {
            if self.config.path.is_none() {
                self.log.ordered.wait(&mut orders);
            } else {
                self.log.ordered.wait_for(&mut orders, LOOK_EVERY);
            }
        }
        if std::mem::take(&mut orders.reopen) {
            self.config = orders.config.clone();
            let stop = orders.stop;
            drop(orders);
            (self.file, self.is_told, self.tried) = (None, false, None);
            self.open();
            return stop;
        }
        orders.stop
    }

    fn open(&mut self) {
        let Some(path) = self.config.path.clone() else { return };
        if self.file.is_some() || self.tried.is_some_and(|tried| tried.elapsed() < RETRY_EVERY) {
            return;
        }
        self.tried = Some(Instant::now());
        match LogFile::open(path) {
            Ok(file) => {
                if std::mem::take(&mut self.is_told) {
                    tracing::info!(path = %file.path().display(), "decision log: written again");
                }
                self.file = Some(file);
            }
            Err(error) => self.complain(&error),
        }
    }

    fn complain(&mut self, error: &io::Error) {
        self.file = None;
        self.log.metrics.is_failing.set(1);
        if !std::mem::replace(&mut self.is_told, true) {
            let path = self.config.path.clone().unwrap_or_default();
            tracing::error!(
                path = %path.display(), %error,
                "decision log: cannot be written, records are lost until it can; requests are not affected"
            );
        }
    }

    /// Writes the batch, a bounded part of it at a time.
    fn write(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        for part in batch.chunks(64) {
            self.open();
            let count = part.len() as u64;
            self.text.clear();
            for record in part {
                // Into memory, and of a type that JSON has: it cannot fail.
                if serde_json::to_writer(&mut self.text, &record.view(Detail::Full)).is_ok() {
                    self.text.push(b'\n');
                }
            }
            let Some(file) = &mut self.file else {
                self.log.metrics.failed.inc_by(count);
                continue;
            };
            match file.append(&self.text, self.config.rotate_bytes, self.config.keep) {
                Ok(()) => {
                    self.log.metrics.is_failing.set(0);
                    self.log.metrics.written.inc_by(count);
                    self.log.metrics.bytes.inc_by(self.text.len() as u64);
                }
                Err(error) => {
                    self.complain(&error);
                    self.log.metrics.failed.inc_by(count);
                }
            }
        }
        self.batch = batch;
        self.batch.clear();
    }
}
