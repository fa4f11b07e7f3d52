//! Failures before the first response byte go to another worker; after it, the end is honest.

use serde_json::json;
use vllm_sim::{Ending, Fault, FaultKind};
use warmpath_tests::{Gateway, SimConfig, eventually, request, sim, sims, urls};

/// Health checks that do not interfere: what these tests see is the request's own path.
const RARE_CHECKS: &str = "health: {interval: 1h, timeout: 1s}\nscrape_interval: 1h\n";

/// A configuration file that lives as long as the test.
fn config(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

async fn start(sims: &[vllm_sim::SimHandle], text: &str) -> Gateway {
    let file = config(text);
    Gateway::start(&urls(sims), &["--policy", "round_robin", "--config", file.path().to_str().unwrap()]).await
}

#[tokio::test]
async fn a_worker_that_fails_before_it_answers_is_replaced_by_another() {
    let faults = [
        FaultKind::ResetOnAccept,
        FaultKind::ResetAfterRequest,
        FaultKind::Die { after_events: 0, how: Ending::Fin },
        FaultKind::Status { status: 500, retry_after_s: None },
        FaultKind::Status { status: 503, retry_after_s: None },
        FaultKind::Status { status: 429, retry_after_s: Some(1) },
    ];
    for kind in faults {
        let sims = sims(2).await;
        let gateway = start(&sims, RARE_CHECKS).await;
        sims[0].set_fault(Fault::always(kind.clone()));
        for i in 0..4 {
            let reply = gateway.chat(&format!("request {i}")).await;
            assert_eq!(reply.status, 200, "{kind:?}: {}", reply.text());
            assert_eq!(reply.header("x-warmpath-worker"), sims[1].addr().to_string(), "{kind:?}");
        }
        gateway.idle().await;
        let workers = gateway.workers().await;
        let load = matches!(kind, FaultKind::Status { status: 429 | 503, .. });
        let counted = if load { "requests_rejected" } else { "requests_failed" };
        assert!(workers[0][counted].as_u64().unwrap() >= 1, "{kind:?}: {workers:?}");
        assert_eq!(workers[1]["requests_completed"], 4, "{kind:?}: {workers:?}");
    }
}

#[tokio::test]
async fn a_dead_worker_costs_no_request() {
    let sims = sims(3).await;
    let gateway = start(&sims, RARE_CHECKS).await;
    sims[1].kill().await;
    for i in 0..12 {
        assert_eq!(gateway.chat(&format!("request {i}")).await.status, 200);
    }
    let retries = gateway.metric("warmpath_retries_total{reason=\"connect\"}").await;
    assert!(retries >= 1.0, "{retries}");
}

#[tokio::test]
async fn retries_are_a_share_of_the_requests_so_that_they_do_not_multiply_an_outage() {
    const REQUESTS: u64 = 300;
    let sims = sims(3).await;
    let gateway = start(
        &sims,
        &format!(
            "{RARE_CHECKS}breaker: {{failures: 1000000, volume: 1000000}}\nlimits: {{retry_share: 0.3}}\n"
        ),
    )
    .await;
    for sim in &sims {
        sim.set_fault(Fault::always(FaultKind::Status { status: 500, retry_after_s: None }));
    }
    for i in 0..REQUESTS {
        assert_eq!(gateway.chat(&format!("request {i}")).await.status, 500);
    }
    gateway.idle().await;
    let failed = |worker: &serde_json::Value| worker["requests_failed"].as_u64().unwrap();
    let tries: u64 = gateway.workers().await.iter().map(failed).sum();
    // A reserve of 100, and that share of the requests.
    let allowed = REQUESTS + 100 + REQUESTS * 3 / 10;
    assert!((allowed - 1..=allowed).contains(&tries), "{tries}; without a budget {}", 3 * REQUESTS);
    let denied = gateway.metric("warmpath_retries_denied_total").await;
    assert!(denied > 100.0, "{denied}");
}

#[tokio::test]
async fn the_last_workers_own_answer_is_passed_on() {
    let sims = sims(2).await;
    let gateway = start(&sims, RARE_CHECKS).await;
    for sim in &sims {
        sim.set_fault(Fault::always(FaultKind::Status { status: 503, retry_after_s: Some(7) }));
    }
    // There is no time to wait for as long as they say.
    let body = json!({"messages": [{"role": "user", "content": "x"}]}).to_string();
    let headers = [("content-type", "application/json"), ("x-warmpath-timeout", "5s")];
    let reply = request(gateway.address, "POST", "/v1/chat/completions", &headers, body).await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, "7"));
    assert!(!reply.header("x-warmpath-worker").is_empty(), "it is a worker's answer");
}

