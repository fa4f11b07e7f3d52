//! Hooks: services that see a request before it is routed.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::net::TcpListener;
use warmpath_tests::{Gateway, Reply, eventually, request, sims, urls};

use crate::{conformance::Worker, keys::digest};

const CHAT: &str = "/v1/chat/completions";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

/// A hook's service: what it was asked, and what it answers.
struct Hook {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

struct State {
    asked: Vec<Value>,
    /// Heads of what it was asked.
    heads: Vec<hyper::HeaderMap>,
    status: u16,
    answer: String,
    /// None: for ever.
    delay: Option<Duration>,
}

impl Hook {
    async fn start(answer: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, heads, answer) = (Vec::new(), Vec::new(), answer.to_string());
        let state =
            Arc::new(Mutex::new(State { asked, heads, status: 200, answer, delay: Some(Duration::ZERO) }));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                let service = service_fn(move |request| answer_one(request, shared.clone()));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, state, task }
    }

    fn says(&self, answer: &Value) {
        self.state.lock().unwrap().answer = answer.to_string();
    }

    fn answers_with(&self, status: u16) {
        self.state.lock().unwrap().status = status;
    }

    fn takes(&self, delay: Option<Duration>) {
        self.state.lock().unwrap().delay = delay;
    }

    fn asked(&self) -> Vec<Value> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    /// An entry of `hooks:`.
    fn entry(&self, name: &str, rest: &str) -> String {
        // A busy machine is no late answer.
        let patience = if rest.contains("timeout") { "" } else { ", timeout: 10s" };
        format!("{{name: {name}, url: 'http://{}/check?v=1'{patience}{rest}}}", self.address)
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer_one(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!((request.method().as_str(), request.uri().to_string().as_str()), ("POST", "/check?v=1"));
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let (status, answer, delay) = {
        let mut state = state.lock().unwrap();
        state.asked.push(serde_json::from_slice(&body).unwrap());
        state.heads.push(head.headers);
        (state.status, state.answer.clone(), state.delay)
    };
    match delay {
        Some(delay) => tokio::time::sleep(delay).await,
        None => std::future::pending().await,
    }
    Ok(Response::builder().status(status).body(Full::from(answer)).unwrap())
}

async fn start(workers: &[String], config: &str) -> (Gateway, NamedTempFile) {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), config).unwrap();
    (Gateway::start(workers, &["--config", file.path().to_str().unwrap()]).await, file)
}

async fn post(gateway: &Gateway, path: &str, fields: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
    let json = [("content-type", "application/json")];
    request(gateway.address, "POST", path, &[&json, fields].concat(), body).await
}

async fn count(gateway: &Gateway, hook: &str, outcome: &str) -> f64 {
    gateway.metric(&format!("warmpath_hook_requests_total{{hook=\"{hook}\",outcome=\"{outcome}\"}}")).await
}

