//! One traced request on its data thread: moments, and who is to be told of them when the last guard is gone.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime},
};

use http::{HeaderValue, Method, StatusCode};

use super::{
    Tracer,
    context::{self, Parent},
};
use crate::records::{Outcome, Record, Usage};

/// A step of a request's way that has a span of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Who asks, and whether it may: the head.
    Admit,
    /// The body, to its last byte.
    Receive,
    /// The prompt, read and hashed.
    Parse,
    /// Its token ids.
    Tokenize,
    /// The queue, and the choice of a worker.
    Decide,
}

impl Phase {
    /// The span's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Receive => "receive",
            Self::Parse => "parse",
            Self::Tokenize => "tokenize",
            Self::Decide => "decide",
        }
    }
}

/// A phase that is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) phase: Phase,
    pub(super) began: Instant,
    pub(super) ended: Instant,
}

/// One try on one worker.
#[derive(Debug)]
pub(super) struct Dispatch {
    pub(super) span_id: u64,
    pub(super) address: Option<SocketAddr>,
    pub(super) began: Instant,
    pub(super) first_byte: Option<Instant>,
    pub(super) ended: Instant,
    pub(super) record: Arc<Record>,
    pub(super) outcome: Outcome,
}

/// Everything that spans are made of.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) trace_id: u128,
    pub(super) root_id: u64,
    pub(super) parent: Option<Parent>,
    /// The same moment by two clocks.
    pub(super) started: (SystemTime, Instant),
    pub(super) ended: Instant,
    pub(super) steps: Vec<Step>,
    pub(super) dispatches: Vec<Dispatch>,
    pub(super) method: Method,
    pub(super) path: Box<str>,
    pub(super) route: &'static str,
    pub(super) request_id: Option<Box<str>>,
    pub(super) tenant: Option<Arc<str>>,
    /// None: the client left.
    pub(super) status: Option<StatusCode>,
    pub(super) usage: Option<Usage>,
}

/// A traced request. Its guards share it; with the last one it is finished.
#[derive(Debug, Clone)]
pub struct Trace(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    tracer: Arc<Tracer>,
    so_far: RefCell<Option<Finished>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(mut finished) = self.so_far.take() {
            finished.ended = Instant::now();
            self.tracer.finished(finished);
        }
    }
}

/// A number that is not zero, which would be invalid.
fn id() -> u64 {
    fastrand::u64(1..)
}

impl Trace {
    pub(super) fn begin(tracer: Arc<Tracer>, parent: Option<Parent>) -> Self {
        let now = Instant::now();
        let finished = Finished {
            trace_id: parent.as_ref().map_or_else(|| fastrand::u128(1..), |parent| parent.trace_id),
            root_id: id(),
            parent,
            started: (SystemTime::now(), now),
            ended: now,
            steps: Vec::with_capacity(8),
            dispatches: Vec::with_capacity(1),
            method: Method::GET,
            path: Box::default(),
            route: "",
            request_id: None,
            tenant: None,
            status: None,
            usage: None,
        };
        Self(Rc::new(Inner { tracer, so_far: RefCell::new(Some(finished)) }))
    }

    fn note(&self, note: impl FnOnce(&mut Finished)) {
        if let Some(finished) = self.0.so_far.borrow_mut().as_mut() {
            note(finished);
        }
    }

    /// What is asked for.
    pub fn asked(&self, method: &Method, path: &str, route: &'static str, request_id: &HeaderValue) {
        self.note(|finished| {
            finished.method = method.clone();
            finished.path = path.into();
            finished.route = route;
            finished.request_id = request_id.to_str().ok().map(Box::from);
        });
    }

    /// Who asks.
    pub fn tenant(&self, tenant: &Arc<str>) {
        self.note(|finished| finished.tenant = Some(tenant.clone()));
    }

    /// A phase that began then is over.
    pub fn step(&self, phase: Phase, began: Instant) {
        self.note(|finished| finished.steps.push(Step { phase, began, ended: Instant::now() }));
    }

    /// What the client was answered.
    pub fn answered(&self, status: Option<StatusCode>, usage: Option<Usage>) {
        self.note(|finished| (finished.status, finished.usage) = (status, usage));
    }

    /// Whether the client had a `traceparent` that could be used; without it its `tracestate` says nothing.
    pub fn has_parent(&self) -> bool {
        self.0.so_far.borrow().as_ref().is_some_and(|finished| finished.parent.is_some())
    }

    /// The request is sent to a worker.
    pub fn dispatch(&self, address: Option<SocketAddr>) -> DispatchSpan {
        DispatchSpan { trace: self.clone(), span_id: id(), address, began: Instant::now(), first_byte: None }
    }

    /// For exemplars, 32 hexadecimal digits.
    pub fn id(&self) -> u128 {
        self.0.so_far.borrow().as_ref().map_or(0, |finished| finished.trace_id)
    }
}

/// A try under way.
#[derive(Debug)]
pub struct DispatchSpan {
    trace: Trace,
    span_id: u64,
    address: Option<SocketAddr>,
    began: Instant,
    first_byte: Option<Instant>,
}

impl DispatchSpan {
    /// What the worker is told of it: its `traceparent`.
    pub fn traceparent(&self) -> HeaderValue {
        context::traceparent(self.trace.id(), self.span_id)
    }

    /// The trace that it belongs to.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// The body's first byte has come.
    pub fn first_byte(&mut self) {
        self.first_byte = Some(Instant::now());
    }

    /// The try is over.
    pub fn end(self, record: Arc<Record>, outcome: Outcome) {
        let Self { trace, span_id, address, began, first_byte } = self;
        let ended = Instant::now();
        trace.note(|finished| {
            finished.dispatches.push(Dispatch {
                span_id,
                address,
                began,
                first_byte,
                ended,
                record,
                outcome,
            });
        });
    }
}
