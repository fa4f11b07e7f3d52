//! More requests than the workers take: who waits, who is next, and what the others are told.

use std::{future::Future, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use vllm_sim::{Fault, FaultKind, SimHandle};
use warmpath_tests::{Gateway, Reply, Stream, eventually, open, request, sims, urls};

use crate::keys::digest;

/// One request at a time on each worker.
const ONE: &str = "limits: {worker_concurrency: 1}\n";

async fn start(sims: &[SimHandle], config: &str) -> Gateway {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), config).unwrap();
    Gateway::start(&urls(sims), &["--config", file.path().to_str().unwrap()]).await
}

fn body(prompt: &str) -> Value {
    json!({"messages": [{"role": "user", "content": prompt}], "max_tokens": 1, "ignore_eos": true})
}

fn ask(gateway: &Gateway, headers: &[(&'static str, &'static str)], prompt: &str) -> JoinHandle<Reply> {
    let (address, body) = (gateway.address, body(prompt).to_string());
    let headers: Vec<_> = [("content-type", "application/json")].iter().chain(headers).copied().collect();
    tokio::spawn(async move { request(address, "POST", "/v1/chat/completions", &headers, body).await })
}

async fn waiting(gateway: &Gateway, count: u32) {
    eventually("they wait", || async {
        (gateway.metric("warmpath_queue_requests").await - f64::from(count)).abs().lt(&0.5).then_some(())
    })
    .await;
}

/// A stream that holds a worker until it is dropped.
async fn hold(gateway: &Gateway) -> Stream {
    let mut stream = gateway.stream("an endless answer", 100_000).await;
    stream.next().await.unwrap().unwrap();
    stream
}

#[tokio::test]
async fn a_request_waits_until_a_worker_has_room() {
    let sims = sims(2).await;
    let gateway = start(&sims, ONE).await;
    let held = [hold(&gateway).await, hold(&gateway).await];
    assert_ne!(held[0].header("x-warmpath-worker"), held[1].header("x-warmpath-worker"));
    let reply = ask(&gateway, &[], "x");
    waiting(&gateway, 1).await;
    assert_eq!(
        gateway.workers().await.iter().map(|w| w["in_flight_requests"].as_u64().unwrap()).sum::<u64>(),
        2
    );
    drop(held);
    assert_eq!(reply.await.unwrap().status, 200);
    waiting(&gateway, 0).await;
    gateway.idle().await;
}

#[tokio::test]
async fn no_worker_ever_has_more_than_its_bound_and_all_are_served() {
    const BOUND: u64 = 3;
    let sims = sims(2).await;
    let gateway = start(&sims, &format!("limits: {{worker_concurrency: {BOUND}}}\n")).await;
    let replies: Vec<_> = (0..120).map(|number| ask(&gateway, &[], &format!("prompt {number}"))).collect();
    let mut most = 0;
    while replies.iter().any(|reply| !reply.is_finished()) {
        for worker in gateway.workers().await {
            most = most.max(worker["in_flight_requests"].as_u64().unwrap());
        }
    }
    for reply in replies {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    assert!(most <= BOUND, "{most}");
    gateway.idle().await;
    waiting(&gateway, 0).await;
}

#[tokio::test]
async fn prompt_tokens_that_wait_for_prefill_are_bounded_and_the_first_byte_makes_room() {
    let sims = sims(1).await;
    let gateway = start(&sims, "limits: {worker_queued_tokens: 100}\nhealth: {silence: 1h}\n").await;
    sims[0].set_fault(Fault::always(FaultKind::Freeze));
    let long = ask(&gateway, &[], &"long ".repeat(400));
    eventually("it is being prefilled", || async {
        (gateway.workers().await[0]["queued_prefill_tokens"].as_u64().unwrap() > 100).then_some(())
    })
    .await;
    let short = ask(&gateway, &[], "short");
    waiting(&gateway, 1).await;
    assert_eq!(gateway.workers().await[0]["in_flight_requests"], 1);
    sims[0].clear_faults();
    assert_eq!((long.await.unwrap().status, short.await.unwrap().status), (200, 200));
}

#[tokio::test]
async fn a_full_queue_says_429_and_when_to_come_again() {
    let sims = sims(1).await;
    let gateway = start(&sims, "limits: {worker_concurrency: 1, queue: 2}\n").await;
    let held = hold(&gateway).await;
    let first = [ask(&gateway, &[], "x"), ask(&gateway, &[], "y")];
    waiting(&gateway, 2).await;
    let refused = ask(&gateway, &[], "z").await.unwrap();
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("queue_full")));
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=120).contains(&seconds), "{seconds}");
    drop(held);
    for reply in first {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    assert!((gateway.metric("warmpath_refused_total{reason=\"queue_full\"}").await - 1.0).abs() < 0.5);
}

