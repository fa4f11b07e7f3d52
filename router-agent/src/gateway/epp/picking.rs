//! From a request's head and body to the workers that it may go to, the best first: the gateway's own steps, up to the one
//! that would send it.

use std::{fmt::Write as _, net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header, request::Parts};

use super::answers::{DESTINATION, HeadEdit};
use crate::{
    fleet::Worker,
    gateway::{
        GatewayError,
        account::{Attempt, RequestAccount},
        bodies::Collected,
        choose::{self, Choice},
        ending::Ending,
        headers::{self, Sender},
        outgoing::Outgoing,
        overrides::Overrides,
        planned::Planned,
        request,
        route::Route,
        shape::Shaped,
        snapshot::Snapshot,
        thread::ThreadContext,
        token_keys::MatchKind,
        tries::Tries,
        wishes::Wishes,
    },
    index::WorkerSlot,
    routing::Decision,
    telemetry::ModelMetrics,
    tenants::{Tenant, X_API_KEY},
    upstream::Hold,
};

/// A request whose head is here.
pub(super) struct Asking {
    pub(super) route: Route,
    /// Until it is planned.
    outgoing: Option<Outgoing>,
    overrides: Overrides,
    pub(super) request_id: HeaderValue,
    pub(super) account: RequestAccount,
    /// Of keys that are for this process and no worker's business.
    has_key: bool,
    shaped: Shaped,
    among: Option<Box<[WorkerSlot]>>,
}

/// A request that was told where to go.
pub(super) struct Picked {
    pub(super) account: RequestAccount,
    pub(super) attempt: Attempt,
    pub(super) decision: Decision,
    match_kind: MatchKind,
    pub(super) tenant: Arc<Tenant>,
    pub(super) shaped: Shaped,
    pub(super) request_id: HeaderValue,
    /// Where it goes, and what its head gets.
    pub(super) endpoints: String,
    pub(super) head: Option<HeadEdit>,
    /// As it goes there.
    pub(super) body: Bytes,
    pub(super) is_edited: bool,
    pub(super) model: Option<Arc<ModelMetrics>>,
    /// Of the response, once its head is here.
    pub(super) status: Option<StatusCode>,
    pub(super) ending: Option<Ending>,
}

impl Asking {
    /// Of a head. `among`: where the data plane lets it go. An error still has the request's account.
    pub(super) fn begin(
        context: &Rc<ThreadContext>,
        config: &Snapshot,
        (peer, is_tls): (SocketAddr, bool),
        parts: Parts,
        among: Option<&[SocketAddr]>,
    ) -> (Self, Result<(), GatewayError>) {
        let shared = &context.shared;
        let route = Route::of(&parts.method, parts.uri.path());
        let admitted = request::admit(context, config, &parts);
        let trace = shared.tracer.begin(&parts.headers);
        let mut account = RequestAccount::new(shared.clone(), route, trace);
        let has_key = admitted.as_ref().is_ok_and(|(.., admission)| admission.tenant().has_key);
        let sender = Sender { ip: peer.ip(), is_tls, is_trusted: true, has_key };
        let Parts { method, uri, headers: fields, .. } = parts;
        let (worker_headers, request_id) = headers::for_worker(fields, sender);
        if let Some(trace) = account.trace() {
            trace.asked(&method, uri.path(), route.label(), &request_id);
        }
        let (wishes, overrides, result) = match admitted {
            Ok((wishes, overrides, admission)) => {
                if let Some(trace) = account.trace() {
                    trace.tenant(&admission.tenant().name);
                }
                account.admitted(admission);
                (wishes, overrides, Ok(()))
            }
            Err(error) => (Wishes::default(), Overrides::default(), Err(error)),
        };
        let workers = shared.fleet.workers();
        let slot = |address: &SocketAddr| {
            workers.iter().find(|worker| worker.address() == Some(*address)).map(|worker| worker.slot)
        };
        let asking = Self {
            route,
            outgoing: Some(Outgoing {
                method,
                uri,
                headers: worker_headers,
                body: Bytes::new(),
                wishes,
                hold: Hold::EventStreams,
            }),
            overrides,
            request_id,
            account,
            has_key,
            shaped: Shaped::default(),
            among: among.map(|addresses| addresses.iter().filter_map(slot).collect()),
        };
        (asking, result)
    }

    /// Chooses. An error gives the account back.
    pub(super) async fn pick(
        mut self,
        context: &Rc<ThreadContext>,
        config: &Snapshot,
        body: Collected,
    ) -> Result<Picked, (Self, GatewayError)> {
        match self.choose(context, config, body).await {
            Ok(chosen) => Ok(self.picked(context, chosen)),
            Err(error) => Err((self, error)),
        }
    }

