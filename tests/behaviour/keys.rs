//! API keys: who is let in, what a key may do, and where it ends.

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use warmpath_tests::{Gateway, Reply, SimConfig, eventually, get, request, sim, sims, urls};

use crate::conformance::Worker;

const KEY: &str = "sk-the-clients-own-key";
const OTHER_KEY: &str = "sk-of-somebody-else";
const CHAT: &str = "/v1/chat/completions";

/// `sha256sum` of a key, as an operator would get it.
pub(crate) fn digest(key: &str) -> String {
    let mut command = std::process::Command::new(warmpath_tests::binary());
    command.args(["key", "name", "--stdin"]).stdin(std::process::Stdio::piped());
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), key.as_bytes()).unwrap();
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let (_, rest) = output.split_once("sha256: \"").unwrap();
    rest.split('"').next().unwrap().to_owned()
}

fn yaml(config: &str) -> NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), config).unwrap();
    file
}

/// A gateway whose one tenant, `a`, has [`KEY`] and these limits.
async fn gateway(workers: &[String], limits: &str) -> Gateway {
    let file = yaml(&format!("keys: [{{name: a, sha256: '{}'{limits}}}]\n", digest(KEY)));
    Gateway::start(workers, &["--config", file.path().to_str().unwrap()]).await
}

async fn post(gateway: &Gateway, path: &str, fields: &[(&str, &str)], body: &Value) -> Reply {
    let json = [("content-type", "application/json")];
    request(gateway.address, "POST", path, &[&json, fields].concat(), body.to_string()).await
}

fn prompt(tokens: u32) -> Value {
    json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": tokens, "ignore_eos": true})
}

/// With the tenant's key.
async fn ask(gateway: &Gateway, body: &Value) -> Reply {
    post(gateway, CHAT, &[("authorization", &format!("Bearer {KEY}"))], body).await
}

#[tokio::test]
async fn without_a_key_nobody_is_served_and_the_answer_has_the_form_of_the_clients_api() {
    let sims = sims(1).await;
    let gateway = gateway(&urls(&sims), "").await;
    for fields in [
        &[][..],
        &[("authorization", "Bearer sk-wrong")],
        &[("authorization", "Basic c2s6dGhl")],
        &[("x-api-key", "sk-wrong")],
    ] {
        let reply = post(&gateway, CHAT, fields, &prompt(1)).await;
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["code"]), (401, &json!("invalid_api_key")), "{fields:?}");
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(reply.header("www-authenticate"), "Bearer");
        let reply = post(&gateway, "/v1/messages", fields, &prompt(1)).await;
        assert_eq!((reply.status, &reply.json()["type"]), (401, &json!("error")));
        assert_eq!(reply.json()["error"]["type"], "authentication_error");
    }
    for path in ["/v1/models", "/version", "/sleep", "/"] {
        assert_eq!(get(gateway.address, path).await.status, 401, "{path}");
    }
    assert_eq!(sims[0].stats().prompt_tokens, 0, "no worker got any of them");
    for field in [("authorization", format!("bearer {KEY}")), ("x-api-key", KEY.to_owned())] {
        assert_eq!(post(&gateway, CHAT, &[(field.0, &field.1)], &prompt(1)).await.status, 200);
        assert_eq!(post(&gateway, "/v1/messages", &[(field.0, &field.1)], &prompt(1)).await.status, 200);
    }
}

#[tokio::test]
async fn a_refused_request_does_not_cost_a_client_its_connection_unless_its_body_is_long() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let sims = sims(1).await;
    let gateway = gateway(&urls(&sims), "").await;
    let mut socket = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let post = |length: usize| format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {length}\r\n\r\n");
    let short = format!("{}{}", post(100), "x".repeat(100));
    socket.write_all(short.repeat(2).as_bytes()).await.unwrap();
    socket.write_all(post(1 << 30).as_bytes()).await.unwrap();
    let mut said = String::new();
    tokio::time::timeout(warmpath_tests::PATIENCE, socket.read_to_string(&mut said))
        .await
        .expect("the long body is not waited for")
        .unwrap();
    assert_eq!(said.matches("HTTP/1.1 401 ").count(), 3, "{said}");
    assert_eq!(said.matches("connection: close").count(), 1, "{said}");
}

