//! The account of a request and of each of its tries, kept in guards: whatever way a request goes, it is counted once, and
//! each worker that it was sent to is told apart by how that ended.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use http::{HeaderValue, StatusCode};

use super::{
    Shared,
    cut::{Cut, Cuts},
    disaggregation::Part,
    route::Route,
    usage::UsageTail,
};
use crate::{
    fleet::{Flight, Worker},
    kernel::{
        flows::{Flow, Start},
        now_ns,
    },
    kv_events::Prediction,
    records::{self, End, Usage},
    telemetry::{Metrics, ModelMetrics},
    tenants::Admission,
    traces::{DispatchSpan, Trace},
};

/// One request. Dropped without [`RequestAccount::answered`], its client has left.
pub(super) struct RequestAccount {
    shared: Arc<Shared>,
    route: Route,
    received_at: Instant,
    status: Option<StatusCode>,
    /// None of a request that was refused.
    admission: Option<Admission>,
    /// Of the model that it names, once that is read.
    model: Option<Arc<ModelMetrics>>,
    /// The response's stream, whose events tell what it costs if nothing else does.
    flow: Option<Flow>,
    /// Where the worker may say what it costs.
    usage: Option<UsageTail>,
    /// If it is one of those that are traced.
    trace: Option<Trace>,
    /// Somebody else counts it.
    is_handed_over: bool,
}

impl RequestAccount {
    pub(super) fn new(shared: Arc<Shared>, route: Route, trace: Option<Trace>) -> Self {
        let received_at = Instant::now();
        Self {
            shared,
            route,
            received_at,
            status: None,
            admission: None,
            model: None,
            flow: None,
            usage: None,
            trace,
            is_handed_over: false,
        }
    }

    /// Its trace, if it has one.
    pub(super) fn trace(&self) -> Option<&Trace> {
        self.trace.as_ref()
    }

    /// Gives the account to somebody else; what is left counts nothing.
    pub(super) fn hand_over(&mut self) -> Self {
        let mut left = Self::new(self.shared.clone(), self.route, None);
        left.is_handed_over = true;
        std::mem::replace(self, left)
    }

    /// The request is within its tenant's limits.
    pub(super) fn admitted(&mut self, admission: Admission) {
        self.admission = Some(admission);
    }

    /// The model that it names is served here.
    pub(super) fn names(&mut self, model: Option<Arc<ModelMetrics>>) {
        self.model = model;
    }

    pub(super) fn admission(&mut self) -> Option<&mut Admission> {
        self.admission.as_mut()
    }

    /// A worker's response is about to be passed on; `flow`, if it is an event stream; `is_recorded`, if somebody wants to
    /// know what it costs.
    pub(super) fn responding(&mut self, status: StatusCode, flow: Option<Flow>, is_recorded: bool) {
        if self.admission.is_some() && status.is_success() {
            self.usage = (is_recorded || self.reads_usage()).then(UsageTail::default);
            self.flow = flow;
        }
    }

    /// The end of the response has to be read here, unless its events tell as much.
    pub(super) fn reads_usage(&self) -> bool {
        self.admission.as_ref().is_some_and(|admission| admission.tenant().counts_tokens())
    }

    /// Body data that this process passes on.
    pub(super) fn body_data(&mut self, data: &[u8]) {
        if let Some(usage) = &mut self.usage {
            usage.push(data);
        }
    }

    pub(super) fn route(&self) -> Route {
        self.route
    }

    /// The response is complete, as far as this gateway could make it so.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// What the worker has said that it costs, as far as that could be read.
    pub(super) fn usage(&self) -> Option<Usage> {
        self.usage.as_ref().and_then(UsageTail::usage)
    }
}

impl Drop for RequestAccount {
    fn drop(&mut self) {
        if self.is_handed_over {
            return;
        }
        if let Some(admission) = &mut self.admission {
            let counts = admission.tenant().counts_tokens();
            let tail = self.usage.as_ref().filter(|_| counts);
            let said = tail.and_then(UsageTail::usage).and_then(Usage::total);
            match (self.status, said) {
                (Some(status), _) if !status.is_success() => admission.unserved(),
                (_, Some(tokens)) => admission.used(tokens),
                (_, None) => admission.generated(self.flow.as_ref().map_or(0, Flow::events)),
            }
        }
        let metrics = &self.shared.metrics;
        let is_panic = std::thread::panicking();
        if self.status.is_none() && !is_panic {
            metrics.errors.with_label_values(&["client", "disconnect"]).inc();
        }
        if let Some(trace) = &self.trace {
            trace.answered(self.status, self.usage());
        }
        if let Some(model) = &self.model {
            model.ended(self.status.or_else(|| is_panic.then_some(StatusCode::INTERNAL_SERVER_ERROR)));
        }
        // nginx's 499, "client closed request": not a status that anybody saw.
        let unanswered = if is_panic { "500" } else { "499" };
        let status = self.status.as_ref().map_or(unanswered, StatusCode::as_str);
        let route = self.route.label();
        metrics.requests.with_label_values(&[route, status]).inc();
        metrics.duration.with_label_values(&[route]).observe(self.received_at.elapsed().as_secs_f64());
    }
}