#[tokio::test]
async fn a_worker_that_has_too_much_to_do_is_left_alone_until_the_time_that_it_names() {
    // By load alone it would be the best of all: it answers at once.
    let sims = sims(2).await;
    let gateway = start(&sims, &format!("{RARE_CHECKS}routing: {{policy: least_loaded}}\n")).await;
    sims[0].set_fault(Fault::always(FaultKind::Status { status: 503, retry_after_s: Some(30) }));
    for _ in 0..30 {
        assert_eq!(gateway.chat("x").await.status, 200);
    }
    let retries = gateway.metric("warmpath_retries_total{reason=\"load\"}").await;
    assert!((0.5..1.5).contains(&retries), "{retries}");
    assert_eq!((sims[0].stats().finished, sims[1].stats().finished), (0, 30));
}

#[tokio::test]
async fn a_worker_that_turned_a_prompt_away_is_not_believed_to_have_it() {
    for status in [429, 503] {
        let sims = sims(2).await;
        let file = config(RARE_CHECKS);
        let gateway = Gateway::start(&urls(&sims), &["--config", file.path().to_str().unwrap()]).await;
        // It does not ask to be left alone.
        sims[0].set_fault(Fault::always(FaultKind::Status { status, retry_after_s: Some(0) }));
        let prompt = "a long beginning ".repeat(100);
        let worker = sims[1].addr().to_string();
        assert_eq!(gateway.chat(&prompt).await.header("x-warmpath-worker"), worker);
        sims[0].clear_faults();
        // The first worker is idle and was chosen longest ago: were it believed to have the prompt, it would be next.
        let again = gateway.chat(&prompt).await;
        assert_eq!(
            (again.header("x-warmpath-worker"), again.header("x-warmpath-reason")),
            (&*worker, "prefix_hit")
        );
        let other = gateway.chat(&"something else ".repeat(100)).await;
        assert_eq!(other.header("x-warmpath-worker"), sims[0].addr().to_string(), "it is not shunned");
    }
}

