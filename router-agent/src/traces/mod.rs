//! Traces: the way of one request as OpenTelemetry spans, sent to a collector over OTLP.
//!
//! Whether a request is traced is decided at its head: as the client's W3C `traceparent` says, else by the configured share.
//! One that is not costs a look at that. One that is collects plain moments on its data thread ([`Trace`]); when all its
//! guards are gone it goes into a bounded queue, and a thread of its own makes spans of it ([`spans`]) and exports them
//! ([`exporter`]). A queue that is full and a collector that is down cost spans, which are counted, and nothing else.

mod context;
mod exporter;
mod spans;
mod trace;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{config, limits, telemetry::TraceMetrics};

use self::trace::Finished;
pub use self::{
    exporter::ExporterThread,
    trace::{DispatchSpan, Phase, Trace},
};

/// Where data threads leave traces. One for all.
#[derive(Debug)]
pub struct Tracer {
    is_on: AtomicBool,
    /// Bits of an `f64`.
    sample: AtomicU64,
    queue: Mutex<Vec<Finished>>,
    config: Mutex<config::Traces>,
    /// The configuration is another one, or this is the end.
    changed: Notify,
    is_stopping: AtomicBool,
    metrics: TraceMetrics,
}

impl Tracer {
    /// As configured.
    pub fn new(config: &config::Traces, metrics: TraceMetrics) -> Self {
        let tracer = Self {
            is_on: AtomicBool::new(false),
            sample: AtomicU64::new(0),
            queue: Mutex::default(),
            config: Mutex::new(config.clone()),
            changed: Notify::new(),
            is_stopping: AtomicBool::new(false),
            metrics,
        };
        tracer.heed(config);
        tracer
    }

    fn heed(&self, config: &config::Traces) {
        self.sample.store(config.sample.to_bits(), Relaxed);
        self.is_on.store(config.endpoint.is_some(), Relaxed);
    }

    /// Goes on with these settings.
    pub fn reconfigure(&self, config: &config::Traces) {
        self.heed(config);
        *self.config.lock() = config.clone();
        self.changed.notify_one();
    }

    /// The trace of the request with these headers, if it is to have one.
    pub fn begin(self: &Arc<Self>, headers: &HeaderMap) -> Option<Trace> {
        if !self.is_on.load(Relaxed) {
            return None;
        }
        let parent = context::parent(headers);
        let is_sampled = match &parent {
            Some(parent) => parent.is_sampled,
            None => fastrand::f64() < f64::from_bits(self.sample.load(Relaxed)),
        };
        is_sampled.then(|| Trace::begin(self.clone(), parent))
    }

    fn finished(&self, trace: Finished) {
        let mut queue = self.queue.lock();
        if queue.len() < limits::TRACES_WAITING {
            queue.push(trace);
        } else {
            drop(queue);
            self.metrics.dropped.inc();
        }
    }

    fn stop(&self) {
        self.is_stopping.store(true, Relaxed);
        self.changed.notify_one();
    }
}
