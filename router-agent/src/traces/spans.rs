//! Spans of a finished trace, with the attributes of OpenTelemetry's semantic conventions for HTTP and generative AI, and
//! `warmpath.…` for the decision.
//!
//! ```text
//! POST /v1/chat/completions      server: the whole request
//! ├ admit, receive, parse, tokenize, decide (again with each try)
//! └ chat MODEL                   client: one try on one worker
//!   ├ first-byte                 sent to first byte of the answer
//!   └ relay                      first byte to last
//! ```

use std::time::{Instant, SystemTime};

use opentelemetry::{
    InstrumentationScope, KeyValue, StringValue, Value,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::trace::{Dispatch, Finished};
use crate::records::{End, Usage};

/// Makes the spans of `finished`.
pub(super) fn of(finished: &Finished) -> Vec<SpanData> {
    let maker = Maker { finished, scope: InstrumentationScope::builder("warmpath").build() };
    let mut spans = vec![maker.root()];
    for step in &finished.steps {
        let at = (step.began, step.ended);
        spans.push(maker.span(fastrand::u64(1..), finished.root_id, step.phase.name().into(), at));
    }
    for dispatch in &finished.dispatches {
        spans.extend(maker.dispatch(dispatch));
    }
    spans
}

struct Maker<'a> {
    finished: &'a Finished,
    scope: InstrumentationScope,
}

fn text(key: &'static str, value: &str) -> KeyValue {
    KeyValue::new(key, Value::String(StringValue::from(value.to_owned())))
}

fn number(key: &'static str, value: u64) -> KeyValue {
    KeyValue::new(key, Value::I64(i64::try_from(value).unwrap_or(i64::MAX)))
}

