//! The way of one request: identify → body → parse → tokens → decide → send → relay → account.

use std::{net::SocketAddr, rc::Rc, time::Instant};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts,
};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpStream;

use super::{
    GatewayError,
    account::{Attempt, RequestAccount, is_load},
    body,
    choose::{self, Choice},
    client_io::ClientSocket,
    conformance,
    headers::{self, Sender},
    identify::{identify, set_standings},
    models,
    raw::{self, Ledger, Plan, RawRelay},
    relay::{GatewayBody, Relay},
    route::Route,
    snapshot::Snapshot,
    thread::ThreadContext,
    token_keys::MatchKind,
    tokens,
};
use crate::{
    config,
    fleet::Worker,
    index::WorkerSlot,
    kernel::{self, Relays},
    routing::Decision,
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

    fn is_tls(&self) -> bool {
        matches!(self, Self::Coded { is_tls: true, .. })
    }

    /// Where the kernel could write a body.
    fn socket(&self) -> Option<&Rc<ClientSocket>> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Coded { .. } => None,
        }
    }

    fn cookie(&self) -> u64 {
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
    let admitted = conformance::check(&parts).and_then(|()| identify(&context.shared.tenants, &parts));
    let Parts { method, uri, version, headers: mut client_headers, .. } = parts;
    headers::set_authority(&mut client_headers, &uri);
    let route = Route::of(&method, uri.path());
    let mut account = RequestAccount::new(context.shared.clone(), route);
    let sender = Sender {
        ip: client.address.ip(),
        is_tls: client.end.is_tls(),
        is_trusted: config.is_trusted_proxy(client.address.ip()),
        has_key: admitted.as_ref().is_ok_and(|admission| admission.tenant().has_key),
    };
    let (worker_headers, request_id) = headers::for_worker(client_headers, sender);
    // Chunked framing as the worker's is for HTTP/1.1; a body there must be for the kernel to move it.
    let raw = version == Version::HTTP_11 && method != Method::HEAD && route != Route::Other;
    let raw = raw && client.end.socket().is_some() && fastrand::f64() >= config.relay.sample;
    let relays = Some(&context.shared.relays).filter(|relays| raw && relays.are_on());
    let outgoing = Outgoing {
        method,
        uri: origin_form(&uri),
        headers: worker_headers,
        body: Bytes::new(),
        hold: relays.map(|_| raw::hold(&config.relay)),
    };

    let (mut tenant, mut may_go_on) = (None, true);
    let answered = match admitted {
        Err(error) => {
            may_go_on = body::discard(body, config.timeouts.body_idle).await;
            Err(error)
        }
        Ok(admission) => {
            let asking = tenant.insert(admission.tenant().clone());
            account.admitted(admission);
            match outgoing.lists_models().then(|| models::list(&context.shared.fleet, asking)).flatten() {
                Some(list) => Ok(Answered::Here(list)),
                None => answer(context, &config, route, outgoing, body, &request_id, &mut account)
                    .await
                    .map(|answer| Answered::Worker(Box::new(answer))),
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
        Err(error) => {
            let metrics = &context.shared.metrics;
            metrics.errors.with_label_values(&[error.source_label(), error.kind()]).inc();
            if error.source_label() != "client" {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(?request_id, %error, cause, "request not served");
            }
            account.answered(error.status());
            error.response(route).map(GatewayBody::own)
        }
    };
    let headers = response.headers_mut();
    headers.insert(headers::REQUEST_ID, request_id);
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

/// Who has the answer.
enum Answered {
    /// The gateway itself.
    Here(Response<Full<Bytes>>),
    Worker(Box<Answer>),
}

/// A request as it goes to workers; the same bytes for every try.
struct Outgoing {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    /// The kernel may relay the response: hyper reads its head only, until that is decided.
    hold: Option<upstream::Hold>,
}

impl Outgoing {
    fn lists_models(&self) -> bool {
        self.method == Method::GET && self.uri.path() == "/v1/models"
    }

    fn request(&self, worker: &Worker) -> Request<Bytes> {
        let mut request = Request::new(self.body.clone());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        headers::set_worker(request.headers_mut(), worker);
        request
    }
}

/// A worker's response head, with what its body needs on its way.
struct Answer {
    sent: upstream::Sent,
    attempt: Attempt,
    decision: Decision,
    match_kind: MatchKind,
}

async fn answer(
    context: &Rc<ThreadContext>,
    config: &Snapshot,
    route: Route,
    mut outgoing: Outgoing,
    body: Incoming,
    request_id: &HeaderValue,
    account: &mut RequestAccount,
) -> Result<Answer, GatewayError> {
    let shared = &context.shared;
    outgoing.body = body::collect(body, config.limits.body_bytes, config.timeouts.body_idle).await?;

    let deciding = Instant::now();
    let admission = account.admission().expect("only requests that were let in are answered");
    let mut plan =
        choose::plan(shared, config, admission.tenant(), route, &outgoing.headers, &outgoing.body)?;
    let planning = deciding.elapsed();
    let tokens = tokens::learn(context, config, plan.ask_tokens(), &outgoing.body).await;
    if let Some(tokens) = &tokens {
        plan.set_tokens(shared, tokens);
    }
    admission.charge_prompt(plan.prompt_tokens(), Instant::now())?;
    if let Some(controller) = config.lmcache.as_ref().filter(|_| plan.by_prefix) {
        plan.lmcache = controller.matched(shared, tokens.as_deref()).await;
    }
    let choosing = Instant::now();
    let choose = |tried: &[WorkerSlot]| {
        choose::choose(shared, &context.scratch, &plan, request_id, tried).ok_or(GatewayError::NoWorker)
    };
    let mut choice = choose(&[])?;
    shared.retries.pay_in();
    if route != Route::Other {
        shared.metrics.decision.observe((planning + choosing.elapsed()).as_secs_f64());
    }

    // Nothing has reached the client before a response head is passed on, so until then another worker may be tried. A
    // request that must not be processed twice is tried again only where the worker has seen nothing of it.
    let repeatable = route != Route::Other || outgoing.method.is_idempotent();
    let mut tried: Vec<WorkerSlot> = Vec::new();
    loop {
        let Choice { flight, decision, sent_blocks, match_kind, prediction } = choice;
        let mut attempt =
            Attempt::new(shared.clone(), flight, decision.time_to_first_token_s, prediction, &context.cuts);
        let worker = attempt.worker().clone();
        tried.push(worker.slot);
        let may_try_again = || {
            tried.len() < config.limits.tries
                && choose::another_is_routable(shared, &plan, &tried)
                && shared.may_retry()
        };
        let head_timeout = config.timeouts.response_head;
        let request = || outgoing.request(&worker);
        let sent = tokio::select! {
            biased;
            sent = upstream::send(&context.pool, &worker, repeatable, outgoing.hold, head_timeout, request) => sent,
            () = attempt.cut().cut() => Err(upstream::SendError::Removed),
        };
        let retry_reason = match sent {
            Ok(sent) => {
                let status = sent.response.status();
                if is_load(status) || status.is_server_error() {
                    choose::forget(shared, &plan, &decision, sent_blocks);
                }
                if !(repeatable && is_worth_another_worker(status) && may_try_again()) {
                    return Ok(Answer { sent, attempt, decision, match_kind });
                }
                attempt.complete(status);
                if is_load(status) { "load" } else { "status" }
            }
            Err(error) => {
                attempt.fail(error.kind());
                choose::forget(shared, &plan, &decision, sent_blocks);
                tracing::debug!(worker = %worker.name, %error, "worker failed before answering");
                let harmless = repeatable || !error.may_have_been_processed();
                if !(harmless && may_try_again()) {
                    return Err(GatewayError::Failed { tries: tried.len(), last: error });
                }
                error.kind()
            }
        };
        drop(attempt); // its load is off the worker before the next decision
        shared.metrics.retries.with_label_values(&[retry_reason]).inc();
        choice = choose(&tried)?;
    }
}

/// Failures that another worker may not have: its own faults, and its load.
fn is_worth_another_worker(status: StatusCode) -> bool {
    is_load(status)
        || matches!(
            status,
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT
        )
}

impl Answer {
    /// One line per routed request, with `WARMPATH_LOG=debug`.
    fn log(&self, route: Route, request_id: &HeaderValue) {
        let Decision { reason, matched_tokens, new_tokens, cost, runner_up, .. } = self.decision;
        tracing::debug!(
            ?request_id,
            route = route.label(),
            worker = %self.attempt.worker().name,
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
    fn relay(
        self,
        context: &ThreadContext,
        config: &config::Relay,
        client: &Client,
        relays: Option<&Relays>,
        mut account: RequestAccount,
    ) -> Response<GatewayBody> {
        let Self { sent: upstream::Sent { response, lease }, mut attempt, decision, match_kind } = self;
        let (mut parts, body) = response.into_parts();
        let content_type = parts.headers.get(header::CONTENT_TYPE);
        let is_event_stream =
            content_type.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        // Of others, hyper has read more than the head already.
        let may_go_raw = is_event_stream || raw::hold(config) == upstream::Hold::All;
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
        parts.headers.insert(headers::MATCHED_TOKENS, HeaderValue::from(decision.matched_tokens));
        parts.headers.insert(headers::MATCH, HeaderValue::from_static(match_kind.label()));

        account.responding(parts.status, attempt.flow().filter(|_| is_event_stream).cloned());
        let ledger = Ledger { attempt, account, status: parts.status, is_event_stream };
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
