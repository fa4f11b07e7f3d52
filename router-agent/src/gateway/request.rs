//! The way of one request: identify → body → shape → parse → (cache) → tokens → (queue → decide → send) → relay → account.
//! From the tokens on see [`super::planned`]; what is in the last brackets may happen more than once ([`super::tries`]).

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpStream;

use super::{
    GatewayError,
    account::RequestAccount,
    body,
    cached::{self, Crew},
    client_io::ClientSocket,
    conformance,
    ending::Ending,
    headers::{self, Sender},
    identify::{identify, set_standings},
    models,
    outgoing::Outgoing,
    overrides::Overrides,
    planned::Planned,
    raw::{self, Ledger, Plan, RawRelay},
    relay::{GatewayBody, Relay},
    route::Route,
    shape::Shaped,
    shared_body::SharedBody,
    snapshot::Snapshot,
    thread::ThreadContext,
    tries::Answer,
    wishes::Wishes,
};
use crate::{
    cache::{Found, Head, Reader},
    config::{self, Config},
    kernel::{self, Relays},
    routing::Decision,
    tenants::Admission,
    traces::Phase,
    upstream,
};

/// Who asks, and over which connection.
pub(super) struct Client {
    pub(super) address: SocketAddr,
    pub(super) end: End,
}

/// A client's end of its connection.
#[derive(Clone)]
pub(super) enum End {
    /// HTTP/1 stands on the wire as it is.
    Plain(Rc<ClientSocket>),
    /// It is coded, as HTTP/2 or by TLS: only this process can write to it.
    Coded {
        /// The kernel's number for the socket; 0 if it has none.
        cookie: u64,
        is_tls: bool,
    },
}

impl End {
    pub(super) fn coded(stream: &TcpStream, is_tls: bool) -> Self {
        Self::Coded { cookie: kernel::socket_cookie(stream).unwrap_or(0), is_tls }
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Coded { is_tls: true, .. })
    }

    /// Where the kernel could write a body.
    fn socket(&self) -> Option<&Rc<ClientSocket>> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Coded { .. } => None,
        }
    }

    pub(super) fn cookie(&self) -> u64 {
        match self {
            Self::Plain(socket) => socket.cookie(),
            Self::Coded { cookie, .. } => *cookie,
        }
    }
}

