//! Engines that hang while their `/health` says 200, workers that stand out, and time limits of a try.

use std::time::Duration;

use serde_json::{Value, json};
use vllm_sim::{Ending, Fault, FaultKind, SimHandle};
use warmpath_tests::{Gateway, Stream, eventually, open, request, sims, urls};

/// Health checks that do not interfere, and a patience with silent workers that a test can wait for.
const QUICK: &str = "health: {interval: 200ms, timeout: 1s, silence: 500ms, probe_timeout: 500ms}\n";

async fn start(sims: &[SimHandle], config: &str) -> Gateway {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), config).unwrap();
    Gateway::start(&urls(sims), &["--policy", "round_robin", "--config", file.path().to_str().unwrap()]).await
}

fn body(stream: bool) -> String {
    let messages = json!([{"role": "user", "content": "x"}]);
    json!({"messages": messages, "max_tokens": 4, "ignore_eos": true, "stream": stream}).to_string()
}

async fn engine(gateway: &Gateway, worker: usize) -> Value {
    gateway.workers().await[worker]["engine"].clone()
}

#[tokio::test]
async fn a_hung_engine_is_found_by_its_silence_and_its_requests_go_to_another() {
    let sims = sims(2).await;
    let gateway = start(&sims, QUICK).await;
    sims[0].set_fault(Fault::always(FaultKind::Freeze));
    // Both a stream and a whole answer wait there; half of these go to the other worker at once.
    let address = gateway.address;
    let headers = [("content-type", "application/json")];
    let asked: Vec<_> = (0..6)
        .map(|number| {
            tokio::spawn(async move {
                request(address, "POST", "/v1/chat/completions", &headers, body(number % 2 == 0)).await
            })
        })
        .collect();
    for reply in asked {
        let reply = reply.await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.header("x-warmpath-worker"), sims[1].addr().to_string());
    }
    assert_eq!(engine(&gateway, 0).await, "hung");
    assert_eq!(gateway.workers().await[0]["health"], "healthy", "/health knows nothing of it");
    let series =
        |state: &str| format!("warmpath_worker_pulse{{state=\"{state}\",worker=\"{}\"}}", sims[0].addr());
    assert!((gateway.metric(&series("hung")).await - 1.0).abs() < f64::EPSILON);
    assert!(gateway.metric("warmpath_retries_total{reason=\"hung\"}").await >= 1.0);
    for _ in 0..4 {
        assert_eq!(gateway.chat("x").await.header("x-warmpath-worker"), sims[1].addr().to_string());
    }
    sims[0].clear_faults();
    eventually("a probe passes", || async { (engine(&gateway, 0).await == "live").then_some(()) }).await;
    eventually("it is used again", || async {
        (gateway.chat("x").await.header("x-warmpath-worker") == sims[0].addr().to_string()).then_some(())
    })
    .await;
    let probes = format!("warmpath_worker_probes_total{{result=\"passed\",worker=\"{}\"}}", sims[0].addr());
    assert!(gateway.metric(&probes).await >= 1.0);
}

#[tokio::test]
async fn a_worker_that_is_only_slow_gives_its_token_and_stays() {
    let sims = sims(1).await;
    let gateway = start(&sims, QUICK).await;
    sims[0].set_fault(Fault::times(FaultKind::Stall { after_events: 1, for_ms: Some(2_500) }, 1));
    let mut stream = gateway.stream("x", 8).await;
    let (text, ended) = stream.rest().await;
    assert!(ended && text.ends_with("data: [DONE]\n\n"), "{text}");
    let probes = format!("warmpath_worker_probes_total{{result=\"passed\",worker=\"{}\"}}", sims[0].addr());
    assert!(gateway.metric(&probes).await >= 1.0, "it was asked");
    assert_eq!(gateway.metric("warmpath_errors_total{kind=\"hung\",source=\"worker\"}").await.to_bits(), 0);
    gateway.idle().await;
    assert_eq!(gateway.workers().await[0]["requests_completed"], 1, "probes are not among its requests");
}

