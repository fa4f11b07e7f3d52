//! Prefill on one worker, decode on another, by the parameters that vLLM's NIXL connector gives.

use std::time::Duration;

use serde_json::{Value, json};
use vllm_sim::{KvTransferConfig, SimConfig, SimHandle};

use crate::support::{Client, Response, post, start, tiny};

/// A prompt of so many tokens.
fn prompt(tokens: usize) -> String {
    "abcd".repeat(tokens)
}

fn with_lease(lease: Duration) -> SimConfig {
    SimConfig { kv_transfer: Some(KvTransferConfig { lease, tokens_per_s: 1e6 }), ..tiny() }
}

async fn worker() -> SimHandle {
    start(with_lease(Duration::from_secs(30))).await
}

async fn ask(sim: &SimHandle, body: Value) -> Response {
    Client::connect(sim.addr()).await.call(&post("/v1/completions", &body)).await
}

fn json_of(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap()
}

/// What a prefill stage is answered.
async fn prefilled(sim: &SimHandle, tokens: usize) -> Value {
    let keep = json!({"do_remote_decode": true, "do_remote_prefill": false, "remote_block_ids": null});
    let body = json!({"prompt": prompt(tokens), "max_tokens": 1, "kv_transfer_params": keep});
    let answer = ask(sim, body).await;
    assert_eq!(answer.status(), 200);
    json_of(&answer)["kv_transfer_params"].clone()
}

fn decode_body(tokens: usize, params: &Value, stream: bool) -> Value {
    json!({"prompt": prompt(tokens), "max_tokens": 3, "ignore_eos": true, "stream": stream, "kv_transfer_params": params})
}

#[tokio::test]
async fn blocks_are_kept_fetched_once_and_given_back() {
    let (prefill, decode) = (worker().await, worker().await);
    let params = prefilled(&prefill, 100).await;
    assert_eq!((&params["do_remote_prefill"], &params["do_remote_decode"]), (&json!(true), &json!(false)));
    assert_eq!(params["remote_block_ids"][0].as_array().unwrap().len(), 7, "{params}");
    assert_eq!(params["remote_num_tokens"], 100);
    assert!(params["remote_request_id"].as_str().unwrap().starts_with("cmpl-"));
    let stats = prefill.stats();
    assert!(stats.kv_kept == 1 && stats.kv_usage > 0.0, "{stats:?}");

    let answer = json_of(&ask(&decode, decode_body(100, &params, false)).await);
    assert_eq!(
        answer["usage"]["prompt_tokens_details"]["cached_tokens"], 99,
        "the last token is computed again"
    );
    assert_eq!(answer["kv_transfer_params"], Value::Null);
    assert_eq!((prefill.stats().kv_sent, decode.stats().kv_loaded), (1, 1));
    assert_eq!(decode.stats().cached_tokens, 99);
    let given_back = async {
        while prefill.stats().kv_usage > 0.0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, given_back).await.expect("the blocks are free again");

    let again = ask(&decode, decode_body(100, &params, false)).await;
    assert_eq!((again.status(), &json_of(&again)["error"]["type"]), (500, &json!("InternalServerError")));
}

#[tokio::test]
async fn blocks_that_are_gone_or_unknown_fail_the_request_in_its_own_form() {
    let (prefill, decode) = (start(with_lease(Duration::ZERO)).await, worker().await);
    let params = prefilled(&prefill, 50).await;
    let expired = async {
        while prefill.stats().kv_expired == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, expired).await.expect("the lease ends");
    let refused = ask(&decode, decode_body(50, &params, false)).await;
    assert_eq!(refused.status(), 500);
    let streamed = ask(&decode, decode_body(50, &params, true)).await;
    assert_eq!(streamed.status(), 200);
    let text = String::from_utf8_lossy(&streamed.body).into_owned();
    assert!(text.contains("data: {\"error\": {") && text.contains("data: [DONE]"), "{text}");

    let mut elsewhere = prefilled(&prefill, 50).await;
    elsewhere["remote_engine_id"] = "another".into();
    assert_eq!(ask(&decode, decode_body(50, &elsewhere, false)).await.status(), 500);
}

#[tokio::test]
async fn parameters_that_say_too_little_are_passed_over() {
    let decode = worker().await;
    for params in [json!({"do_remote_prefill": true}), json!({}), Value::Null] {
        assert_eq!(ask(&decode, decode_body(20, &params, false)).await.status(), 200, "{params}");
    }
    assert_eq!(decode.stats().kv_loaded, 0);
    let plain = start(tiny()).await;
    assert_eq!(prefilled(&plain, 20).await, Value::Null, "a worker without the connector");
}
