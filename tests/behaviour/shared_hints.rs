//! Prefixes that one gateway has sent, found by another one through Redis.

use warmpath_tests::{Gateway, Redis, Reply, eventually, request, sims, urls};

use crate::shared_gateways::{config, explain, gateway, metric_is, write};

/// Several thousand bytes that begin differently for every topic.
fn prompt(topic: usize, turns: usize) -> String {
    let turn = |turn| format!("Topic {topic}, turn {turn}: {}\n", "words and words ".repeat(60));
    (0..turns).map(turn).collect::<Vec<_>>().concat()
}

fn worker(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.header("x-warmpath-worker").to_owned()
}

/// Waits until what was sent is written down.
async fn await_hints(gateway: &Gateway, at_least: f64) {
    let series = "warmpath_shared_commands_total{result=\"ok\",use=\"hint_write\"}";
    eventually(series, || async { (gateway.metric(series).await >= at_least).then_some(()) }).await;
}

#[tokio::test]
async fn a_prefix_that_another_gateway_has_sent_is_found() {
    let Some(redis) = Redis::start("shared hints").await else { return };
    let sims = sims(4).await;
    let config = config(&redis, "");
    let (a, b) = (gateway(&urls(&sims), &config, &[]).await, gateway(&urls(&sims), &config, &[]).await);
    metric_is(&a, "warmpath_shared_state{state=\"up\"}", 1.0).await;
    metric_is(&b, "warmpath_shared_state{state=\"up\"}", 1.0).await;
    let mut homes = Vec::new();
    for topic in 0..12 {
        homes.push(worker(&a.chat(&prompt(topic, 3)).await));
    }
    await_hints(&a, 1.0).await;
    for (topic, home) in homes.iter().enumerate() {
        let next = prompt(topic, 4);
        eventually("a hint", || async {
            let explained = explain(&b, &next).await;
            (explained["workers"][0]["match_kind"] == "hint").then_some(())
        })
        .await;
        let reply = b.chat(&next).await;
        assert_eq!(worker(&reply), *home, "topic {topic}");
        assert_eq!(reply.header("x-warmpath-match"), "hint");
        assert_eq!(reply.header("x-warmpath-reason"), "prefix_hit");
        let matched: u64 = reply.header("x-warmpath-matched-tokens").parse().unwrap();
        let cached = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert!(cached > 0, "the worker had it");
        assert!(matched > 0);
        // Known here from now on.
        let again = b.chat(&prompt(topic, 5)).await;
        assert_eq!(
            (worker(&again).as_str(), again.header("x-warmpath-match")),
            (home.as_str(), "approximate")
        );
    }
    metric_is(&b, "warmpath_shared_hints_used_total", 12.0).await;
    // Everything in Redis ends by itself.
    let first = redis.ask(&["KEYS", "warmpath:p:*"]).await;
    let key = first.lines().find(|line| line.starts_with("warmpath:p:")).expect("a hint's key");
    let ttl = redis.ask(&["TTL", key]).await;
    let seconds: i64 = ttl.trim().trim_start_matches(':').parse().expect("seconds");
    assert!((1..=600).contains(&seconds), "{ttl}");
    let holders = redis.ask(&["ZRANGE", key, "0", "-1"]).await;
    assert!(homes.iter().any(|home| holders.contains(&format!("http://{home}"))), "{holders}");
}

#[tokio::test]
async fn gateways_that_share_nothing_know_nothing_of_each_other() {
    let Some(redis) = Redis::start("shared hints").await else { return };
    let sims = sims(2).await;
    let ours = config(&redis, "");
    let others = write(&format!("shared: {{urls: ['{}'], key_prefix: 'other:'}}\n", redis.url()));
    let off = write(&format!("shared: {{urls: ['{}'], hints: {{mode: off}}}}\n", redis.url()));
    let a = gateway(&urls(&sims), &ours, &[]).await;
    metric_is(&a, "warmpath_shared_state{state=\"up\"}", 1.0).await;
    a.chat(&prompt(1, 3)).await;
    await_hints(&a, 1.0).await;
    for config in [&others, &off] {
        let other = gateway(&urls(&sims), config, &[]).await;
        metric_is(&other, "warmpath_shared_state{state=\"up\"}", 1.0).await;
        let reply = other.chat(&prompt(1, 4)).await;
        assert_eq!(reply.header("x-warmpath-match"), "approximate");
        assert_eq!(reply.header("x-warmpath-matched-tokens"), "0");
    }
}

#[tokio::test]
async fn a_hint_from_before_a_worker_was_emptied_counts_for_nothing() {
    let Some(redis) = Redis::start("shared hints").await else { return };
    let sims = sims(1).await;
    let config = config(&redis, "scrape_interval: 50ms\n");
    let (a, b) = (gateway(&urls(&sims), &config, &[]).await, gateway(&urls(&sims), &config, &[]).await);
    metric_is(&a, "warmpath_shared_state{state=\"up\"}", 1.0).await;
    metric_is(&b, "warmpath_shared_state{state=\"up\"}", 1.0).await;
    a.chat(&prompt(1, 3)).await;
    await_hints(&a, 1.0).await;
    eventually("a hint", || async {
        (explain(&b, &prompt(1, 4)).await["workers"][0]["match_kind"] == "hint").then_some(())
    })
    .await;
    // Hints are dated by the second.
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    let reset = request(sims[0].addr(), "POST", "/reset_prefix_cache", &[], "").await;
    assert_eq!(reset.status, 200);
    eventually("no hint", || async {
        (explain(&b, &prompt(1, 4)).await["workers"][0]["matched_tokens"] == 0).then_some(())
    })
    .await;
}