/// Answers one request, always: an error becomes an OpenAI error object.
pub(super) async fn handle(
    context: &Rc<ThreadContext>,
    client: Client,
    request: Request<Incoming>,
) -> Response<GatewayBody> {
    let config = context.config();
    let (parts, body) = request.into_parts();
    let trace = context.shared.tracer.begin(&parts.headers).map(|trace| (trace, Instant::now()));
    let admitted = conformance::check(&parts).and_then(|()| admit(context, &config, &parts));
    let Parts { method, uri, version, headers: mut client_headers, .. } = parts;
    headers::set_authority(&mut client_headers, &uri);
    let route = Route::of(&method, uri.path());
    if let Some(socket) = client.end.socket() {
        socket.set_ends_with_connection(version < Version::HTTP_11);
    }
    if let Some((trace, began)) = &trace {
        trace.step(Phase::Admit, *began);
        if !trace.has_parent() {
            client_headers.remove(headers::TRACEPARENT);
            client_headers.remove(headers::TRACESTATE);
        }
    }
    let trace = trace.map(|(trace, _)| trace);
    let mut account = RequestAccount::new(context.shared.clone(), route, trace);
    let sender = Sender {
        ip: client.address.ip(),
        is_tls: client.end.is_tls(),
        is_trusted: config.is_trusted_proxy(client.address.ip()),
        has_key: admitted.as_ref().is_ok_and(|(.., admission)| admission.tenant().has_key),
    };
    let (worker_headers, request_id) = headers::for_worker(client_headers, sender);
    if let Some(trace) = account.trace() {
        trace.asked(&method, uri.path(), route.label(), &request_id);
    }
    // Chunked framing as the worker's is for HTTP/1.1; a body there must be for the kernel to move it.
    let raw = version == Version::HTTP_11 && method != Method::HEAD && route != Route::Other;
    let raw = raw && client.end.socket().is_some() && fastrand::f64() >= config.relay.sample;
    let relays = Some(&context.shared.relays).filter(|relays| raw && relays.are_on());
    let outgoing = Outgoing {
        method,
        uri: origin_form(&uri),
        headers: worker_headers,
        body: Bytes::new(),
        wishes: admitted.as_ref().map(|(wishes, ..)| *wishes).unwrap_or_default(),
        hold: relays.map_or(upstream::Hold::EventStreams, |_| raw::hold(&config.relay)),
    };

    let (mut tenant, mut may_go_on, mut shaped) = (None, true, Shaped::default());
    let answered = match admitted {
        Err(error) => {
            may_go_on = body::discard(body, config.timeouts.body_idle).await;
            Err(error)
        }
        Ok((_, overrides, admission)) => {
            let asking = tenant.insert(admission.tenant().clone());
            if let Some(trace) = account.trace() {
                trace.tenant(&asking.name);
            }
            account.admitted(admission);
            let list = || models::list(&context.shared.fleet, &config.aliases, asking);
            if let Some(list) = outgoing.lists_models().then(list).flatten() {
                Ok(Answered::Here(list))
            } else {
                let asked = Asked { client: &client, route, overrides, body, request_id: &request_id };
                answer(context, &config, asked, outgoing, &mut shaped, &mut account).await
            }
        }
    };
    let mut response = match answered {
        Ok(Answered::Here(response)) => {
            account.answered(response.status());
            response.map(GatewayBody::own)
        }
        Ok(Answered::Worker(answer)) => {
            answer.log(route, &request_id);
            answer.relay(context, &config.relay, &client, relays, account)
        }
        Ok(Answered::Shared(head, reader)) => {
            let mut response = Response::new(());
            *response.status_mut() = head.status;
            response.headers_mut().clone_from(&head.headers);
            response.map(|()| GatewayBody::shared(SharedBody::new(reader, &head, account)))
        }
        Err(error) => {
            not_served(context, &error, &request_id, &mut account);
            error.response(route).map(GatewayBody::own)
        }
    };
    let headers = response.headers_mut();
    headers.insert(headers::REQUEST_ID, request_id);
    shaped.tell(headers);
    if let Some(tenant) = tenant {
        set_standings(headers, tenant.standings(Instant::now()));
    }
    if version == Version::HTTP_2 {
        headers.remove(header::CONNECTION); // of one stream, it would say nothing
    } else if !may_go_on {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What a head says for itself: what its sender wishes and decides, and whether it may ask at all.
pub(super) fn admit(
    context: &ThreadContext,
    config: &Config,
    parts: &Parts,
) -> Result<(Wishes, Overrides, Admission), GatewayError> {
    let wishes = Wishes::read(&parts.headers, Instant::now())?;
    let admission = identify(&context.shared.tenants, parts)?;
    let allowed = admission.tenant().overrides(config.overrides);
    Ok((wishes, Overrides::read(&parts.headers, allowed)?, admission))
}

/// Counts a request that this gateway answers with an error, and says so where it is not the client's.
pub(super) fn not_served(
    context: &ThreadContext,
    error: &GatewayError,
    request_id: &HeaderValue,
    account: &mut RequestAccount,
) {
    let metrics = &context.shared.metrics;
    metrics.errors.with_label_values(&[error.source_label(), error.kind()]).inc();
    if error.source_label() != "client" {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::warn!(?request_id, %error, cause, "request not served");
    }
    account.answered(error.status());
}

/// Who has the answer.
enum Answered {
    /// The gateway itself.
    Here(Response<Full<Bytes>>),
    Worker(Box<Answer>),
    /// A worker, and others get it, too.
    Shared(Arc<Head>, Reader),
}

/// What a client asks, as far as it is not sent as it is.
struct Asked<'a> {
    client: &'a Client,
    route: Route,
    overrides: Overrides,
    body: Incoming,
    request_id: &'a HeaderValue,
}

async fn answer(
    context: &Rc<ThreadContext>,
    config: &Rc<Snapshot>,
    Asked { client, route, overrides, body, request_id }: Asked<'_>,
    outgoing: Outgoing,
    shaped: &mut Shaped,
    account: &mut RequestAccount,
) -> Result<Answered, GatewayError> {
    let shared = &context.shared;
    let trace = account.trace().cloned();
    let receiving = Instant::now();
    let bounds = body::Bounds {
        bytes_max: config.limits.body_bytes,
        all_bytes_max: config.limits.bodies_bytes,
        idle_timeout: config.timeouts.body_idle,
    };
    let collected = body::collect(body, &shared.bodies, bounds).await.inspect_err(|error| {
        if matches!(error, GatewayError::BodiesTooLarge { .. }) {
            shared.metrics.queue.refused(error.kind());
        }
    })?;
    if let Some(trace) = &trace {
        trace.step(Phase::Receive, receiving);
    }
    let planned =
        Planned::of(context, config, (route, &overrides, request_id), outgoing, collected, shaped, account)
            .await?;

    let tenant = account.admission().expect("only requests that were let in are answered").tenant().clone();
    if let Some((outcome, found)) = cached::seek(shared, config, &tenant, &planned) {
        shaped.cached(shared, outcome);
        match found {
            None => {}
            Some(Found::Hit(entry)) => return Ok(Answered::Here(cached::replay(shared, &entry))),
            Some(Found::Follow(reader)) => {
                if let Some(head) = cached::head(&reader, planned.outgoing.wishes.deadline).await? {
                    return Ok(Answered::Shared(head, reader));
                }
                // What it followed has no answer for it: it goes on by itself.
            }
            Some(Found::Lead(driver, reader)) => {
                let client = Client { address: client.address, end: client.end.clone() };
                let (request_id, account) = (request_id.clone(), account.hand_over());
                let failure =
                    cached::fly(context, config, Crew { driver, planned, request_id, account, client });
                return match cached::head(&reader, None).await? {
                    Some(head) => Ok(Answered::Shared(head, reader)),
                    None => Err(failure.await.unwrap_or(GatewayError::Panicked)),
                };
            }
        }
    }
    // Boxed: a request that is answered here needs no room for it.
    let answer = Box::pin(planned.send(context, config, request_id, account)).await?;
    Ok(Answered::Worker(Box::new(answer)))
}

impl Answer {
    /// One line per routed request, with `WARMPATH_LOG=debug`.
    pub(super) fn log(&self, route: Route, request_id: &HeaderValue) {
        let Decision { reason, matched_tokens, new_tokens, cost, runner_up, .. } = self.decision;
        tracing::debug!(
            ?request_id,
            route = route.label(),
            worker = %self.attempt.worker().name,
            prefill_worker = self.handed.as_ref().map(|handed| handed.worker.name.as_str()),
            status = self.sent.response.status().as_u16(),
            %reason,
            matched_tokens,
            matched = self.match_kind.label(),
            new_tokens,
            cost,
            ?runner_up,
            "routed"
        );
    }

    /// The worker's response with our headers, its body relayed.
    pub(super) fn relay(
        self,
        context: &ThreadContext,
        config: &config::Relay,
        client: &Client,
        relays: Option<&Relays>,
        mut account: RequestAccount,
    ) -> Response<GatewayBody> {
        let Self { sent: upstream::Sent { response, lease }, mut attempt, decision, match_kind, handed } =
            self;
        let (mut parts, body) = response.into_parts();
        let is_event_stream = upstream::is_event_stream(&parts.headers);
        // Of others, hyper has read more than the head already.
        let may_go_raw =
            is_event_stream || (raw::hold(config) == upstream::Hold::All && !account.reads_usage());
        let relays = relays.filter(|_| may_go_raw);
        let raw = relays.zip(Plan::of(parts.status, parts.version, &parts.headers, is_event_stream));

        if is_event_stream || raw.is_some() {
            attempt.follow(client.address, client.end.cookie(), is_event_stream);
        }

        parts.version = Version::HTTP_11;
        headers::strip(&mut parts.headers);
        parts.headers.insert(headers::WORKER, attempt.worker().name_header.clone());
        parts.headers.insert(headers::POLICY, HeaderValue::from_static(decision.policy.name()));
        parts.headers.insert(headers::REASON, HeaderValue::from_static(decision.reason.label()));
        let (mut matched_tokens, mut match_kind) = (decision.matched_tokens, match_kind);
        if let Some(handed) = &handed {
            parts.headers.insert(headers::PREFILL_WORKER, handed.worker.name_header.clone());
            (matched_tokens, match_kind) = (handed.decision.matched_tokens, handed.match_kind);
        }
        parts.headers.insert(headers::MATCHED_TOKENS, HeaderValue::from(matched_tokens));
        parts.headers.insert(headers::MATCH, HeaderValue::from_static(match_kind.label()));

        let flow = attempt.flow().filter(|_| is_event_stream).cloned();
        account.responding(parts.status, flow, attempt.is_recorded());
        let is_answer = is_event_stream && parts.status == StatusCode::OK;
        let ending = is_answer.then(|| Ending::of(account.route())).flatten();
        let ledger = Ledger { attempt, account, status: parts.status, is_event_stream, ending };
        let (lease, ledger) = match raw.zip(client.end.socket()) {
            None => (lease, ledger),
            Some(((relays, plan), socket)) => {
                match RawRelay::new(plan, config, relays, socket, lease, ledger) {
                    Ok(relay) => return Response::from_parts(parts, GatewayBody::raw(relay)),
                    Err(refused) => refused,
                }
            }
        };
        context.shared.metrics.relay.copy.inc();
        lease.open_body();
        Response::from_parts(parts, GatewayBody::relay(Relay::new(body, lease, ledger)))
    }
}

/// A request target as a server takes it: path and query (RFC 9112 section 3.2.1).
fn origin_form(uri: &Uri) -> Uri {
    if uri.authority().is_none() {
        return uri.clone();
    }
    uri.path_and_query().map_or_else(|| Uri::from_static("/"), |path| Uri::from(path.clone()))
}