#[tokio::test]
async fn a_request_that_has_waited_long_enough_says_429_where_there_are_workers_and_503_where_there_are_none()
{
    let sims = sims(1).await;
    let gateway =
        start(&sims, "limits: {worker_concurrency: 1}\ntimeouts: {queue: 300ms}\nhealth: {interval: 50ms}\n")
            .await;
    let held = hold(&gateway).await;
    let reply = ask(&gateway, &[], "x").await.unwrap();
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (429, &json!("queue_timeout")));
    drop(held);
    sims[0].kill().await;
    eventually("unhealthy", || async { (gateway.workers().await[0]["health"] == "unhealthy").then_some(()) })
        .await;
    let started = tokio::time::Instant::now();
    let reply = ask(&gateway, &[], "x").await.unwrap();
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("no_worker_available")));
    assert!(started.elapsed() >= Duration::from_millis(300), "it has waited for one");
}

#[tokio::test]
async fn a_worker_that_comes_back_is_given_those_who_wait() {
    let sims = sims(1).await;
    let gateway = start(&sims, "health: {interval: 50ms, timeout: 1s, unhealthy_after: 1}\n").await;
    let address = sims[0].addr();
    sims[0].kill().await;
    eventually("unhealthy", || async { (gateway.workers().await[0]["health"] == "unhealthy").then_some(()) })
        .await;
    let replies: Vec<_> = (0..5).map(|_| ask(&gateway, &[], "x")).collect();
    waiting(&gateway, 5).await;
    let _again = eventually("the port is free again", || async {
        let config = warmpath_tests::SimConfig { listen: address, ..Default::default() };
        vllm_sim::Sim::start(config).await.ok()
    })
    .await;
    for reply in replies {
        assert_eq!(reply.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_worker_that_is_added_or_put_back_is_given_those_who_wait() {
    let sims = sims(2).await;
    let gateway = start(&sims[..1], ONE).await;
    let name = gateway.workers().await[0]["name"].as_str().unwrap().to_owned();
    let change = async |path: &str, body: String| {
        let headers = [("content-type", "application/json")];
        let reply = request(gateway.admin, "POST", path, &headers, body).await;
        assert!((200..300).contains(&reply.status), "{path}: {}", reply.text());
    };

    change(&format!("/workers/{name}/drain"), String::new()).await;
    let reply = ask(&gateway, &[], "x");
    waiting(&gateway, 1).await;
    change(&format!("/workers/{name}/undrain"), String::new()).await;
    assert_eq!(reply.await.unwrap().status, 200);

    let _held = hold(&gateway).await;
    let reply = ask(&gateway, &[], "y");
    waiting(&gateway, 1).await;
    change("/workers", json!({"url": urls(&sims)[1], "name": "another"}).to_string()).await;
    let reply = reply.await.unwrap();
    assert_eq!((reply.status, reply.header("x-warmpath-worker")), (200, "another"));
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_place_in_the_queue_back() {
    let sims = sims(1).await;
    let gateway = start(&sims, ONE).await;
    let held = hold(&gateway).await;
    let mut leaver = TcpStream::connect(gateway.address).await.unwrap();
    let text = body("x").to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    leaver.write_all(format!("{head}{text}").as_bytes()).await.unwrap();
    waiting(&gateway, 1).await;
    let stays = ask(&gateway, &[], "y");
    waiting(&gateway, 2).await;
    drop(leaver);
    waiting(&gateway, 1).await;
    drop(held);
    assert_eq!(stays.await.unwrap().status, 200);
    gateway.idle().await;
}

/// The order in which requests that wait together are served, by what `label` says of them.
async fn order(
    gateway: &Gateway,
    asked: Vec<(&'static str, JoinHandle<Reply>)>,
    free: impl Future<Output = ()>,
) -> String {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    for (label, reply) in asked {
        let sender = sender.clone();
        tokio::spawn(async move {
            assert_eq!(reply.await.unwrap().status, 200);
            sender.send(label).unwrap();
        });
    }
    drop(sender);
    free.await;
    let mut order = String::new();
    while let Some(label) = receiver.recv().await {
        order.push_str(label);
    }
    gateway.idle().await;
    order
}

#[tokio::test]
async fn the_lower_priority_value_goes_first_by_header_or_body_and_the_header_wins() {
    let sims = sims(1).await;
    let gateway = start(&sims, ONE).await;
    let held = hold(&gateway).await;
    let mut asked = vec![("c", ask(&gateway, &[("x-warmpath-priority", "5")], "x"))];
    waiting(&gateway, 1).await;
    let mut in_body = body("y");
    in_body["priority"] = json!(2);
    let (address, text) = (gateway.address, in_body.to_string());
    asked.push((
        "b",
        tokio::spawn(async move {
            request(address, "POST", "/v1/chat/completions", &[("content-type", "application/json")], text)
                .await
        }),
    ));
    waiting(&gateway, 2).await;
    in_body["priority"] = json!(99);
    let text = in_body.to_string();
    asked.push((
        "a",
        tokio::spawn(async move {
            let headers = [("content-type", "application/json"), ("x-warmpath-priority", "-1")];
            request(address, "POST", "/v1/chat/completions", &headers, text).await
        }),
    ));
    waiting(&gateway, 3).await;
    assert_eq!(order(&gateway, asked, async { drop(held) }).await, "abc");
    let reply = ask(&gateway, &[("x-warmpath-priority", "high")], "x").await.unwrap();
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("x-warmpath-priority"), "{}", reply.text());
}

#[tokio::test]
async fn a_request_that_would_wait_for_longer_than_its_client_is_refused_at_once() {
    let sims = sims(1).await;
    let gateway = start(&sims, ONE).await;
    sims[0].set_fault(Fault::always(FaultKind::SlowHead { delay_ms: 400 }));
    let asked: Vec<_> = (0..30).map(|_| ask(&gateway, &[], "x")).collect();
    // The pace is known after a second: some two and a half requests in each.
    eventually("the pace is known", || async {
        (gateway.metric("warmpath_queue_drain_tokens_per_second").await > 0.0).then_some(())
    })
    .await;
    let started = tokio::time::Instant::now();
    let reply = ask(&gateway, &[("x-warmpath-timeout", "2s")], "x").await.unwrap();
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (429, &json!("too_late")));
    assert!(started.elapsed() < Duration::from_secs(2), "it did not wait in vain");
    let seconds: u64 = reply.header("retry-after").parse().unwrap();
    assert!(seconds > 2, "as long as those in front of it take: {seconds}");
    sims[0].clear_faults();
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn request_bodies_are_bounded_all_together() {
    let sims = sims(1).await;
    let gateway = start(&sims, "limits: {body_bytes: 256KiB, bodies_bytes: 256KiB}\n").await;
    let mut slow = TcpStream::connect(gateway.address).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 250000\r\n\r\n";
    slow.write_all(format!("{head}{{\"prompt\":\"{}", "x".repeat(200_000)).as_bytes()).await.unwrap();
    eventually("it is in memory", || async {
        (gateway.metric("warmpath_request_body_bytes").await > 200_000.0).then_some(())
    })
    .await;
    let fits = format!("{{\"prompt\":\"{}\",\"max_tokens\":1}}", "x".repeat(100_000));
    let json = [("content-type", "application/json")];
    let reply = request(gateway.address, "POST", "/v1/completions", &json, fits.clone()).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("bodies_too_large")));
    assert_eq!(reply.header("retry-after"), "1");
    drop(slow);
    eventually("its memory is given back", || async {
        (gateway.metric("warmpath_request_body_bytes").await < 1.0).then_some(())
    })
    .await;
    assert_eq!(request(gateway.address, "POST", "/v1/completions", &json, fits).await.status, 200);
}

#[tokio::test]
async fn announcing_a_long_body_takes_no_memory() {
    let sims = sims(1).await;
    let gateway = start(&sims, "").await;
    let mut announcers = Vec::new();
    for _ in 0..20 {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        let head = "POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 60000000\r\n\r\n{";
        socket.write_all(head.as_bytes()).await.unwrap();
        announcers.push(socket);
    }
    eventually("their first bytes are here", || async {
        (gateway.metric("warmpath_request_body_bytes").await >= 20.0).then_some(())
    })
    .await;
    assert!(gateway.metric("warmpath_request_body_bytes").await < 1000.0);
    let mut byte = [0];
    announcers[0].write_all(b"\"prompt\": 1}").await.unwrap();
    let waits = tokio::time::timeout(Duration::from_millis(100), announcers[0].read(&mut byte)).await;
    assert!(waits.is_err(), "the rest of the body is awaited");
}

#[tokio::test]
async fn tenants_take_turns_and_none_can_fill_the_queue_for_the_others() {
    const GREEDY: &str = "Bearer sk-greedy";
    const MODEST: &str = "Bearer sk-modest";
    let keys = [("greedy", digest("sk-greedy")), ("modest", digest("sk-modest"))]
        .map(|(name, digest)| format!("{{name: {name}, sha256: '{digest}'}}"));
    let sims = sims(1).await;
    let config = format!("limits: {{worker_concurrency: 1, queue: 8}}\nkeys: [{}]\n", keys.join(", "));
    let gateway = start(&sims, &config).await;
    let held = {
        let text =
            json!({"messages": [], "max_tokens": 100_000, "ignore_eos": true, "stream": true}).to_string();
        let headers = [("content-type", "application/json"), ("authorization", GREEDY)];
        let mut stream = open(gateway.address, "POST", "/v1/chat/completions", &headers, text).await;
        stream.next().await.unwrap().unwrap();
        stream
    };
    // As many tokens as a turn has, so that each turn is one request.
    let long = "x".repeat(4 * 2_000);
    let greedy: Vec<_> = (0..8).map(|_| ask(&gateway, &[("authorization", GREEDY)], &long)).collect();
    waiting(&gateway, 8).await;
    let refused = ask(&gateway, &[("authorization", GREEDY)], &long).await.unwrap();
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("queue_full")));
    let modest: Vec<_> = (0..3).map(|_| ask(&gateway, &[("authorization", MODEST)], &long)).collect();
    let pushed_out = || async {
        (gateway.metric("warmpath_refused_total{reason=\"pushed_out\"}").await - 3.0)
            .abs()
            .lt(&0.5)
            .then_some(())
    };
    eventually("three of the greedy ones make room", pushed_out).await;
    waiting(&gateway, 8).await;

    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    for (label, reply) in
        greedy.into_iter().map(|reply| ("g", reply)).chain(modest.into_iter().map(|reply| ("m", reply)))
    {
        let sender = sender.clone();
        tokio::spawn(async move {
            let reply = reply.await.unwrap();
            sender.send((label, reply.status)).unwrap();
        });
    }
    drop((sender, held));
    let mut order = String::new();
    while let Some((label, status)) = receiver.recv().await {
        match status {
            200 => order.push_str(label),
            _ => assert_eq!((label, status), ("g", 429), "pushed out"),
        }
    }
    assert_eq!((order.matches('g').count(), order.matches('m').count()), (5, 3), "{order}");
    assert!(order.rfind('m') < Some(7), "they took turns, though the others came first: {order}");
}
