//! Effects of keys that no other test sets.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};
use vllm_sim::{EngineConfig, Fault, FaultKind, KvEventsConfig};
use warmpath_tests::{Gateway, Signal, SimConfig, SimHandle, eventually, get, request, sim, sims, urls};

async fn start(workers: &[String], config: &str) -> Gateway {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    fs::write(file.path(), config).unwrap();
    Gateway::start(workers, &["--config", file.path().to_str().unwrap()]).await
}

/// What is asked of a worker besides requests.
#[derive(Default)]
struct Asked {
    health: AtomicUsize,
    metrics: AtomicUsize,
    /// How `/health` answers: 0 well, 1 badly, 2 not at all.
    manner: AtomicU8,
}

/// Answers one connection's requests, and tells nothing of itself.
async fn serve(mut socket: TcpStream, asked: Arc<Asked>) -> Option<()> {
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            (socket.read_buf(&mut bytes).await.ok()? > 0).then_some(())?;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        bytes.drain(..end);
        let mut status = "200 OK";
        if head.starts_with("get /health ") {
            asked.health.fetch_add(1, Relaxed);
            match asked.manner.load(Relaxed) {
                1 => status = "500 Internal Server Error",
                2 => std::future::pending().await,
                _ => {}
            }
        } else if head.starts_with("get /metrics ") {
            asked.metrics.fetch_add(1, Relaxed);
        } else if let Some(rest) = head.split("content-length: ").nth(1) {
            let length: usize = rest.split("\r\n").next()?.parse().ok()?;
            while bytes.len() < length {
                (socket.read_buf(&mut bytes).await.ok()? > 0).then_some(())?;
            }
            bytes.drain(..length);
        }
        let answer =
            format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}");
        socket.write_all(answer.as_bytes()).await.ok()?;
    }
}

async fn accept(listener: Arc<TcpListener>, asked: Arc<Asked>) {
    while let Ok((socket, _)) = listener.accept().await {
        tokio::spawn(serve(socket, asked.clone()));
    }
}

/// A worker that counts what it is asked.
async fn counting() -> (SocketAddr, Arc<Asked>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::<Asked>::default();
    tokio::spawn(accept(Arc::new(listener), asked.clone()));
    (address, asked)
}

async fn at_least(what: &str, count: &AtomicUsize, least: usize) {
    eventually(what, || async { (count.load(Relaxed) >= least).then_some(()) }).await;
}

async fn until_health(gateway: &Gateway, expected: &str) {
    eventually(expected, || async { (gateway.workers().await[0]["health"] == expected).then_some(()) }).await;
}

#[tokio::test]
async fn workers_are_asked_as_often_as_configured() {
    for (often, rarely) in [("50ms", "1h"), ("1h", "50ms")] {
        let (worker, asked) = counting().await;
        let config = format!("health: {{interval: {often}}}\nscrape_interval: {rarely}\n");
        let _gateway = start(&[format!("http://{worker}")], &config).await;
        let (frequent, rare) =
            if often == "1h" { (&asked.metrics, &asked.health) } else { (&asked.health, &asked.metrics) };
        at_least("the frequent question", frequent, 8).await;
        assert!(rare.load(Relaxed) <= 2, "{config}: {}", rare.load(Relaxed));
    }
}

#[tokio::test]
async fn so_many_checks_in_a_row_take_a_worker_out_and_take_it_back() {
    let (worker, asked) = counting().await;
    let config = "health: {interval: 30ms, unhealthy_after: 4, healthy_after: 6}\n";
    let gateway = start(&[format!("http://{worker}")], config).await;
    until_health(&gateway, "healthy").await;
    for (manner, state, checks) in [(1, "unhealthy", 4), (0, "healthy", 6)] {
        asked.manner.store(manner, Relaxed);
        let before = asked.health.load(Relaxed);
        until_health(&gateway, state).await;
        let passed = asked.health.load(Relaxed) - before;
        assert!(passed >= checks, "{state} after {passed} checks");
    }
}

#[tokio::test]
async fn a_check_that_is_not_answered_in_time_is_a_failed_one() {
    let (worker, asked) = counting().await;
    asked.manner.store(2, Relaxed);
    let config = "health: {interval: 50ms, timeout: 100ms, unhealthy_after: 1}\n";
    let gateway = start(&[format!("http://{worker}")], config).await;
    until_health(&gateway, "unhealthy").await;
}

