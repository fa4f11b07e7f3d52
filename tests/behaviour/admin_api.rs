//! The admin API: what it tells of a running gateway, and what it refuses.

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use warmpath_tests::{Gateway, Reply, Signal, SimHandle, eventually, get, open, request, sims, urls};

fn yaml(config: &str) -> NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), config).unwrap();
    file
}

async fn ask(gateway: &Gateway, method: &'static str, path: &str, body: &str) -> Reply {
    request(gateway.admin, method, path, &[], body.to_owned()).await
}

async fn told(gateway: &Gateway, path: &str) -> Value {
    let reply = get(gateway.admin, path).await;
    assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    reply.json()
}

fn chat(prompt: &str) -> String {
    json!({"messages": [{"role": "user", "content": prompt}], "max_tokens": 4, "ignore_eos": true})
        .to_string()
}

/// Requests that the workers have had, of any kind but the gateway's own looks at them.
fn prompts(sims: &[SimHandle]) -> u64 {
    sims.iter().map(|sim| sim.stats().prompt_tokens).sum()
}

#[tokio::test]
async fn every_refusal_has_one_shape() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let long = "x".repeat(100_000);
    for (method, path, body, status, word) in [
        ("GET", "/nothing", "", 404, "openapi.json"),
        ("PATCH", "/workers", "", 405, "PATCH"),
        ("POST", "/workers", "no json", 400, "url"),
        ("POST", "/workers", long.as_str(), 413, "length limit"),
        ("GET", "/workers/%ff", "", 400, "UTF-8"),
        ("GET", "/workers/nobody", "", 404, "nobody"),
        ("GET", "/stats/history?after_ms=soon", "", 400, "after_ms"),
        ("GET", "/index?prefix=3", "", 400, "prefix"),
        ("GET", "/live?limit=-1", "", 400, "limit"),
        ("GET", "/decisions?reason=why", "", 400, "why"),
        ("GET", "/decisions?limit=0", "", 400, "limit"),
        ("GET", "/decisions/nobody", "", 404, "decisions.keep"),
        ("GET", "/events?interval=1ms", "", 400, "250ms"),
        ("GET", "/events?interval=soon", "", 400, "interval"),
        ("POST", "/explain", "{}", 400, "messages"),
        ("POST", "/explain?path=/v1/completions", "[]", 400, "JSON object"),
        ("POST", "/explain?tenant=nobody", &chat("x"), 404, "nobody"),
        ("PUT", "/log-level", "{\"filter\": \"a=b=c\"}", 400, "level"),
        ("PUT", "/log-level", "{\"level\": \"debug\"}", 400, "filter"),
        ("DELETE", "/guard/rules", "", 400, "which rule"),
    ] {
        let reply = ask(&gateway, method, path, body).await;
        let said = reply.text();
        assert_eq!(reply.status, status, "{method} {path}: {said}");
        assert_eq!(reply.header("content-type"), "application/json", "{method} {path}");
        let error = reply.json();
        assert_eq!(error.as_object().unwrap().len(), 1, "{method} {path}: {said}");
        assert!(error["error"].as_str().unwrap().contains(word), "{method} {path}: {said}");
    }
}

#[tokio::test]
async fn the_configuration_in_force_is_told_by_the_keys_of_the_file() {
    let sims = sims(1).await;
    let config = yaml("limits: {queue: 77}\nrouting: {policy: session}\n");
    let args = ["--config", config.path().to_str().unwrap(), "--drain-timeout", "7s"];
    let gateway = Gateway::start(&urls(&sims), &args).await;
    let shown = told(&gateway, "/config").await;
    assert_eq!((&shown["limits"]["queue"], &shown["routing"]["policy"]), (&json!(77), &json!("session")));
    assert_eq!(shown["drain_timeout"], "7s", "flags are in it, too");
    assert_eq!(shown["workers"][0]["url"], urls(&sims)[0]);
    std::fs::write(config.path(), "limits: {queue: 78}\n").unwrap();
    assert_eq!(ask(&gateway, "POST", "/admin/reload", "").await.status, 200);
    assert_eq!(told(&gateway, "/config").await["limits"]["queue"], 78);
}

