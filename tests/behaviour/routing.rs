//! The right worker.

use std::collections::HashMap;

use futures_util::future::join_all;
use serde_json::json;
use warmpath_tests::{Gateway, sims, urls};

/// Text of a few blocks that shares no prefix with another topic's.
fn topic(name: &str) -> String {
    format!("{name}: ").repeat(200)
}

#[tokio::test]
async fn warm_sends_a_conversation_back_to_the_worker_that_has_it() {
    let sims = sims(3).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    for conversation in 0..6 {
        let mut messages =
            vec![json!({"role": "user", "content": topic(&format!("conversation {conversation}"))})];
        let mut first_worker = None;
        for turn in 0..3 {
            let body = json!({"messages": messages, "max_tokens": 8, "ignore_eos": true});
            let reply = gateway.post("/v1/chat/completions", &body).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            let worker = reply.header("x-warmpath-worker").to_owned();
            let matched: u64 = reply.header("x-warmpath-matched-tokens").parse().unwrap();
            let cached =
                reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
            if turn == 0 {
                assert!(matched < 50, "a new conversation shares next to nothing: {matched}");
            } else {
                assert_eq!(
                    Some(&worker),
                    first_worker.as_ref(),
                    "turn {turn} of conversation {conversation}"
                );
                assert_eq!(reply.header("x-warmpath-reason"), "prefix_hit");
                assert!(matched > 500, "the index expects the earlier turns: {matched}");
                assert!(cached > 500, "and the worker had them: {cached}");
            }
            first_worker.get_or_insert(worker);
            messages.push(reply.json()["choices"][0]["message"].clone());
            messages.push(json!({"role": "user", "content": format!("and then? {turn}")}));
        }
    }
    let hits = gateway.metric("warmpath_decisions_total{policy=\"warm\",reason=\"prefix_hit\"}").await;
    assert!(hits >= 12.0, "{hits}");
    assert!(gateway.metric("warmpath_matched_tokens_total").await > 6000.0);
}

#[tokio::test]
async fn warm_leaves_a_busy_worker_even_if_it_has_the_prefix() {
    let sims = sims(2).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let shared = topic("everybody begins like this");
    let first = gateway.chat(&shared).await;
    let holder = first.header("x-warmpath-worker").to_owned();
    // Each with far more work of its own than the shared beginning is worth.
    let mut held = Vec::new();
    let mut workers = HashMap::<String, u32>::new();
    for i in 0..12 {
        let own = topic(&format!("question {i}")).repeat(10);
        let stream = gateway.stream(&format!("{shared} {own}"), 5000).await;
        *workers.entry(stream.header("x-warmpath-worker").to_owned()).or_default() += 1;
        held.push(stream);
    }
    assert!(workers[&holder] >= 1);
    assert_eq!(workers.len(), 2, "the other worker takes its share: {workers:?}");
}

#[tokio::test]
async fn every_policy_serves_and_says_so() {
    let sims = sims(3).await;
    for policy in ["warm", "round_robin", "random", "least_loaded", "power_of_two"] {
        let gateway = Gateway::start(&urls(&sims), &["--policy", policy]).await;
        let mut workers = HashMap::<String, u32>::new();
        for i in 0..30 {
            let reply = gateway.chat(&topic(&format!("{policy} {i}"))).await;
            assert_eq!(reply.status, 200);
            assert_eq!(reply.header("x-warmpath-policy"), policy);
            *workers.entry(reply.header("x-warmpath-worker").to_owned()).or_default() += 1;
        }
        assert_eq!(workers.len(), 3, "{policy} uses every worker: {workers:?}");
        if policy == "round_robin" {
            assert!(workers.values().all(|n| *n == 10), "{workers:?}");
        }
    }
}

#[tokio::test]
async fn a_burst_does_not_herd() {
    let sims = sims(4).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let prompt = topic("the same for all");
    let requests: Vec<_> = (0..64).map(|_| gateway.stream(&prompt, 400)).collect();
    let mut workers = HashMap::<String, u32>::new();
    let mut held = Vec::new();
    for stream in join_all(requests).await {
        *workers.entry(stream.header("x-warmpath-worker").to_owned()).or_default() += 1;
        held.push(stream);
    }
    // Sixteen each, were it only counted; but a worker whose first token comes sooner is free of that prefill sooner, and
    // gets the next. A herd would be all 64 on one, or on those that had none when the burst began.
    let (least, most) = (workers.values().min().unwrap(), workers.values().max().unwrap());
    assert!(workers.len() == 4 && *least >= 6 && *most <= 28, "{workers:?}");
}

#[tokio::test]
async fn prefixes_are_found_for_every_api_and_every_form_of_prompt() {
    let sims = sims(3).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let text = topic("a long beginning");
    let ids: Vec<u32> = (0..900).collect();
    let tools = json!([{"type": "function", "function": {"name": "f", "description": topic("tool"), "parameters": {}}}]);
    let bodies = [
        ("/v1/completions", json!({"prompt": text, "max_tokens": 2})),
        ("/v1/completions", json!({"prompt": [text], "max_tokens": 2})),
        ("/v1/completions", json!({"prompt": ids, "max_tokens": 2})),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": text}], "max_tokens": 2})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}], "max_tokens": 2, "n": 1}),
        ),
        (
            "/v1/chat/completions",
            json!({"tools": tools, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}),
        ),
        ("/v1/responses", json!({"input": text, "max_output_tokens": 2})),
        ("/v1/messages", json!({"messages": [{"role": "user", "content": text}], "max_tokens": 2})),
    ];
    for (path, body) in bodies {
        let matched = |reply: &warmpath_tests::Reply| -> u64 {
            reply.header("x-warmpath-matched-tokens").parse().unwrap()
        };
        let first = gateway.post(path, &body).await;
        let second = gateway.post(path, &body).await;
        let shape = body.to_string().chars().take(60).collect::<String>();
        assert_eq!((first.status, second.status), (200, 200), "{path} {shape}: {}", second.text());
        assert!(matched(&second) > 250, "{path} {shape}: {} then {}", matched(&first), matched(&second));
        assert_eq!(first.header("x-warmpath-worker"), second.header("x-warmpath-worker"), "{path} {shape}");
    }
}