#[tokio::test]
async fn a_key_may_use_its_models_and_sees_no_others() {
    let serving = async |model: &str| sim(SimConfig { model: model.into(), ..SimConfig::default() }).await;
    let sims = [serving("small-1").await, serving("large").await];
    let gateway = gateway(&urls(&sims), ", models: ['small-*']").await;
    let named = |model: Option<&str>| {
        let mut body = prompt(1);
        if let Some(model) = model {
            body["model"] = json!(model);
        }
        body
    };
    assert_eq!(ask(&gateway, &named(Some("small-1"))).await.status, 200);
    let mut texts = Vec::new();
    for model in ["large", "none"] {
        let reply = ask(&gateway, &named(Some(model))).await;
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (404, &json!("model_not_found")));
        texts.push(reply.json()["error"]["message"].as_str().unwrap().replace(model, "M"));
    }
    assert_eq!(texts[0], texts[1], "whether a model exists is not told");
    let reply = ask(&gateway, &named(None)).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("model_not_named")));
    let key = [("x-api-key", KEY)];
    assert_eq!(
        post(&gateway, "/tokenize", &key, &json!({"prompt": "x", "model": "large"})).await.status,
        404
    );
    let models = request(gateway.address, "GET", "/v1/models", &key, "").await.json();
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["small-1"]);
}

#[tokio::test]
async fn a_key_does_not_control_workers_unless_it_is_said_to() {
    let sims = sims(1).await;
    let restricted = gateway(&urls(&sims), "").await;
    let key = [("x-api-key", KEY)];
    for path in ["/reset_prefix_cache", "/sleep", "/v1/load_lora_adapter", "/v1/models/../../sleep"] {
        let reply = request(restricted.address, "POST", path, &key, "").await;
        assert_eq!(
            (reply.status, &reply.json()["error"]["code"]),
            (403, &json!("path_not_allowed")),
            "{path}"
        );
    }
    assert_eq!(request(restricted.address, "GET", "/metrics", &key, "").await.status, 403);
    assert_eq!(request(restricted.address, "GET", "/version", &key, "").await.status, 200);
    let all = gateway(&urls(&sims), ", paths: all").await;
    assert_eq!(request(all.address, "GET", "/metrics", &key, "").await.status, 200);
}

/// Asks until the answer is a refusal.
async fn refused(gateway: &Gateway, body: &Value) -> Reply {
    eventually("a refusal", || async {
        let reply = ask(gateway, body).await;
        (reply.status == 429).then_some(reply)
    })
    .await
}

#[tokio::test]
async fn requests_per_second_are_limited_and_the_client_is_told_when_to_come_back() {
    let sims = sims(1).await;
    let gateway = gateway(&urls(&sims), ", requests_per_second: 0.01, burst: 2").await;
    let first = ask(&gateway, &prompt(1)).await;
    assert_eq!((first.status, first.header("x-ratelimit-limit-requests")), (200, "2"));
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "1");
    let reply = refused(&gateway, &prompt(1)).await;
    let error = &reply.json()["error"];
    assert_eq!((&error["code"], &error["type"]), (&json!("rate_limit_exceeded"), &json!("requests")));
    assert!(error["message"].as_str().unwrap().contains("requests_per_second"), "{error}");
    let retry_after: u64 = reply.header("retry-after").parse().unwrap();
    assert!((1..=100).contains(&retry_after), "{retry_after}");
    assert_eq!(reply.header("x-ratelimit-remaining-requests"), "0");
    assert!(reply.header("x-ratelimit-reset-requests").ends_with('s'));
    let outcome = "warmpath_tenant_requests_total{outcome=\"requests_per_second\",tenant=\"a\"}";
    assert!(gateway.metric(outcome).await >= 1.0);
}

