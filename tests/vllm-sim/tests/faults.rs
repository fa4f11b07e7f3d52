//! Faults on demand, each as a client sees it.

use std::io::ErrorKind;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt as _;
use vllm_sim::{Ending, Fault, FaultKind, SimConfig, SimHandle};

use crate::support::{Client, Response, get, post, start, tiny};

fn request(stream: bool) -> Vec<u8> {
    post("/v1/completions", &json!({"prompt": "x", "max_tokens": 10, "ignore_eos": true, "stream": stream}))
}

/// Bytes of text in a whole answer to [`request`].
const ALL_TEXT: usize = 40;

/// Slow enough that even a busy host keeps a few events apart.
fn slow() -> SimConfig {
    let mut config = tiny();
    config.engine.time.itl_base = Duration::from_millis(20);
    config
}

async fn armed(kind: FaultKind) -> SimHandle {
    let sim = start(slow()).await;
    sim.set_fault(Fault::always(kind));
    sim
}

/// What a stream's client gets: all bytes, and how it ended.
async fn outcome(sim: &SimHandle, request: &[u8]) -> (Vec<u8>, Result<(), ErrorKind>) {
    let mut client = Client::connect(sim.addr()).await;
    client.send(request).await;
    let mut bytes = Vec::new();
    loop {
        match client.stream.read_buf(&mut bytes).await {
            Ok(0) => return (bytes, Ok(())),
            Ok(_) => {}
            Err(error) => return (bytes, Err(error.kind())),
        }
    }
}

fn events_in(bytes: &[u8]) -> usize {
    String::from_utf8_lossy(bytes).matches("data: {").count()
}

#[tokio::test]
async fn a_hanging_worker_says_nothing_but_that_it_is_healthy() {
    let sim = armed(FaultKind::Hang).await;
    for stream in [true, false] {
        let mut client = Client::connect(sim.addr()).await;
        client.send(&request(stream)).await;
        assert!(!client.closes_within(Duration::from_millis(100)).await);
        let health = Client::connect(sim.addr()).await.call(&get("/health")).await;
        assert_eq!(health.status(), 200);
    }
    sim.clear_faults();
    let mut client = Client::connect(sim.addr()).await;
    assert_eq!(client.call(&request(false)).await.status(), 200);
}