#[tokio::test]
async fn trusted_proxies_are_believed_and_nobody_else() {
    for (trusted, expected) in [("[]", "127.0.0.1"), ("['127.0.0.0/8']", "203.0.113.9, 127.0.0.1")] {
        let worker =
            crate::conformance::Worker::start("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        let gateway = start(&[worker.url()], &format!("trusted_proxies: {trusted}\n")).await;
        let fields = [("x-forwarded-for", "203.0.113.9")];
        assert_eq!(request(gateway.address, "GET", "/v1/models/x", &fields, "").await.status, 200);
        let seen = worker.take().pop().unwrap().to_lowercase();
        assert!(seen.contains(&format!("\r\nx-forwarded-for: {expected}\r\n")), "{trusted}: {seen}");
    }
}

#[tokio::test]
async fn after_an_upgrade_old_requests_have_so_long_and_no_longer() {
    let sims = sims(1).await;
    // The successor reads it, too.
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    fs::write(file.path(), "upgrade_timeout: 500ms\ndrain_timeout: 1h\n").unwrap();
    let mut gateway = Gateway::start(&urls(&sims), &["--config", file.path().to_str().unwrap()]).await;
    let mut stream = gateway.stream("hello", 100_000).await;
    stream.next().await.unwrap().unwrap();
    gateway.signal(Signal::USR2);
    let (_, is_whole) = stream.rest().await;
    assert!(!is_whole, "it would have taken hours");
    gateway.ended().await;
    let successor = crate::upgrade::successor_of(&gateway.output());
    let successor = rustix::process::Pid::from_raw(successor).unwrap();
    rustix::process::kill_process(successor, Signal::TERM).unwrap();
}

async fn matched(gateway: &Gateway, prompt: &str) -> u32 {
    let reply = gateway.chat(prompt).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.header("x-warmpath-matched-tokens").parse().unwrap()
}

#[tokio::test]
async fn the_index_is_as_fine_and_as_deep_as_configured() {
    let long = "a prompt of some length ".repeat(400); // 9,600 bytes, some 2,400 tokens
    let short = &long[..800];
    for (index, prompt, least, most) in [
        ("{}", &long[..], 2_000, 2_500),
        ("{worker_capacity_tokens: 600}", &long, 300, 700),
        ("{block_bytes: 128}", short, 100, 250),
        ("{block_bytes: 1024}", short, 0, 0),
    ] {
        let (worker, _asked) = counting().await;
        let gateway = start(&[format!("http://{worker}")], &format!("index: {index}\n")).await;
        assert_eq!(matched(&gateway, prompt).await, 0, "{index}");
        // A worker's capacity is known behind its first scrape.
        eventually(&format!("{index}: {least} to {most} tokens"), async || {
            (least..=most).contains(&matched(&gateway, prompt).await).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_policy_prefix_wants_so_many_blocks() {
    let prompt = "a prompt of some length ".repeat(40); // 7 blocks
    for (blocks_min, is_a_hit) in [(2, true), (100, false)] {
        let sims = sims(2).await;
        let routing = format!("routing: {{policy: prefix, prefix: {{blocks_min: {blocks_min}}}}}\n");
        let gateway = start(&urls(&sims), &routing).await;
        gateway.chat(&prompt).await;
        let reply = gateway.chat(&prompt).await;
        assert_eq!(reply.header("x-warmpath-reason") == "prefix_hit", is_a_hit, "{blocks_min}");
    }
}

#[tokio::test]
async fn a_late_response_head_is_given_up() {
    let sims = sims(1).await;
    let config = "timeouts: {response_head: 300ms}\nlimits: {tries: 1}\nhealth: {silence: 1h}\n";
    let gateway = start(&urls(&sims), config).await;
    sims[0].set_fault(Fault::always(FaultKind::Hang));
    assert_eq!(gateway.chat("hello").await.status, 504);
    sims[0].clear_faults();
    assert_eq!(gateway.chat("hello").await.status, 200);
}

#[tokio::test]
async fn a_worker_that_does_not_take_a_connection_in_time_is_left_for_another() {
    let listener = TcpSocket::new_v4().unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = Arc::new(listener.listen(1).unwrap());
    let address = listener.local_addr().unwrap();
    let sims = sims(1).await;
    let workers = [format!("http://{address}"), urls(&sims)[0].clone()];
    let config = "timeouts: {connect: 200ms}\nrouting: {policy: round_robin}\n\
        health: {interval: 1h, timeout: 1h}\nscrape_interval: 1h\n";
    let serving = tokio::spawn(accept(listener.clone(), Arc::default()));
    let gateway = start(&workers, config).await;
    // It stops to accept, and its queue of connections is full: what comes is dropped without a word.
    serving.abort();
    assert!(serving.await.is_err());
    let mut waiting = Vec::new();
    while let Ok(Ok(socket)) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        waiting.push(socket);
    }
    for _ in 0..4 {
        let reply = gateway.chat("hello").await;
        assert_eq!(
            (reply.status, reply.header("x-warmpath-worker")),
            (200, sims[0].addr().to_string().as_str())
        );
    }
    assert!(gateway.metric("warmpath_retries_total{reason=\"connect\"}").await >= 1.0);
}

#[tokio::test]
async fn so_many_decisions_are_kept() {
    for (decisions, kept) in [("{keep: 3}", 3), ("{keep: 0}", 0), ("{}", 6)] {
        let sims = sims(1).await;
        let gateway = start(&urls(&sims), &format!("decisions: {decisions}\n")).await;
        for _ in 0..6 {
            gateway.chat("hello").await;
        }
        let reply = get(gateway.admin, "/decisions").await;
        let found = reply.json().as_array().unwrap().len();
        assert_eq!(found, kept, "{decisions}: {}", reply.text());
    }
}

async fn publisher(seed: &str) -> SimHandle {
    let kv_events = KvEventsConfig { endpoint: "tcp://*:0".to_owned(), ..KvEventsConfig::default() };
    let engine = EngineConfig { hash_seed: Some(seed.to_owned()), ..EngineConfig::default() };
    sim(SimConfig { kv_events: Some(kv_events), engine, ..SimConfig::default() }).await
}

#[tokio::test]
async fn block_hashes_are_checked_with_the_seed_that_is_named() {
    for (named, is_right) in [("7", true), ("8", false)] {
        let sim = publisher("7").await;
        let gateway =
            start(&urls(std::slice::from_ref(&sim)), &format!("kv_events: {{hash_seed: '{named}'}}\n")).await;
        let mut first = 0;
        let metrics = eventually("its blocks are known", || {
            first += 1000; // another prompt each time: what is cached is not published
            let prompt: Vec<u32> = (first..first + 100).collect();
            let gateway = &gateway;
            async move {
                gateway.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 2})).await;
                let metrics = get(gateway.admin, "/metrics").await.text();
                let is_known = metrics
                    .lines()
                    .any(|line| line.starts_with("warmpath_kv_blocks{") && !line.ends_with(" 0"));
                is_known.then_some(metrics)
            }
        })
        .await;
        let checks = metrics.lines().filter(|line| line.starts_with("warmpath_kv_hash_checks_total{"));
        let mut matching = checks.filter(|line| line.contains("result=\"match\"") && !line.ends_with(" 0"));
        assert_eq!(matching.next().is_some(), is_right, "{named}: {metrics}");
    }
}

#[tokio::test]
async fn events_are_not_followed_where_that_is_off() {
    for off in ["kv_events: {mode: off}\n", "workers: [{url: 'URL', kv_events: off}]\n"] {
        let sim = publisher("0").await;
        let url = urls(std::slice::from_ref(&sim)).remove(0);
        let (workers, config) = if off.contains("URL") {
            (vec![], off.replace("URL", &url))
        } else {
            (vec![url], off.to_owned())
        };
        let gateway = start(&workers, &config).await;
        gateway.chat("hello").await;
        let metrics = get(gateway.admin, "/metrics").await.text();
        let follows = |line: &&str| line.starts_with("warmpath_kv_events_state{") && line.ends_with(" 1");
        let states: Vec<_> = metrics.lines().filter(follows).collect();
        assert!(states.iter().all(|line| line.contains("state=\"off\"")), "{off}: {states:?}");
    }
}

#[tokio::test]
async fn there_are_as_many_threads_as_configured() {
    let sims = sims(1).await;
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tokenize/chatml");
    let text = format!(
        "threads: 4\ntokenizers: {{default: {{local: '{model}'}}, threads: 3}}\n\
         listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\n"
    );
    fs::write(file.path(), text).unwrap();
    let mut command = tokio::process::Command::new(warmpath_tests::binary());
    command.args(["serve", "--worker", &urls(&sims)[0], "--config", file.path().to_str().unwrap()]);
    command.args(["--instance", &format!("keys-{:08x}", warmpath_tests::random())]);
    let gateway = Gateway::spawn(command).await;
    gateway.chat("hello").await;
    let names = |prefix: &str| {
        let tasks = fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
        tasks
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.starts_with(prefix))
            .count()
    };
    assert_eq!((names("data-"), names("tokenize-")), (4, 3));
}

#[tokio::test]
async fn no_more_than_a_share_of_the_fleet_is_left_out() {
    for (share, is_left_out) in [("0", false), ("0.5", true)] {
        let sims = sims(2).await;
        let outliers =
            format!("outliers: {{volume: 5, errors: 0.3, eject_for: 1h, eject_max: 1h, share_max: {share}}}");
        let config = format!(
            "{outliers}\nrouting: {{policy: round_robin}}\nbreaker: {{failures: 1000, volume: 1000000}}\n\
             limits: {{retry_share: 1}}\n"
        );
        let gateway = start(&urls(&sims), &config).await;
        sims[0].set_fault(Fault::always(FaultKind::Status { status: 500, retry_after_s: None }));
        for _ in 0..60 {
            gateway.chat("hello").await;
        }
        let out = || async {
            let workers = gateway.workers().await;
            let is_out = workers[0]["ejected"] == true;
            (is_out, workers[0].to_string())
        };
        let mut said = out().await;
        if is_left_out {
            said = eventually("it is left out", || async {
                gateway.chat("hello").await;
                let said = out().await;
                said.0.then_some(said)
            })
            .await;
        }
        assert_eq!(said.0, is_left_out, "{share}: {}", said.1);
    }
}