#[tokio::test]
async fn stats_count_what_was_served_and_time_what_was_streamed() {
    let sims = sims(2).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let prompt = "a prompt that is long enough for some blocks ".repeat(40);
    for _ in 0..3 {
        assert_eq!(gateway.chat(&prompt).await.status, 200);
    }
    gateway.stream(&prompt, 8).await.rest().await;
    request(gateway.address, "POST", "/v1/chat/completions", &[], "no json").await;
    let stats = eventually("a look at the counters", || async {
        let stats = told(&gateway, "/stats").await;
        let all =
            stats["totals"]["requests"] == 5 && stats["since_start"]["inter_token_latency"]["count"] != 0;
        all.then_some(stats)
    })
    .await;
    assert_eq!(
        (&stats["totals"]["client_errors"], &stats["totals"]["server_errors"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(stats["in_flight_requests"], 0);
    assert!(stats["last_60s"]["requests_per_second"].as_f64().unwrap() > 0.0, "{stats}");
    let hit_rate = stats["last_60s"]["hit_rate"].as_f64().unwrap();
    assert!((0.5..1.0).contains(&hit_rate), "three of four had been there before: {hit_rate}");
    let first = &stats["since_start"]["time_to_first_token"];
    assert_eq!(first["count"], 1);
    assert!(
        first["p50"].as_f64().unwrap() > 0.0 && first["p99"].as_f64() >= first["p50"].as_f64(),
        "{first}"
    );
    let decided: u64 =
        stats["decisions"].as_array().unwrap().iter().map(|it| it["total"].as_u64().unwrap()).sum();
    assert_eq!(decided, 4);
    assert_eq!(stats["workers"].as_array().unwrap().len(), 2);
    let history = told(&gateway, "/stats/history").await;
    let last = history.as_array().unwrap().last().unwrap()["at_ms"].as_u64().unwrap();
    let newer = told(&gateway, &format!("/stats/history?after_ms={last}")).await;
    assert!(newer.as_array().unwrap().iter().all(|point| point["at_ms"].as_u64().unwrap() > last));
}

#[tokio::test]
async fn tenants_are_told_with_their_limits_and_how_they_stand() {
    let sims = sims(1).await;
    let key = "sk-the-clients-own-key";
    let config = yaml(&format!(
        "keys:\n  - {{name: b, sha256: '{}', requests_per_second: 0.001, burst: 3, concurrent: 9, models: [m]}}\n  \
         - {{name: a, sha256: '{}', tokens_per_minute: 600, weight: 4}}\n",
        crate::keys::digest(key),
        crate::keys::digest("another"),
    ));
    let gateway = Gateway::start(&urls(&sims), &["--config", config.path().to_str().unwrap()]).await;
    let bearer = format!("Bearer {key}");
    let models = async || {
        request(gateway.address, "GET", "/v1/models", &[("authorization", &bearer)], "").await.status
    };
    assert_eq!([models().await, models().await, models().await, models().await], [200, 200, 200, 429]);
    let tenants = told(&gateway, "/tenants").await;
    let [a, b] = &tenants.as_array().unwrap()[..] else { panic!("{tenants}") };
    assert_eq!((&a["name"], &a["weight"], &a["tokens"]["remaining"]), (&json!("a"), &json!(4), &json!(600)));
    assert_eq!(a["tokens"]["per_second"], 10.0);
    assert_eq!((&a["requests"], &a["models"]), (&Value::Null, &Value::Null), "no limit, no member");
    assert_eq!((&b["requests"]["capacity"], &b["requests"]["remaining"]), (&json!(3), &json!(0)));
    assert_eq!(
        (&b["models"], &b["concurrent"], &b["in_flight_requests"]),
        (&json!(["m"]), &json!(9), &json!(0))
    );
    assert_eq!((&b["totals"]["admitted"], &b["totals"]["refused_requests"]), (&json!(3), &json!(1)));
}

#[tokio::test]
async fn without_keys_everyone_is_one_tenant() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    gateway.chat("hello").await;
    let tenants = told(&gateway, "/tenants").await;
    assert_eq!((&tenants[0]["name"], &tenants[0]["totals"]["admitted"]), (&json!("default"), &json!(1)));
    assert_eq!(tenants.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_index_is_told_with_the_hottest_prefixes_and_who_holds_them() {
    let sims = sims(2).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let prompt = "a prompt that is long enough for some blocks ".repeat(40);
    let mut served = String::new();
    for _ in 0..5 {
        served = gateway.chat(&prompt).await.header("x-warmpath-worker").to_owned();
    }
    gateway.chat("short").await;
    let index = eventually("a sample of the index", || async {
        let index = told(&gateway, "/index").await;
        (index["hottest_prefixes"][0]["hits"] == 5).then_some(index)
    })
    .await;
    let prefix = &index["hottest_prefixes"][0];
    assert_eq!(prefix["workers"], json!([served]));
    let blocks = index["bytes"]["blocks"].as_u64().unwrap();
    assert!(blocks >= prefix["depth_blocks"].as_u64().unwrap(), "{index}");
    let held = |worker: &Value| worker["blocks"].as_u64().unwrap();
    let all: u64 = index["bytes"]["workers"].as_array().unwrap().iter().map(held).sum();
    assert_eq!(json!(all), index["bytes"]["held_blocks"]);
    assert!(index["bytes"]["memory_bytes"].as_u64() < index["bytes"]["memory_bytes_max"].as_u64());
    let none = told(&gateway, "/index?prefixes=0").await;
    assert_eq!(none["hottest_prefixes"], json!([]));
}

#[tokio::test]
async fn an_explanation_names_who_wins_and_changes_nothing() {
    let sims = sims(3).await;
    for policy in ["warm", "round_robin", "random", "power_of_two", "weighted"] {
        let gateway = Gateway::start(&urls(&sims), &["--policy", policy]).await;
        let prompt = format!("{policy}: a prompt that is long enough for some blocks ").repeat(40);
        gateway.chat(&prompt).await;
        gateway.idle().await;
        let figures = async || {
            let metrics = ["warmpath_prompt_tokens_total", "warmpath_matched_tokens_total"];
            let index = told(&gateway, "/index?prefixes=0").await;
            let decisions = told(&gateway, "/decisions").await.as_array().unwrap().len();
            let values = [gateway.metric(metrics[0]).await, gateway.metric(metrics[1]).await];
            (values.map(f64::to_bits), index["bytes"].clone(), decisions, prompts(&sims))
        };
        let before = figures().await;
        for _ in 0..3 {
            let explained = ask(&gateway, "POST", "/explain", &chat(&prompt)).await;
            assert_eq!(explained.status, 200, "{}", explained.text());
            let other = ask(&gateway, "POST", "/explain", &chat("another prompt, never sent")).await.json();
            assert_eq!(other["workers"].as_array().unwrap().len(), 3, "{other}");
            let explained = explained.json();
            assert_eq!(explained["policy"], policy);
            assert_eq!(explained["workers"][0]["worker"], explained["winner"]["worker"], "{explained}");
            assert!(explained["workers"][0]["wins"] == true && explained["workers"][1]["wins"] == false);
            assert_eq!(figures().await, before, "{policy}");
            if policy == "warm" {
                assert_eq!(explained["winner"]["reason"], "prefix_hit", "{explained}");
                assert_ne!(explained["workers"][0]["matched_tokens"], 0);
                assert_eq!(explained["workers"][1]["matched_tokens"], 0);
            }
        }
        // The next one is decided as was said, whatever the policy remembers or draws.
        for _ in 0..4 {
            let explained = ask(&gateway, "POST", "/explain", &chat(&prompt)).await.json();
            let reply = gateway.chat(&prompt).await;
            assert_eq!(
                reply.header("x-warmpath-worker"),
                explained["winner"]["worker"],
                "{policy}: {explained}"
            );
            assert_eq!(reply.header("x-warmpath-reason"), explained["winner"]["reason"], "{policy}");
            gateway.idle().await;
        }
    }
}

#[tokio::test]
async fn an_explanation_says_why_a_worker_cannot_be_chosen() {
    let sims = sims(2).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let names: Vec<_> =
        gateway.workers().await.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect();
    for name in &names {
        ask(&gateway, "POST", &format!("/workers/{name}/drain"), "").await;
        let explained = ask(&gateway, "POST", "/explain", &chat("hello")).await.json();
        let part = explained["workers"].as_array().unwrap().iter().find(|it| it["worker"] == *name).unwrap();
        assert_eq!((&part["excluded"], &part["wins"]), (&json!("draining"), &json!(false)));
    }
    let nobody = ask(&gateway, "POST", "/explain", &chat("hello")).await.json();
    assert!(nobody.get("winner").is_none(), "{nobody}");
}

#[tokio::test]
async fn what_is_logged_changes_while_it_runs() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    assert_eq!(told(&gateway, "/log-level").await, json!({"filter": "info"}));
    gateway.chat("hello").await;
    let set = ask(&gateway, "PUT", "/log-level", r#"{"filter": "router_agent=debug,info"}"#).await;
    assert_eq!(set.status, 200, "{}", set.text());
    assert!(!gateway.output().contains("routed"), "{}", gateway.output());
    eventually("a line of level debug", || async {
        gateway.chat("hello").await;
        gateway.output().contains("routed").then_some(())
    })
    .await;
    assert!(told(&gateway, "/log-level").await["filter"].as_str().unwrap().contains("debug"));
}

#[tokio::test]
async fn streams_under_way_are_listed_until_they_end() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let mut stream = gateway.stream("hello", 400).await;
    stream.next().await.unwrap().unwrap();
    let live = told(&gateway, "/live").await;
    assert_eq!(live["count"], 1, "{live}");
    let worker = gateway.workers().await[0]["name"].clone();
    let listed = &live["streams"][0];
    assert_eq!(listed["worker"], worker);
    assert!(listed["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{live}");
    assert!(listed["age_seconds"].as_f64().unwrap() > 0.0 && listed["moved_by"].is_string());
    assert_eq!(told(&gateway, "/live?limit=0").await["streams"], json!([]));
    drop(stream);
    eventually("it is not listed any more", || async {
        (told(&gateway, "/live").await["count"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_drain_says_how_far_it_is() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let name = gateway.workers().await[0]["name"].as_str().unwrap().to_owned();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = gateway.stream("hello", 300).await;
        stream.next().await.unwrap().unwrap();
        streams.push(stream);
    }
    assert!(told(&gateway, &format!("/workers/{name}")).await.get("drain").is_none());
    let drain = ask(&gateway, "POST", &format!("/workers/{name}/drain"), "").await.json()["drain"].clone();
    assert_eq!((&drain["in_flight_at_first"], &drain["in_flight_left"]), (&json!(2), &json!(2)));
    assert_eq!(drain["done"], false);
    drop(streams.pop());
    let progress = async |left: u64| {
        eventually("the drain goes on", || async {
            let drain = told(&gateway, &format!("/workers/{name}")).await["drain"].clone();
            (drain["in_flight_left"] == left).then_some(drain)
        })
        .await
    };
    assert_eq!(progress(1).await["in_flight_at_first"], 2);
    drop(streams);
    assert_eq!(progress(0).await["done"], true);
}

/// The data of the next event.
async fn next_event(stream: &mut warmpath_tests::Stream, waiting: &mut String) -> Option<Value> {
    loop {
        if let Some((event, rest)) = waiting.split_once("\n\n") {
            let data: String = event.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
            let rest = rest.to_owned();
            *waiting = rest;
            if !data.is_empty() {
                return Some(serde_json::from_str(&data).unwrap());
            }
            continue;
        }
        waiting.push_str(std::str::from_utf8(&stream.next().await?.ok()?).unwrap());
    }
}

#[tokio::test]
async fn events_are_snapshots_for_a_bounded_number_of_followers_and_end_with_the_gateway() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    gateway.chat("hello").await;
    let follow = async || open(gateway.admin, "GET", "/events?interval=250ms", &[], "").await;
    let mut first = follow().await;
    assert_eq!((first.status, first.header("content-type")), (200, "text/event-stream"));
    let mut waiting = String::new();
    let snapshot = next_event(&mut first, &mut waiting).await.unwrap();
    assert_eq!((&snapshot["ready"], &snapshot["policy"]), (&json!(true), &json!("warm")));
    for (part, is_there) in [("workers", true), ("decisions", true), ("live", false)] {
        let list = if is_there { &snapshot[part] } else { &snapshot[part]["streams"] };
        assert_eq!(!list.as_array().unwrap().is_empty(), is_there, "{part}: {snapshot}");
    }
    // Charts have every second once.
    let mut seen: Vec<u64> = Vec::new();
    while seen.len() < 4 {
        let snapshot = next_event(&mut first, &mut waiting).await.unwrap();
        seen.extend(
            snapshot["history"].as_array().unwrap().iter().map(|point| point["at_ms"].as_u64().unwrap()),
        );
    }
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
    let mut others = Vec::new();
    let refused = loop {
        let other = follow().await;
        if other.status != 200 {
            break other.status;
        }
        others.push(other);
    };
    assert_eq!((refused, others.len()), (503, 15));
    drop(others.pop());
    eventually("a place is free again", || async { (follow().await.status == 200).then_some(()) }).await;
    gateway.signal(Signal::TERM);
    // Within the patience of `next`.
    while next_event(&mut first, &mut waiting).await.is_some() {}
}

#[tokio::test]
async fn the_document_has_every_path_that_is_answered() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let document = told(&gateway, "/openapi.json").await;
    let paths = document["paths"].as_object().unwrap();
    for path in [
        "/health",
        "/ready",
        "/metrics",
        "/workers",
        "/workers/{name}",
        "/workers/{name}/drain",
        "/workers/{name}/undrain",
        "/admin/reload",
        "/config",
        "/stats",
        "/stats/history",
        "/tenants",
        "/index",
        "/explain",
        "/log-level",
        "/live",
        "/events",
        "/decisions",
        "/decisions/{request_id}",
        "/decisions/follow",
        "/guard",
        "/guard/rules",
        "/openapi.json",
    ] {
        assert!(paths.contains_key(path), "{path} is not described");
    }
    for (path, methods) in paths.iter().filter(|(path, _)| !path.contains('{')) {
        if methods.get("get").is_some() && !["/events", "/decisions/follow"].contains(&path.as_str()) {
            assert_eq!(get(gateway.admin, path).await.status, 200, "{path}");
        }
    }
}
