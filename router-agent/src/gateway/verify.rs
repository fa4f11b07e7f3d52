//! Whether the tokenizers of this process make the tokens that the workers make.
//!
//! Files can be the wrong ones, and engines do not always take them as they are (transformers 5 builds some models'
//! tokenizers anew, whatever `tokenizer.json` says). So each tokenizer is compared once with a worker's `/tokenize` on
//! some probes. One that makes other tokens is not used: its requests are routed by their bytes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;

use super::{Shared, tokens::parse_answer};
use crate::{fleet::Worker, limits, prompt::ApiKind, tokenize::Local, upstream::fetch};

/// Pause before those are asked again who gave no answer.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// What tokenizers differ in: spaces, digits, accents in two forms, scripts, control characters, special tokens.
const TEXT: &str = "Hello  world, it's 1234567.5!\n\n\t def f(x):\r\n    return x  # e\u{301} \u{e9} \u{1ea5} \u{4f60}\u{597d} \
    \u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947} \u{1f9d1}\u{200d}\u{1f680} \u{fb01}\u{ff21}\u{a0}\u{2581} <|im_end|></s><s> [INST]  x ";

/// Compares every tokenizer of this process with a worker's, once; ends when all are compared.
pub async fn verify_tokenizers(shared: Arc<Shared>) {
    let mut waiting: Vec<Arc<Local>> = shared.tokenizers.locals().cloned().collect();
    let (mut agree, mut differ) = (0, 0);
    while !waiting.is_empty() {
        shared.metrics.tokenize.set_tokenizers(agree, differ, waiting.len());
        let mut again = Vec::new();
        for local in waiting {
            match verify(&shared, &local).await {
                None => again.push(local),
                Some(true) => agree += 1,
                Some(false) => differ += 1,
            }
        }
        waiting = again;
        shared.metrics.tokenize.set_tokenizers(agree, differ, waiting.len());
        if !waiting.is_empty() {
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }
}

/// Whether it agrees with a worker; none if no worker could be compared with.
async fn verify(shared: &Shared, local: &Local) -> Option<bool> {
    let workers = shared.fleet.workers().clone();
    for worker in workers.iter().filter(|worker| worker.is_routable(std::time::Instant::now())) {
        let mut compared = 0;
        for (kind, body) in probes(local.model.as_deref()) {
            // Twice where they differ: a template may write the date, and a day may end in between.
            let mut comparison = compare(shared, local, worker, kind, &body).await;
            if matches!(comparison, Some(Some(_))) {
                comparison = compare(shared, local, worker, kind, &body).await;
            }
            let Some(difference) = comparison else { continue };
            if let Some(first_difference) = difference {
                local.distrust();
                tracing::warn!(
                    model = local.name(),
                    worker = %worker.name,
                    probe = %String::from_utf8_lossy(&body),
                    first_difference,
                    "a worker makes other tokens than the tokenizer of this gateway, which is not used: check that \
                     tokenizers: names the files of this model"
                );
                return Some(false);
            }
            compared += 1;
        }
        if compared > 0 {
            tracing::info!(model = local.name(), worker = %worker.name, compared, "tokenizer agrees with a worker's");
            return Some(true);
        }
    }
    None
}

/// Where both sides' tokens of a probe begin to differ, if they do; none if one of them has none. What is not tokenised
/// here is routed by its bytes anyway.
async fn compare(
    shared: &Shared,
    local: &Local,
    worker: &Worker,
    kind: ApiKind,
    body: &Bytes,
) -> Option<Option<usize>> {
    let theirs = ask(shared, worker, body).await?;
    let ours = local.tokenizer.tokens_whole(kind, body).ok()?;
    let first = ours.iter().zip(theirs.iter()).position(|(ours, theirs)| ours != theirs);
    Some(first.or_else(|| (ours.len() != theirs.len()).then(|| ours.len().min(theirs.len()))))
}

/// Bodies that `/tokenize` takes. Not every template takes all of them: those that a worker refuses do not count.
fn probes(model: Option<&str>) -> Vec<(ApiKind, Bytes)> {
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let turns = [message("user", TEXT), message("assistant", " An answer. "), message("user", "And then?")];
    let system = [&[message("system", " A system text.\n")], &turns[..]].concat();
    let tool = json!({"type": "function", "function": {"name": "f", "description": "It's \"é\" <b>",
        "parameters": {"type": "object", "properties": {"x": {"type": "number", "minimum": 1.0}}}}});
    let mut bodies = vec![
        (ApiKind::Completions, json!({"prompt": TEXT})),
        (ApiKind::Chat, json!({"messages": turns})),
        (ApiKind::Chat, json!({"messages": system})),
        (ApiKind::Chat, json!({"messages": turns, "tools": [tool]})),
    ];
    if let Some(model) = model {
        for (_, body) in &mut bodies {
            body["model"] = model.into();
        }
    }
    bodies.into_iter().map(|(kind, body)| (kind, Bytes::from(body.to_string()))).collect()
}

/// The worker's tokens for a probe; none if it does not tell.
async fn ask(shared: &Shared, worker: &Worker, body: &Bytes) -> Option<Arc<[u32]>> {
    let timeout = shared.config().health.timeout;
    let answer =
        fetch::post(worker, "/tokenize", body.clone(), timeout, limits::TOKENIZE_ANSWER_BYTES_MAX).await;
    match answer {
        Ok((StatusCode::OK, answer)) => parse_answer(&answer).ok(),
        Ok((status, _)) => {
            tracing::debug!(worker = %worker.name, %status, "a probe was not tokenised");
            None
        }
        Err(error) => {
            tracing::debug!(worker = %worker.name, %error, "no tokens of a probe");
            None
        }
    }
}
