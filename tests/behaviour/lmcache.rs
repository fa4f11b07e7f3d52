//! The policy `lmcache`, with a controller that answers as LMCache's does.

use serde_json::{Value, json};
use warmpath_tests::{Gateway, Reply, SimHandle, eventually, get, request, sim, sims, urls};

use crate::controller::Controller;

async fn with(sims: &[SimHandle], config: &str) -> Gateway {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config).unwrap();
    Gateway::start(&urls(sims), &["--config", file.path().to_str().unwrap()]).await
}

async fn with_routing(sims: &[SimHandle], routing: &str) -> Gateway {
    with(sims, &format!("routing: {routing}\n")).await
}

fn worker(reply: &Reply) -> String {
    reply.header("x-warmpath-worker").to_owned()
}

/// Calls of `/tokenize` that the workers have had.
async fn tokenized(sims: &[SimHandle]) -> f64 {
    let mut calls = 0.0;
    for sim in sims {
        let metrics = get(sim.addr(), "/metrics").await.text();
        let lines = metrics.lines().filter(|line| line.starts_with("http_requests_total{"));
        let lines = lines.filter(|line| line.contains("handler=\"/tokenize\""));
        calls += lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>();
    }
    calls
}

#[tokio::test]
async fn the_controller_is_asked_and_done_without() {
    let sims = sims(3).await;
    let controller = Controller::start().await;
    let names: Vec<String> = sims.iter().map(|sim| sim.addr().to_string()).collect();
    controller.list(&[("instance-a", 10), ("instance-b", 7)]);
    controller.answer(Some(&[("instance-b", 900)]));
    let gateway = with_routing(
        &sims,
        &format!(
            "{{policy: lmcache, lmcache: {{controller: '{}', timeout: 2s, instances: {{instance-a: '{}', instance-b: '{}'}}}}}}",
            controller.url(),
            names[1],
            names[2]
        ),
    )
    .await;
    let keys = format!("warmpath_lmcache_keys{{worker=\"{}\"}}", names[1]);
    eventually("the occupancy is known", || async { (gateway.metric(&keys).await > 9.0).then_some(()) })
        .await;
    let body = json!({"prompt": (0..1000).collect::<Vec<u32>>(), "max_tokens": 2});
    let reply = gateway.post("/v1/completions", &body).await;
    assert_eq!((worker(&reply).as_str(), reply.header("x-warmpath-policy")), (names[2].as_str(), "lmcache"));
    assert_eq!(reply.header("x-warmpath-matched-tokens"), "900");
    assert_eq!(controller.last_lookup(), (0..1000).collect::<Vec<u32>>(), "the prompt's token ids");

    // Without tokens there is nothing to ask for.
    assert_eq!(gateway.chat("words").await.header("x-warmpath-policy"), "warm");
    // A controller that fails is done without, and after a while not asked at all.
    controller.answer(None);
    for _ in 0..8 {
        let reply = gateway.post("/v1/completions", &body).await;
        assert_eq!((reply.status, reply.header("x-warmpath-policy")), (200, "warm"));
    }
    let outcome = |outcome| format!("warmpath_lmcache_lookups_total{{outcome=\"{outcome}\"}}");
    assert!(gateway.metric(&outcome("failed")).await >= 5.0);
    assert!(gateway.metric(&outcome("answered")).await >= 1.0);
    assert!(gateway.metric(&outcome("no_tokens")).await >= 1.0);
}

#[tokio::test]
async fn a_late_answer_is_not_waited_for() {
    let sims = sims(2).await;
    let controller = Controller::start().await;
    controller.hang();
    let routing =
        format!("{{policy: lmcache, lmcache: {{controller: '{}', timeout: 30ms}}}}", controller.url());
    let gateway = with_routing(&sims, &routing).await;
    let body = json!({"prompt": [1, 2, 3], "max_tokens": 2});
    let reply = gateway.post("/v1/completions", &body).await;
    assert_eq!((reply.status, reply.header("x-warmpath-policy")), (200, "warm"));
    assert!(gateway.metric("warmpath_lmcache_lookups_total{outcome=\"late\"}").await > 0.5);
}

