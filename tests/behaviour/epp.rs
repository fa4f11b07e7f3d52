//! `warmpath epp` as an endpoint picker: told what Envoy tells, and behind a real Envoy.

mod call;
mod envoy;

use std::time::Duration;

use serde_json::{Value, json};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use vllm_sim::{Fault, FaultKind};
use warmpath_tests::{Gateway, SimHandle, eventually, get, sims, urls};

use self::call::{Call, Told, mode};

fn chat(prompt: &str, stream: bool) -> String {
    json!({"messages": [{"role": "user", "content": prompt}], "max_tokens": 4, "stream": stream}).to_string()
}

fn address(sim: &SimHandle) -> String {
    sim.addr().to_string()
}

async fn records(picker: &Gateway, worker: &str) -> Vec<Value> {
    get(picker.admin, &format!("/decisions?worker={worker}")).await.json().as_array().unwrap().clone()
}

#[tokio::test]
async fn a_request_in_pieces_is_told_where_to_go_and_gets_its_body_back() {
    let sims = sims(3).await;
    let picker = Gateway::start_picker(&urls(&sims), &[]).await;
    let mut call = Call::begin(&picker, mode::FULL_DUPLEX).await;
    let body = chat(&"a long story ".repeat(20_000), true);
    call.request_head("POST", "/v1/chat/completions", &[("content-type", "application/json")], false);
    for piece in body.as_bytes().chunks(60_000) {
        call.request_body(piece, false);
    }
    call.request_body(b"", true);
    let told = call.destination().await;
    let endpoints: Vec<_> = told.endpoints.split(',').collect();
    assert_eq!(endpoints.len(), 3, "the best, and those to go to where it cannot be had: {told:?}");
    assert!(sims.iter().all(|sim| endpoints.contains(&address(sim).as_str())), "{told:?}");
    assert_eq!(told.metadata, told.endpoints, "header and metadata say the same");
    assert_eq!(call.request_body_back().await, body.as_bytes(), "the whole body, in pieces that Envoy takes");
    let first = endpoints[0].to_owned();
    let in_flight = get(picker.admin, &format!("/workers/{first}")).await.json();
    assert_eq!(in_flight["in_flight_requests"], 1);
    assert!(in_flight["queued_prefill_tokens"].as_u64() > Some(10_000), "{in_flight}");

    let head = call.response_head("200", &[("content-type", "text/event-stream")], Some(&first), false).await;
    assert_eq!(head["x-warmpath-worker"], first);
    assert_eq!(
        call.response_body(b"data: {}\n\n", false).await,
        b"data: {}\n\n",
        "it is sent back as it came"
    );
    let prefilled = get(picker.admin, &format!("/workers/{first}")).await.json();
    assert_eq!(
        (&prefilled["in_flight_requests"], &prefilled["queued_prefill_tokens"]),
        (&json!(1), &json!(0))
    );
    let usage = b"data: {\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1,\"total_tokens\":10}}\n\ndata: [DONE]\n\n";
    call.response_body(usage, true).await;
    call.end().await;
    picker.idle().await;
    let record = eventually("the record", || async {
        let record = records(&picker, &first).await.first().cloned()?;
        (!record["outcome"].is_null()).then_some(record)
    })
    .await;
    assert_eq!((&record["outcome"]["end"], &record["route"]), (&json!("completed"), &json!("chat")));
    assert_eq!(record["outcome"]["prompt_tokens"], 9, "{record}");
    let ttft = format!("warmpath_time_to_first_token_seconds_count{{worker=\"{first}\"}}");
    assert!(picker.metric(&ttft).await > 0.0);
}

/// One whole exchange; where it went first.
async fn exchange(picker: &Gateway, body: &str) -> String {
    let mut call = Call::begin(picker, mode::FULL_DUPLEX).await;
    call.request(body);
    let told = call.destination().await;
    call.request_body_back().await;
    let first = told.endpoints.split(',').next().unwrap().to_owned();
    call.response_head("200", &[("content-type", "application/json")], Some(&first), false).await;
    call.response_body(b"{}", true).await;
    call.end().await;
    picker.idle().await;
    first
}

#[tokio::test]
async fn a_prefix_goes_where_it_was_sent_before() {
    let sims = sims(3).await;
    let picker = Gateway::start_picker(&urls(&sims), &[]).await;
    let prompt = "the same beginning ".repeat(100);
    let first = exchange(&picker, &chat(&prompt, false)).await;
    for turn in 0..4 {
        assert_eq!(exchange(&picker, &chat(&format!("{prompt} {turn}"), false)).await, first);
    }
    let record = &records(&picker, &first).await[0];
    assert_eq!(record["reason"], "prefix_hit", "{record}");
}