impl Maker<'_> {
    /// By the wall clock, as it was at the beginning.
    fn time(&self, at: Instant) -> SystemTime {
        let (wall, monotonic) = self.finished.started;
        wall + at.saturating_duration_since(monotonic)
    }

    fn span(
        &self,
        id: u64,
        parent: u64,
        name: std::borrow::Cow<'static, str>,
        (began, ended): (Instant, Instant),
    ) -> SpanData {
        let state = self.finished.parent.as_ref().and_then(|parent| parent.state.as_ref()?.to_str().ok());
        let state = state.and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
        SpanData {
            span_context: SpanContext::new(
                TraceId::from(self.finished.trace_id),
                SpanId::from(id),
                TraceFlags::SAMPLED,
                false,
                state,
            ),
            parent_span_id: SpanId::from(parent),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name,
            start_time: self.time(began),
            end_time: self.time(ended),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }

    fn root(&self) -> SpanData {
        let Finished { root_id, ref parent, started, ended, ref method, ref path, route, .. } =
            *self.finished;
        let parent_id = parent.as_ref().map_or(0, |parent| parent.span_id);
        let name = if route == "other" { method.to_string() } else { format!("{method} {path}") };
        let mut span = self.span(root_id, parent_id, name.into(), (started.1, ended));
        span.parent_span_is_remote = parent.is_some();
        span.span_kind = SpanKind::Server;
        let attributes = &mut span.attributes;
        attributes.extend([
            text("http.request.method", method.as_str()),
            text("url.path", path),
            text("warmpath.route", route),
        ]);
        if let Some(id) = &self.finished.request_id {
            attributes.push(text("warmpath.request_id", id));
        }
        if let Some(tenant) = &self.finished.tenant {
            attributes.push(text("warmpath.tenant", tenant));
        }
        match self.finished.status {
            Some(status) => {
                attributes.push(number("http.response.status_code", status.as_u16().into()));
                if status.is_server_error() {
                    attributes.push(text("error.type", status.as_str()));
                    span.status = Status::error("");
                }
            }
            None => attributes.push(text("error.type", "client_left")),
        }
        if let Some(last) = self.finished.dispatches.last() {
            span.attributes
                .extend(last.record.asked_model().map(|model| text("gen_ai.request.model", model)));
        }
        span.attributes.extend(usage(self.finished.usage));
        span
    }

    fn dispatch(&self, dispatch: &Dispatch) -> Vec<SpanData> {
        let Dispatch { span_id, began, first_byte, ended, ref record, ref outcome, .. } = *dispatch;
        let operation = operation(self.finished.route);
        let name = match (operation, record.model()) {
            (Some(operation), Some(model)) => format!("{operation} {model}"),
            (Some(operation), None) => operation.to_owned(),
            (None, _) => self.finished.method.to_string(),
        };
        let mut span = self.span(span_id, self.finished.root_id, name.into(), (began, ended));
        span.span_kind = SpanKind::Client;
        let decision = record.decision();
        span.attributes = vec![
            text("http.request.method", self.finished.method.as_str()),
            text("gen_ai.provider.name", "vllm"),
            text("warmpath.worker", record.worker()),
            text("warmpath.policy", decision.policy.name()),
            text("warmpath.reason", decision.reason.label()),
            text("warmpath.match", record.match_kind()),
            text("warmpath.stage", record.stage()),
            number("warmpath.attempt", record.attempt().into()),
            number("warmpath.candidates", record.candidate_count() as u64),
            number("warmpath.prompt_tokens", record.prompt_tokens().into()),
            number("warmpath.matched_tokens", decision.matched_tokens.into()),
            number("warmpath.new_tokens", decision.new_tokens.into()),
            number("warmpath.cost", decision.cost),
            text("warmpath.end", outcome.end.label()),
        ];
        let attributes = &mut span.attributes;
        attributes.extend(operation.map(|operation| text("gen_ai.operation.name", operation)));
        attributes.extend(record.model().map(|model| text("gen_ai.request.model", model)));
        if let Some(address) = dispatch.address {
            attributes.push(text("server.address", &address.ip().to_string()));
            attributes.push(number("server.port", address.port().into()));
        }
        attributes.extend(record.prefill_worker().map(|worker| text("warmpath.prefill_worker", worker)));
        if let Some(seconds) = decision.time_to_first_token_s {
            attributes.push(KeyValue::new("warmpath.predicted_time_to_first_token_seconds", seconds));
        }
        if let Some(seconds) = outcome.time_to_first_token_s {
            attributes.push(KeyValue::new("gen_ai.response.time_to_first_chunk", seconds));
        }
        if let Some(status) = outcome.status {
            attributes.push(number("http.response.status_code", status.into()));
        }
        attributes.extend(usage(outcome.usage));
        let fault = match outcome.end {
            End::Failed => outcome.fault.or(Some("failed")),
            End::Rejected => Some("rejected"),
            End::Completed | End::Cancelled => None,
        };
        if let Some(fault) = fault {
            attributes.push(text("error.type", fault));
            span.status = Status::error("");
        }
        let mut spans = vec![span];
        if let Some(first_byte) = first_byte {
            let mut child =
                |name: &'static str, at| spans.push(self.span(fastrand::u64(1..), span_id, name.into(), at));
            child("first-byte", (began, first_byte));
            child("relay", (first_byte, ended));
        }
        spans
    }
}

fn usage(usage: Option<Usage>) -> impl Iterator<Item = KeyValue> {
    let usage = usage.unwrap_or_default();
    [
        ("gen_ai.usage.input_tokens", usage.prompt),
        ("gen_ai.usage.output_tokens", usage.completion),
        ("gen_ai.usage.cache_read.input_tokens", usage.cached()),
    ]
    .into_iter()
    .filter_map(|(key, tokens)| Some(number(key, tokens?)))
}

/// `gen_ai.operation.name`.
fn operation(route: &str) -> Option<&'static str> {
    match route {
        "chat" | "responses" | "messages" => Some("chat"),
        "completions" => Some("text_completion"),
        _ => None,
    }
}
