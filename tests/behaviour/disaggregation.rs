//! Prompts that are prefilled on one worker and decoded on another.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use vllm_sim::{Fault, FaultKind, KvTransferConfig};
use warmpath_tests::{Gateway, Reply, SimConfig, SimHandle, eventually, get, open, request, sim};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// A gateway in front of workers for prefill stages, `p0` …, and for decode stages, `d0` ….
struct Fleet {
    prefill: Vec<SimHandle>,
    decode: Vec<SimHandle>,
    gateway: Gateway,
    file: TempDir,
}

fn config(seed: u64) -> SimConfig {
    SimConfig { seed, kv_transfer: Some(KvTransferConfig::default()), ..SimConfig::default() }
}

impl Fleet {
    async fn start(prefill: u64, decode: u64) -> Self {
        Self::with(prefill, decode, |_| {}).await
    }

    /// `change` is for the workers of prefill stages.
    async fn with(prefill: u64, decode: u64, change: impl Fn(&mut SimConfig)) -> Self {
        let (mut prefills, mut decodes) = (Vec::new(), Vec::new());
        for seed in 0..prefill {
            let mut config = config(seed);
            change(&mut config);
            prefills.push(sim(config).await);
        }
        for seed in 0..decode {
            decodes.push(sim(config(100 + seed)).await);
        }
        let file = TempDir::new().unwrap();
        write(&file, &prefills, &decodes, "prefill", "");
        let path = file.path().join("warmpath.yaml");
        let gateway = Gateway::start(&[], &["--config", path.to_str().unwrap()]).await;
        Self { prefill: prefills, decode: decodes, gateway, file }
    }

    async fn outcome(&self, outcome: &str) -> f64 {
        let series = format!("warmpath_disaggregation_requests_total{{outcome=\"{outcome}\"}}");
        self.gateway.metric(&series).await
    }

    async fn worker(&self, name: &str) -> Value {
        get(self.gateway.admin, &format!("/workers/{name}")).await.json()
    }

    fn loaded(&self) -> u64 {
        self.decode.iter().map(|sim| sim.stats().kv_loaded).sum()
    }
}

/// Writes the configuration; `role` is that of the `p` workers.
fn write(file: &TempDir, prefill: &[SimHandle], decode: &[SimHandle], role: &str, more: &str) {
    let mut text = "disaggregation: {tokens_min: 200}\nworkers:\n".to_owned();
    for (sims, letter, role) in [(prefill, 'p', role), (decode, 'd', "decode")] {
        for (i, sim) in sims.iter().enumerate() {
            writeln!(text, "  - {{url: '{}', name: {letter}{i}, role: {role}}}", sim.url()).unwrap();
        }
    }
    std::fs::write(file.path().join("warmpath.yaml"), text + more).unwrap();
}

/// Some 1,000 tokens that begin like no other prompt.
fn long(name: &str) -> String {
    format!("{name}: ") + &"it was a bright cold day in April. ".repeat(120)
}

