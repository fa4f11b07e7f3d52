//! The step before the first choice: the prompt's token ids, from the request itself, from a tokenizer of this process, or
//! from a worker's `/tokenize` over the token cache. Without them, or not in time, the request goes on by its bytes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use memchr::memmem;
use xxhash_rust::xxh3::Xxh3;

use super::{Shared, headers, thread::ThreadContext};
use crate::{
    config::Config,
    fleet::Worker,
    limits,
    prompt::{self, ApiKind, Form},
    telemetry::TokensFrom,
    tokenize::{Local, Source, Unknown},
    upstream::{self, Hold, fetch},
};

/// Where a request's token ids are to come from; worked out while its body is parsed.
#[derive(Debug)]
pub(super) enum Ask {
    /// Nowhere: it has no prompt, or its model has no tokenizer.
    Nothing,
    /// They are in the request.
    Given(Arc<[u32]>),
    /// A tokenizer of this process.
    Local(Arc<Local>, ApiKind),
    /// A worker; remembered under this key.
    Worker(u128),
    /// A tokenizer cannot know them.
    Unsupported(TokensFrom, &'static str),
}

impl Ask {
    pub(super) fn of(shared: &Shared, kind: ApiKind, request: &prompt::Request<'_>) -> Self {
        if let Some(ids) = request.token_ids() {
            return Self::Given(ids.into());
        }
        let source = shared.tokenizers.source(request.model.as_deref());
        let from = match source {
            Source::Off => return Self::Nothing,
            Source::Local(_) => TokensFrom::Local,
            Source::Worker => TokensFrom::Worker,
        };
        if matches!(kind, ApiKind::Responses | ApiKind::Messages) {
            return Self::Unsupported(from, "the engine makes chats of these requests by rules of its own");
        }
        if request.pieces.iter().any(|piece| matches!(piece.form, Form::Media(_))) {
            return Self::Unsupported(from, "images and sounds are counted by the engine");
        }
        if request.further_prompts.bytes > 0 {
            return Self::Unsupported(from, "several prompts");
        }
        match source {
            Source::Local(local) => Self::Local(local.clone(), kind),
            _ => Self::Worker(digest(request)),
        }
    }
}

/// The same for requests whose prompts are the same.
fn digest(request: &prompt::Request<'_>) -> u128 {
    let mut hash = Xxh3::with_seed(request.root_seed());
    for piece in &request.pieces {
        piece.write(&mut |bytes| hash.update(bytes));
    }
    hash.digest128()
}

/// The token ids of the request with this body; none where they cannot be had in time.
pub(super) async fn learn(
    context: &ThreadContext,
    config: &Config,
    ask: Ask,
    body: &Bytes,
) -> Option<Arc<[u32]>> {
    let shared = &context.shared;
    let metrics = &shared.metrics.tokenize;
    let started = Instant::now();
    let (from, tokens) = match ask {
        Ask::Nothing => return None,
        Ask::Given(tokens) => (TokensFrom::Given, Ok(tokens)),
        Ask::Unsupported(from, why) => (from, Err(Unknown::Unsupported(why))),
        Ask::Local(local, kind) => {
            let encoded = shared.tokenizers.tokens(&local, kind, body.clone()).await;
            metrics.seconds.observe(started.elapsed().as_secs_f64());
            if let Ok(encoded) = &encoded {
                metrics.cached_tokens.inc_by(encoded.cached as u64);
                metrics.new_tokens.inc_by((encoded.tokens.len() - encoded.cached) as u64);
            }
            (TokensFrom::Local, encoded.map(|encoded| encoded.tokens))
        }
        Ask::Worker(key) => {
            let tokens = by_worker(context, config.tokenizers.deadline, key, body).await;
            metrics.seconds.observe(started.elapsed().as_secs_f64());
            (TokensFrom::Worker, tokens)
        }
    };
    match tokens {
        Ok(tokens) => {
            metrics.exact(from);
            Some(tokens)
        }
        Err(why) => {
            metrics.unknown(from, &why);
            tracing::debug!(%why, "prompt not tokenised: routed by its bytes");
            None
        }
    }
}

/// As [`learn`], for a request that is not served: nothing is counted, and a worker is asked over a connection of its own.
pub(super) async fn look(
    shared: &Shared,
    config: &Config,
    ask: Ask,
    body: &Bytes,
) -> Option<(TokensFrom, Arc<[u32]>)> {
    match ask {
        Ask::Nothing | Ask::Unsupported(..) => None,
        Ask::Given(tokens) => Some((TokensFrom::Given, tokens)),
        Ask::Local(local, kind) => {
            let encoded = shared.tokenizers.tokens(&local, kind, body.clone()).await.ok()?;
            Some((TokensFrom::Local, encoded.tokens))
        }
        Ask::Worker(key) => {
            if let Some(tokens) = shared.tokenizers.cache().get(key) {
                return Some((TokensFrom::Worker, tokens));
            }
            if IGNORED_BY_TOKENIZE.iter().any(|member| memmem::find(body, member).is_some()) {
                return None;
            }
            let worker = idlest(shared)?;
            let (timeout, bytes_max) = (config.tokenizers.deadline, limits::TOKENIZE_ANSWER_BYTES_MAX);
            let answer = fetch::post(&worker, "/tokenize", body.clone(), timeout, bytes_max).await.ok()?;
            let tokens = (answer.0 == StatusCode::OK).then(|| parse_answer(&answer.1).ok()).flatten()?;
            Some((TokensFrom::Worker, tokens))
        }
    }
}

/// Of those that can be asked.
fn idlest(shared: &Shared) -> Option<Arc<Worker>> {
    let now = Instant::now();
    let workers = shared.fleet.workers();
    let routable = workers.iter().filter(|worker| worker.is_routable(now));
    routable.min_by_key(|worker| worker.load.in_flight()).cloned()
}

async fn by_worker(
    context: &ThreadContext,
    deadline: Duration,
    key: u128,
    body: &Bytes,
) -> Result<Arc<[u32]>, Unknown> {
    let cache = context.shared.tokenizers.cache();
    if let Some(tokens) = cache.get(key) {
        context.shared.metrics.tokenize.cached_tokens.inc_by(tokens.len() as u64);
        return Ok(tokens);
    }
    if IGNORED_BY_TOKENIZE.iter().any(|member| memmem::find(body, member).is_some()) {
        return Err(Unknown::Unsupported("/tokenize leaves out something that changes the prompt"));
    }
    let asked = tokio::time::timeout(deadline, ask_worker(context, body, deadline));
    let tokens = asked.await.unwrap_or(Err(Unknown::Late))?;
    context.shared.metrics.tokenize.new_tokens.inc_by(tokens.len() as u64);
    cache.insert(key, tokens.clone());
    Ok(tokens)
}

/// Members that make a request's prompt and that vLLM's `/tokenize` (0.32) does not look at.
const IGNORED_BY_TOKENIZE: [&[u8]; 4] =
    [b"\"documents\"", b"\"reasoning_content\"", b"\"reasoning_effort\"", b"\"truncate_prompt_tokens\""];

/// What a worker tells about the prompt of `body`. vLLM's `/tokenize` takes the body as it is.
async fn ask_worker(
    context: &ThreadContext,
    body: &Bytes,
    deadline: Duration,
) -> Result<Arc<[u32]>, Unknown> {
    let failed = |why: String| Unknown::Worker(why);
    let worker = &idlest(&context.shared).ok_or_else(|| failed("there is none".to_owned()))?;
    let request = || tokenize_request(worker, body.clone());
    let sent = upstream::send(&context.pool, worker, true, Hold::EventStreams, deadline, request)
        .await
        .map_err(|error| failed(error.to_string()))?;
    sent.lease.open_body();
    let status = sent.response.status();
    let answer = Limited::new(sent.response.into_body(), limits::TOKENIZE_ANSWER_BYTES_MAX).collect().await;
    let answer = answer.map_err(|error| failed(error.to_string()))?.to_bytes();
    sent.lease.put_back();
    if status != StatusCode::OK {
        return Err(failed(format!("/tokenize answered {status}")));
    }
    parse_answer(&answer).map_err(|error| failed(error.to_string()))
}

fn tokenize_request(worker: &Worker, body: Bytes) -> Request<Bytes> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static("/tokenize");
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers::set_worker(request.headers_mut(), worker);
    request
}

/// The ids in an answer of `/tokenize`.
pub(super) fn parse_answer(answer: &[u8]) -> Result<Arc<[u32]>, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Answer {
        tokens: Vec<u32>,
    }
    serde_json::from_slice::<Answer>(answer).map(|answer| answer.tokens.into())
}
