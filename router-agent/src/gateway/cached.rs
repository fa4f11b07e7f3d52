//! The response cache on a request's way: which requests it is for, and the flights by which answers come that several may
//! share. See docs/cache.md.
//!
//! A request that is answered by a flight has a [`Reader`] for a body. The flight itself is a task of the thread on which
//! it began; it has the worker's connection and the account of the request that began it, and is dropped with its last
//! reader, which closes that connection.

use std::{
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Body as _;
use tokio::sync::oneshot;

use super::{
    GatewayError, Shared,
    account::RequestAccount,
    outgoing::Outgoing,
    planned::Planned,
    request::{Client, End},
    route::Route,
    snapshot::Snapshot,
    thread::{Stay, ThreadContext},
};
use crate::{
    cache::{Bounds, Driver, Entry, Found, Head, Key, Reader},
    config::{CacheMode, Config, SecretDigest},
    limits::CACHE_PATIENCE,
    prompt::{self, ApiKind, Canonical},
    telemetry::CacheOutcome,
    tenants::{Tenant, X_API_KEY},
    upstream,
};

/// What passes to workers where there are no keys.
const CREDENTIALS: [HeaderName; 3] = [header::AUTHORIZATION, header::COOKIE, X_API_KEY];

/// What the cache has for a request, and what it is to it. None: neither the tenant's nor everybody's answers are cached.
pub(super) fn seek(
    shared: &Shared,
    config: &Config,
    tenant: &Tenant,
    planned: &Planned,
) -> Option<(CacheOutcome, Option<Found>)> {
    let mode = tenant.cache.unwrap_or(config.cache.mode);
    let Route::Inference(kind) = planned.route else { return None };
    if mode == CacheMode::Off {
        return None;
    }
    let Some((key, anew)) = key(config, tenant, planned, kind, mode) else {
        return Some((CacheOutcome::Bypass, None));
    };
    let bounds = Bounds {
        bytes_max: config.cache.bytes_max,
        entry_bytes_max: config.cache.entry_bytes_max,
        ttl: config.cache.ttl,
    };
    let found = shared.cache.seek(key, bounds, anew);
    let outcome = match &found {
        Found::Hit(_) => CacheOutcome::Hit,
        Found::Follow(_) => CacheOutcome::Shared,
        Found::Lead(..) => CacheOutcome::Miss,
    };
    Some((outcome, Some(found)))
}

/// What a request asks for, and whether it wants it anew. None: it is none for the cache.
fn key(
    config: &Config,
    tenant: &Tenant,
    planned: &Planned,
    kind: ApiKind,
    mode: CacheMode,
) -> Option<(Key, bool)> {
    let Outgoing { uri, headers, body, .. } = &planned.outgoing;
    // An answer of the Responses API is kept by the worker that gave it, and referred to later.
    let is_for_one = kind == ApiKind::Responses || planned.plan.only.is_some() || uri.query().is_some();
    let wish = Wish::of(headers);
    if is_for_one || wish == Wish::NoStore || body.len() > config.cache.entry_bytes_max {
        return None;
    }
    let mut start = Vec::with_capacity(tenant.name.len() + uri.path().len() + 40);
    start.extend_from_slice(tenant.name.as_bytes());
    start.push(0xff);
    if !tenant.has_key {
        // What a client shows is the worker's to judge, so what it was given for is not another one's.
        for value in CREDENTIALS.iter().flat_map(|name| headers.get_all(name)) {
            start.extend_from_slice(SecretDigest::of(value.as_bytes()).as_bytes());
        }
    }
    start.push(0xff);
    start.extend_from_slice(uri.path().as_bytes());
    let Canonical { bytes, is_deterministic, is_stateful } = prompt::canonical(&start, body)?;
    if is_stateful || (mode == CacheMode::Deterministic && !is_deterministic) {
        return None;
    }
    let model = planned.plan.model_name().map(Box::from);
    let key = Key { canonical: bytes.into(), tenant: tenant.name.clone(), model };
    Some((key, wish == Wish::NoCache))
}

/// What `Cache-Control` of a request says (RFC 9111 section 5.2.1), as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Nothing,
    /// Asked anew, and kept.
    NoCache,
    /// Neither looked for nor kept.
    NoStore,
}

impl Wish {
    fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
        let mut wish = Self::Nothing;
        for directive in values.flat_map(|value| value.split(',')).map(str::trim) {
            if directive.eq_ignore_ascii_case("no-store") {
                return Self::NoStore;
            }
            if directive.eq_ignore_ascii_case("no-cache") || directive.eq_ignore_ascii_case("max-age=0") {
                wish = Self::NoCache;
            }
        }
        wish
    }
}

