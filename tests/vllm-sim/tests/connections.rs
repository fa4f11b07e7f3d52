//! How connections begin, last and end.

use std::time::Duration;

use serde_json::json;
use socket2::SockRef;
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, timeout};
use vllm_sim::{Sim, SimHandle};

use crate::support::{Client, PATIENCE, get, post, start, tiny};

/// A generation that outlasts every test: its engine says a token every two milliseconds.
fn endless(stream: bool) -> Vec<u8> {
    post("/v1/completions", &json!({"prompt": "x", "max_tokens": 2000, "ignore_eos": true, "stream": stream}))
}

/// Waits for the worker's counters to say something.
async fn until(sim: &SimHandle, what: &str, holds: impl Fn(&vllm_sim::SimStats) -> bool) -> Duration {
    let started = Instant::now();
    let wait = async {
        while !holds(&sim.stats()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: {:?}", sim.stats()));
    started.elapsed()
}

#[derive(Clone, Copy, Debug)]
enum Leaving {
    Close,
    HalfClose,
    Reset,
}

#[tokio::test]
async fn a_client_that_leaves_aborts_its_generation_at_once() {
    let sim = start(tiny()).await;
    let mut aborts = 0;
    for leaving in [Leaving::Close, Leaving::HalfClose, Leaving::Reset] {
        for stream in [true, false] {
            let mut client = Client::connect(sim.addr()).await;
            client.send(&endless(stream)).await;
            if stream {
                client.read().await;
            }
            until(&sim, "running", |stats| stats.running == 1).await;
            let mut kept = None;
            match leaving {
                Leaving::Close => drop(client),
                Leaving::HalfClose => {
                    client.stream.shutdown().await.unwrap();
                    kept = Some(client);
                }
                Leaving::Reset => {
                    SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
                    drop(client);
                }
            }
            let took = until(&sim, "aborted", |stats| stats.running == 0 && stats.generating == 0).await;
            // Some 5 ms on an idle host, where vLLM takes 25; the generation itself would last 4 s.
            assert!(took < Duration::from_millis(250), "{leaving:?}, stream {stream}: {took:?}");
            aborts += 1;
            assert_eq!(sim.stats().aborts, aborts);
            assert_eq!(sim.stats().kv_usage, 0.0, "its blocks are free");
            if let Some(mut client) = kept {
                while client.read().await {}
                let text = String::from_utf8(client.bytes()).unwrap();
                assert!(!text.contains("[DONE]") && !text.contains("\r\n0\r\n"), "no end was sent");
            }
        }
    }
    assert_eq!(sim.stats().finished, 0);
}

#[tokio::test]
async fn a_waiting_request_is_dropped_with_its_client() {
    let mut config = tiny();
    config.engine.max_num_seqs = 1;
    let sim = start(config).await;
    let mut running = Client::connect(sim.addr()).await;
    running.send(&endless(true)).await;
    running.read().await;
    let mut waiting = Client::connect(sim.addr()).await;
    waiting.send(&endless(false)).await;
    until(&sim, "waiting", |stats| stats.waiting == 1).await;
    drop(waiting);
    until(&sim, "dropped", |stats| stats.waiting == 0 && stats.running == 1).await;
}

#[tokio::test]
async fn only_a_connection_that_was_used_is_closed_for_being_idle() {
    let mut config = tiny();
    config.keep_alive_timeout = Duration::from_millis(300);
    let sim = start(config).await;
    let mut unused = Client::connect(sim.addr()).await;
    let mut used = Client::connect(sim.addr()).await;
    used.call(&get("/health")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    used.call(&get("/health")).await; // the timer starts anew
    assert!(!used.closes_within(Duration::from_millis(200)).await);
    assert!(used.closes_within(Duration::from_millis(400)).await);
    assert!(!unused.closes_within(Duration::from_millis(300)).await);
    assert_eq!(unused.call(&get("/health")).await.status(), 200);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let sim = start(tiny()).await;
    let mut client = Client::connect(sim.addr()).await;
    let completion = post("/v1/completions", &json!({"prompt": "x", "max_tokens": 3, "stream": true}));
    client.send(&[get("/version"), completion, get("/health")].concat()).await;
    let responses = client.responses(3, false).await;
    assert_eq!(responses[0].body_text(), "{\"version\":\"0.32.0\"}");
    assert_eq!(responses[1].text().len(), 12);
    assert_eq!((responses[2].status(), responses[2].body.len()), (200, 0));
}

#[tokio::test]
async fn a_head_and_a_body_may_come_byte_by_byte() {
    let sim = start(tiny()).await;
    let mut client = Client::connect(sim.addr()).await;
    let body = "{\"prompt\":\"x\",\"max_tokens\":1}";
    let chunks: String = body.chars().map(|c| format!("1;ext=1\r\n{c}\r\n")).collect();
    let head = "POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    for byte in format!("{head}{chunks}0\r\nTrailer: x\r\n\r\n").bytes() {
        client.send(&[byte]).await;
    }
    assert_eq!(client.response().await.status(), 200);
    assert_eq!(client.call(&get("/health")).await.status(), 200, "the framing was understood to its end");
}

#[tokio::test]
async fn broken_framing_is_400_and_the_end() {
    let sim = start(tiny()).await;
    for request in [
        "POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "GET /health\r\n\r\n",
    ] {
        let mut client = Client::connect(sim.addr()).await;
        client.send(request.as_bytes()).await;
        let response = client.response().await;
        assert_eq!(
            (response.status(), response.body_text().as_str()),
            (400, "Invalid HTTP request received.")
        );
        assert!(client.closes_within(PATIENCE).await);
    }
}

#[tokio::test]
async fn a_body_of_64_megabytes_is_read() {
    let mut config = tiny();
    config.engine.num_blocks = 2_000_000;
    config.engine.max_model_len = 20_000_000;
    config.engine.max_num_batched_tokens = 20_000_000;
    config.engine.time.prefill_tokens_per_s = 1e12;
    config.engine.enable_prefix_caching = false;
    let sim = start(config).await;
    let mut client = Client::connect(sim.addr()).await;
    let prompt = "x".repeat(64 << 20);
    let response = client.call(&post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 1}))).await;
    assert_eq!(response.json()["usage"]["prompt_tokens"], 16 << 20);
}

