//! What the gateway knows of workers' KV caches by their own word: warm starts, restarts, gaps, resets.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use vllm_sim::{EventFormat, HashForm, KvEventsConfig};
use warmpath_tests::{Gateway, Reply, SimConfig, SimHandle, eventually, request, sim, urls};

const BLOCK: usize = 16;

fn publishing(endpoint: &str) -> SimConfig {
    let kv_events = KvEventsConfig {
        endpoint: endpoint.to_owned(),
        replay_endpoint: Some("tcp://*:0".to_owned()),
        ..KvEventsConfig::default()
    };
    SimConfig { kv_events: Some(kv_events), ..SimConfig::default() }
}

/// Workers that publish on ports of their own.
async fn publishers(count: u64) -> Vec<SimHandle> {
    let mut sims = Vec::new();
    for seed in 0..count {
        sims.push(sim(SimConfig { seed, ..publishing("tcp://*:0") }).await);
    }
    sims
}

fn completion(prompt: &[u32]) -> Value {
    json!({"prompt": prompt, "max_tokens": 2, "ignore_eos": true})
}

/// A prompt of its own for every `number`.
fn prompt(number: u32, blocks: usize) -> Vec<u32> {
    (0..blocks * BLOCK + 3).map(|position| 100 + number * 1000 + position as u32).collect()
}

async fn complete(gateway: &Gateway, prompt: &[u32]) -> Reply {
    let reply = gateway.post("/v1/completions", &completion(prompt)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply
}

/// Past the gateway.
async fn complete_at(sim: &SimHandle, prompt: &[u32]) {
    let headers = [("content-type", "application/json")];
    let reply =
        request(sim.addr(), "POST", "/v1/completions", &headers, completion(prompt).to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

async fn reset(sim: &SimHandle) {
    let reply = request(sim.addr(), "POST", "/reset_prefix_cache", &[], "").await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "{\"success\":true}"));
}

/// What the gateway expected, and what the worker then found: cached tokens.
fn expected_and_found(reply: &Reply) -> (u64, u64) {
    let matched = reply.header("x-warmpath-matched-tokens").parse().expect("a number");
    let details = &reply.json()["usage"]["prompt_tokens_details"];
    (matched, details["cached_tokens"].as_u64().expect("cached_tokens"))
}

fn series(metric: &str, sim: &SimHandle, label: &str) -> String {
    // Labels come in the order of the alphabet.
    let worker = format!("worker=\"{}\"", sim.addr());
    let mut labels = [worker.as_str(), label];
    labels.sort_unstable();
    format!("{metric}{{{}}}", labels.join(","))
}

async fn await_state(gateway: &Gateway, sim: &SimHandle, state: &str) {
    let series = series("warmpath_kv_events_state", sim, &format!("state=\"{state}\""));
    eventually(&series, || async { (gateway.metric(&series).await > 0.5).then_some(()) }).await;
}

async fn await_at_least(gateway: &Gateway, series: &str, least: f64) {
    eventually(series, || async { (gateway.metric(series).await >= least).then_some(()) }).await;
}

#[tokio::test]
async fn a_gateway_knows_caches_that_were_warm_before_it_started() {
    let sims = publishers(3).await;
    for (number, sim) in sims.iter().enumerate() {
        complete_at(sim, &prompt(number as u32, 10)).await;
    }
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    for sim in &sims {
        await_state(&gateway, sim, "exact").await;
    }
    for (number, sim) in sims.iter().enumerate() {
        let reply = complete(&gateway, &prompt(number as u32, 10)).await;
        assert_eq!(expected_and_found(&reply), (160, 160));
        assert_eq!(reply.header("x-warmpath-match"), "exact");
        assert_eq!(reply.header("x-warmpath-worker"), sim.addr().to_string());
    }
    // Prompts whose tokens are not known are routed by what was sent.
    let reply = gateway.chat("hello").await;
    assert_eq!(reply.header("x-warmpath-match"), "approximate");
}

#[tokio::test]
async fn every_wire_form_is_followed() {
    for (format, hash_form) in [
        (EventFormat::Array, HashForm::Int),
        (EventFormat::Array, HashForm::Bytes),
        (EventFormat::Map, HashForm::Bytes),
    ] {
        let mut config = publishing("tcp://*:0");
        let events = config.kv_events.as_mut().expect("set above");
        (events.format, events.hash_form) = (format, hash_form);
        let sims = [sim(config).await];
        complete_at(&sims[0], &prompt(1, 4)).await;
        let gateway = Gateway::start(&urls(&sims), &[]).await;
        await_state(&gateway, &sims[0], "exact").await;
        assert_eq!(expected_and_found(&complete(&gateway, &prompt(1, 4)).await), (64, 64));
        complete(&gateway, &prompt(2, 4)).await;
        await_at_least(&gateway, &series("warmpath_kv_hash_checks_total", &sims[0], "result=\"match\""), 8.0)
            .await;
        let mismatches = series("warmpath_kv_hash_checks_total", &sims[0], "result=\"mismatch\"");
        assert!(gateway.metric(&mismatches).await < 1.0);
    }
}

#[tokio::test]
async fn workers_that_connect_are_told_apart_by_their_topics() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let publisher = |seed| {
        let mut config = SimConfig { seed, ..publishing(&format!("tcp://{free}")) };
        config.kv_events.as_mut().expect("set above").topic = format!("kv@{seed}");
        sim(config)
    };
    let sims = [publisher(0).await, publisher(1).await];
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    // Whose a connection is shows with its first message.
    let exact = sims.each_ref().map(|sim| series("warmpath_kv_events_state", sim, "state=\"exact\""));
    let mut number = 0;
    while gateway.metric(&exact[0]).await + gateway.metric(&exact[1]).await < 2.0 {
        number += 1;
        assert!(number < 500, "no end of prompts");
        complete(&gateway, &prompt(number, 4)).await;
    }
    for number in 1..=number {
        assert_eq!(expected_and_found(&complete(&gateway, &prompt(number, 4)).await), (64, 64));
    }
}

