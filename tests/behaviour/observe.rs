//! What operators see.

use warmpath_tests::{Gateway, get, request, sims, urls};

/// Every metric that the gateway has; `docs/metrics.md` lists the same.
const METRICS: &str = include_str!("../../docs/metrics.md");

#[tokio::test]
async fn every_documented_metric_is_emitted_and_every_emitted_one_is_documented() {
    let sims = sims(2).await;
    // Nobody listens there: a hook has its series all the same.
    let file = tempfile::NamedTempFile::new().unwrap();
    // Neither does a file of workers name one: it has its series, too.
    let listed = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(listed.path(), "[]").unwrap();
    let discovery = format!("discovery: {{files: ['{}']}}\n", listed.path().display());
    std::fs::write(file.path(), format!("hooks: [{{name: h, url: 'http://127.0.0.1:1/'}}]\n{discovery}"))
        .unwrap();
    let gateway = Gateway::start(&urls(&sims), &["--config", file.path().to_str().unwrap()]).await;
    gateway.chat("hello").await;
    gateway.stream("hello", 4).await.rest().await;
    request(gateway.address, "POST", "/v1/chat/completions", &[], "no json").await;
    sims[0].kill().await;
    sims[1].kill().await;
    gateway.chat("hello").await; // a retry on the other worker
    let text = get(gateway.admin, "/metrics").await.text();
    let emitted: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let documented: Vec<&str> =
        METRICS.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next()).collect();
    for name in &emitted {
        assert!(documented.contains(name), "{name} is not in docs/metrics.md");
    }
    for name in documented {
        assert!(emitted.contains(&name), "{name} is documented but not emitted:\n{text}");
    }
}

#[tokio::test]
async fn the_admin_port_tells_health_readiness_and_the_fleet() {
    let sims = sims(2).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    assert_eq!(get(gateway.admin, "/health").await.text(), "ok\n");
    assert_eq!(get(gateway.admin, "/ready").await.text(), "ready\n");
    assert_eq!(get(gateway.admin, "/nothing").await.status, 404);
    gateway.chat("hello").await;
    gateway.idle().await;
    let workers = gateway.workers().await;
    let completed: u64 = workers.iter().map(|w| w["requests_completed"].as_u64().unwrap()).sum();
    assert_eq!((workers.len(), completed), (2, 1));
}

#[tokio::test]
async fn logs_can_be_json_lines() {
    let sims = sims(1).await;
    // The banner is for people; with JSON logs everything is one object per line on standard error.
    let output = std::process::Command::new("timeout")
        .args(["--signal=INT", "2", warmpath_tests::binary().to_str().unwrap(), "serve"])
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-format", "json"])
        .args(["--instance", "test-json", "--worker", &urls(&sims)[0]])
        .output()
        .unwrap();
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    let lines = String::from_utf8(output.stderr).unwrap();
    let events: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().any(|event| event["message"] == "ready" && event["workers"] == 1), "{lines}");
    assert!(events.iter().any(|event| event["message"] == "stopped"), "{lines}");
}