#[tokio::test]
async fn a_prompt_that_comes_again_is_not_tokenised_again_and_connections_are_kept() {
    let sims = sims(2).await;
    let controller = Controller::start().await;
    let names: Vec<String> = sims.iter().map(|sim| sim.addr().to_string()).collect();
    controller.list(&[(&names[0], 3), (&names[1], 4)]);
    controller.answer(Some(&[(&names[1], 40)]));
    let config = format!(
        "routing: {{policy: lmcache, lmcache: {{controller: '{}', timeout: 2s}}}}\n\
         tokenizers: {{default: worker, deadline: 5s}}\nscrape_interval: 50ms\n",
        controller.url()
    );
    let gateway = with(&sims, &config).await;
    let keys = format!("warmpath_lmcache_keys{{worker=\"{}\"}}", names[1]);
    eventually("instances are known by their names", || async {
        (gateway.metric(&keys).await > 3.0).then_some(())
    })
    .await;
    let prompt = "the same words ".repeat(40);
    let first = gateway.chat(&prompt).await;
    assert_eq!((worker(&first), first.header("x-warmpath-policy")), (names[1].clone(), "lmcache"));
    let calls = tokenized(&sims).await;
    assert!(calls >= 1.0, "a worker was asked for its tokens");
    for _ in 0..6 {
        assert_eq!(gateway.chat(&prompt).await.header("x-warmpath-policy"), "lmcache");
    }
    assert!((tokenized(&sims).await - calls).abs() < f64::EPSILON, "and never again");
    assert!(gateway.metric("warmpath_lmcache_lookups_total{outcome=\"answered\"}").await >= 7.0);
    // One of each data thread, and one of the control thread.
    assert!(controller.connections() <= 3, "{}", controller.connections());
}

#[tokio::test]
async fn explain_asks_the_controller_and_does_without_it_as_requests_do() {
    let sims = sims(3).await;
    let controller = Controller::start().await;
    let names: Vec<String> = sims.iter().map(|sim| sim.addr().to_string()).collect();
    let listed: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    controller.list(&listed);
    controller.answer(Some(&[(&names[2], 900)]));
    let routing =
        format!("{{policy: lmcache, lmcache: {{controller: '{}', timeout: 2s}}}}", controller.url());
    let gateway = with_routing(&sims, &routing).await;
    let body = json!({"prompt": (0..1000).collect::<Vec<u32>>(), "max_tokens": 2}).to_string();
    let explain = async || request(gateway.admin, "POST", "/explain", &[], body.clone()).await.json();
    let explained = eventually("the instances are known", || async {
        let explained = explain().await;
        (explained["winner"]["worker"] == names[2].as_str()).then_some(explained)
    })
    .await;
    let of = |explained: &Value, name: &str| {
        explained["workers"].as_array().unwrap().iter().find(|part| part["worker"] == name).unwrap().clone()
    };
    assert_eq!(
        (&explained["policy"], &of(&explained, &names[2])["matched_tokens"]),
        (&json!("lmcache"), &json!(900))
    );
    assert!(
        gateway.metric("warmpath_lmcache_lookups_total{outcome=\"answered\"}").await < 0.5,
        "nothing is counted"
    );
    controller.answer(None);
    let explained = explain().await;
    assert_eq!(
        (&explained["policy"], &of(&explained, &names[2])["matched_tokens"]),
        (&json!("warm"), &json!(0))
    );
}

#[tokio::test]
async fn a_worker_that_is_added_is_known_and_an_instance_that_is_none_is_told() {
    let sims = sims(1).await;
    let late = sim(vllm_sim::SimConfig { seed: 9, ..Default::default() }).await;
    let controller = Controller::start().await;
    controller.list(&[("gpu-late", 5), ("nobody", 6)]);
    controller.answer(Some(&[("gpu-late", 700)]));
    let config = format!(
        "routing: {{policy: lmcache, lmcache: {{controller: '{}', timeout: 2s}}}}\nscrape_interval: 50ms\n",
        controller.url()
    );
    let gateway = with(&sims, &config).await;
    let unknown = "warmpath_lmcache_unknown_instances";
    eventually("both are strangers", || async { (gateway.metric(unknown).await > 1.5).then_some(()) }).await;
    let added = json!({"url": late.url(), "name": "gpu-late"}).to_string();
    assert_eq!(request(gateway.admin, "POST", "/workers", &[], added).await.status, 201);
    eventually("one is a worker now", || async { (gateway.metric(unknown).await < 1.5).then_some(()) }).await;
    let body = json!({"prompt": (0..1000).collect::<Vec<u32>>(), "max_tokens": 2});
    let reply = gateway.post("/v1/completions", &body).await;
    assert_eq!((worker(&reply).as_str(), reply.header("x-warmpath-matched-tokens")), ("gpu-late", "700"));
    assert_eq!(
        gateway.output().matches("instance=\"nobody\"").count(),
        1,
        "it is said once: {}",
        gateway.output()
    );
}