#[tokio::test]
async fn a_refused_path_is_answered_before_its_body_has_come() {
    let sim = start(tiny()).await;
    let mut client = Client::connect(sim.addr()).await;
    client.send(b"POST /nowhere HTTP/1.1\r\nContent-Length: 5\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 404);
    client.send(b"12345").await;
    assert_eq!(client.call(&get("/health")).await.status(), 200);
}

#[tokio::test]
async fn tokens_merge_for_a_client_that_does_not_read() {
    let mut config = tiny();
    config.engine.max_model_len = 200_000;
    config.engine.time.itl_base = Duration::from_micros(20);
    let sim = start(config).await;
    let mut client = Client::connect(sim.addr()).await;
    SockRef::from(&client.stream).set_recv_buffer_size(64 << 10).unwrap();
    let body = json!({"prompt": "x", "max_tokens": 60_000, "ignore_eos": true, "stream": true,
        "stream_options": {"include_usage": true}});
    client.send(&post("/v1/completions", &body)).await;
    until(&sim, "generated", |stats| stats.finished == 1).await;
    while !client.reads.last().is_some_and(|(_, bytes)| bytes.ends_with(b"\r\n0\r\n\r\n")) {
        client.read().await;
    }
    let events = client.response().await.events();
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 60_000);
    assert!(events.len() < 40_000, "{} events for 60,000 tokens", events.len());
}

