//! Redis that is slow, full, gone, and back: no request fails for it, and metrics say so.

use std::time::{Duration, Instant};

use warmpath_tests::{Gateway, Redis, Signal, eventually, get, request, sims, urls};

use crate::shared_gateways::{config, gateway, metric_is, write};

/// A prompt that nobody has sent before, long enough to be looked up.
fn new_prompt(number: usize) -> String {
    format!("Prompt {number}. {}", "Nobody has said this before. ".repeat(100))
}

/// Requests that are all served.
async fn serve(gateway: &Gateway, from: usize, count: usize) {
    for number in from..from + count {
        let reply = gateway.chat(&new_prompt(number)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
}

async fn is_in_state(gateway: &Gateway, state: &str) {
    metric_is(gateway, &format!("warmpath_shared_state{{state=\"{state}\"}}"), 1.0).await;
}

async fn uses(gateway: &Gateway, of: &str, result: &str) -> f64 {
    gateway.metric(&format!("warmpath_shared_commands_total{{result=\"{result}\",use=\"{of}\"}}")).await
}

#[tokio::test]
async fn without_a_server_from_the_start_everything_is_served_and_it_is_used_when_it_comes() {
    let Some(mut redis) = Redis::start("shared outages").await else { return };
    redis.kill().await;
    let sims = sims(2).await;
    let gateway = gateway(&urls(&sims), &config(&redis, ""), &[]).await;
    is_in_state(&gateway, "down").await;
    let ready = get(gateway.admin, "/ready").await;
    assert_eq!(ready.status, 200, "it is ready without");
    serve(&gateway, 0, 5).await;
    assert!(uses(&gateway, "hint_read", "dropped").await >= 5.0, "nobody waits for it");
    redis.restart().await;
    is_in_state(&gateway, "up").await;
    serve(&gateway, 5, 2).await;
    assert!(uses(&gateway, "hint_read", "ok").await >= 1.0);
}

#[tokio::test]
async fn a_server_that_dies_and_comes_back_costs_no_request() {
    let Some(mut redis) = Redis::start("shared outages").await else { return };
    let sims = sims(2).await;
    let config = config(&redis, "");
    let (a, b) = (gateway(&urls(&sims), &config, &[]).await, gateway(&urls(&sims), &config, &[]).await);
    for gateway in [&a, &b] {
        is_in_state(gateway, "up").await;
        metric_is(gateway, "warmpath_shared_peers", 1.0).await;
    }
    let held = a.stream("held", 100_000).await;
    serve(&b, 0, 3).await;
    tokio::join!(serve(&b, 3, 30), redis.kill());
    for gateway in [&a, &b] {
        is_in_state(gateway, "down").await;
        metric_is(gateway, "warmpath_shared_peers", 0.0).await;
        serve(gateway, 30, 3).await;
    }
    redis.restart().await;
    for gateway in [&a, &b] {
        is_in_state(gateway, "up").await;
        metric_is(gateway, "warmpath_shared_peers", 1.0).await;
        serve(gateway, 40, 3).await;
    }
    assert!(b.output().contains("shared state is not to be had"), "{}", b.output());
    drop(held);
}

#[tokio::test]
async fn a_server_that_hangs_is_waited_for_within_the_deadline_and_then_not_at_all() {
    let Some(redis) = Redis::start("shared outages").await else { return };
    let sims = sims(2).await;
    // Long enough to be told from everything else that takes time here.
    let hints = "hints: {deadline: 1s}, timeout: 10s";
    let config = write(&format!("shared: {{urls: ['{}'], {hints}}}\n", redis.url()));
    let gateway = gateway(&urls(&sims), &config, &[]).await;
    is_in_state(&gateway, "up").await;
    redis.signal(Signal::STOP);
    let began = Instant::now();
    serve(&gateway, 0, 1).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "it was waited for");
    serve(&gateway, 1, 4).await;
    assert!(uses(&gateway, "hint_read", "late").await >= 4.0);
    // Five in a row were late: one tries again each second, the others do not wait.
    let dropped = uses(&gateway, "hint_read", "dropped").await;
    serve(&gateway, 5, 20).await;
    assert!(uses(&gateway, "hint_read", "dropped").await > dropped + 10.0);
    redis.signal(Signal::CONT);
    is_in_state(&gateway, "up").await;
    let next = std::cell::Cell::new(100);
    eventually("hints are read again", || async {
        serve(&gateway, next.replace(next.get() + 1), 1).await;
        (uses(&gateway, "hint_read", "ok").await > 0.5).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_server_that_hangs_is_called_slow_and_its_peers_expire() {
    let Some(redis) = Redis::start("shared outages").await else { return };
    let sims = sims(1).await;
    let config = config(&redis, "");
    let (a, b) = (gateway(&urls(&sims), &config, &[]).await, gateway(&urls(&sims), &config, &[]).await);
    metric_is(&a, "warmpath_shared_peers", 1.0).await;
    metric_is(&b, "warmpath_shared_peers", 1.0).await;
    redis.signal(Signal::STOP);
    for gateway in [&a, &b] {
        is_in_state(gateway, "slow").await;
        metric_is(gateway, "warmpath_shared_peers", 0.0).await;
        serve(gateway, 0, 3).await;
    }
    redis.signal(Signal::CONT);
    for gateway in [&a, &b] {
        is_in_state(gateway, "up").await;
        metric_is(gateway, "warmpath_shared_peers", 1.0).await;
    }
}

#[tokio::test]
async fn a_server_without_memory_is_called_full_and_load_is_shared_all_the_same() {
    let arguments = ["--maxmemory-policy", "noeviction"];
    let Some(redis) = Redis::with("shared outages", &arguments).await else { return };
    let sims = sims(1).await;
    let config = config(&redis, "");
    let (a, b) = (gateway(&urls(&sims), &config, &[]).await, gateway(&urls(&sims), &config, &[]).await);
    is_in_state(&a, "up").await;
    redis.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    for gateway in [&a, &b] {
        is_in_state(gateway, "full").await;
        serve(gateway, 0, 3).await;
    }
    assert!(uses(&a, "hint_write", "dropped").await + uses(&a, "hint_write", "full").await >= 1.0);
    let held = a.stream("held", 100_000).await;
    metric_is(&b, &format!("warmpath_worker_peer_in_flight_requests{{worker=\"{}\"}}", sims[0].addr()), 1.0)
        .await;
    redis.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    is_in_state(&a, "up").await;
    drop(held);
}

/// SHA-256 of "sk-of-the-tests".
const DIGEST: &str = "64892c5c164b1573f6b9b49bde79206797e83d5ae8eb9d886384fdbc0f60c045";

#[tokio::test]
async fn a_lease_that_does_not_come_is_waited_for_within_its_deadline() {
    let Some(redis) = Redis::start("shared outages").await else { return };
    let sims = sims(1).await;
    // It is thought to be up for as long as a command may take.
    let config = write(&format!(
        "keys: [{{name: team, sha256: {DIGEST}, requests_per_second: 1000, burst: 5}}]\n\
         shared: {{urls: ['{}'], timeout: 10s, limits: {{deadline: 1s}}}}\n",
        redis.url()
    ));
    let gateway = gateway(&urls(&sims), &config, &[]).await;
    is_in_state(&gateway, "up").await;
    redis.signal(Signal::STOP);
    let began = Instant::now();
    let headers = [("content-type", "application/json"), ("authorization", "Bearer sk-of-the-tests")];
    let body = r#"{"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}"#;
    let path = "/v1/chat/completions";
    let reply = request(gateway.address, "POST", path, &headers, body.to_owned()).await;
    assert_eq!(reply.status, 200, "it goes by its own share: {}", reply.text());
    assert!(began.elapsed() >= Duration::from_secs(1), "it was waited for");
    assert!(uses(&gateway, "limits", "late").await >= 1.0);
    redis.signal(Signal::CONT);
}

#[tokio::test]
async fn a_load_is_told_at_its_interval() {
    let Some(redis) = Redis::start("shared outages").await else { return };
    let sims = sims(1).await;
    let start = async |times: &str| {
        let config = write(&format!("shared: {{urls: ['{}'], {times}}}\n", redis.url()));
        gateway(&urls(&sims), &config, &[]).await
    };
    // An unchanged load is told each fourth time: after 4 s, and after 40 ms.
    let seldom = start("load_interval: 1s, peer_ttl: 60s").await;
    let often = start("load_interval: 10ms, peer_ttl: 60s").await;
    let told = async |gateway: &Gateway| uses(gateway, "load", "ok").await;
    eventually("a hundred messages", || async { (told(&often).await >= 100.0).then_some(()) }).await;
    assert!(told(&seldom).await * 4.0 < told(&often).await);
}