#[tokio::test]
async fn requests_at_the_same_time_are_limited_and_a_client_that_leaves_frees_its_place() {
    let sims = sims(1).await;
    let gateway = gateway(&urls(&sims), ", concurrent: 1").await;
    let body = json!({"prompt": "x", "max_tokens": 100_000, "ignore_eos": true, "stream": true});
    let fields = [("x-api-key", KEY), ("content-type", "application/json")];
    let open = || warmpath_tests::open(gateway.address, "POST", "/v1/completions", &fields, body.to_string());
    let mut stream = open().await;
    assert_eq!(stream.status, 200);
    stream.next().await.unwrap().unwrap();
    let reply = ask(&gateway, &prompt(1)).await;
    assert_eq!((reply.status, reply.header("retry-after")), (429, "1"), "{}", reply.text());
    drop(stream);
    eventually("the place is free", || async {
        (ask(&gateway, &prompt(1)).await.status == 200).then_some(())
    })
    .await;
    let in_flight = "warmpath_tenant_in_flight_requests{tenant=\"a\"}";
    eventually("nothing in flight", || async { (gateway.metric(in_flight).await == 0.0).then_some(()) })
        .await;
}

async fn tokens(gateway: &Gateway) -> f64 {
    gateway.metric("warmpath_tenant_tokens_total{tenant=\"a\"}").await
}

#[tokio::test]
async fn an_answer_is_charged_by_the_workers_own_word() {
    let sims = sims(1).await;
    let gateway = gateway(&urls(&sims), ", tokens_per_minute: 10000").await;
    let mut expected = 0;
    for stream in [false, true] {
        let mut body = prompt(20);
        if stream {
            body["stream"] = json!(true);
            body["stream_options"] = json!({"include_usage": true});
        }
        let reply = ask(&gateway, &body).await;
        assert_eq!((reply.status, reply.header("x-ratelimit-limit-tokens")), (200, "10000"));
        let text = reply.text();
        let (_, usage) = text.rsplit_once("\"usage\":").unwrap();
        let mut usage = serde_json::Deserializer::from_str(usage).into_iter::<Value>();
        let used = usage.next().unwrap().unwrap()["total_tokens"].as_u64().unwrap();
        assert!(used > 20);
        expected += used;
        // A stream that the kernel moved is charged by its events: a few more or less.
        let near = |counted: f64| (counted - expected as f64).abs() <= 15.0 * f64::from(u8::from(stream));
        eventually("the charge", || async { near(tokens(&gateway).await).then_some(()) }).await;
    }
}

#[tokio::test]
async fn tokens_per_minute_hold_back_the_next_request() {
    let sims = sims(1).await;
    let gateway = gateway(&urls(&sims), ", tokens_per_minute: 60").await;
    assert_eq!(ask(&gateway, &prompt(200)).await.status, 200, "the answer's length is not known before");
    let reply = refused(&gateway, &prompt(1)).await;
    assert_eq!(reply.json()["error"]["type"], "tokens", "{}", reply.text());
    assert_eq!(reply.header("x-ratelimit-remaining-tokens"), "0");
    assert!(reply.header("retry-after").parse::<u64>().unwrap() > 60, "a debt of more than two minutes");
    let long = json!({"messages": [{"role": "user", "content": "x".repeat(10_000)}]});
    let reply = ask(&gateway, &long).await;
    assert_eq!((reply.status, reply.header("retry-after")), (429, ""), "it will never fit");
}

