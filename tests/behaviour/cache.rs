//! The response cache: what is given again, to whom, and answers that several share.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::net::TcpSocket;
use vllm_sim::{EngineConfig, Fault, FaultKind, TimeModel};
use warmpath_tests::{
    Gateway, Reply, SimConfig, SimHandle, Stream, eventually, open, open_over, request, sim, sims, urls,
};

use crate::keys::digest;

const CHAT: &str = "/v1/chat/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

async fn start(sims: &[SimHandle], config: &str) -> (Gateway, NamedTempFile) {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), config).unwrap();
    (Gateway::start(&urls(sims), &["--config", file.path().to_str().unwrap()]).await, file)
}

/// A chat at temperature 0, with other members over it.
fn chat(text: &str, tokens: u32, more: &Value) -> Value {
    let mut body = json!({
        "model": "sim", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "ignore_eos": true,
        "temperature": 0,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn ask(gateway: &Gateway, fields: &[(&str, &str)], body: &Value) -> Reply {
    request(gateway.address, "POST", CHAT, &[&[JSON], fields].concat(), body.to_string()).await
}

async fn stream(gateway: &Gateway, body: &Value) -> Stream {
    open(gateway.address, "POST", CHAT, &[JSON], body.to_string()).await
}

fn cache(reply: &Reply) -> &str {
    reply.header("x-warmpath-cache")
}

fn finished(sims: &[SimHandle]) -> u64 {
    sims.iter().map(|sim| sim.stats().finished).sum()
}

#[tokio::test]
async fn an_answer_is_given_again_whole_as_it_was_and_the_worker_knows_nothing_of_it() {
    let sims = sims(2).await;
    let (gateway, _file) = start(&sims, "cache: {mode: deterministic}\n").await;
    for more in [json!({}), json!({"stream": true, "stream_options": {"include_usage": true}})] {
        let first = ask(&gateway, &[], &chat("hello", 5, &more)).await;
        assert_eq!((first.status, cache(&first), first.header("age")), (200, "miss", ""));
        assert!(!first.header("x-warmpath-worker").is_empty());
        let before = finished(&sims);
        // Written otherwise, asked by somebody else, and less urgent: it is the same.
        let mut same = more.clone();
        same["user"] = json!("somebody");
        same["priority"] = json!(3);
        let body = serde_json::to_string_pretty(&chat("hello", 5, &same)).unwrap();
        for _ in 0..3 {
            let again = request(gateway.address, "POST", CHAT, &[JSON], body.clone()).await;
            assert_eq!((again.status, cache(&again)), (200, "hit"));
            assert_eq!(
                (&again.body, again.header("content-type")),
                (&first.body, first.header("content-type"))
            );
            assert!(
                again.header("age").parse::<u64>().unwrap() < 20 && !again.header("x-request-id").is_empty()
            );
            assert_eq!(again.header("x-warmpath-worker"), "", "no worker has answered it");
        }
        assert_eq!(finished(&sims), before);
        if more != json!({}) {
            assert!(first.text().ends_with("data: [DONE]\n\n"), "a hit replays the events");
        }
    }
    let result = async |result: &str| {
        gateway.metric(&format!("warmpath_cache_requests_total{{result=\"{result}\"}}")).await
    };
    assert_eq!((result("hit").await as u64, result("miss").await as u64), (6, 2));
    assert!((gateway.metric("warmpath_cache_entries").await - 2.0).abs() < f64::EPSILON);
    assert!(gateway.metric("warmpath_cache_served_bytes_total").await > 1_000.0);
    gateway.idle().await;
}

#[tokio::test]
async fn only_deterministic_requests_are_cached_unless_the_key_says_otherwise() {
    let sims = sims(1).await;
    let keys = ["one", "all", "none"].map(digest);
    let config = format!(
        "cache: {{mode: deterministic}}\nkeys: [{{name: one, sha256: '{}', tokens_per_minute: 1000000}}, {{name: all, sha256: '{}', cache: all}}, {{name: none, sha256: '{}', cache: off}}]\n",
        keys[0], keys[1], keys[2]
    );
    let (gateway, _file) = start(&sims, &config).await;
    let outcomes = async |key: &str, path: &str, more: Value| {
        let mut outcomes = Vec::new();
        for _ in 0..2 {
            let body = chat("hello", 3, &more).to_string();
            let reply = request(gateway.address, "POST", path, &[JSON, ("x-api-key", key)], body).await;
            outcomes.push(cache(&reply).to_owned());
        }
        outcomes.join(" ")
    };
    for (more, outcome) in [
        (json!({}), "miss hit"),
        (json!({"temperature": 0.7, "seed": 5}), "miss hit"),
        (json!({"temperature": 0.7}), "bypass bypass"),
        (json!({"temperature": null}), "bypass bypass"),
        (json!({"n": 2}), "bypass bypass"),
        (json!({"kv_transfer_params": {}}), "bypass bypass"),
    ] {
        assert_eq!(outcomes("one", CHAT, more.clone()).await, outcome, "{more}");
    }
    assert_eq!(outcomes("all", CHAT, json!({})).await, "miss hit", "no tenant gets another one's answer");
    assert_eq!(outcomes("all", CHAT, json!({"temperature": 0.7})).await, "miss hit");
    assert_eq!(outcomes("none", CHAT, json!({})).await, " ");
    assert_eq!(
        outcomes("one", "/v1/responses", json!({"input": "x", "max_output_tokens": 3})).await,
        "bypass bypass",
        "a worker keeps it"
    );
    assert_eq!(outcomes("one", "/v1/embeddings", json!({"input": "x"})).await, " ");
    let tokens = async || gateway.metric("warmpath_tenant_tokens_total{tenant=\"one\"}").await;
    let before = tokens().await;
    assert_eq!(outcomes("one", CHAT, json!({})).await, "hit hit");
    assert!((tokens().await - before).abs() < f64::EPSILON, "a hit costs a request and no tokens");
}

#[tokio::test]
async fn clients_may_say_that_nothing_is_kept_or_that_they_want_it_anew() {
    let sims = sims(1).await;
    let (gateway, _file) = start(&sims, "cache: {mode: deterministic}\n").await;
    let ask = async |field: &[(&str, &str)]| {
        let reply = ask(&gateway, field, &chat("hello", 3, &json!({}))).await;
        (cache(&reply).to_owned(), reply.json()["id"].to_string())
    };
    let no_store = [("cache-control", "no-store")];
    assert_eq!((ask(&no_store).await.0, ask(&no_store).await.0), ("bypass".into(), "bypass".into()));
    let first = ask(&[]).await;
    assert_eq!(first.0, "miss");
    let anew = ask(&[("cache-control", "no-cache")]).await;
    assert!(anew.0 == "miss" && anew.1 != first.1);
    assert_eq!(ask(&[]).await, ("hit".to_owned(), anew.1), "and that is kept");
    // Workers judge what clients show them: without keys here, that is part of the question.
    let other = [("authorization", "Bearer other")];
    assert_eq!((ask(&other).await.0, ask(&other).await.0), ("miss".into(), "hit".into()));
    let worker = sims[0].addr().to_string();
    assert_eq!(ask(&[("x-warmpath-worker", &worker)]).await.0, "bypass");
}

#[tokio::test]
async fn what_fails_is_not_kept() {
    let sims = sims(1).await;
    let (gateway, _file) = start(
        &sims,
        "cache: {mode: deterministic}\nlimits: {tries: 1}\nbreaker: {failures: 100, volume: 100}\n",
    )
    .await;
    let streamed = json!({"stream": true});
    for (fault, more) in [
        (FaultKind::Status { status: 400, retry_after_s: None }, json!({})),
        (FaultKind::Status { status: 500, retry_after_s: None }, json!({})),
        (FaultKind::ErrorEvent { after_events: 2 }, streamed.clone()),
        (FaultKind::Die { after_events: 2, how: vllm_sim::Ending::Fin }, streamed.clone()),
        (FaultKind::TruncatedChunk { after_events: 2 }, streamed),
    ] {
        let name = format!("{fault:?}");
        let body = chat(&name, 8, &more);
        sims[0].set_fault(Fault::times(fault, 1));
        let failed = ask_whatever(&gateway, &body).await;
        assert_eq!(failed, "miss", "{name}");
        let good = ask(&gateway, &[], &body).await;
        assert_eq!((good.status, cache(&good)), (200, "miss"), "{name}");
        assert_eq!(cache(&ask(&gateway, &[], &body).await), "hit", "{name}");
    }
    gateway.idle().await;
}

/// A request of which nothing but its head is looked at.
async fn ask_whatever(gateway: &Gateway, body: &Value) -> String {
    let mut stream = stream(gateway, body).await;
    stream.rest().await;
    stream.header("x-warmpath-cache").to_owned()
}

#[tokio::test]
async fn identical_requests_at_the_same_time_ask_a_worker_once() {
    let sims = sims(2).await;
    let (gateway, _file) = start(&sims, "cache: {mode: deterministic}\n").await;
    for more in [json!({}), json!({"stream": true})] {
        let before = finished(&sims);
        let body = chat("all at once", 40, &more);
        let replies = join_all((0..12).map(|_| ask(&gateway, &[], &body))).await;
        let count = |outcome: &str| replies.iter().filter(|reply| cache(reply) == outcome).count();
        assert_eq!(count("miss"), 1);
        assert_eq!(count("miss") + count("shared") + count("hit"), 12);
        assert!(count("shared") > 0);
        assert!(replies.iter().all(|reply| reply.status == 200 && reply.body == replies[0].body));
        assert_eq!(finished(&sims) - before, 1);
    }
    gateway.idle().await;
    assert!(gateway.metric("warmpath_cache_bytes{of=\"in_flight\"}").await < 1.0);
}

#[tokio::test]
async fn who_joins_a_stream_gets_it_from_its_beginning_and_as_it_comes() {
    let sims = sims(1).await;
    let (gateway, _file) = start(&sims, "cache: {mode: deterministic}\n").await;
    let body = chat("a story", 200, &json!({"stream": true}));
    let mut leader = stream(&gateway, &body).await;
    let mut seen = leader.next().await.unwrap().unwrap().to_vec();
    let mut follower = stream(&gateway, &body).await;
    assert_eq!((leader.header("x-warmpath-cache"), follower.header("x-warmpath-cache")), ("miss", "shared"));
    let beginning = follower.next().await.unwrap().unwrap();
    assert!(beginning.starts_with(&seen[..20]) && finished(&sims) == 0, "it comes while it is made");
    let (rest, whole) = leader.rest().await;
    seen.extend_from_slice(rest.as_bytes());
    let (followed, followed_whole) = follower.rest().await;
    assert!(whole && followed_whole);
    assert_eq!(String::from_utf8(seen).unwrap(), String::from_utf8(beginning.to_vec()).unwrap() + &followed);
    assert_eq!(cache(&ask(&gateway, &[], &body).await), "hit");
}

/// A worker that takes so long for each token.
async fn sim_of(itl_base: Duration) -> warmpath_tests::SimHandle {
    let time = TimeModel { itl_base, itl_slope: Duration::ZERO, ..TimeModel::default() };
    let engine = EngineConfig { time, ..EngineConfig::default() };
    sim(SimConfig { engine, ..SimConfig::default() }).await
}

#[tokio::test]
async fn a_flight_goes_on_for_those_who_are_left_and_ends_with_the_last() {
    let sims = [sim_of(Duration::from_millis(3)).await];
    let (gateway, _file) = start(&sims, "cache: {mode: deterministic}\n").await;
    for more in [json!({"stream": true}), json!({})] {
        let streamed = more["stream"] == true;
        let body = chat("the one who began it leaves", 400, &more);
        let leader = tokio::spawn({
            let (address, body) = (gateway.address, body.clone());
            async move {
                let mut stream = open(address, "POST", CHAT, &[JSON], body.to_string()).await;
                let _ = stream.next().await;
                std::future::pending::<()>().await; // it leaves when it is told to
            }
        });
        eventually("the worker has it", || async { (sims[0].stats().generating == 1).then_some(()) }).await;
        let follower = ask(&gateway, &[], &body);
        let leave = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            leader.abort();
        };
        let (reply, ()) = tokio::join!(follower, leave);
        assert_eq!((reply.status, cache(&reply)), (200, "shared"));
        assert!(!streamed || reply.text().ends_with("data: [DONE]\n\n"));
        assert_eq!(cache(&ask(&gateway, &[], &body).await), "hit");
    }
    assert_eq!(sims[0].stats().aborts, 0);
    let body = chat("everybody leaves", 100_000, &json!({"stream": true}));
    let mut both = [stream(&gateway, &body).await, stream(&gateway, &body).await];
    for stream in &mut both {
        stream.next().await.unwrap().unwrap();
    }
    assert_eq!(gateway.workers().await[0]["in_flight_requests"], 1);
    drop(both);
    eventually("the worker gives it up", || async { (sims[0].stats().aborts == 1).then_some(()) }).await;
    gateway.idle().await;
    assert_eq!(gateway.workers().await[0]["requests_failed"], 0);
}

#[tokio::test]
async fn no_request_is_lost_with_the_one_that_it_follows() {
    let sims = sims(2).await;
    let config = "cache: {mode: deterministic}\nlimits: {tries: 1}\nbreaker: {failures: 100, volume: 100}\n";
    let (gateway, _file) = start(&sims, config).await;
    for kind in [
        FaultKind::Die { after_events: 0, how: vllm_sim::Ending::Rst },
        FaultKind::Status { status: 500, retry_after_s: None },
        FaultKind::Status { status: 503, retry_after_s: None },
    ] {
        // The first one fails, after a while in which others have joined; those are answered by themselves.
        let body = chat(&format!("{kind:?}"), 30, &json!({}));
        let slow = Fault::times(FaultKind::SlowHead { delay_ms: 300 }, 1);
        for sim in &sims {
            sim.set_faults([slow.clone()]);
        }
        let leader = ask(&gateway, &[("x-warmpath-timeout", "150ms")], &body);
        let others = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            join_all((0..4).map(|_| ask(&gateway, &[], &body))).await
        };
        let (leader, others) = tokio::join!(leader, others);
        assert_eq!(leader.status, 504, "{kind:?}");
        assert!(others.iter().all(|reply| reply.status == 200), "{kind:?}: {others:?}");
        // And one that has a worker's error for an answer keeps it for itself.
        for sim in &sims {
            sim.set_faults([]);
        }
        sims[0].set_fault(Fault::times(kind.clone(), 1));
        sims[1].set_fault(Fault::times(kind.clone(), 1));
        let body = chat(&format!("again {kind:?}"), 30, &json!({}));
        let replies = join_all((0..6).map(|_| ask(&gateway, &[], &body))).await;
        let failed = replies.iter().filter(|reply| reply.status != 200).count();
        assert!(failed <= 2, "{kind:?}: {failed} of 6 failed, of two faults");
        for sim in &sims {
            sim.set_faults([]);
        }
    }
    gateway.idle().await;
}

#[tokio::test]
async fn a_worker_that_dies_in_the_middle_is_told_to_all_who_share_its_stream() {
    let sims = sims(1).await;
    let (gateway, _file) = start(&sims, "cache: {mode: deterministic}\n").await;
    let body = chat("a story without an end", 100_000, &json!({"stream": true}));
    let mut all = Vec::new();
    for _ in 0..4 {
        let mut stream = stream(&gateway, &body).await;
        stream.next().await.unwrap().unwrap();
        all.push(stream);
    }
    sims[0].kill().await;
    for stream in &mut all {
        let (text, whole) = stream.rest().await;
        assert!(whole && text.contains("data: {\"error\":") && text.ends_with("data: [DONE]\n\n"), "{text}");
    }
    gateway.idle().await;
    assert!(gateway.metric("warmpath_cache_entries").await < 1.0);
}

#[tokio::test]
async fn a_slow_reader_slows_nobody_who_shares_its_stream_and_is_not_cut_in_silence() {
    let sims = [sim_of(Duration::from_micros(300)).await];
    let (gateway, _file) =
        start(&sims, "cache: {mode: deterministic, max_bytes: 32MiB, max_entry: 4MiB}\n").await;
    // More than the kernel keeps for a socket: events are long with all these alternatives in them.
    // A long prompt: both are there before its first token is.
    let body =
        chat(&"long ".repeat(8_000), 40_000, &json!({"stream": true, "logprobs": true, "top_logprobs": 20}));
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let socket = socket.connect(gateway.address).await.unwrap();
    let slow = open_over(socket, gateway.address, "POST", CHAT, &[JSON], body.to_string());
    let (mut slow, mut fast) = tokio::join!(slow, stream(&gateway, &body));
    let mut outcomes = [&slow, &fast].map(|stream| stream.header("x-warmpath-cache"));
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["miss", "shared"]);
    slow.next().await.unwrap().unwrap();
    let (text, whole) = fast.rest().await;
    assert!(whole && text.ends_with("data: [DONE]\n\n"));
    assert!(
        text.len() > 12 << 20,
        "{} bytes are more than an entry may have and the kernel keeps",
        text.len()
    );
    let (slow_text, slow_whole) = slow.rest().await;
    let end = &slow_text[slow_text.len().saturating_sub(300)..];
    assert!(
        !slow_whole && slow_text.len() < text.len(),
        "what it missed is not passed over: {slow_whole}, {} of {} bytes, {end}",
        slow_text.len(),
        text.len()
    );
    gateway.idle().await;
    assert!(gateway.metric("warmpath_cache_bytes{of=\"in_flight\"}").await < 1.0);
    assert_eq!(stream(&gateway, &body).await.header("x-warmpath-cache"), "miss", "too long to be kept");
}

