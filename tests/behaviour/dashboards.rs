//! The dashboard and the alerts of deploy/compose, evaluated by a real Prometheus that scrapes a running gateway: no panel
//! is empty, and every query is one.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use warmpath_tests::{Gateway, request, sims, urls};

const DASHBOARD: &str = include_str!("../../deploy/compose/grafana/dashboards/warmpath.json");
const PROMETHEUS: &str = include_str!("../../deploy/compose/prometheus.yml");
const PANELS_MIN: usize = 24;
/// Longer than Prometheus takes to start and to scrape twice, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        println!("skipped: {program} is not installed (Debian: prometheus)");
    }
    found.is_ok()
}

/// A Prometheus of its own, ended with the test.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// By the shipped configuration, but for the gateway's address and the pace.
    async fn start(gateway: &Gateway) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let alerts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/compose/alerts.yml");
        std::fs::copy(alerts, directory.path().join("alerts.yml")).unwrap();
        let config = PROMETHEUS
            .replace("warmpath:9090", &gateway.admin.to_string())
            .replace("scrape_interval: 5s", "scrape_interval: 1s")
            .replace("evaluation_interval: 5s", "evaluation_interval: 1s");
        let file = directory.path().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let prometheus = Self { child, address, _directory: directory };
        prometheus.until("count_over_time(up{job=\"warmpath\"}[1m]) >= 3").await;
        prometheus
    }

    /// The series of a query now; an error is Prometheus's own.
    async fn query(&self, expr: &str) -> Result<Vec<Value>, String> {
        let form = format!("query={}", percent_encoded(expr));
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let reply = request(self.address, "POST", "/api/v1/query", &headers, form).await;
        let answer: Value = serde_json::from_str(&reply.text()).map_err(|error| error.to_string())?;
        match answer["data"]["result"].as_array() {
            Some(series) if answer["status"] == "success" => Ok(series.clone()),
            _ => Err(format!("{expr}: {answer}")),
        }
    }

    /// Waits until a query has a series; Prometheus may not listen yet.
    async fn until(&self, expr: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if tokio::net::TcpStream::connect(self.address).await.is_ok()
                && self.query(expr).await.is_ok_and(|series| !series.is_empty())
            {
                return;
            }
            assert!(Instant::now() < deadline, "{expr} has no series");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn percent_encoded(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Every query of the dashboard, with the title of its panel and the variables as Grafana fills them in for "All".
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels: Vec<_> =
        dashboard["panels"].as_array().unwrap().iter().filter(|p| p["type"] != "row").collect();
    assert!(panels.len() >= PANELS_MIN, "{} panels", panels.len());
    let mut queries = Vec::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title} asks nothing");
        for target in targets {
            let expr = target["expr"].as_str().unwrap();
            let expr =
                expr.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$worker", ".*");
            assert!(!expr.contains('$'), "{title}: {expr}");
            queries.push((title.to_owned(), expr));
        }
    }
    queries
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_has_series_on_a_quiet_gateway_and_on_a_busy_one() {
    if !is_installed("prometheus") {
        return;
    }
    let sims = sims(2).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let prometheus = Prometheus::start(&gateway).await;
    for (title, expr) in queries() {
        let series = prometheus.query(&expr).await.unwrap();
        assert!(!series.is_empty(), "{title} is empty on a quiet gateway: {expr}");
    }
    for _ in 0..20 {
        gateway.chat("hello there, this is one prompt").await;
        gateway.stream("hello there, this is one prompt", 4).await.rest().await;
    }
    sims[0].kill().await;
    for number in 0..4 {
        gateway.chat(&format!("another one, {number}")).await;
    }
    prometheus.until("sum(warmpath_requests_total) > 40").await;
    let mut moving = 0;
    for (title, expr) in queries() {
        let series = prometheus.query(&expr).await.unwrap();
        assert!(!series.is_empty(), "{title} is empty on a busy gateway: {expr}");
        moving +=
            usize::from(series.iter().any(|one| one["value"][1].as_str().is_some_and(|value| value != "0")));
    }
    assert!(moving >= PANELS_MIN, "only {moving} queries show anything but zero");
    let rules = warmpath_tests::get(prometheus.address, "/api/v1/rules").await.text();
    let rules: Value = serde_json::from_str(&rules).unwrap();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    assert!(rules.len() > 10, "{} alerts", rules.len());
}

#[test]
fn alerts_fire_when_they_must_and_not_before() {
    if !is_installed("promtool") {
        return;
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/compose");
    for args in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]] {
        let output = Command::new("promtool").args(args).current_dir(&directory).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
    }
}

#[test]
fn queries_and_alerts_name_only_metrics_that_there_are() {
    let documented = include_str!("../../docs/metrics.md");
    let alerts = include_str!("../../deploy/compose/alerts.yml");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut named = 0;
    for word in [DASHBOARD, alerts].iter().flat_map(|text| text.split(|c| !is_name(c))) {
        if !word.starts_with("warmpath_") {
            continue;
        }
        let base =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
        assert!(documented.contains(&format!("`{base}")), "{word} is not in docs/metrics.md");
        named += 1;
    }
    assert!(named > 40, "{named} names");
}