#[tokio::test]
async fn only_the_subset_that_the_data_plane_names_is_picked_from() {
    let sims = sims(3).await;
    let picker = Gateway::start_picker(&urls(&sims), &[]).await;
    for sim in &sims {
        let mut call = Call::begin(&picker, mode::FULL_DUPLEX).await;
        call.subset(&[&address(sim)]);
        call.request(&chat("hello", false));
        assert_eq!(call.destination().await.endpoints, address(sim));
    }
    for nobody in [&[][..], &["192.0.2.1:8000"][..]] {
        let mut call = Call::begin(&picker, mode::FULL_DUPLEX).await;
        call.subset(nobody);
        call.request(&chat("hello", false));
        let Told::Instead { status, body } = call.told().await else {
            panic!("{nobody:?}: no worker is among them")
        };
        assert_eq!(status, 503, "{body}");
    }
    picker.idle().await;
}

#[tokio::test]
async fn without_a_ready_worker_it_is_503_with_too_many_requests_429_and_nonsense_400() {
    let sims = sims(1).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "limits: {worker_concurrency: 1, queue: 0}\n").unwrap();
    let picker = Gateway::start_picker(&urls(&sims), &["--config", file.path().to_str().unwrap()]).await;
    let refused = async |body: &str| {
        let mut call = Call::begin(&picker, mode::FULL_DUPLEX).await;
        call.request(body);
        match call.told().await {
            Told::Instead { status, body } => (status, body),
            Told::Destination(told) => panic!("{told:?}"),
        }
    };
    let (status, body) = refused("{").await;
    assert_eq!((status, body["error"]["code"].as_str()), (400, Some("invalid_request_body")), "{body}");
    let mut holds = Call::begin(&picker, mode::FULL_DUPLEX).await;
    holds.request(&chat("the only place", false));
    holds.destination().await;
    assert_eq!(refused(&chat("one more", false)).await.0, 429);
    drop(holds);
    picker.idle().await;
    sims[0].kill().await;
    eventually("the worker is known to be gone", || async {
        (picker.workers().await[0]["health"] == "unhealthy").then_some(())
    })
    .await;
    assert_eq!(refused(&chat("nobody is there", false)).await.0, 503);
}