#[tokio::test]
async fn operators_and_reloads_clear_and_change_it() {
    let sims = sims(1).await;
    let (gateway, file) = start(&sims, "cache: {mode: all}\n").await;
    let ask = async |text: &str| cache(&ask(&gateway, &[], &chat(text, 3, &json!({}))).await).to_owned();
    let clear =
        async |query: &str| request(gateway.admin, "DELETE", &format!("/cache{query}"), &[], "").await;
    assert_eq!(
        (ask("a").await, ask("b").await, ask("a").await),
        ("miss".into(), "miss".into(), "hit".into())
    );
    let shown = warmpath_tests::get(gateway.admin, "/cache").await.json();
    assert!(shown["entries"] == 2 && shown["bytes_max"] == 256 << 20, "{shown}");
    assert_eq!(clear("?model=other").await.json(), json!({"removed": 0}));
    assert_eq!(ask("a").await, "hit");
    assert_eq!(clear("?tenant=default&model=sim").await.json(), json!({"removed": 2}));
    assert_eq!(ask("a").await, "miss");
    assert_eq!(clear("?modell=sim").await.status, 400);
    assert_eq!(clear("").await.json(), json!({"removed": 1}));
    let cleared = gateway.metric("warmpath_cache_evictions_total{reason=\"cleared\"}").await;
    assert!((cleared - 3.0).abs() < f64::EPSILON);

    assert_eq!((ask("a").await, ask("a").await), ("miss".into(), "hit".into()));
    let reload = async |text: &str| {
        std::fs::write(file.path(), text).unwrap();
        request(gateway.admin, "POST", "/admin/reload", &[], "").await
    };
    assert_eq!(reload("cache: {mode: all, ttl: 1ms}\n").await.json()["changed"], json!(["cache"]));
    assert_eq!(ask("a").await, "miss", "it is too old now");
    reload("cache: {mode: off}\n").await;
    assert_eq!(ask("a").await, "");
    let refused = reload("cache:\n  mode: all\n  max_entry: 64MiB\n").await;
    for word in ["line 3", "cache.max_entry", "1/8"] {
        assert!(refused.status == 422 && refused.text().contains(word), "{}", refused.text());
    }
}
