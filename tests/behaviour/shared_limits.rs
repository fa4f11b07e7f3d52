//! Limits of API keys that several gateways keep together.

use std::fmt::Write as _;

use serde_json::json;
use tempfile::NamedTempFile;
use warmpath_tests::{Gateway, Redis, Reply, request, sims, urls};

use crate::shared_gateways::{gateway, metric_is, write};

const KEY: &str = "sk-of-the-tests";
/// SHA-256 of it.
const DIGEST: &str = "64892c5c164b1573f6b9b49bde79206797e83d5ae8eb9d886384fdbc0f60c045";

/// Gateways that share, with one key that has these limits. A deadline that holds on a busy machine.
fn config(redis: &Redis, limits: &str, more: &str) -> NamedTempFile {
    let mut text = format!("keys: [{{name: team, sha256: {DIGEST}, {limits}}}]\n");
    writeln!(text, "shared: {{urls: ['{}'], limits: {{deadline: 1s{more}}}}}", redis.url()).expect("memory");
    write(&text)
}

async fn ask(gateway: &Gateway, prompt: &str) -> Reply {
    let body = json!({"messages": [{"role": "user", "content": prompt}], "max_tokens": 1}).to_string();
    let key = format!("Bearer {KEY}");
    let headers = [("content-type", "application/json"), ("authorization", key.as_str())];
    request(gateway.address, "POST", "/v1/chat/completions", &headers, body).await
}

/// Asks both in turn; how many were let through.
async fn admitted(a: &Gateway, b: &Gateway, each: usize) -> usize {
    let mut admitted = 0;
    for _ in 0..each {
        for gateway in [a, b] {
            let reply = ask(gateway, "hello").await;
            assert!([200, 429].contains(&reply.status), "{}", reply.text());
            admitted += usize::from(reply.status == 200);
            if reply.status == 429 {
                let after: u64 = reply.header("retry-after").parse().expect("seconds");
                assert!(after >= 1);
            }
        }
    }
    admitted
}

async fn pair(config: &NamedTempFile) -> (Gateway, Gateway, Vec<warmpath_tests::SimHandle>) {
    let sims = sims(1).await;
    let (a, b) = (gateway(&urls(&sims), config, &[]).await, gateway(&urls(&sims), config, &[]).await);
    for gateway in [&a, &b] {
        metric_is(gateway, "warmpath_shared_state{state=\"up\"}", 1.0).await;
        metric_is(gateway, "warmpath_shared_peers", 1.0).await;
    }
    (a, b, sims)
}

/// A bucket of seven that fills by one in some twenty minutes.
const SEVEN: &str = "requests_per_second: 0.0008, burst: 7";

#[tokio::test]
async fn two_gateways_let_through_together_what_one_would() {
    let Some(redis) = Redis::start("shared limits").await else { return };
    let (a, b, _sims) = pair(&config(&redis, SEVEN, "")).await;
    assert_eq!(admitted(&a, &b, 8).await, 7);
    let refused = "warmpath_tenant_requests_total{outcome=\"requests_per_second\",tenant=\"team\"}";
    assert!((a.metric(refused).await + b.metric(refused).await - 9.0).abs() < 0.1, "each counts once");
    assert!(a.metric("warmpath_shared_commands_total{result=\"ok\",use=\"limits\"}").await >= 1.0);
    let kept = redis.ask(&["HGET", "warmpath:limit:requests_per_second:team", "amount"]).await;
    assert!(kept.contains("\r\n0."), "{kept}");
}

#[tokio::test]
async fn gateways_that_keep_their_limits_to_themselves_let_each_its_own_through() {
    let Some(redis) = Redis::start("shared limits").await else { return };
    let (a, b, _sims) = pair(&config(&redis, SEVEN, ", mode: off")).await;
    assert_eq!(admitted(&a, &b, 8).await, 14);
}

#[tokio::test]
async fn tokens_are_counted_over_all_gateways_and_a_debt_is_paid() {
    let Some(redis) = Redis::start("shared limits").await else { return };
    // Filled by one in six seconds: nothing to speak of.
    let (a, b, _sims) = pair(&config(&redis, "tokens_per_minute: 10", "")).await;
    let first = ask(&a, "hi").await;
    assert_eq!(first.status, 200, "{}", first.text());
    // The chat's tokens by the worker's own word are more than were estimated: the rest is a debt of this gateway.
    let used = first.json()["usage"]["total_tokens"].as_u64().expect("tokens");
    assert!(used > 3, "{used}");
    let mut through = 0;
    for gateway in [&b, &a, &b, &a, &b, &a] {
        through += u64::from(ask(gateway, "hi").await.status == 200);
    }
    assert!(through <= 2, "{through} more of {used} tokens each were let through");
}

#[tokio::test]
async fn without_the_server_each_gateway_goes_by_its_own_share_and_nobody_fails() {
    let Some(mut redis) = Redis::start("shared limits").await else { return };
    let (a, b, _sims) = pair(&config(&redis, "requests_per_second: 1000000, burst: 1000", "")).await;
    assert_eq!(admitted(&a, &b, 3).await, 6);
    redis.kill().await;
    assert_eq!(admitted(&a, &b, 10).await, 20);
    for gateway in [&a, &b] {
        metric_is(gateway, "warmpath_shared_state{state=\"down\"}", 1.0).await;
    }
    assert_eq!(admitted(&a, &b, 3).await, 6);
    redis.restart().await;
    for gateway in [&a, &b] {
        metric_is(gateway, "warmpath_shared_state{state=\"up\"}", 1.0).await;
    }
    assert_eq!(admitted(&a, &b, 3).await, 6);
}