#[tokio::test]
async fn a_clients_key_ends_at_the_gateway_and_a_worker_is_sent_its_own() {
    const WORKERS_KEY: &str = "sk-of-the-worker";
    let sim = sim(SimConfig { api_key: Some(WORKERS_KEY.into()), ..SimConfig::default() }).await;
    let secret = yaml(&format!("{WORKERS_KEY}\n"));
    let config = yaml(&format!(
        "keys: [{{name: a, sha256: '{}'}}]\nworkers: [{{url: 'http://{}', api_key_file: {}}}]\n\
         tokenizers: {{default: worker}}\n",
        digest(KEY),
        sim.addr(),
        secret.path().display()
    ));
    let gateway = Gateway::start(&[], &["--config", config.path().to_str().unwrap()]).await;
    assert_eq!(ask(&gateway, &prompt(1)).await.status, 200, "vLLM's --api-key");
    assert_eq!(gateway.workers().await[0]["health"], "healthy");
    let tokenised = "warmpath_tokenize_requests_total{result=\"exact\",source=\"worker\"}";
    assert!(gateway.metric(tokenised).await >= 1.0);

    let worker = Worker::start("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
    let gateway = self::gateway(&[worker.url()], "").await;
    let key = format!("Bearer {KEY}");
    for fields in [&[("authorization", key.as_str()), ("x-api-key", OTHER_KEY)][..], &[("x-api-key", KEY)]] {
        assert_eq!(post(&gateway, CHAT, fields, &prompt(1)).await.status, 200);
    }
    let seen = worker.take();
    assert_eq!(seen.len(), 2);
    for request in seen {
        assert!(!request.contains("sk-") && !request.contains("authorization"), "{request}");
    }
}

#[tokio::test]
async fn without_keys_in_the_configuration_clients_keys_are_the_workers_business() {
    let sims = [sim(SimConfig { api_key: Some(KEY.into()), ..SimConfig::default() }).await];
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    assert_eq!(ask(&gateway, &prompt(1)).await.status, 200);
    assert_eq!(post(&gateway, CHAT, &[], &prompt(1)).await.status, 401);
}

#[tokio::test]
async fn a_reload_changes_who_is_let_in_and_touches_no_request_under_way() {
    let sims = sims(1).await;
    let (more, file) = (yaml("# nobody\n"), yaml(""));
    let write = |key: &str, others: &str| {
        std::fs::write(more.path(), others).unwrap();
        let keys = format!("keys: [{{name: a, sha256: '{}', concurrent: 2}}]", digest(key));
        std::fs::write(file.path(), format!("{keys}\nkeys_file: {}\n", more.path().display())).unwrap();
    };
    write(KEY, "# nobody\n");
    let gateway = Gateway::start(&urls(&sims), &["--config", file.path().to_str().unwrap()]).await;
    let reload = async || request(gateway.admin, "POST", "/admin/reload", &[], "").await.status;
    let status = async |key: &str| post(&gateway, CHAT, &[("x-api-key", key)], &prompt(1)).await.status;
    let body = json!({"prompt": "x", "max_tokens": 300, "ignore_eos": true, "stream": true}).to_string();
    let fields = [("x-api-key", KEY), ("content-type", "application/json")];
    let mut stream = warmpath_tests::open(gateway.address, "POST", "/v1/completions", &fields, body).await;
    stream.next().await.unwrap().unwrap();

    write("sk-new", &format!("- {{name: b, sha256: '{}'}}\n", digest(OTHER_KEY)));
    assert_eq!(status(OTHER_KEY).await, 401);
    assert_eq!(reload().await, 200);
    assert_eq!((status(KEY).await, status("sk-new").await, status(OTHER_KEY).await), (401, 200, 200));
    let in_flight = "warmpath_tenant_in_flight_requests{tenant=\"a\"}";
    assert!((gateway.metric(in_flight).await - 1.0).abs() < f64::EPSILON, "what a tenant uses is kept");
    assert!(stream.rest().await.1, "the stream of a key that is gone ends as it would have");

    write("sk-new", "- {name: b}\n");
    assert_ne!(reload().await, 200);
    assert_eq!((status("sk-new").await, status(OTHER_KEY).await), (200, 200), "a wrong file changes nothing");
}

#[test]
fn a_new_key_is_printed_once_with_the_line_that_lets_it_in() {
    let run = |name: &str| {
        std::process::Command::new(warmpath_tests::binary()).args(["key", name]).output().unwrap()
    };
    let text = String::from_utf8(run("team-a").stdout).unwrap();
    let key = text.lines().find(|line| line.starts_with("sk-warmpath-")).unwrap();
    assert!(text.contains(&format!("- {{ name: \"team-a\", sha256: \"{}\" }}", digest(key))), "{text}");
    let refused = run("a b");
    assert!(!refused.status.success());
    assert!(String::from_utf8(refused.stderr).unwrap().contains("\"a b\" is no name"));
}
