//! Policies that an operator sets up.

use std::collections::HashMap;

use futures_util::future::join_all;
use serde_json::json;
use vllm_sim::{EngineConfig, TimeModel};
use warmpath_tests::{Gateway, Reply, SimConfig, SimHandle, request, sim, sims, urls};

/// Text of a few blocks.
fn topic(name: &str) -> String {
    format!("{name}: ").repeat(200)
}

async fn with_routing(sims: &[SimHandle], routing: &str) -> Gateway {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("routing: {routing}\n")).unwrap();
    Gateway::start(&urls(sims), &["--config", file.path().to_str().unwrap()]).await
}

fn worker(reply: &Reply) -> String {
    reply.header("x-warmpath-worker").to_owned()
}

#[tokio::test]
async fn a_session_is_named_by_header_or_body_and_stays() {
    let sims = sims(4).await;
    let gateway = with_routing(&sims, "{policy: session, session: {header: x-chat}}").await;
    let mut workers = HashMap::<String, u32>::new();
    for session in 0..12 {
        let name = format!("session {session}");
        let plain = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}).to_string();
        let by_header = request(
            gateway.address,
            "POST",
            "/v1/chat/completions",
            &[("content-type", "application/json"), ("x-chat", &name)],
            plain,
        )
        .await;
        let own = worker(&by_header);
        for key in ["session_id", "prompt_cache_key", "user"] {
            let mut body = json!({"messages": [{"role": "user", "content": key}], "max_tokens": 2});
            body[key] = json!(name);
            let reply = gateway.post("/v1/chat/completions", &body).await;
            assert_eq!(
                (worker(&reply), reply.header("x-warmpath-reason")),
                (own.clone(), "session"),
                "{key}"
            );
        }
        *workers.entry(own).or_default() += 1;
    }
    assert!(workers.len() >= 3, "sessions are spread: {workers:?}");
    let keyless = gateway.chat("hello").await;
    assert_ne!(keyless.header("x-warmpath-reason"), "session");
}

#[tokio::test]
async fn prefix_follows_its_match_and_leaves_a_full_worker() {
    let sims = sims(3).await;
    let gateway = with_routing(&sims, "{policy: prefix, prefix: {saturation: 2}}").await;
    let text = topic("the same beginning");
    let holder = worker(&gateway.chat(&text).await);
    let mut held = Vec::new();
    let mut reasons = Vec::new();
    for i in 0..3 {
        let stream = gateway.stream(&format!("{text} {i}"), 4000).await;
        reasons.push((
            stream.header("x-warmpath-worker") == holder,
            stream.header("x-warmpath-reason").to_owned(),
        ));
        held.push(stream);
    }
    let reason = |at: usize| (reasons[at].0, reasons[at].1.as_str());
    assert_eq!((reason(0), reason(1)), ((true, "prefix_hit"), (true, "prefix_hit")));
    assert_eq!(reason(2), (false, "saturated"));
}

#[tokio::test]
async fn weighted_scores_can_be_made_to_herd_or_to_spread() {
    let sims = sims(4).await;
    let text = topic("for everybody");
    for (scorers, spreads) in [("{prefix: 1}", false), ("{prefix: 1, queue: 1, load: 1}", true)] {
        let gateway =
            with_routing(&sims, &format!("{{policy: weighted, weighted: {{scorers: {scorers}}}}}")).await;
        let holder = worker(&gateway.chat(&text).await);
        let requests: Vec<_> = (0..16).map(|_| gateway.stream(&text, 400)).collect();
        let streams = join_all(requests).await;
        let elsewhere = streams.iter().filter(|stream| stream.header("x-warmpath-worker") != holder).count();
        assert_eq!(elsewhere > 0, spreads, "{scorers}: {elsewhere} elsewhere");
    }
}

#[tokio::test]
async fn a_slow_worker_is_found_and_gets_no_more_than_its_share() {
    let prefilling = |tokens_per_s: f64| SimConfig {
        engine: EngineConfig {
            time: TimeModel { prefill_tokens_per_s: tokens_per_s, ..TimeModel::default() },
            ..EngineConfig::default()
        },
        ..SimConfig::default()
    };
    let mut sims = vec![sim(prefilling(2_000.0)).await];
    for _ in 0..7 {
        sims.push(sim(prefilling(20_000.0)).await);
    }
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let slow = sims[0].addr().to_string();
    let mut by_slow = [0; 2];
    for (number, phase) in by_slow.iter_mut().enumerate() {
        // Fifty at a time, eight under way: an even share would be six.
        for round in 0..6 {
            let requests: Vec<_> = (0..8)
                .map(|i| {
                    let prompt = format!("{number} {round} {i} ").repeat(400);
                    let gateway = &gateway;
                    async move {
                        let mut stream = gateway.stream(&prompt, 4).await;
                        let worker = stream.header("x-warmpath-worker").to_owned();
                        stream.rest().await;
                        worker
                    }
                })
                .collect();
            *phase += join_all(requests).await.iter().filter(|worker| **worker == slow).count();
        }
    }
    assert!((1..=6).contains(&by_slow[0]), "it had to be tried to be known: {by_slow:?}");
    assert!(by_slow[1] <= 2, "a tenth of the others' speed: {by_slow:?}");
    let rate =
        |sim: &SimHandle| format!("warmpath_worker_prefill_tokens_per_second{{worker=\"{}\"}}", sim.addr());
    let (slow, fast) = (gateway.metric(&rate(&sims[0])).await, gateway.metric(&rate(&sims[1])).await);
    assert!(slow > 0.0 && slow * 2.0 < fast, "{slow} and {fast} tokens/s");
    let errors = format!("warmpath_time_to_first_token_error_seconds_count{{worker=\"{}\"}}", sims[1].addr());
    assert!(gateway.metric(&errors).await > 0.0, "predictions are compared with what came");
}
