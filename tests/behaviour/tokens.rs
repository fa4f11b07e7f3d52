//! Exact tokens: from the request, from a tokenizer of the gateway's own, from a worker; and what happens without.

use std::{io::Write, path::Path, process::Command};

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use warmpath_tests::{Gateway, binary, eventually, sims, urls};

use crate::conformance::Worker;

/// A tokenizer and a template of their own: see tests/fixtures/tokenize.
fn chatml() -> String {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenize/chatml");
    fixtures.to_str().unwrap().to_owned()
}

/// A configuration file with these `tokenizers:`.
fn configuration(tokenizers: &str) -> NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    writeln!(file, "tokenizers: {tokenizers}").unwrap();
    file
}

async fn gateway(tokenizers: &str, workers: &[String]) -> Gateway {
    let file = configuration(tokenizers);
    Gateway::start(workers, &["--config", file.path().to_str().unwrap()]).await
}

/// Requests by where their tokens were sought and what came of it.
async fn requests(gateway: &Gateway, source: &str, result: &str) -> u64 {
    let series = format!("warmpath_tokenize_requests_total{{result=\"{result}\",source=\"{source}\"}}");
    gateway.metric(&series).await as u64
}

/// The tokens that the gateway took for those of one request's prompt, and the response.
async fn prompt_tokens(gateway: &Gateway, path: &str, body: &Value) -> (u64, warmpath_tests::Reply) {
    let before = gateway.metric("warmpath_prompt_tokens_total").await;
    let reply = gateway.post(path, body).await;
    ((gateway.metric("warmpath_prompt_tokens_total").await - before) as u64, reply)
}

fn used(reply: &warmpath_tests::Reply) -> u64 {
    reply.json()["usage"]["prompt_tokens"].as_u64().unwrap()
}

#[tokio::test]
async fn a_workers_own_tokens_are_asked_for_once() {
    let sims = sims(2).await;
    let gateway = gateway("{default: worker, deadline: 10s}", &urls(&sims)).await;
    let chat = json!({"messages": [{"role": "user", "content": "How many of them are there? ".repeat(50)}], "max_tokens": 2});
    let text = json!({"prompt": "Once upon a time, ".repeat(30), "max_tokens": 2});
    for (path, body) in [("/v1/chat/completions", &chat), ("/v1/completions", &text)] {
        let cached = || gateway.metric("warmpath_tokenize_tokens_total{from=\"cache\"}");
        let before = cached().await;
        let (first, reply) = prompt_tokens(&gateway, path, body).await;
        assert_eq!(first, used(&reply), "{path}");
        assert!((cached().await - before).abs() < f64::EPSILON, "{path}: nobody knew them");
        let (second, reply) = prompt_tokens(&gateway, path, body).await;
        assert_eq!(second, used(&reply), "{path}");
        assert_eq!((cached().await - before) as u64, second, "{path}: known from the first time");
    }
    assert_eq!(requests(&gateway, "worker", "exact").await, 4);
}

#[tokio::test]
async fn what_a_worker_cannot_tokenise_is_served_all_the_same() {
    let sims = sims(1).await;
    let gateway = gateway("{default: worker, deadline: 10s}", &urls(&sims)).await;
    let image = json!({"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}});
    let content = json!([{"type": "text", "text": "What is this?"}, image]);
    let bodies = [
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": content}], "max_tokens": 2}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "Hi"}], "reasoning_effort": "low", "max_tokens": 2}),
        ),
        ("/v1/completions", json!({"prompt": ["one", "two"], "max_tokens": 2})),
        ("/v1/responses", json!({"input": "Hi", "max_output_tokens": 2})),
        ("/v1/messages", json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2})),
    ];
    for (path, body) in &bodies {
        assert_eq!(gateway.post(path, body).await.status, 200, "{path} {body}");
    }
    assert_eq!(requests(&gateway, "worker", "unsupported").await, bodies.len() as u64);
    // A worker says no to these: its answer is the client's, and there are no tokens.
    let no_prompt = json!({"max_tokens": 2});
    assert_eq!(gateway.post("/v1/completions", &no_prompt).await.status, 400);
    assert_eq!(requests(&gateway, "worker", "worker_failed").await, 1);
}

#[tokio::test]
async fn token_ids_in_a_request_are_its_tokens() {
    let sims = sims(1).await;
    let gateway = gateway("{}", &urls(&sims)).await;
    let (tokens, reply) =
        prompt_tokens(&gateway, "/v1/completions", &json!({"prompt": vec![7; 123], "max_tokens": 2})).await;
    assert_eq!((tokens, used(&reply)), (123, 123));
    assert_eq!(requests(&gateway, "given", "exact").await, 1);
}

#[tokio::test]
async fn a_tokenizer_of_the_gateway_counts_as_vllm_does() {
    // A worker that tells neither its models nor its tokens, so that it cannot be compared with.
    let worker = Worker::start("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
    let models = format!("{{models: {{tiny: {{local: {}}}}}, deadline: 10s}}", chatml());
    let gateway = gateway(&models, &[worker.url()]).await;
    let recordings = std::fs::read_to_string(Path::new(&chatml()).join("recordings.jsonl")).unwrap();
    let mut compared = 0;
    for recorded in recordings.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let Some(expected) = recorded["tokens"].as_array() else { continue };
        let mut body = recorded["request"].clone();
        // Tools change their members' order when they are parsed here.
        if recorded["template"].is_string()
            || !body["tools"].is_null()
            || !body["chat_template_kwargs"].is_null()
        {
            continue;
        }
        body["model"] = json!("tiny");
        let (tokens, _) = prompt_tokens(&gateway, recorded["path"].as_str().unwrap(), &body).await;
        assert_eq!(tokens, expected.len() as u64, "{body}");
        compared += 1;
    }
    assert!(compared > 30, "{compared}");
    assert_eq!(
        requests(&gateway, "local", "exact").await + requests(&gateway, "given", "exact").await,
        compared
    );
    let growing = gateway.metric("warmpath_tokenize_tokens_total{from=\"cache\"}").await;
    assert!(growing > 0.0, "some of these prompts begin alike");
}

#[tokio::test]
async fn a_tokenizer_that_is_not_the_workers_is_not_used() {
    let sims = sims(1).await;
    let gateway =
        gateway(&format!("{{default: {{local: {}}}, deadline: 10s}}", chatml()), &urls(&sims)).await;
    eventually("the comparison with the worker", || async {
        gateway.output().contains("makes other tokens").then_some(())
    })
    .await;
    assert_eq!(gateway.chat("Hello").await.status, 200);
    assert_eq!(requests(&gateway, "local", "unsupported").await, 1);
    assert_eq!(requests(&gateway, "local", "exact").await, 0);
}

#[test]
fn a_directory_without_a_tokenizer_is_named() {
    let nowhere = configuration("{default: {local: /no/such/model}}");
    let output = Command::new(binary())
        .args(["serve", "--worker", "http://127.0.0.1:1", "--config", nowhere.path().to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("/no/such/model/tokenizer.json"), "{said}");
}

#[test]
fn the_command_line_tokenises_line_by_line() {
    use std::process::Stdio;
    let mut child = Command::new(binary())
        .args(["tokenize", "--text", &chatml()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = "{\"prompt\": \"Hello\"}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}\nnot json\n";
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let answers: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [plain, chat, wrong] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!(plain["count"], plain["tokens"].as_array().unwrap().len());
    assert_eq!(chat["text"], "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
    assert!(wrong["error"].is_string());
}