#[tokio::test]
async fn the_breaker_opens_after_faults_in_a_row_and_closes_after_a_good_probe() {
    let sims = sims(2).await;
    let gateway = start(&sims, &format!("{RARE_CHECKS}breaker: {{failures: 3, open_for: 300ms}}\n")).await;
    let breaker = || async { gateway.workers().await[0]["breaker"].as_str().unwrap().to_owned() };
    sims[0].set_fault(Fault::always(FaultKind::ResetAfterRequest));
    eventually("the breaker opens", || async {
        assert_eq!(gateway.chat("x").await.status, 200);
        (breaker().await == "open").then_some(())
    })
    .await;
    sims[0].clear_faults();
    eventually("the breaker closes", || async {
        assert_eq!(gateway.chat("x").await.status, 200);
        (breaker().await == "closed").then_some(())
    })
    .await;
    let closed = format!("warmpath_worker_breaker_state{{state=\"closed\",worker=\"{}\"}}", sims[0].addr());
    assert!((gateway.metric(&closed).await - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_stream_that_breaks_off_says_so() {
    let kinds = [
        FaultKind::Die { after_events: 3, how: Ending::Rst },
        FaultKind::Die { after_events: 3, how: Ending::Fin },
        FaultKind::TruncatedChunk { after_events: 3 },
    ];
    for kind in kinds {
        let sims = sims(2).await;
        let gateway = start(&sims, RARE_CHECKS).await;
        sims[0].set_fault(Fault::always(kind.clone()));
        let mut stream = gateway.stream("tell me", 50).await;
        assert_eq!(stream.header("x-warmpath-worker"), sims[0].addr().to_string());
        let (text, ended) = stream.rest().await;
        assert!(ended, "{kind:?}: the stream ends in order");
        let error = text.split("\n\n").find_map(|event| {
            let event: serde_json::Value = serde_json::from_str(event.strip_prefix("data: ")?).ok()?;
            event.get("error").cloned()
        });
        let error = error.unwrap_or_else(|| panic!("{kind:?}: an error event is in {text}"));
        assert_eq!(error["type"], "server_error");
        gateway.idle().await;
        assert_eq!(gateway.workers().await[0]["requests_failed"], 1, "{kind:?}");
        let broken = gateway.metric("warmpath_errors_total{kind=\"broken_stream\",source=\"worker\"}").await;
        assert!((broken - 1.0).abs() < f64::EPSILON, "{kind:?}: {broken}");
    }
}

#[tokio::test]
async fn an_engine_that_dies_under_a_stream_is_a_fault_even_if_the_stream_ends_in_order() {
    let sims = sims(1).await;
    let gateway = start(&sims, RARE_CHECKS).await;
    sims[0].set_fault(Fault::always(FaultKind::ErrorEvent { after_events: 2 }));
    let (text, ended) = gateway.stream("tell me", 50).await.rest().await;
    assert!(ended && text.contains("\"error\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
    gateway.idle().await;
    let worker = &gateway.workers().await[0];
    assert_eq!((&worker["requests_failed"], &worker["requests_completed"]), (&json!(1), &json!(0)));
}

#[tokio::test]
async fn a_restarted_worker_is_found_again_and_its_prefixes_are_forgotten() {
    let first = sim(SimConfig::default()).await;
    let address = first.addr();
    let sims = [first];
    let gateway = start(&sims, "health: {interval: 50ms, timeout: 1s}\nscrape_interval: 50ms\n").await;
    let worker = || async { gateway.workers().await[0].clone() };
    assert_eq!(gateway.chat(&"a long prompt ".repeat(100)).await.status, 200);
    assert!(worker().await["index_blocks"].as_u64().unwrap() > 5);
    sims[0].kill().await;
    eventually("unhealthy", || async { (worker().await["health"] == "unhealthy").then_some(()) }).await;
    let _again = eventually("the port is free again", || async {
        vllm_sim::Sim::start(SimConfig { listen: address, ..SimConfig::default() }).await.ok()
    })
    .await;
    eventually("healthy", || async { (worker().await["health"] == "healthy").then_some(()) }).await;
    eventually("forgotten", || async { (worker().await["index_blocks"] == 0).then_some(()) }).await;
    assert_eq!(gateway.chat("x").await.status, 200);
}

#[tokio::test]
async fn a_request_that_must_not_be_done_twice_is_not_repeated() {
    let sims = sims(2).await;
    let gateway = start(&sims, RARE_CHECKS).await;
    // Whatever a worker answers to a POST that is no inference call, no other worker is asked.
    let reply = gateway.post("/reset_prefix_cache", &json!({})).await;
    assert_eq!(reply.status, 200);
    sims[0].kill().await;
    sims[1].kill().await;
    // Nobody has seen it: then others may be asked.
    assert_eq!(gateway.post("/reset_prefix_cache", &json!({})).await.status, 502);
    let retries = gateway.metric("warmpath_retries_total{reason=\"connect\"}").await;
    assert!((retries - 1.0).abs() < f64::EPSILON, "{retries}");
}