/// Tells those who wait for a worker that there may be a place.
struct Freed(Arc<Shared>);

impl Drop for Freed {
    fn drop(&mut self) {
        self.0.admission.freed(&self.0);
    }
}

/// One try of a request on one worker. Dropped without an outcome, the client has left.
pub(super) struct Attempt {
    shared: Arc<Shared>,
    flight: Flight,
    /// Behind the flight: what it had is free when this is dropped.
    _freed: Freed,
    /// [`now_ns`].
    sent_ns: u64,
    /// What of the request this is.
    part: Part,
    /// What the decision expected of the time to the first token, seconds.
    predicted_s: Option<f64>,
    has_body: bool,
    ended: bool,
    is_event_stream: bool,
    /// Of an event stream, and of what the kernel may move, while there is room.
    flow: Option<Flow>,
    model: Option<Arc<ModelMetrics>>,
    /// Ends with prefill.
    prediction: Option<Prediction>,
    record: Option<records::Open>,
    span: Option<DispatchSpan>,
    cut: Cut,
}

impl Attempt {
    pub(super) fn new(
        shared: Arc<Shared>,
        flight: Flight,
        predicted_s: Option<f64>,
        model: Option<Arc<ModelMetrics>>,
        prediction: Option<Prediction>,
        record: Option<records::Open>,
        cuts: &Cuts,
    ) -> Self {
        let freed = Freed(shared.clone());
        let cut = cuts.list(flight.worker().clone());
        Self {
            shared,
            flight,
            _freed: freed,
            sent_ns: now_ns(),
            part: Part::Whole,
            predicted_s,
            has_body: false,
            ended: false,
            is_event_stream: false,
            flow: None,
            model,
            prediction,
            record,
            span: None,
            cut,
        }
    }

    /// It is a part of the request only.
    pub(super) fn is_part(&mut self, part: Part) {
        self.part = part;
        if matches!(part, Part::Decode { .. }) {
            self.predicted_s = None; // nobody knows how long the transfer takes
        }
    }

    /// When it was sent, by [`now_ns`].
    pub(super) fn sent_ns(&self) -> u64 {
        self.sent_ns
    }

    /// The try has a span of its own; what the worker is told of it.
    pub(super) fn traced(&mut self, trace: &Trace) -> HeaderValue {
        self.span.insert(trace.dispatch(self.flight.worker().address())).traceparent()
    }

    /// Whether its record is wanted.
    pub(super) fn is_recorded(&self) -> bool {
        self.record.is_some()
    }

    /// The head of the worker's answer is here.
    pub(super) fn responded(&mut self, status: StatusCode) {
        if let Some(record) = &mut self.record {
            record.responded(status.as_u16());
        }
    }

    /// The worker has said what it costs.
    pub(super) fn used(&mut self, usage: Option<Usage>) {
        if let (Some(record), Some(usage)) = (&mut self.record, usage) {
            record.used(usage);
        }
    }

    /// How it ends, for its record.
    fn ends(&mut self, end: End, fault: Option<&'static str>) {
        if let Some(record) = &mut self.record {
            record.ends(end, fault);
        }
    }

    pub(super) fn worker(&self) -> &Arc<Worker> {
        self.flight.worker()
    }