/// An entry as a response.
pub(super) fn replay(shared: &Shared, entry: &Entry) -> Response<Full<Bytes>> {
    shared.metrics.cache.served_bytes.inc_by(entry.body.len() as u64);
    let mut response = Response::new(Full::from(entry.body.clone()));
    *response.headers_mut() = entry.headers.clone();
    response.headers_mut().insert(header::AGE, HeaderValue::from(entry.age().as_secs()));
    response
}

/// Waits for the beginning of the answer that `reader` shares; none if it has to do without. `deadline`: the client's.
pub(super) async fn head(
    reader: &Reader,
    deadline: Option<Instant>,
) -> Result<Option<Arc<Head>>, GatewayError> {
    let head = poll_fn(|cx| reader.poll_head(cx));
    match deadline {
        None => Ok(head.await),
        Some(deadline) => {
            tokio::time::timeout_at(deadline.into(), head).await.map_err(|_| GatewayError::Deadline)
        }
    }
}

/// What drives a flight besides.
pub(super) struct Crew {
    pub(super) driver: Driver,
    pub(super) planned: Planned,
    pub(super) request_id: HeaderValue,
    /// Of the request that began it.
    pub(super) account: RequestAccount,
    pub(super) client: Client,
}

/// Begins a flight, as a task of this thread. What is given back says why there is no answer, if there is none.
pub(super) fn fly(
    context: &Rc<ThreadContext>,
    config: &Rc<Snapshot>,
    mut crew: Crew,
) -> oneshot::Receiver<GatewayError> {
    let (failed, failure) = oneshot::channel();
    let (context, config) = (context.clone(), config.clone());
    // This process sees the body, and the client's connection is not what the flight ends with.
    crew.planned.outgoing.hold = upstream::Hold::EventStreams;
    crew.client.end = End::Coded { cookie: crew.client.end.cookie(), is_tls: crew.client.end.is_tls() };
    tokio::task::spawn_local(async move {
        let _stay = Stay::on(&context);
        let Crew { driver, planned, request_id, account, client } = crew;
        let flight = async {
            if let Err(error) = run(&context, &config, &driver, planned, &request_id, account, &client).await
            {
                let _ = failed.send(error); // its client may have left
            }
        };
        tokio::select! {
            biased;
            () = flight => {}
            () = poll_fn(|cx| driver.poll_left(cx)) => {}
        }
    });
    failure
}

async fn run(
    context: &Rc<ThreadContext>,
    config: &Snapshot,
    driver: &Driver,
    planned: Planned,
    request_id: &HeaderValue,
    mut account: RequestAccount,
    client: &Client,
) -> Result<(), GatewayError> {
    let route = planned.route;
    let answer = planned
        .send(context, config, request_id, &mut account)
        .await
        .inspect_err(|error| account.answered(error.status()))?;
    answer.log(route, request_id);
    let (parts, mut body) = answer.relay(context, &config.relay, client, None, account).into_parts();
    driver.head(Head {
        status: parts.status,
        headers: parts.headers,
        length: body.size_hint().exact(),
        is_shared: is_for_all(parts.status),
    });
    let mut patience = CACHE_PATIENCE;
    loop {
        room(driver, &mut patience).await;
        match body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    driver.push(data);
                }
            }
            None => break driver.end(body.is_good()),
            Some(Err(_said)) => break, // dropped without an end, it has broken off
        }
    }
    Ok(())
}

/// Waits for readers that are far behind, `patience` in all; then they are left behind.
async fn room(driver: &Driver, patience: &mut Duration) {
    loop {
        let since = Instant::now();
        let room = tokio::time::timeout(*patience, poll_fn(|cx| driver.poll_room(cx))).await;
        *patience = patience.saturating_sub(since.elapsed());
        if room.is_ok() {
            return;
        }
        driver.leave_behind();
        *patience = CACHE_PATIENCE;
    }
}

/// Whether whoever asks for the same would be told the same: what a worker says of its load or its own failure is for one.
fn is_for_all(status: StatusCode) -> bool {
    !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_says_of_caches_is_read() {
        let wish = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CACHE_CONTROL, HeaderValue::from_static(value));
            }
            Wish::of(&headers)
        };
        assert_eq!(wish(&[]), Wish::Nothing);
        assert_eq!(wish(&["max-age=60"]), Wish::Nothing);
        assert_eq!(wish(&["max-age=60, No-Cache"]), Wish::NoCache);
        assert_eq!(wish(&["max-age=0"]), Wish::NoCache);
        assert_eq!(wish(&["no-cache", "no-store"]), Wish::NoStore);
    }
}