#[tokio::test]
async fn a_call_that_ends_early_is_a_client_that_left_and_a_fallback_that_served_has_the_response() {
    let sims = sims(2).await;
    let picker = Gateway::start_picker(&urls(&sims), &[]).await;
    let mut call = Call::begin(&picker, mode::FULL_DUPLEX).await;
    call.request(&chat("soon gone", true));
    call.destination().await;
    drop(call);
    picker.idle().await;

    let mut call = Call::begin(&picker, mode::FULL_DUPLEX).await;
    call.request(&chat("one cannot be had", false));
    let told = call.destination().await;
    call.request_body_back().await;
    let (first, second) = told.endpoints.split_once(',').unwrap();
    let head = call.response_head("200", &[("content-type", "application/json")], Some(second), false).await;
    assert_eq!(head["x-warmpath-worker"], second);
    let worker = async |name: &str| get(picker.admin, &format!("/workers/{name}")).await.json();
    assert_eq!(
        (&worker(first).await["in_flight_requests"], &worker(first).await["requests_failed"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(worker(second).await["in_flight_requests"], 1);
    call.response_body(b"{}", true).await;
    call.end().await;
    picker.idle().await;
    assert_eq!(worker(second).await["requests_completed"], 1);
}

#[tokio::test]
async fn bodies_may_be_buffered_and_must_be_readable() {
    let sims = sims(1).await;
    let picker = Gateway::start_picker(&urls(&sims), &[]).await;
    let mut call = Call::begin(&picker, mode::BUFFERED).await;
    call.request_head("POST", "/v1/chat/completions", &[], false);
    call.goes_on().await;
    call.request_body(chat("at once", false).as_bytes(), true);
    assert_eq!(call.destination().await.endpoints, address(&sims[0]));
    drop(call);
    let mut call = Call::begin(&picker, mode::NONE).await;
    call.request_head("POST", "/v1/chat/completions", &[], false);
    let Told::Instead { status, body } = call.told().await else { panic!("no prompt was to be had") };
    assert!(status == 500 && body.to_string().contains("FULL_DUPLEX_STREAMED"), "{status} {body}");
    let mut call = Call::begin(&picker, mode::FULL_DUPLEX).await;
    call.request_head("GET", "/v1/models", &[], true);
    assert_eq!(
        call.destination().await.endpoints,
        address(&sims[0]),
        "without a body there is nothing to wait for"
    );
    drop(call);
    picker.idle().await;
}

#[tokio::test]
async fn an_alias_changes_the_body_and_its_length() {
    let sims = sims(1).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "aliases: [{match: big, to: sim}]\n").unwrap();
    let picker = Gateway::start_picker(&urls(&sims), &["--config", file.path().to_str().unwrap()]).await;
    let mut call = Call::begin(&picker, mode::FULL_DUPLEX).await;
    call.request(r#"{"model":"big","messages":[{"role":"user","content":"hi"}]}"#);
    let told = call.destination().await;
    let body = call.request_body_back().await;
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["model"], "sim");
    assert_eq!(told.head["content-length"], body.len().to_string());
}

#[tokio::test]
async fn health_is_told_by_service_and_a_draining_picker_is_not_ready() {
    let sims = sims(1).await;
    let mut picker = Gateway::start_picker(&urls(&sims), &[]).await;
    let channel = call::channel(&picker).await;
    let status = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = HealthClient::new(channel.clone()).check(request).await;
        answer.map(|answer| answer.into_inner().status)
    };
    let (serving, not_serving) = (1, 2);
    for service in ["readiness", "envoy.service.ext_proc.v3.ExternalProcessor", ""] {
        eventually("it is ready", || async { status(service).await.ok().filter(|is| *is == serving) }).await;
    }
    assert_eq!(status("liveness").await.unwrap(), serving);
    assert_eq!(status("another").await.unwrap_err().code(), tonic::Code::NotFound);
    // A call under way keeps it from ending.
    let mut held = Call::over(channel.clone(), mode::FULL_DUPLEX).await;
    held.request(&chat("it takes its time", false));
    held.destination().await;
    let mut watched = HealthClient::new(channel)
        .watch(HealthCheckRequest { service: "readiness".to_owned() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status, serving);
    picker.signal(warmpath_tests::Signal::TERM);
    assert_eq!(watched.message().await.unwrap().unwrap().status, not_serving);
    drop((held, watched));
    assert_eq!(picker.ended().await, Some(0));
}

#[tokio::test]
async fn behind_a_real_envoy_requests_go_where_they_are_told() {
    let sims = sims(3).await;
    let picker = Gateway::start_picker(&urls(&sims), &[]).await;
    let envoy = match envoy::Envoy::start(&picker, &sims).await {
        Ok(envoy) => envoy,
        Err(why) => return println!("skipped: {why}"),
    };
    let prompt = "said to Envoy ".repeat(2_000);
    let first = envoy.post("/v1/chat/completions", &chat(&prompt, false)).await;
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(first.json()["usage"]["completion_tokens"], 4);
    let worker = first.header("x-warmpath-worker").to_owned();
    let served = sims.iter().find(|sim| address(sim) == worker).expect("it is one of them");
    assert!(served.stats().prompt_tokens > 1_000, "Envoy went where it was told");
    for stream in [true, false, true] {
        let next = envoy.post("/v1/chat/completions", &chat(&format!("{prompt} {stream}"), stream)).await;
        assert_eq!((next.status, next.header("x-warmpath-worker")), (200, &*worker), "the prefix is there");
        assert!(!stream || next.text().ends_with("data: [DONE]\n\n"));
    }
    picker.idle().await;
    let refused = envoy.post("/v1/chat/completions", r#"{"model": "none", "messages": []}"#).await;
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (404, Some("model_not_found")));

    // Envoy goes down the list where the first cannot be had.
    served.kill().await;
    let other = envoy.post("/v1/chat/completions", &chat(&prompt, false)).await;
    assert_eq!(other.status, 200, "{}", other.text());
    for sim in &sims {
        sim.set_fault(Fault::always(FaultKind::SlowHead { delay_ms: 10_000 }));
    }
    let body = chat("nobody waits for that", true);
    let _ = tokio::time::timeout(Duration::from_millis(200), envoy.post("/v1/chat/completions", &body)).await;
    picker.idle().await;
}