#[tokio::test]
async fn what_the_engine_evicts_is_known_to_be_gone() {
    let mut config = publishing("tcp://*:0");
    config.engine.num_blocks = 33; // three prompts of ten blocks
    let sims = [sim(config).await];
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    await_state(&gateway, &sims[0], "exact").await;
    for number in 0..8 {
        complete_at(&sims[0], &prompt(number, 10)).await;
    }
    let removed = series("warmpath_kv_events_total", &sims[0], "event=\"removed\"");
    await_at_least(&gateway, &removed, 50.0).await;
    for number in [0, 7] {
        let (expected, found) = expected_and_found(&complete(&gateway, &prompt(number, 10)).await);
        assert_eq!(expected, found, "prompt {number}");
        assert_eq!(found > 0, number == 7);
    }
}

#[tokio::test]
async fn a_reset_of_an_idle_engine_is_noticed_by_a_scrape() {
    let sims = publishers(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    await_state(&gateway, &sims[0], "exact").await;
    complete(&gateway, &prompt(1, 4)).await;
    assert_eq!(expected_and_found(&complete(&gateway, &prompt(1, 4)).await).1, 64);
    reset(&sims[0]).await;
    await_at_least(&gateway, &series("warmpath_kv_cache_forgotten_total", &sims[0], "reason=\"reset\""), 1.0)
        .await;
    let reply = complete(&gateway, &prompt(1, 4)).await;
    assert_eq!((expected_and_found(&reply), reply.header("x-warmpath-match")), ((0, 0), "exact"));
    // Now the engine says it, too; that is not another reset.
    await_at_least(&gateway, &series("warmpath_kv_events_total", &sims[0], "event=\"cleared\""), 1.0).await;
    assert_eq!(expected_and_found(&complete(&gateway, &prompt(1, 4)).await), (64, 64));
}

#[tokio::test]
async fn a_worker_that_comes_back_has_an_empty_cache() {
    let first = publishers(1).await.remove(0);
    let mut config = publishing("tcp://*:0");
    config.listen = first.addr();
    config.kv_events = first.kv_events().cloned();
    let gateway = Gateway::start(&[first.url()], &[]).await;
    await_state(&gateway, &first, "exact").await;
    for number in 1..4 {
        complete(&gateway, &prompt(number, 4)).await;
    }
    first.kill().await;
    await_state(&gateway, &first, "connecting").await;
    drop(first);
    let second =
        eventually("the addresses to be free", || async { vllm_sim::Sim::start(config.clone()).await.ok() })
            .await;
    complete_at(&second, &prompt(3, 4)).await;
    await_state(&gateway, &second, "exact").await;
    for (number, cached) in [(1, 0), (3, 64)] {
        let reply = eventually("the worker to be routable", || async {
            let reply = gateway.post("/v1/completions", &completion(&prompt(number, 4))).await;
            (reply.status == 200).then_some(reply)
        })
        .await;
        assert_eq!(
            (expected_and_found(&reply), reply.header("x-warmpath-match")),
            ((cached, cached), "exact")
        );
    }
}

/// Passes a TCP connection on, and keeps what comes from the publisher to itself while it is told to.
struct Tap {
    port: u16,
    is_deaf: watch::Sender<bool>,
    kept: watch::Receiver<u32>,
}

impl Tap {
    async fn in_front_of(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own_port = listener.local_addr().unwrap().port();
        let (is_deaf, deaf) = watch::channel(false);
        let (keep, kept) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let (deaf, keep) = (deaf.clone(), keep.clone());
                tokio::spawn(async move {
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let there =
                        tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                    let mut buffer = vec![0; 1 << 16];
                    loop {
                        match from_server.read(&mut buffer).await {
                            Ok(0) | Err(_) => break,
                            // Whole messages: the sim writes one at a time.
                            Ok(_) if *deaf.borrow() => keep.send_modify(|kept| *kept += 1),
                            Ok(read) => {
                                if to_client.write_all(&buffer[..read]).await.is_err() {
                                    break;
                                }
                            }
                        }
                    }
                    there.abort();
                });
            }
        });
        Self { port: own_port, is_deaf, kept }
    }
}