#[tokio::test]
async fn a_worker_that_dies_behind_the_head_of_a_stream_is_replaced_by_another() {
    for how in [Ending::Fin, Ending::Rst] {
        let sims = sims(2).await;
        let gateway = start(&sims, "health: {interval: 1h}\nscrape_interval: 1h\n").await;
        sims[0].set_fault(Fault::always(FaultKind::Die { after_events: 0, how }));
        for _ in 0..4 {
            let mut stream = gateway.stream("x", 4).await;
            assert_eq!(stream.header("x-warmpath-worker"), sims[1].addr().to_string(), "{how:?}");
            let (text, ended) = stream.rest().await;
            assert!(
                ended && text.ends_with("data: [DONE]\n\n") && !text.contains("error"),
                "{how:?}: {text}"
            );
        }
        let retries = gateway.metric("warmpath_retries_total{reason=\"broken\"}").await;
        assert!(retries >= 1.0, "{how:?}: {retries}");
    }
}

async fn stream_with(gateway: &Gateway, timeout: &str) -> Stream {
    let headers = [("content-type", "application/json"), ("x-warmpath-timeout", timeout)];
    open(gateway.address, "POST", "/v1/chat/completions", &headers, body(true)).await
}

#[tokio::test]
async fn a_head_is_held_for_so_long_and_no_longer() {
    let sims = sims(1).await;
    let gateway = start(&sims, "timeouts: {hold_head: 200ms}\nhealth: {silence: 1h}\n").await;
    sims[0].set_fault(Fault::times(FaultKind::Stall { after_events: 0, for_ms: Some(3_000) }, 1));
    let mut stream = gateway.stream("x", 4).await;
    assert_eq!(stream.status, 200);
    // The head is here, and the worker has not said anything yet.
    let waits = tokio::time::timeout(Duration::from_millis(100), stream.next()).await;
    assert!(waits.is_err(), "{waits:?}");
    let (text, ended) = stream.rest().await;
    assert!(ended && text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn a_try_whose_first_byte_is_late_is_given_up_for_another_worker() {
    let sims = sims(2).await;
    let gateway = start(&sims, "timeouts: {first_byte: 300ms}\nhealth: {silence: 1h}\n").await;
    sims[0].set_fault(Fault::always(FaultKind::Stall { after_events: 0, for_ms: None }));
    for _ in 0..2 {
        let mut stream = gateway.stream("x", 4).await;
        assert_eq!(stream.header("x-warmpath-worker"), sims[1].addr().to_string());
        assert!(stream.rest().await.1);
    }
    assert!(gateway.metric("warmpath_retries_total{reason=\"timeout\"}").await >= 1.0);
}

#[tokio::test]
async fn a_clients_deadline_ends_its_request_and_is_no_fault_of_the_worker() {
    let sims = sims(1).await;
    let gateway = start(&sims, "health: {silence: 1h}\n").await;
    sims[0].set_fault(Fault::always(FaultKind::Hang));
    let stream = stream_with(&gateway, "300ms").await;
    assert_eq!(stream.status, 504);
    gateway.idle().await;
    let worker = &gateway.workers().await[0];
    assert_eq!((&worker["requests_failed"], &worker["requests_cancelled"]), (&json!(0), &json!(1)));
    sims[0].clear_faults();
    let headers = [("content-type", "application/json"), ("x-warmpath-timeout", "soon")];
    let reply = request(gateway.address, "POST", "/v1/chat/completions", &headers, body(false)).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("malformed_header")));
    assert!(reply.text().contains("x-warmpath-timeout"), "{}", reply.text());
}

#[tokio::test]
async fn where_waiting_helps_a_request_waits_as_long_as_the_worker_says() {
    let sims = sims(1).await;
    let gateway = start(&sims, "").await;
    sims[0].set_fault(Fault::times(FaultKind::Status { status: 503, retry_after_s: Some(1) }, 1));
    let started = tokio::time::Instant::now();
    assert_eq!(gateway.chat("x").await.status, 200, "the second try");
    assert!(started.elapsed() >= Duration::from_secs(1), "not before it was allowed to");
    sims[0].set_fault(Fault::times(FaultKind::Status { status: 503, retry_after_s: None }, 1));
    assert_eq!(gateway.chat("x").await.status, 503, "nobody said that waiting would help");
}