fn body(path: &str, prompt: &str, stream: bool) -> Value {
    let mut body = json!({"max_tokens": 8, "ignore_eos": true, "stream": stream});
    if path == CHAT {
        body["messages"] = json!([{"role": "user", "content": prompt}]);
    } else {
        body["prompt"] = json!(prompt);
    }
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

fn role(reply: &Reply, header: &str) -> Option<char> {
    reply.header(header).chars().next()
}

/// Prefill and decode worker of an answer, by the letters of their names.
fn workers(reply: &Reply) -> (Option<char>, Option<char>) {
    (role(reply, "x-warmpath-prefill-worker"), role(reply, "x-warmpath-worker"))
}

fn is_whole_stream(text: &str) -> bool {
    text.ends_with("data: [DONE]\n\n") && !text.contains("\"error\"")
}

#[tokio::test]
async fn a_long_prompt_is_prefilled_on_one_worker_and_decoded_on_another() {
    let fleet = Fleet::start(2, 2).await;
    let mut handed = 0;
    for path in [CHAT, COMPLETIONS] {
        for stream in [false, true] {
            let asked = body(path, &long(&format!("{path} {stream}")), stream);
            let reply = fleet.gateway.post(path, &asked).await;
            handed += 1;
            assert_eq!((reply.status, workers(&reply)), (200, (Some('p'), Some('d'))), "{}", reply.text());
            assert_eq!(fleet.loaded(), handed);
            if stream {
                assert!(is_whole_stream(&reply.text()), "{}", reply.text());
            } else {
                let usage = &reply.json()["usage"];
                assert_eq!(usage["completion_tokens"], 8, "the answer is the decode worker's");
                let prompt = usage["prompt_tokens"].as_u64().unwrap();
                assert_eq!(
                    usage["prompt_tokens_details"]["cached_tokens"],
                    prompt - 1,
                    "and the prompt is not"
                );
            }
        }
    }
    let sent: u64 = fleet.prefill.iter().map(|sim| sim.stats().kv_sent).sum();
    let generated: u64 = fleet.prefill.iter().map(|sim| sim.stats().generated_tokens).sum();
    assert_eq!((sent, generated), (4, 4), "one token each");
    fleet.gateway.idle().await;
    assert!(fleet.outcome("handed_over").await >= 4.0);
    for series in [
        "warmpath_disaggregation_prefill_seconds_count",
        "warmpath_disaggregation_handoff_seconds_count",
        "warmpath_disaggregation_min_tokens",
    ] {
        assert!(fleet.gateway.metric(series).await > 0.0, "{series}");
    }
}

#[tokio::test]
async fn both_stages_are_in_the_records_under_the_requests_id() {
    let fleet = Fleet::start(1, 2).await;
    let headers = [("content-type", "application/json"), ("x-request-id", "two-stages")];
    let asked = body(CHAT, &long("records"), true).to_string();
    let reply = request(fleet.gateway.address, "POST", CHAT, &headers, asked).await;
    let mut records = eventually("the records", || async {
        let records = get(fleet.gateway.admin, "/decisions/two-stages").await.json();
        let records = records.as_array().unwrap().clone();
        let ended = records.iter().all(|record| !record["outcome"].is_null());
        (records.len() == 2 && ended).then_some(records)
    })
    .await;
    records.sort_by_key(|record| record["attempt"].as_u64());
    let [prefill, decode] = &records[..] else { panic!("{records:?}") };
    assert_eq!((&prefill["stage"], &prefill["worker"]), (&json!("prefill"), &json!("p0")));
    assert!(prefill["new_tokens"].as_u64() > Some(500), "{prefill}");
    assert!(prefill["outcome"]["time_to_first_token_seconds"].is_number(), "{prefill}");
    assert_eq!((&decode["stage"], &decode["prefill_worker"]), (&json!("decode"), &json!("p0")));
    assert_eq!(decode["worker"], reply.header("x-warmpath-worker"));
    assert_eq!(decode["candidate_count"], 2, "the prefill worker is none");
    assert_eq!(decode["outcome"]["end"], "completed");
}

#[tokio::test]
async fn what_is_short_or_cached_or_unsuitable_goes_to_one_worker() {
    let fleet = Fleet::start(1, 1).await;
    let whole = |reply: &Reply| assert_eq!((reply.status, workers(reply)), (200, (None, Some('d'))));
    whole(&fleet.gateway.chat("hello").await);
    assert!(fleet.outcome("short").await >= 1.0);
    let text = long("said before");
    assert_eq!(workers(&fleet.gateway.chat(&text).await), (Some('p'), Some('d')));
    whole(&fleet.gateway.chat(&text).await); // the decode worker has it now
    for (i, (key, value)) in [
        ("n", json!(2)),
        ("max_tokens", json!(1)),
        ("prompt_logprobs", json!(1)),
        ("kv_transfer_params", json!({"do_remote_decode": true})),
    ]
    .into_iter()
    .enumerate()
    {
        let mut asked = body(COMPLETIONS, &long(&format!("unsuitable {i}")), false);
        asked[key] = value;
        whole(&fleet.gateway.post(COMPLETIONS, &asked).await);
    }
    assert!(fleet.outcome("unsuitable").await >= 4.0);
    let asked = json!({"input": long("another API"), "max_output_tokens": 4});
    whole(&fleet.gateway.post("/v1/responses", &asked).await);
    assert_eq!(fleet.loaded(), 1);
}

#[tokio::test]
async fn where_the_prefill_stage_fails_one_worker_does_it_all() {
    let fleet = Fleet::start(1, 1).await;
    for (i, fault) in [
        FaultKind::Status { status: 500, retry_after_s: None },
        FaultKind::Status { status: 400, retry_after_s: None },
        FaultKind::ResetAfterRequest,
        FaultKind::Die { after_events: 0, how: vllm_sim::Ending::Fin },
    ]
    .into_iter()
    .enumerate()
    {
        fleet.prefill[0].set_fault(Fault::always(fault.clone()));
        for stream in [false, true] {
            let asked = body(CHAT, &long(&format!("failing {i} {stream}")), stream);
            let reply = fleet.gateway.post(CHAT, &asked).await;
            assert_eq!((reply.status, workers(&reply)), (200, (None, Some('d'))), "{fault:?}");
        }
    }
    assert!(fleet.outcome("prefill_failed").await >= 4.0);
    fleet.prefill[0].kill().await;
    let reply = fleet.gateway.chat(&long("it is gone")).await;
    assert_eq!((reply.status, workers(&reply)), (200, (None, Some('d'))));
    fleet.gateway.idle().await;
}

#[tokio::test]
async fn where_the_blocks_cannot_be_fetched_the_decode_worker_does_it_all() {
    // Whoever asks for them finds nothing any more.
    let forgets = |config: &mut SimConfig| {
        config.kv_transfer = Some(KvTransferConfig { lease: Duration::ZERO, ..KvTransferConfig::default() });
    };
    let fleet = Fleet::with(1, 1, forgets).await;
    let mut failed = 0.0;
    for i in 0..8 {
        let stream = i % 2 == 0;
        let asked = body(CHAT, &long(&format!("lost {i}")), stream);
        let reply = fleet.gateway.post(CHAT, &asked).await;
        assert_eq!((reply.status, role(&reply, "x-warmpath-worker")), (200, Some('d')), "{}", reply.text());
        if stream {
            assert!(is_whole_stream(&reply.text()), "{}", reply.text());
        }
        // Between the end of the lease and the fetch is a moment in which it may go well.
        failed += f64::from(u8::from(role(&reply, "x-warmpath-prefill-worker").is_none()));
    }
    assert!(failed > 0.0, "blocks that are given back at once are mostly gone");
    assert!((fleet.outcome("decode_failed").await - failed).abs() < f64::EPSILON);
    let worker = fleet.worker("d0").await;
    assert_eq!(worker["breaker"], "closed", "whose fault it is, is not known");
    fleet.gateway.idle().await;
}

#[tokio::test]
async fn where_the_decode_worker_is_gone_another_one_does_it() {
    let fleet = Fleet::start(1, 2).await;
    fleet.decode[0].kill().await;
    for i in 0..4 {
        let reply = fleet.gateway.chat(&long(&format!("one is left {i}"))).await;
        assert_eq!((reply.status, reply.header("x-warmpath-worker")), (200, "d1"));
    }
    fleet.decode[1].kill().await;
    let served = eventually("nobody else is left", || async {
        let reply = fleet.gateway.chat(&long("nobody decodes")).await;
        (reply.status == 200).then_some(reply)
    })
    .await;
    assert_eq!((served.header("x-warmpath-worker"), workers(&served).0), ("p0", None), "better than nobody");
}

#[tokio::test]
async fn the_prompt_counts_where_it_is_prefilled_and_the_client_can_leave_in_either_stage() {
    let slow = |config: &mut SimConfig| config.engine.time.prefill_tokens_per_s = 20.0;
    let fleet = Fleet::with(1, 1, slow).await;
    let asked = body(CHAT, &long("slowly"), true).to_string();
    let headers = [("content-type", "application/json")];
    let waiting = tokio::spawn(open_and_hold(fleet.gateway.address, asked.clone()));
    eventually("the prefill stage", || async { (fleet.prefill[0].stats().generating == 1).then_some(()) })
        .await;
    let (prefill, decode) = (fleet.worker("p0").await, fleet.worker("d0").await);
    assert!(prefill["queued_prefill_tokens"].as_u64() > Some(500), "{prefill}");
    assert_eq!((&decode["in_flight_requests"], &decode["queued_prefill_tokens"]), (&json!(0), &json!(0)));
    waiting.abort();
    eventually("the prefill worker gives up", || async {
        (fleet.prefill[0].stats().aborts == 1).then_some(())
    })
    .await;
    fleet.gateway.idle().await;

    let deadline = [headers[0], ("x-warmpath-timeout", "200ms")];
    let late = request(fleet.gateway.address, "POST", CHAT, &deadline, asked).await;
    assert_eq!((late.status, fleet.decode[0].stats().generating), (504, 0), "the deadline is of both stages");
    fleet.gateway.idle().await;

    let quick = Fleet::start(1, 1).await;
    let mut asked = body(CHAT, &long("quickly"), true);
    asked["max_tokens"] = json!(10_000);
    let mut stream = open(quick.gateway.address, "POST", CHAT, &headers, asked.to_string()).await;
    stream.next().await.unwrap().unwrap();
    let decode = quick.worker("d0").await;
    assert_eq!((&decode["in_flight_requests"], &decode["queued_prefill_tokens"]), (&json!(1), &json!(0)));
    drop(stream);
    eventually("the decode worker gives up", || async {
        (quick.decode[0].stats().aborts == 1).then_some(())
    })
    .await;
    quick.gateway.idle().await;
}

async fn open_and_hold(address: std::net::SocketAddr, body: String) {
    let headers = [("content-type", "application/json")];
    let _stream = open(address, "POST", CHAT, &headers, body).await;
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn explain_tells_both_workers_and_a_reload_changes_roles() {
    let fleet = Fleet::start(1, 1).await;
    let explain = |prompt: String| {
        let asked = body(CHAT, &prompt, false).to_string();
        async { request(fleet.gateway.admin, "POST", "/explain", &[], asked).await.json() }
    };
    let explained = explain(long("why")).await;
    let apart = &explained["disaggregation"];
    assert_eq!((&apart["prefill"]["worker"], &explained["winner"]["worker"]), (&json!("p0"), &json!("d0")));
    assert!(apart["uncached_tokens"].as_u64() > Some(500) && apart["min_tokens"] == 200, "{apart}");
    let explained = explain("short".to_owned()).await;
    assert_eq!(explained["disaggregation"]["prefill"], Value::Null);
    let part = explained["workers"].as_array().unwrap().iter().find(|part| part["worker"] == "p0").unwrap();
    assert_eq!((&part["excluded"], &part["role"]), (&json!("role"), &json!("prefill")));

    write(&fleet.file, &fleet.prefill, &fleet.decode, "both", "");
    let reloaded = request(fleet.gateway.admin, "POST", "/admin/reload", &[], String::new()).await;
    assert_eq!(reloaded.json()["changed"], json!(["workers"]));
    assert_eq!(explain(long("why")).await["disaggregation"], Value::Null, "nobody is for prefill stages");
    assert_eq!(workers(&fleet.gateway.chat(&long("after")).await).0, None);
    write(&fleet.file, &fleet.prefill, &fleet.decode, "prefill", "");
    request(fleet.gateway.admin, "POST", "/admin/reload", &[], String::new()).await;
    assert_eq!(workers(&fleet.gateway.chat(&long("as before")).await).0, Some('p'));
}

#[tokio::test]
async fn switched_off_every_request_goes_to_one_worker() {
    let (prefill, decode) = (sim(config(0)).await, sim(config(1)).await);
    let file = TempDir::new().unwrap();
    let (prefills, decodes) = (vec![prefill], vec![decode]);
    write(&file, &prefills, &decodes, "prefill", "");
    let path = file.path().join("warmpath.yaml");
    let text = std::fs::read_to_string(&path).unwrap().replace("tokens_min: 200", "mode: off");
    std::fs::write(&path, text).unwrap();
    let gateway = Gateway::start(&[], &["--config", path.to_str().unwrap()]).await;
    let reply = gateway.chat(&long("off")).await;
    assert_eq!((reply.status, workers(&reply)), (200, (None, Some('d'))));
}