#[tokio::test]
async fn a_thousand_streams_at_once_all_end_whole() {
    let mut config = tiny();
    config.engine.max_num_seqs = 1000;
    let sim = start(config).await;
    let mut streams = Vec::new();
    for _ in 0..1000 {
        let mut client = Client::connect(sim.addr()).await;
        let body = json!({"prompt": "x", "max_tokens": 20, "stream": true, "stream_options": {"include_usage": true}});
        client.send(&post("/v1/completions", &body)).await;
        streams.push(client);
    }
    for mut client in streams {
        let events = client.response().await.events();
        assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 20);
    }
    let stats = sim.stats();
    assert_eq!((stats.finished, stats.connections_accepted, stats.running), (1000, 1000, 0));
}

#[tokio::test]
async fn stopping_ends_streams_with_an_abort_and_frees_the_port() {
    let sim = start(tiny()).await;
    let mut idle = Client::connect(sim.addr()).await;
    idle.call(&get("/health")).await;
    let mut stream = Client::connect(sim.addr()).await;
    stream.send(&endless(true)).await;
    stream.read().await;
    let mut whole = Client::connect(sim.addr()).await;
    whole.send(&endless(false)).await;
    until(&sim, "running", |stats| stats.running == 2).await;
    timeout(PATIENCE, sim.stop()).await.expect("it stops");
    let last = stream.response().await;
    assert_eq!(last.events().last().unwrap()["choices"][0]["finish_reason"], "abort");
    assert!(last.body_text().ends_with("data: [DONE]\n\n"));
    let whole = whole.response().await;
    assert_eq!((whole.status(), &whole.json()["choices"][0]["finish_reason"]), (200, &json!("abort")));
    assert!(idle.closes_within(PATIENCE).await);
    let mut config = tiny();
    config.listen = sim.addr();
    assert_eq!(Sim::start(config).await.unwrap().addr(), sim.addr());
}

#[tokio::test]
async fn draining_finishes_what_runs_and_refuses_what_is_new() {
    let mut config = tiny();
    config.shutdown_timeout = PATIENCE;
    let sim = start(config).await;
    let mut stream = Client::connect(sim.addr()).await;
    let body = json!({"prompt": "x", "max_tokens": 100, "ignore_eos": true, "stream": true});
    stream.send(&post("/v1/completions", &body)).await;
    stream.read().await;
    let stop = sim.stop();
    let check = async {
        // The stop begins with the first poll; this client comes after it.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut client = Client::connect(sim.addr()).await;
        assert_eq!(client.call(&get("/health")).await.status(), 200);
        let refused = client.call(&endless(true)).await;
        assert_eq!(refused.status(), 500);
        assert!(refused.body_text().contains("cannot schedule new futures after shutdown"));
        let response = stream.response().await;
        assert_eq!(response.events().last().unwrap()["choices"][0]["finish_reason"], "length");
    };
    tokio::join!(stop, check);
}

#[tokio::test]
async fn killing_resets_every_connection() {
    let sim = start(tiny()).await;
    let mut stream = Client::connect(sim.addr()).await;
    stream.send(&endless(true)).await;
    stream.read().await;
    sim.kill().await;
    let error = loop {
        match tokio::io::AsyncReadExt::read(&mut stream.stream, &mut [0; 4096]).await {
            Ok(0) => panic!("a clean end"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let refused = tokio::net::TcpStream::connect(sim.addr()).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_worker_may_have_a_thread_of_its_own() {
    let sim = Sim::start_thread(tiny()).unwrap();
    let mut client = Client::connect(sim.addr()).await;
    assert_eq!(client.call(&get("/health")).await.status(), 200);
    sim.stop().await;
    assert!(client.closes_within(PATIENCE).await);
}

#[tokio::test]
async fn load_counts_only_when_told_to() {
    for tracked in [false, true] {
        let mut config = tiny();
        config.enable_server_load_tracking = tracked;
        let sim = start(config).await;
        let mut stream = Client::connect(sim.addr()).await;
        stream.send(&endless(true)).await;
        stream.read().await;
        let load = Client::connect(sim.addr()).await.call(&get("/load")).await;
        assert_eq!(load.json()["server_load"], u64::from(tracked));
    }
}