fn port_of(endpoint: &str) -> u16 {
    endpoint.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a bound port")
}

/// A gateway that hears the worker through a tap, with or without a way to ask for what it missed.
async fn tapped(with_replay: bool) -> (SimHandle, Tap, Gateway, tempfile::TempDir) {
    let sim = publishers(1).await.remove(0);
    let events = sim.kv_events().expect("it publishes").clone();
    let tap = Tap::in_front_of(port_of(&events.endpoint)).await;
    let replay = events.replay_endpoint.as_deref().map(port_of).filter(|_| with_replay);
    let replay = replay.map_or(String::new(), |port| format!(", replay_endpoint: 'tcp://127.0.0.1:{port}'"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("warmpath.yaml");
    let endpoint = format!("tcp://*:{}", tap.port);
    let yaml = format!(
        "workers:\n  - {{url: 'http://{addr}', name: '{addr}', kv_events: {{endpoint: '{endpoint}'{replay}}}}}\n\
         scrape_interval: 200ms\n",
        addr = sim.addr()
    );
    std::fs::write(&file, yaml).unwrap();
    let gateway = Gateway::start(&[], &["--config", file.to_str().unwrap()]).await;
    (sim, tap, gateway, dir)
}

#[tokio::test]
async fn a_gap_is_closed_by_replay() {
    let (sim, tap, gateway, _dir) = tapped(true).await;
    await_state(&gateway, &sim, "exact").await;
    complete_at(&sim, &prompt(0, 4)).await;
    await_at_least(&gateway, &format!("warmpath_kv_event_batches_total{{worker=\"{}\"}}", sim.addr()), 1.0)
        .await;
    tap.is_deaf.send_replace(true);
    for number in 1..4 {
        complete_at(&sim, &prompt(number, 4)).await;
    }
    // Noticed by a scrape that shows computed tokens, without another message.
    let repaired = series("warmpath_kv_event_gaps_total", &sim, "result=\"repaired\"");
    await_at_least(&gateway, &repaired, 1.0).await;
    await_state(&gateway, &sim, "exact").await;
    for number in 0..4 {
        assert_eq!(expected_and_found(&complete(&gateway, &prompt(number, 4)).await), (64, 64), "{number}");
    }
}

/// Without replay the beginning is not known, until the engine says that its cache is empty.
async fn begin_anew(gateway: &Gateway, sim: &SimHandle) {
    await_state(gateway, sim, "gap").await;
    let batches = format!("warmpath_kv_event_batches_total{{worker=\"{}\"}}", sim.addr());
    let mut number = 10;
    eventually("a message: nobody knows when a subscription has arrived", || {
        number += 1;
        let tokens = prompt(number, 1);
        let batches = &batches;
        async move {
            complete_at(sim, &tokens).await;
            (gateway.metric(batches).await > 0.0).then_some(())
        }
    })
    .await;
    reset(sim).await;
    complete_at(sim, &prompt(9, 1)).await;
    await_at_least(gateway, &series("warmpath_kv_events_total", sim, "event=\"cleared\""), 1.0).await;
    await_state(gateway, sim, "exact").await;
}

#[tokio::test]
async fn a_gap_that_cannot_be_closed_makes_a_worker_count_by_what_was_sent() {
    let (sim, mut tap, gateway, _dir) = tapped(false).await;
    begin_anew(&gateway, &sim).await;
    complete_at(&sim, &prompt(0, 4)).await;
    complete(&gateway, &prompt(1, 4)).await;
    eventually("the event of a prompt that went past the gateway", || async {
        let reply = complete(&gateway, &prompt(0, 4)).await;
        assert_eq!(reply.header("x-warmpath-match"), "exact");
        (expected_and_found(&reply) == (64, 64)).then_some(())
    })
    .await;

    tap.is_deaf.send_replace(true);
    complete_at(&sim, &prompt(2, 4)).await;
    tap.kept.wait_for(|kept| *kept > 0).await.unwrap();
    tap.is_deaf.send_replace(false);
    complete_at(&sim, &prompt(3, 4)).await;
    await_state(&gateway, &sim, "gap").await;
    // Prompts 0 and 1 went through the gateway, prompt 3 was announced after the gap, of 2 nothing is known.
    for (number, known) in [(0, true), (1, true), (2, false), (3, true)] {
        let reply = complete(&gateway, &prompt(number, 4)).await;
        let (expected, found) = expected_and_found(&reply);
        assert_eq!(
            (expected > 0, found, reply.header("x-warmpath-match")),
            (known, 64, "approximate"),
            "{number}"
        );
    }
}

#[tokio::test]
async fn a_worker_that_computes_and_says_nothing_is_silent() {
    let (sim, tap, gateway, _dir) = tapped(false).await;
    begin_anew(&gateway, &sim).await;
    tap.is_deaf.send_replace(true);
    let silent = series("warmpath_kv_events_state", &sim, "state=\"silent\"");
    let mut number = 0;
    while gateway.metric(&silent).await < 1.0 {
        number += 1;
        assert!(number < 100, "still not silent");
        complete(&gateway, &prompt(number, 30)).await;
    }
    let reply = complete(&gateway, &prompt(number, 30)).await;
    assert_eq!(reply.header("x-warmpath-match"), "approximate");
    assert!(expected_and_found(&reply).0 > 0, "it was sent there");
}

#[tokio::test]
async fn equal_prompts_at_once_find_each_other_before_any_event() {
    let sims = publishers(1).await;
    // On two threads, two may be decided at the same moment.
    let gateway = Gateway::start(&urls(&sims), &["--threads", "1"]).await;
    await_state(&gateway, &sims[0], "exact").await;
    // Four prefills of 80 ms each: events of the later ones come long after the last decision.
    let long = prompt(1, 100);
    let replies = tokio::join!(
        complete(&gateway, &long),
        complete(&gateway, &long),
        complete(&gateway, &long),
        complete(&gateway, &long)
    );
    let mut expected =
        [&replies.0, &replies.1, &replies.2, &replies.3].map(|reply| expected_and_found(reply).0);
    expected.sort_unstable();
    assert_eq!(expected, [0, 1600, 1600, 1600], "all but the first");
    let confirmed = "warmpath_kv_predictions_total{result=\"confirmed\"}";
    await_at_least(&gateway, confirmed, 1.0).await;
    assert!(gateway.metric("warmpath_kv_predictions_total{result=\"expired\"}").await < 1.0);
}

#[tokio::test]
async fn a_prompt_that_the_worker_never_prefilled_is_not_expected_for_long() {
    let sims = publishers(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    await_state(&gateway, &sims[0], "exact").await;
    let fault = vllm_sim::FaultKind::Status { status: 500, retry_after_s: None };
    sims[0].set_fault(vllm_sim::Fault::times(fault, 1));
    let failed = gateway.post("/v1/completions", &completion(&prompt(1, 4))).await;
    assert_eq!(failed.status, 500);
    await_at_least(&gateway, "warmpath_kv_predictions_total{result=\"expired\"}", 1.0).await;
    let reply = complete(&gateway, &prompt(1, 4)).await;
    assert_eq!((expected_and_found(&reply), reply.header("x-warmpath-match")), ((0, 0), "exact"));
}
