//! What is made of a request before it is routed: aliases, tenants' defaults, and what clients decide by headers.

use std::collections::HashMap;

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use warmpath_tests::{Gateway, Reply, SimConfig, SimHandle, eventually, request, sim, sims, urls};

use crate::{conformance::Worker, keys::digest};

const CHAT: &str = "/v1/chat/completions";
const KEY: &str = "sk-the-clients-own-key";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

fn yaml(text: &str) -> NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

async fn start(workers: &[String], config: &str) -> (Gateway, NamedTempFile) {
    let file = yaml(config);
    (Gateway::start(workers, &["--config", file.path().to_str().unwrap()]).await, file)
}

async fn serving(model: &str) -> SimHandle {
    sim(SimConfig { model: model.to_owned(), ..SimConfig::default() }).await
}

async fn post(
    gateway: &Gateway,
    path: &str,
    fields: &[(&str, &str)],
    body: impl Into<bytes::Bytes>,
) -> Reply {
    let json = [("content-type", "application/json")];
    request(gateway.address, "POST", path, &[&json, fields].concat(), body).await
}

fn chat(model: &str, text: &str) -> String {
    json!({"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 2}).to_string()
}

/// The body that the worker was sent last.
fn last_body(worker: &Worker) -> String {
    let request = worker.take().pop().expect("the worker was asked");
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let length = format!("content-length: {}", body.len());
    assert!(head.to_lowercase().contains(&length), "{length} is not in {head}");
    body.to_owned()
}

fn code(reply: &Reply) -> (u16, Value) {
    (reply.status, reply.json()["error"]["code"].clone())
}

#[tokio::test]
async fn an_alias_changes_the_model_and_no_other_byte() {
    let worker = Worker::start(OK).await;
    let aliases = "aliases:\n  - {match: gpt, to: 'org/\"llama\"'}\n  - {match: 'gpt-*', to: long}\n  - {match: 'gp*', to: short}\n";
    let (gateway, _file) = start(&[worker.url()], aliases).await;
    for (body, sent, model) in [
        (r#"{"model":"gpt"}"#, r#"{"model":"org/\"llama\""}"#, "org/\"llama\""),
        (r#"{"model":"gpt-4"}"#, r#"{"model":"long"}"#, "long"),
        (r#"{"model":"gp"}"#, r#"{"model":"short"}"#, "short"),
        (r#"{"model":"other"}"#, r#"{"model":"other"}"#, ""),
        (
            "{ \"messages\" : [ {\"model\":\"gpt\"} ],\n\t\"model\"\t:\r\n \"gpt-\\u0034\" , \"n\":1.50 } ",
            "{ \"messages\" : [ {\"model\":\"gpt\"} ],\n\t\"model\"\t:\r\n \"long\" , \"n\":1.50 } ",
            "long",
        ),
        // The last one counts, and no reader shall find another.
        (r#"{"model":"x","mod\u0065l":"gpt-4"}"#, r#"{"model":"long","mod\u0065l":"long"}"#, "long"),
        (r#"{"model":"gpt-4","model":"x"}"#, r#"{"model":"gpt-4","model":"x"}"#, ""),
        (r#"{"metadata":{"model":"gpt"}}"#, r#"{"metadata":{"model":"gpt"}}"#, ""),
        (r#"{"model":null,"x":"gpt"}"#, r#"{"model":null,"x":"gpt"}"#, ""),
    ] {
        for path in [CHAT, "/v1/embeddings"] {
            let reply = post(&gateway, path, &[], body).await;
            assert_eq!((reply.status, reply.header("x-warmpath-model")), (200, model), "{path} {body}");
            assert_eq!(last_body(&worker), sent, "{path}");
        }
    }
    let reply = request(gateway.address, "POST", "/v1/embeddings", &[], "").await;
    assert_eq!((reply.status, last_body_is_empty(&worker)), (200, true));
    let reply = post(&gateway, CHAT, &[], "{\"model\":\"gpt\"").await;
    assert_eq!(code(&reply), (400, json!("invalid_request_body")));
}

fn last_body_is_empty(worker: &Worker) -> bool {
    worker.take().pop().expect("the worker was asked").ends_with("\r\n\r\n")
}

#[tokio::test]
async fn an_alias_works_for_the_longest_body_that_is_taken() {
    let worker = Worker::start(OK).await;
    let (gateway, _file) =
        start(&[worker.url()], "limits: {body_bytes: 8MiB}\naliases: [{match: gpt, to: a-longer-name}]\n")
            .await;
    let (start, end) = (r#"{"model":"gpt","prompt":""#, r#""}"#);
    let length = (8 << 20) - start.len() - end.len();
    let body = format!("{start}{}{end}", "x".repeat(length));
    let reply = post(&gateway, "/v1/completions", &[], body.clone()).await;
    assert_eq!((reply.status, reply.header("x-warmpath-model")), (200, "a-longer-name"));
    let sent = last_body(&worker);
    assert!(sent.starts_with(r#"{"model":"a-longer-name","prompt":"xxx"#) && sent.ends_with("xxx\"}"));
    assert_eq!(sent.len(), body.len() + "a-longer-name".len() - "gpt".len());
}

#[tokio::test]
async fn a_key_may_name_its_aliases_and_sees_them_in_the_list_of_models() {
    let sims = [serving("large").await, serving("small").await];
    let config = format!(
        "keys: [{{name: a, sha256: '{}', models: ['gpt*']}}]\n\
         aliases:\n  - {{match: gpt-4, to: large}}\n  - {{match: mine, to: small}}\n  - {{match: gpt-none, to: nobody}}\n",
        digest(KEY)
    );
    let (gateway, _file) = start(&urls(&sims), &config).await;
    let key = [("x-api-key", KEY)];
    let reply = post(&gateway, CHAT, &key, chat("gpt-4", "x")).await;
    assert_eq!((reply.status, reply.header("x-warmpath-model")), (200, "large"), "{}", reply.text());
    assert_eq!(reply.header("x-warmpath-worker"), sims[0].addr().to_string());
    for model in ["large", "mine", "gpt-none", "gpt-5"] {
        assert_eq!(
            code(&post(&gateway, CHAT, &key, chat(model, "x")).await),
            (404, json!("model_not_found"))
        );
    }
    let list = request(gateway.address, "GET", "/v1/models", &key, "").await.json();
    let entries = list["data"].as_array().unwrap();
    assert_eq!((entries.len(), &entries[0]["id"]), (1, &json!("gpt-4")), "{list}");
    assert!(entries[0]["max_model_len"].is_u64(), "what clients go by is that of its model: {list}");
}

#[tokio::test]
async fn a_canary_gets_its_share_and_a_conversation_stays_with_one_model() {
    let sims = [serving("old").await, serving("new").await];
    let aliases = "aliases: [{match: m, to: [{model: old, weight: 70}, {model: new, weight: 30}]}]\n";
    let (gateway, _file) = start(&urls(&sims), aliases).await;
    let mut shares = HashMap::<String, u32>::new();
    for number in 0..100 {
        let mut messages = vec![
            json!({"role": "system", "content": "the same for everybody ".repeat(20)}),
            json!({"role": "user", "content": format!("question {number}")}),
        ];
        let mut model = String::new();
        for turn in 0..3 {
            let body = json!({"model": "m", "messages": messages, "max_tokens": 1}).to_string();
            let reply = post(&gateway, CHAT, &[], body).await;
            let served = reply.header("x-warmpath-model").to_owned();
            assert_eq!(reply.json()["model"], served, "the body has it, too");
            assert!(turn == 0 || served == model, "turn {turn} of conversation {number}");
            model = served;
            messages.push(json!({"role": "assistant", "content": "answer"}));
            messages.push(json!({"role": "user", "content": format!("turn {turn}")}));
        }
        *shares.entry(model).or_default() += 1;
    }
    assert!((15..=45).contains(&shares["new"]), "{shares:?}");
    let mut models = HashMap::<String, String>::new();
    for number in 0..60 {
        let (session, text) = (format!("session {}", number % 10), format!("whatever {number}"));
        let reply = post(&gateway, CHAT, &[("x-session-id", &session)], chat("m", &text)).await;
        let served = reply.header("x-warmpath-model").to_owned();
        assert_eq!(*models.entry(session).or_insert(served.clone()), served);
    }
}

#[tokio::test]
async fn a_fallback_serves_while_no_worker_is_routable_for_the_model() {
    let sims = [serving("large").await, serving("small").await];
    let (gateway, _file) = start(&urls(&sims), "aliases: [{match: large, fallback: [none, small]}]\n").await;
    let ask = async || {
        let reply = post(&gateway, CHAT, &[], chat("large", "x")).await;
        (
            reply.status,
            reply.header("x-warmpath-model").to_owned(),
            reply.header("x-warmpath-worker").to_owned(),
        )
    };
    assert_eq!(ask().await, (200, String::new(), sims[0].addr().to_string()), "nothing is changed");
    assert_eq!(
        request(gateway.admin, "POST", &format!("/workers/{}/drain", sims[0].addr()), &[], "").await.status,
        200
    );
    assert_eq!(ask().await, (200, "small".to_owned(), sims[1].addr().to_string()));
    assert_eq!(
        request(gateway.admin, "POST", &format!("/workers/{}/undrain", sims[0].addr()), &[], "").await.status,
        200
    );
    sims[0].kill().await;
    eventually("the worker is out", || async { (ask().await.1 == "small").then_some(()) }).await;
}

#[tokio::test]
async fn a_tenants_defaults_are_for_what_a_request_does_not_say() {
    let worker = Worker::start(OK).await;
    let config = format!(
        "keys: [{{name: a, sha256: '{}', policy: round_robin,\n\
         \x20 defaults: {{model: gpt, max_tokens: 64, temperature: 0, cache_salt: team-a, priority: 7}}}}]\n\
         aliases: [{{match: gpt, to: llama}}]\n",
        digest(KEY)
    );
    let (gateway, _file) = start(&[worker.url(), Worker::start(OK).await.url()], &config).await;
    let key = [("x-api-key", KEY)];
    let mut seen = 0;
    for (path, body, sent) in [
        (
            CHAT,
            "{}",
            r#"{"cache_salt":"team-a","max_tokens":64,"model":"llama","priority":7,"temperature":0}"#,
        ),
        (
            CHAT,
            r#"{"max_completion_tokens":1,"temperature":null, "model":"x"}"#,
            r#"{"cache_salt":"team-a","priority":7,"max_completion_tokens":1,"temperature":null, "model":"x"}"#,
        ),
        (
            "/v1/responses",
            r#"{"input":"x","model":"gpt"}"#,
            r#"{"cache_salt":"team-a","max_output_tokens":64,"priority":7,"temperature":0,"input":"x","model":"llama"}"#,
        ),
        ("/v1/embeddings", r#"{"input":"x"}"#, r#"{"input":"x"}"#),
    ] {
        // Round robin over two workers, of which one is looked at.
        for _ in 0..4 {
            let reply = post(&gateway, path, &key, body).await;
            assert_eq!(reply.status, 200);
            let policy = if path == "/v1/embeddings" { "least_loaded" } else { "round_robin" };
            assert_eq!(reply.header("x-warmpath-policy"), policy);
            if reply.header("x-warmpath-worker") == worker.url().trim_start_matches("http://") {
                assert_eq!(last_body(&worker), sent, "{path}");
                seen += 1;
            }
        }
    }
    assert!(seen >= 8, "{seen}");
}

#[tokio::test]
async fn without_keys_everyone_may_decide_worker_policy_and_session_by_headers() {
    let sims = sims(3).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let ask = async |fields: &[(&str, &str)]| post(&gateway, CHAT, fields, chat("sim", "hello")).await;
    for sim in &sims {
        let name = sim.addr().to_string();
        for _ in 0..2 {
            let reply = ask(&[("x-warmpath-worker", &name)]).await;
            assert_eq!((reply.status, reply.header("x-warmpath-worker")), (200, name.as_str()));
        }
    }
    assert_eq!(ask(&[("x-warmpath-policy", "random")]).await.header("x-warmpath-policy"), "random");
    assert_eq!(ask(&[]).await.header("x-warmpath-policy"), "warm", "for one request only");
    let session =
        [("x-warmpath-policy", "session"), ("x-warmpath-session", "mine"), ("x-session-id", "other")];
    let own = ask(&session).await.header("x-warmpath-worker").to_owned();
    for other in 0..20 {
        let other = format!("another {other}");
        let reply = ask(&[session[0], session[1], ("x-session-id", &other)]).await;
        assert_eq!(
            (reply.header("x-warmpath-worker"), reply.header("x-warmpath-reason")),
            (own.as_str(), "session")
        );
    }
    assert_eq!(code(&ask(&[("x-warmpath-worker", "nobody")]).await), (400, json!("worker_not_found")));
    let reply = ask(&[("x-warmpath-policy", "fastest")]).await;
    assert_eq!(code(&reply), (400, json!("malformed_header")));
    assert!(reply.text().contains("round_robin"), "{}", reply.text());
    let reply =
        post(&gateway, "/v1/embeddings", &[("x-warmpath-policy", "round_robin")], r#"{"input":"x"}"#).await;
    assert_eq!(reply.header("x-warmpath-policy"), "round_robin");
}

#[tokio::test]
async fn a_worker_that_is_asked_for_and_takes_nothing_is_no_reason_to_ask_another() {
    let sims = [serving("large").await, serving("small").await];
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let name = sims[0].addr().to_string();
    let field = [("x-warmpath-worker", name.as_str())];
    assert_eq!(
        code(&post(&gateway, CHAT, &field, chat("small", "x")).await),
        (400, json!("model_not_on_worker"))
    );
    sims[0].set_fault(vllm_sim::Fault::always(vllm_sim::FaultKind::ResetAfterRequest));
    let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).to_string();
    assert_eq!(code(&post(&gateway, CHAT, &field, body.clone()).await), (502, json!("worker_failed")));
    assert_eq!(sims[1].stats().prompt_tokens, 0, "the other one knows nothing of it");
    assert_eq!(request(gateway.admin, "POST", &format!("/workers/{name}/drain"), &[], "").await.status, 200);
    let reply = post(&gateway, CHAT, &field, body.clone()).await;
    assert_eq!((code(&reply), reply.header("retry-after")), ((503, json!("worker_unavailable")), "1"));
    assert_eq!(post(&gateway, CHAT, &[], body).await.status, 200);
}

#[tokio::test]
async fn with_keys_only_those_decide_by_headers_whom_the_configuration_says() {
    const OTHER: &str = "sk-of-somebody-else";
    let sims = sims(2).await;
    let config = |overrides: &str| {
        format!(
            "{overrides}keys: [{{name: a, sha256: '{}'}}, {{name: b, sha256: '{}', overrides: [worker]}}]\n",
            digest(KEY),
            digest(OTHER)
        )
    };
    let (gateway, file) = start(&urls(&sims), &config("")).await;
    let name = sims[1].addr().to_string();
    let fields =
        [("x-warmpath-worker", name.as_str()), ("x-warmpath-policy", "random"), ("x-warmpath-session", "s")];
    let allowed = async |key: &str| {
        let mut allowed = Vec::new();
        for field in fields {
            let reply = post(&gateway, CHAT, &[("x-api-key", key), field], chat("sim", "x")).await;
            match reply.status {
                200 => allowed.push(field.0),
                _ => assert_eq!(code(&reply), (403, json!("override_not_allowed"))),
            }
        }
        allowed
    };
    assert_eq!(allowed(KEY).await, Vec::<&str>::new());
    assert_eq!(allowed(OTHER).await, ["x-warmpath-worker"]);
    std::fs::write(file.path(), config("overrides: [policy, session]\n")).unwrap();
    let reply = request(gateway.admin, "POST", "/admin/reload", &[], "").await;
    assert_eq!(reply.json()["changed"], json!(["overrides"]));
    assert_eq!(allowed(KEY).await, ["x-warmpath-policy", "x-warmpath-session"]);
    assert_eq!(allowed(OTHER).await, ["x-warmpath-worker"], "its own word counts");
}

#[tokio::test]
async fn a_reload_changes_aliases_for_the_next_request() {
    let worker = Worker::start(OK).await;
    let (gateway, file) = start(&[worker.url()], "aliases: [{match: a, to: b}]\n").await;
    let served =
        async || post(&gateway, CHAT, &[], chat("a", "x")).await.header("x-warmpath-model").to_owned();
    assert_eq!(served().await, "b");
    std::fs::write(file.path(), "aliases: [{match: a, to: c}]\n").unwrap();
    let reload = async || request(gateway.admin, "POST", "/admin/reload", &[], "").await;
    assert_eq!(reload().await.json()["changed"], json!(["aliases"]));
    assert_eq!(served().await, "c");
    std::fs::write(file.path(), "aliases:\n  - match: 'a*b'\n    to: c\n").unwrap();
    let refused = reload().await;
    assert_eq!(refused.status, 422);
    for word in ["line 1", "aliases.match", "a*b"] {
        assert!(refused.text().contains(word), "{}", refused.text());
    }
    assert_eq!(served().await, "c");
}