    async fn choose(
        &mut self,
        context: &Rc<ThreadContext>,
        config: &Snapshot,
        body: Collected,
    ) -> Result<Chosen, GatewayError> {
        let Self { route, outgoing, overrides, request_id, account, shaped, among, .. } = self;
        let shared = &context.shared;
        let before = body.bytes.clone();
        let outgoing = outgoing.take().expect("a request is chosen for once");
        let whose = (*route, &*overrides, &*request_id);
        let mut planned = Planned::of(context, config, whose, outgoing, body, shaped, account).await?;
        planned.plan.among = among.take();
        let bid = planned.prepare(context, config, account).await?;
        let tries = Tries {
            context,
            config,
            route: *route,
            outgoing: &planned.outgoing,
            plan: &planned.plan,
            planning: planned.planning,
            request_id,
            bid,
            began: Instant::now(),
            trace: account.trace(),
        };
        // Nobody to wait for: Envoy is told at once.
        if !tries.wanted(&[], None).is_served(&shared.fleet.workers(), Instant::now()) {
            shared.metrics.queue.refused("no_worker");
            return Err(GatewayError::NoWorker);
        }
        let choice = tries.choose(&[], &mut None).await?;
        let first = choice.flight.worker().clone();
        let tried = [first.slot];
        let more = config.limits.tries.saturating_sub(1);
        let mut others =
            choose::others(shared, &context.scratch, &planned.plan, &tries.wanted(&tried, None), more);
        // The head has one key for all of them.
        others.retain(|other| other.access().authorization == first.access().authorization);
        let model = planned.plan.model_metrics.clone();
        let after = planned.outgoing.body.clone();
        let is_edited = before.as_ptr() != after.as_ptr() || before.len() != after.len();
        Ok(Chosen { choice, first, others, model, body: after, is_edited })
    }

    fn picked(self, context: &Rc<ThreadContext>, chosen: Chosen) -> Picked {
        let Chosen { choice, first, others, model, body, is_edited } = chosen;
        let Choice { flight, decision, match_kind, prediction, record, .. } = choice;
        let predicted_s = decision.time_to_first_token_s;
        let shared = context.shared.clone();
        let mut attempt =
            Attempt::new(shared, flight, predicted_s, model.clone(), prediction, record, &context.cuts);
        let endpoints = std::iter::once(&first).chain(&others).filter_map(|worker| worker.address());
        let endpoints = endpoints.fold(String::new(), |mut text, address| {
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}{address}"); // writing to a String cannot fail
            text
        });
        let mut head = HeadEdit::default();
        let set = &mut head.set;
        set.insert(DESTINATION, HeaderValue::from_str(&endpoints).expect("addresses are a header's value"));
        set.insert(headers::REQUEST_ID, self.request_id.clone());
        if self.has_key {
            head.removed = vec![header::AUTHORIZATION, X_API_KEY];
        }
        if let Some(key) = &first.access().authorization {
            head.removed.retain(|name| name != header::AUTHORIZATION);
            set.insert(header::AUTHORIZATION, key.clone());
        }
        if is_edited {
            set.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        if let Some(trace) = self.account.trace() {
            set.insert(headers::TRACEPARENT, attempt.traced(trace));
        }
        let mut account = self.account;
        let admission = account.admission().expect("only requests that were let in are chosen for");
        let tenant = admission.tenant().clone();
        Picked {
            account,
            attempt,
            decision,
            match_kind,
            tenant,
            shaped: self.shaped,
            request_id: self.request_id,
            endpoints,
            head: Some(head),
            body,
            is_edited,
            model,
            status: None,
            ending: None,
        }
    }
}

/// What was chosen, and of what.
struct Chosen {
    choice: Choice,
    first: Arc<Worker>,
    others: Vec<Arc<Worker>>,
    model: Option<Arc<ModelMetrics>>,
    body: Bytes,
    is_edited: bool,
}

impl Picked {
    /// What a response's head says of the decision.
    pub(super) fn told(&self) -> [(HeaderName, HeaderValue); 6] {
        let text = HeaderValue::from_static;
        [
            (headers::REQUEST_ID, self.request_id.clone()),
            (headers::WORKER, self.attempt.worker().name_header.clone()),
            (headers::POLICY, text(self.decision.policy.name())),
            (headers::REASON, text(self.decision.reason.label())),
            (headers::MATCHED_TOKENS, HeaderValue::from(self.decision.matched_tokens)),
            (headers::MATCH, text(self.match_kind.label())),
        ]
    }
}