    /// Tells when the request is cut off because its worker was dismissed.
    pub(super) fn cut(&self) -> &Cut {
        &self.cut
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// From here on the response is shown among the flows, if there is room for it.
    pub(super) fn follow(&mut self, client: SocketAddr, cookie: u64, is_event_stream: bool) {
        self.is_event_stream = is_event_stream;
        let start = Start { sent_ns: self.sent_ns, is_event_stream };
        self.flow = self.shared.flows.start(self.worker().slot.0.into(), client, cookie, start);
    }

    pub(super) fn flow(&self) -> Option<&Flow> {
        self.flow.as_ref()
    }

    /// Body data is here: a chunk, or a part of one. The first of a stream is the first token: vLLM sends the head at once
    /// and tokens when it has them, so a head says nothing of prefill.
    pub(super) fn body_data(&mut self, data: &[u8]) {
        if let Some(flow) = &self.flow {
            flow.data(data);
        }
        self.flight.said_something();
        self.first_byte();
    }

    /// The first body byte was moved, by whomever.
    pub(super) fn first_byte(&mut self) {
        if !std::mem::replace(&mut self.has_body, true) {
            self.prediction = None;
            if let Some(span) = &mut self.span {
                span.first_byte();
            }
            // The answer of a prefill stage is one token.
            if self.is_event_stream || self.part == Part::Prefill {
                self.first_token();
            } else {
                self.flight.prefilled();
                if let Some(record) = &mut self.record {
                    record.first_byte(now_ns().saturating_sub(self.sent_ns) as f64 / 1e9, false);
                }
            }
            self.shared.admission.freed(&self.shared); // of what waits to be prefilled there is less now
        }
    }

    fn first_token(&mut self) {
        let first_ns = self.flow.as_ref().and_then(Flow::first_byte_ns).unwrap_or_else(now_ns);
        let since = |began_ns: u64| first_ns.saturating_sub(began_ns) as f64 / 1e9;
        let seconds = since(self.sent_ns);
        let whole_s = match self.part {
            Part::Whole => Some(seconds),
            Part::Prefill => None,
            Part::Decode { began_ns, .. } => Some(since(began_ns)),
        };
        if let Part::Decode { tokens, .. } = self.part {
            // It says how long handing over takes, and nothing of this worker's prefill.
            self.flight.prefilled();
            self.shared.fleet.speed().handed_over(tokens, seconds);
            self.shared.metrics.disaggregation.handoff.observe(seconds);
        } else {
            self.flight.first_token(self.sent_ns, first_ns, self.predicted_s);
        }
        if let Some(record) = &mut self.record {
            record.first_byte(seconds, true);
        }
        if let Some(span) = &self.span {
            let id = span.trace().id();
            self.shared.metrics.exemplars.note(&self.worker().name, seconds, id);
        }
        let metrics = &self.worker().metrics;
        metrics.time_to_first_token.observe(seconds);
        if let Some((model, seconds)) = self.model.as_ref().zip(whole_s) {
            model.time_to_first_token.observe(seconds);
        }
        if let Some(predicted) = self.predicted_s {
            metrics.time_to_first_token_error.observe((predicted - seconds).abs());
        }
    }

    /// The whole response is here. A stream that said that its engine failed stays a failure.
    pub(super) fn complete(&mut self, status: StatusCode) {
        if is_load(status) {
            self.reject();
        } else if is_fault(status) {
            self.fail("status");
        } else if !std::mem::replace(&mut self.ended, true) {
            // A 4xx is the client's, and says nothing of the worker.
            if status.is_success() || status.is_redirection() {
                self.flight.succeeded();
            }
            self.worker().metrics.completed.inc();
            self.ends(End::Completed, None);
        }
    }

    /// The worker failed.
    pub(super) fn fail(&mut self, kind: &'static str) {
        if !std::mem::replace(&mut self.ended, true) {
            self.flight.failed();
            self.worker().metrics.failed.inc();
            self.ends(End::Failed, Some(kind));
            self.shared.metrics.errors.with_label_values(&["worker", kind]).inc();
        }
    }

    /// A decode stage came to nothing. Whose fault that is, its worker's, the prefill worker's or the network's between them,
    /// is not known: the breaker is not told.
    pub(super) fn not_handed_over(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.worker().metrics.failed.inc();
            self.ends(End::Failed, Some("handoff"));
            self.shared.metrics.errors.with_label_values(&["worker", "handoff"]).inc();
        }
    }

    /// The worker has too much to do; that is no fault.
    pub(super) fn reject(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.worker().metrics.rejected.inc();
            self.ends(End::Rejected, None);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.ended {
            self.worker().metrics.cancelled.inc();
        }
        if let (Some(record), Some(flow)) =
            (&mut self.record, self.flow.as_ref().filter(|_| self.is_event_stream))
        {
            record.streamed(flow.events());
        }
        if let (Some(span), Some(record)) = (self.span.take(), &self.record) {
            span.end(record.record().clone(), record.outcome());
        }
    }
}

/// Statuses by which a worker says that it failed. 501 and 505 are about what was asked for.
pub(super) fn is_fault(status: StatusCode) -> bool {
    status.is_server_error()
        && !is_load(status)
        && !matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED)
}

/// Statuses that speak of load, not of a fault (429: Too Many Requests, 503: vLLM's queue is full).
pub(super) fn is_load(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}