#[tokio::test]
async fn a_hook_sees_the_request_and_no_secret_and_lets_it_go_on() {
    const KEY: &str = "sk-the-clients-own-key";
    let (worker, hook) = (Worker::start(OK).await, Hook::start(json!({"action": "allow"})).await);
    let config = format!(
        "keys: [{{name: team, sha256: '{}', defaults: {{max_tokens: 5}}}}]\nhooks: [{}, {}]\n",
        digest(KEY),
        hook.entry("look", ", headers: [x-team]"),
        hook.entry("blind", ", body: none")
    );
    let (gateway, _file) = start(&[worker.url()], &config).await;
    let fields = [
        ("authorization", "Bearer sk-the-clients-own-key"),
        ("cookie", "secret"),
        ("x-team", "t"),
        ("x-request-id", "r1"),
    ];
    let reply = post(&gateway, CHAT, &fields, r#"{"model":"m",  "messages":[]}"#).await;
    assert_eq!((reply.status, reply.header("x-warmpath-hooks")), (200, "look;allowed, blind;allowed"));
    let asked = hook.asked();
    let body = json!({"max_tokens": 5, "model": "m", "messages": []});
    assert_eq!(asked[0]["body"], body, "with the tenant's defaults");
    for (name, value) in
        [("request_id", "r1"), ("tenant", "team"), ("route", "chat"), ("path", CHAT), ("model", "m")]
    {
        assert_eq!(asked[0][name], value, "{name}");
        assert_eq!(asked[1][name], value, "{name}");
    }
    assert_eq!((&asked[0]["headers"]["x-team"], asked[1]["headers"].get("x-team")), (&json!("t"), None));
    assert!(asked[1].get("body").is_none());
    let heads = format!("{:?}", hook.state.lock().unwrap().heads);
    for secret in ["sk-the", "secret"] {
        assert!(!format!("{asked:?}{heads}").contains(secret), "{asked:?} {heads}");
    }
    assert!(
        worker.take()[0].ends_with(r#"{"max_tokens":5,"model":"m",  "messages":[]}"#),
        "the body is not touched"
    );
    assert!((count(&gateway, "look", "allowed").await - 1.0).abs() < f64::EPSILON);
    assert!((gateway.metric("warmpath_hook_seconds_count{hook=\"look\"}").await - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_hook_refuses_in_its_own_words_and_no_worker_and_no_later_hook_sees_the_request() {
    let worker = Worker::start(OK).await;
    let first = Hook::start(json!({"action": "reject", "status": 422, "message": "names a person"})).await;
    let second = Hook::start(json!({"action": "allow"})).await;
    let config = format!("hooks: [{}, {}]\n", first.entry("pii", ""), second.entry("audit", ""));
    let (gateway, _file) = start(&[worker.url()], &config).await;
    let reply = post(&gateway, CHAT, &[], r#"{"model":"m"}"#).await;
    let error = &reply.json()["error"];
    assert_eq!(
        (reply.status, &error["code"], &error["message"]),
        (422, &json!("rejected_by_hook"), &json!("names a person"))
    );
    assert_eq!(reply.header("x-warmpath-hooks"), "pii;rejected");
    let reply = post(&gateway, "/v1/messages", &[], r#"{"model":"m"}"#).await;
    assert_eq!((reply.status, &reply.json()["type"]), (422, &json!("error")), "in the form of the API");
    assert!(worker.take().is_empty() && second.asked().is_empty());
}

#[tokio::test]
async fn a_hook_changes_body_and_headers_and_what_it_makes_of_them_is_routed() {
    let worker = Worker::start(OK).await;
    let changed = json!({"action": "transform", "body": {"model": "alias", "messages": [], "z": 1.5}, "headers": {"x-team": "b"}});
    let first = Hook::start(changed).await;
    let second = Hook::start(json!({"action": "allow"})).await;
    let config = format!(
        "hooks: [{}, {}]\naliases: [{{match: alias, to: llama}}]\n",
        first.entry("change", ", models: ['m*']"),
        second.entry("look", ", models: [alias]")
    );
    let (gateway, _file) = start(&[worker.url()], &config).await;
    let reply =
        post(&gateway, CHAT, &[("x-team", "a")], r#"{"model":"m1","messages":[{"role":"user"}]}"#).await;
    assert_eq!((reply.status, reply.header("x-warmpath-model")), (200, "llama"));
    assert_eq!(reply.header("x-warmpath-hooks"), "change;transformed, look;allowed");
    let sent = worker.take().pop().unwrap();
    assert!(sent.ends_with("\r\n\r\n{\"messages\":[],\"model\":\"llama\",\"z\":1.5}"), "{sent}");
    assert!(sent.contains("x-team: b\r\n") && !sent.contains("x-team: a"), "{sent}");
    assert_eq!(second.asked()[0]["body"]["z"], 1.5);
    // A hook must not speak for the gateway.
    first.says(&json!({"action": "transform", "headers": {"authorization": "x"}}));
    let reply = post(&gateway, CHAT, &[], r#"{"model":"m1"}"#).await;
    assert_eq!((reply.status, reply.header("x-warmpath-hooks")), (200, "change;failed"));
}

#[tokio::test]
async fn a_hook_is_for_its_routes_and_models() {
    let (worker, hook) = (Worker::start(OK).await, Hook::start(json!({"action": "allow"})).await);
    let config = format!("hooks: [{}]\n", hook.entry("h", ", routes: [chat, messages], models: [m, 'q*']"));
    let (gateway, _file) = start(&[worker.url()], &config).await;
    for (path, body, is_asked) in [
        (CHAT, r#"{"model":"m"}"#, true),
        (CHAT, r#"{"model":"qwen"}"#, true),
        (CHAT, r#"{"model":"other"}"#, false),
        (CHAT, "{}", false),
        ("/v1/messages", r#"{"model":"m"}"#, true),
        ("/v1/completions", r#"{"model":"m"}"#, false),
        ("/v1/embeddings", r#"{"model":"m"}"#, false),
    ] {
        let reply = post(&gateway, path, &[], body).await;
        assert_eq!(
            (reply.status, reply.header("x-warmpath-hooks") == "h;allowed"),
            (200, is_asked),
            "{path} {body}"
        );
        assert_eq!(hook.asked().len(), usize::from(is_asked), "{path} {body}");
    }
    let reply = post(&gateway, CHAT, &[], "no json").await;
    assert_eq!(
        (reply.status, hook.asked().len()),
        (400, 0),
        "what no worker could answer no hook has to see"
    );
}

#[tokio::test]
async fn without_an_answer_a_request_passes_or_is_blocked_as_configured() {
    let sims = sims(1).await;
    let (pass, block) =
        (Hook::start(json!({"action": "allow"})).await, Hook::start(json!({"action": "allow"})).await);
    let settings = ", timeout: 3s, max_body: 1KiB";
    let config = format!(
        "breaker: {{failures: 1000, volume: 1000}}\nhooks: [{}, {}]\n",
        pass.entry("pass", settings),
        block.entry("block", &format!("{settings}, on_error: block"))
    );
    let (gateway, _file) = start(&urls(&sims), &config).await;
    let ask = async || {
        let reply = gateway.chat("hello").await;
        (reply.status, reply.header("x-warmpath-hooks").to_owned())
    };
    assert_eq!(ask().await, (200, "pass;allowed, block;allowed".to_owned()));
    let mut failures = 0;
    for (change, back, outcome) in [
        (&|hook: &Hook| hook.takes(None) as (), &|hook: &Hook| hook.takes(Some(Duration::ZERO)), "late"),
        (&|hook: &Hook| hook.answers_with(500), &|hook: &Hook| hook.answers_with(200), "failed"),
        (
            &|hook: &Hook| hook.says(&json!("perhaps")),
            &|hook: &Hook| hook.says(&json!({"action": "allow"})),
            "failed",
        ),
    ] as [(&dyn Fn(&Hook), &dyn Fn(&Hook), &str); 3]
    {
        change(&pass);
        assert_eq!(ask().await, (200, format!("pass;{outcome}, block;allowed")));
        change(&block);
        assert_eq!(ask().await, (503, format!("pass;{outcome}, block;{outcome}")));
        back(&pass);
        back(&block);
        failures += usize::from(outcome == "failed");
    }
    assert!((count(&gateway, "pass", "late").await - 2.0).abs() < f64::EPSILON);
    assert!((count(&gateway, "block", "failed").await - failures as f64).abs() < f64::EPSILON);
    let reply = gateway.chat("hello").await;
    assert_eq!(reply.status, 200, "no worker and no breaker has suffered");
    let reply = gateway.chat(&"long ".repeat(1_000)).await;
    assert_eq!((reply.status, reply.header("x-warmpath-hooks")), (413, "pass;too_long, block;too_long"));
    block.answers_with(503);
    let reply = gateway.chat("hello").await;
    let error = &reply.json()["error"];
    assert_eq!((&error["code"], reply.header("retry-after")), (&json!("hook_failed"), "1"));
    assert!(error["message"].as_str().unwrap().contains("`block`"), "{error}");
}

#[tokio::test]
async fn a_dead_hook_is_left_alone_after_a_few_failures_and_asked_again_later() {
    let sims = sims(1).await;
    let hook = Hook::start(json!({"action": "allow"})).await;
    let config =
        format!("breaker: {{failures: 3, open_for: 5s}}\nhooks: [{}]\n", hook.entry("h", ", timeout: 2s"));
    let (gateway, _file) = start(&urls(&sims), &config).await;
    hook.takes(None);
    let told = async || gateway.chat("hello").await.header("x-warmpath-hooks").to_owned();
    for _ in 0..3 {
        assert_eq!(told().await, "h;late");
    }
    assert_eq!(told().await, "h;not_asked");
    assert_eq!(hook.asked().len(), 3);
    hook.takes(Some(Duration::ZERO));
    eventually("it is asked again", || async { (told().await == "h;allowed").then_some(()) }).await;
    assert_eq!(told().await, "h;allowed");
}

#[tokio::test]
async fn a_hook_has_no_more_requests_at_a_time_than_it_may() {
    let sims = sims(1).await;
    let hook = Hook::start(json!({"action": "allow"})).await;
    hook.takes(Some(Duration::from_secs(2)));
    let config = format!("hooks: [{}]\n", hook.entry("h", ", concurrency: 2"));
    let (gateway, _file) = start(&urls(&sims), &config).await;
    let replies = join_all((0..8).map(|_| gateway.chat("hello"))).await;
    let outcome = |outcome: &str| {
        replies
            .iter()
            .filter(|reply| reply.status == 200 && reply.header("x-warmpath-hooks") == outcome)
            .count()
    };
    assert!(outcome("h;allowed") >= 2 && outcome("h;allowed") + outcome("h;busy") == 8);
    assert_eq!(hook.asked().len(), outcome("h;allowed"));
    assert!(outcome("h;busy") > 0, "while two were asked the others went on");
}

#[tokio::test]
async fn a_reload_changes_hooks_for_the_next_request() {
    let sims = sims(1).await;
    let (one, other) =
        (Hook::start(json!({"action": "allow"})).await, Hook::start(json!({"action": "allow"})).await);
    let (gateway, file) = start(&urls(&sims), &format!("hooks: [{}]\n", one.entry("one", ""))).await;
    let told = async || gateway.chat("hello").await.header("x-warmpath-hooks").to_owned();
    assert_eq!(told().await, "one;allowed");
    std::fs::write(file.path(), format!("hooks: [{}]\n", other.entry("other", ""))).unwrap();
    let reload = async || request(gateway.admin, "POST", "/admin/reload", &[], "").await;
    assert_eq!(reload().await.json()["changed"], json!(["hooks"]));
    assert_eq!(told().await, "other;allowed");
    let metrics = warmpath_tests::get(gateway.admin, "/metrics").await.text();
    assert!(!metrics.contains("hook=\"one\""), "its series go with it");
    std::fs::write(file.path(), "hooks:\n  - {name: h, url: 'https://h/'}\n").unwrap();
    let refused = reload().await;
    for word in ["line 1", "hooks.url", "https://h/", "plain HTTP"] {
        assert!(refused.status == 422 && refused.text().contains(word), "{}", refused.text());
    }
    std::fs::write(file.path(), "# none\n").unwrap();
    reload().await;
    assert_eq!(told().await, "");
}