#[tokio::test]
async fn the_breaker_opens_at_a_share_of_faults_and_neither_clients_nor_load_count() {
    let sims = sims(1).await;
    let gateway = start(
        &sims,
        "breaker: {failures: 1000, window: 1h, volume: 10, error_share: 0.5, open_for: 1h}\ntimeouts: {queue: 50ms}\n",
    )
    .await;
    let breaker = || async { gateway.workers().await[0]["breaker"].clone() };
    for status in [400, 404, 429, 501, 503] {
        sims[0].set_fault(Fault::times(FaultKind::Status { status, retry_after_s: None }, 20));
        for _ in 0..20 {
            assert_eq!(gateway.chat("x").await.status, status);
        }
        assert_eq!(breaker().await, "closed", "{status}");
    }
    for number in 0..10 {
        if number % 2 == 0 {
            sims[0].set_fault(Fault::times(FaultKind::Status { status: 500, retry_after_s: None }, 1));
        }
        assert_eq!(breaker().await, "closed", "{number}");
        gateway.chat("x").await;
        gateway.idle().await;
        // The tenth request with a verdict decides: five of ten.
    }
    sims[0].set_fault(Fault::times(FaultKind::Status { status: 500, retry_after_s: None }, 1));
    gateway.chat("x").await;
    assert_eq!(breaker().await, "open");
    assert_eq!(gateway.chat("x").await.json()["error"]["code"], "no_worker_available");
}

#[tokio::test]
async fn a_worker_that_fails_more_than_the_others_is_left_out_for_a_while() {
    let sims = sims(3).await;
    let config = "breaker: {failures: 1000, volume: 1000000}\nlimits: {retry_share: 1}\n\
        outliers: {volume: 5, errors: 0.3, eject_for: 2s, eject_max: 1m}\n";
    let gateway = start(&sims, config).await;
    sims[0].set_fault(Fault::always(FaultKind::Status { status: 500, retry_after_s: None }));
    eventually("it stands out", || async {
        assert_eq!(gateway.chat("x").await.status, 200, "another one answers");
        (gateway.workers().await[0]["ejected"] == true).then_some(())
    })
    .await;
    let ejections =
        format!("warmpath_worker_ejections_total{{reason=\"errors\",worker=\"{}\"}}", sims[0].addr());
    assert!((gateway.metric(&ejections).await - 1.0).abs() < f64::EPSILON);
    sims[0].clear_faults();
    eventually("it is back", || async { (gateway.workers().await[0]["ejected"] == false).then_some(()) })
        .await;
    eventually("it is used again", || async {
        (gateway.chat("x").await.header("x-warmpath-worker") == sims[0].addr().to_string()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_breaker_whose_time_is_over_lets_one_request_through_until_that_one_has_said_something() {
    let sims = sims(1).await;
    let gateway = start(
        &sims,
        "breaker: {failures: 1, open_for: 2s}\nhealth: {interval: 1h, silence: 1h}\nscrape_interval: 1h\n",
    )
    .await;
    sims[0].set_fault(Fault::times(FaultKind::Status { status: 500, retry_after_s: None }, 1));
    assert_eq!(gateway.chat("x").await.status, 500);
    sims[0].set_fault(Fault::times(FaultKind::SlowHead { delay_ms: 3_000 }, 1));
    let before = sims[0].stats().requests;
    let address = gateway.address;
    let headers = [("content-type", "application/json")];
    let asked: Vec<_> = (0..5)
        .map(|_| {
            tokio::spawn(async move {
                request(address, "POST", "/v1/chat/completions", &headers, body(false)).await
            })
        })
        .collect();
    // The first one takes three seconds: time to see that it is alone.
    let worker = || async { gateway.workers().await[0].clone() };
    eventually("the probe is under way", || async {
        (worker().await["breaker"] == "half_open").then_some(())
    })
    .await;
    eventually("it is there", || async { (sims[0].stats().requests > before).then_some(()) }).await;
    assert!((gateway.metric("warmpath_queue_requests").await - 4.0).abs() < 0.5, "the others wait");
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    assert_eq!(worker().await["breaker"], "closed");
}