#[tokio::test]
async fn a_frozen_engine_gives_heads_and_no_tokens_until_it_thaws() {
    let sim = start(tiny()).await;
    let mut running = Client::connect(sim.addr()).await;
    let long = json!({"prompt": "x", "max_tokens": 500, "ignore_eos": true, "stream": true});
    running.send(&post("/v1/completions", &long)).await;
    running.read().await;
    sim.set_fault(Fault::always(FaultKind::Freeze));
    let mut client = Client::connect(sim.addr()).await;
    client.send(&request(true)).await;
    client.read().await;
    assert!(client.reads[0].1.ends_with(b"\r\n\r\n"), "the head");
    assert!(!client.closes_within(Duration::from_millis(100)).await);
    assert_eq!(Client::connect(sim.addr()).await.call(&get("/metrics")).await.status(), 200);
    sim.clear_faults();
    assert_eq!(client.response().await.text().len(), ALL_TEXT);
    assert!(running.response().await.body_text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_head_can_be_slow() {
    let sim = armed(FaultKind::SlowHead { delay_ms: 150 }).await;
    let mut client = Client::connect(sim.addr()).await;
    client.send(&request(true)).await;
    client.read().await;
    assert!(client.reads[0].0 >= Duration::from_millis(150));
    assert_eq!(client.response().await.text().len(), ALL_TEXT);
}

#[tokio::test]
async fn statuses_come_in_vllms_shape_with_retry_after_on_demand() {
    for (status, retry_after_s) in [(503, None), (503, Some(2)), (429, Some(7)), (500, None)] {
        let sim = armed(FaultKind::Status { status, retry_after_s }).await;
        let mut client = Client::connect(sim.addr()).await;
        for stream in [true, false] {
            let response = client.call(&request(stream)).await;
            assert_eq!(response.status(), status);
            assert_eq!(response.json()["error"]["code"], status);
            let header = response.header("retry-after").map(|own| own.parse().unwrap());
            assert_eq!(header, retry_after_s);
        }
    }
}

#[tokio::test]
async fn connections_can_be_reset_on_accept_and_after_the_request() {
    for kind in [FaultKind::ResetOnAccept, FaultKind::ResetAfterRequest] {
        let sim = armed(kind.clone()).await;
        let mut client = Client::connect(sim.addr()).await;
        let sent = tokio::io::AsyncWriteExt::write_all(&mut client.stream, &request(true)).await;
        let error = match sent {
            Ok(()) => client.stream.read(&mut [0; 16]).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(
            matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "{kind:?}: {error}"
        );
    }
}

#[tokio::test]
async fn a_worker_can_die_in_the_middle_of_a_stream() {
    for (how, ended) in [(Ending::Fin, Ok(())), (Ending::Rst, Err(ErrorKind::ConnectionReset))] {
        let sim = armed(FaultKind::Die { after_events: 3, how }).await;
        let (bytes, ending) = outcome(&sim, &request(true)).await;
        assert_eq!(ending, ended);
        if how == Ending::Fin {
            assert_eq!(events_in(&bytes), 3);
            assert!(!bytes.ends_with(b"0\r\n\r\n"));
        }
        assert_eq!(
            outcome(&sim, &request(false)).await,
            (Vec::new(), ended),
            "a whole response never begins"
        );
    }
}

#[tokio::test]
async fn an_engine_death_is_an_error_event_and_a_clean_end() {
    let sim = armed(FaultKind::ErrorEvent { after_events: 2 }).await;
    let mut client = Client::connect(sim.addr()).await;
    let response = client.call(&request(true)).await;
    assert_eq!(response.status(), 200);
    let events = response.events();
    assert_eq!(events.len(), 3);
    assert_eq!(events[2]["error"]["code"], 500);
    assert_eq!(events[2]["error"]["type"], "InternalServerError");
    assert!(response.body_text().ends_with("data: [DONE]\n\n"));
    assert_eq!(response.chunks.unwrap().len(), 4);
    let whole = client.call(&request(false)).await;
    assert_eq!((whole.status(), &whole.json()["error"]["type"]), (500, &json!("InternalServerError")));
}

#[tokio::test]
async fn an_engine_process_can_die_and_the_server_after_it() {
    let sim = start(slow()).await;
    let mut stream = Client::connect(sim.addr()).await;
    stream.send(&request(true)).await;
    stream.read().await;
    let check = async {
        let response = stream.response().await;
        assert_eq!(response.events().last().unwrap()["error"]["code"], 500);
        assert!(response.body_text().ends_with("data: [DONE]\n\n"));
        let mut client = Client::connect(sim.addr()).await;
        assert_eq!(client.call(&get("/health")).await.status(), 503);
        assert_eq!(client.call(&request(true)).await.status(), 500);
    };
    tokio::join!(sim.kill_engine(), check);
    let refused = tokio::net::TcpStream::connect(sim.addr()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_stream_can_stall_for_a_while_or_for_good() {
    let sim = armed(FaultKind::Stall { after_events: 2, for_ms: Some(200) }).await;
    let mut client = Client::connect(sim.addr()).await;
    let response = client.call(&request(true)).await;
    assert!(client.started.elapsed() >= Duration::from_millis(200));
    assert!(response.body_text().ends_with("data: [DONE]\n\n"));

    sim.set_fault(Fault::always(FaultKind::Stall { after_events: 2, for_ms: None }));
    client.send(&request(true)).await;
    while events_in(&client.bytes()) < 2 {
        client.read().await;
    }
    assert!(!client.closes_within(Duration::from_millis(100)).await);
}

#[tokio::test]
async fn a_chunk_can_be_cut_in_half() {
    let sim = armed(FaultKind::TruncatedChunk { after_events: 1 }).await;
    let (bytes, ending) = outcome(&sim, &request(true)).await;
    assert_eq!(ending, Ok(()));
    assert_eq!(events_in(&bytes), 2, "one whole, one begun");
    assert!(Response::parse_all(&bytes, false).is_empty(), "the body is not whole");
    assert!(!bytes.ends_with(b"\r\n"));
}

#[tokio::test]
async fn faults_strike_a_number_or_a_share_of_requests() {
    let sim = start(tiny()).await;
    let mut client = Client::connect(sim.addr()).await;
    let kind = FaultKind::Status { status: 503, retry_after_s: None };
    sim.set_fault(Fault::times(kind.clone(), 2));
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(client.call(&request(false)).await.status());
    }
    assert_eq!(statuses, [503, 503, 200, 200]);
    sim.set_fault(Fault::share(kind, 0.3));
    let mut struck = 0;
    for _ in 0..100 {
        struck += u32::from(
            client.call(&post("/v1/completions", &json!({"prompt": "x", "max_tokens": 1}))).await.status()
                == 503,
        );
    }
    assert!((15..45).contains(&struck), "{struck} of 100");
}

#[tokio::test]
async fn faults_are_armed_over_http_too() {
    let sim = start(tiny()).await;
    let mut client = Client::connect(sim.addr()).await;
    let faults = json!([{"kind": "status", "status": 429, "retry_after_s": 1, "count": 1}, {"kind": "hang", "share": 0.0}]);
    let armed = client.call(&post("/sim/fault", &faults)).await;
    assert_eq!(armed.status(), 200, "{}", armed.body_text());
    assert_eq!(client.call(&get("/sim/fault")).await.json().as_array().unwrap().len(), 2);
    assert_eq!(client.call(&request(false)).await.status(), 429);
    assert_eq!(client.call(&request(false)).await.status(), 200);
    let stats = client.call(&get("/sim/stats")).await.json();
    assert_eq!((&stats["finished"], &stats["connections_open"]), (&json!(1), &json!(1)));
    assert_eq!(client.call(&post("/sim/fault", &json!({"kind": "explode"}))).await.status(), 400);
    client.call(&post("/sim/fault", &json!({"kind": "die", "after_events": 1, "how": "rst"}))).await;
    assert_eq!(client.call(&post("/sim/reset", &json!({}))).await.json()["prefix_cache_cleared"], true);
    assert_eq!(client.call(&request(true)).await.text().len(), ALL_TEXT);
    client.send(b"DELETE /sim/fault HTTP/1.1\r\n\r\n").await;
    assert_eq!(client.response().await.body_text(), "[]");
}
