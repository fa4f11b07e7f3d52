//! `/metrics` against a recorded scrape: the same families, samples, labels and order.

use std::collections::BTreeMap;

use serde_json::json;

use crate::support::{Client, Response, fixture, get, post, start, tiny};

/// The lines of a scrape without their values.
fn skeleton(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| !line.starts_with("http_")) // their handlers are those that were used
        .map(|line| if line.starts_with('#') { line } else { line.rsplit_once(' ').unwrap().0 }.to_owned())
        .collect()
}

fn values(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[tokio::test]
async fn a_scrape_has_the_recorded_lines() {
    let mut config = tiny();
    config.engine.num_blocks = 262_144; // the recorded server's
    let sim = start(config).await;
    let own = Client::connect(sim.addr()).await.call(&get("/metrics")).await;
    let recorded = Response::parse_all(&fixture("http/get_metrics.resp"), false).remove(0);
    let (own, recorded) = (skeleton(&own.body_text()), skeleton(&recorded.body_text()));
    for (position, (own, recorded)) in own.iter().zip(&recorded).enumerate() {
        assert_eq!(own, recorded, "line {position}");
    }
    assert_eq!(own.len(), recorded.len());
}

#[tokio::test]
async fn http_families_have_the_recorded_form() {
    let sim = start(tiny()).await;
    let mut client = Client::connect(sim.addr()).await;
    let recorded = Response::parse_all(&fixture("http/get_metrics.resp"), false).remove(0).body_text();
    client.call(&post("/v1/completions", &json!({"prompt": "x", "max_tokens": 1}))).await;
    client.call(&get("/health")).await;
    client.call(&get("/nowhere")).await;
    let own = client.call(&get("/metrics")).await.body_text();
    let samples_of = |text: &str, handler: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with("http_") && line.contains(handler));
        lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
    };
    let own_samples = samples_of(&own, "\"/v1/completions\"");
    for sample in samples_of(&recorded, "\"/v1/completions\"").iter().filter(|sample| !sample.contains("4xx"))
    {
        assert!(own_samples.contains(sample), "{sample} is missing among {own_samples:?}");
    }
    let values = values(&own);
    assert_eq!(values["http_requests_total{handler=\"none\",method=\"GET\",status=\"4xx\"}"], 1.0);
    assert!(!own.contains("handler=\"/health\""), "health is not counted");
}

#[tokio::test]
async fn values_follow_the_work() {
    let mut config = tiny();
    config.engine.max_num_seqs = 1;
    let sim = start(config).await;
    let mut client = Client::connect(sim.addr()).await;
    let prompt = vec![5; 40];
    for _ in 0..2 {
        client.call(&post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 4}))).await;
    }
    let labels = "{engine=\"0\",model_name=\"tiny\"}";
    let text = client.call(&get("/metrics")).await.body_text();
    let now = values(&text);
    let value = |name: &str| now[&format!("vllm:{name}{labels}")];
    assert_eq!(value("prefix_cache_queries_total"), 80.0);
    assert_eq!(value("prefix_cache_hits_total"), 32.0);
    assert_eq!(value("prompt_tokens_total"), 80.0);
    assert_eq!(value("generation_tokens_total"), 8.0);
    assert_eq!(value("time_to_first_token_seconds_count"), 2.0);
    assert_eq!(value("inter_token_latency_seconds_count"), 6.0);
    assert_eq!(value("e2e_request_latency_seconds_count"), 2.0);
    assert_eq!(value("num_requests_running"), 0.0);
    let by_source = |source: &str| {
        now[&format!(
            "vllm:prompt_tokens_by_source_total{{engine=\"0\",model_name=\"tiny\",source=\"{source}\"}}"
        )]
    };
    assert_eq!((by_source("local_compute"), by_source("local_cache_hit")), (48.0, 32.0));
    let finished = "vllm:request_success_total{engine=\"0\",finished_reason=\"length\",model_name=\"tiny\"}";
    assert_eq!(now[finished], 2.0);

    // One runs, one waits; an aborted one is not counted as finished.
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = Client::connect(sim.addr()).await;
        let body = json!({"prompt": prompt, "max_tokens": 2000, "stream": true});
        stream.send(&post("/v1/completions", &body)).await;
        stream.read().await;
        streams.push(stream);
    }
    let busy = loop {
        let now = values(&client.call(&get("/metrics")).await.body_text());
        if now[&format!("vllm:num_requests_waiting{labels}")] > 0.0 {
            break now;
        }
    };
    assert_eq!(busy[&format!("vllm:num_requests_running{labels}")], 1.0);
    assert_eq!(
        busy["vllm:num_requests_waiting_by_reason{engine=\"0\",model_name=\"tiny\",reason=\"capacity\"}"],
        1.0
    );
    assert!(busy[&format!("vllm:kv_cache_usage_perc{labels}")] > 0.0);
    drop(streams);
    loop {
        let now = values(&client.call(&get("/metrics")).await.body_text());
        if now[&format!("vllm:num_requests_running{labels}")] == 0.0 {
            assert_eq!(now[finished], 2.0);
            assert_eq!(now[&format!("vllm:num_requests_waiting{labels}")], 0.0);
            break;
        }
    }
}
