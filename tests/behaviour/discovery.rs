//! Workers that come and go by themselves, as a file or the DNS says.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use warmpath_tests::{DnsServer, Gateway, SimConfig, SimHandle, eventually, get, request, sim, sims, urls};

/// A gateway whose workers a file lists, and the file.
struct Site {
    sims: Vec<SimHandle>,
    directory: TempDir,
    gateway: Gateway,
}

impl Site {
    async fn start(count: u64, listed: usize, discovery: Value) -> Self {
        let sims = sims(count).await;
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("workers.json"), list(&sims[..listed])).unwrap();
        let mut settings = json!({
            "routing": {"policy": "round_robin"},
            "health": {"interval": "200ms", "timeout": "2s"},
            "discovery": {"gone_after": "100ms", "files": [directory.path().join("workers.json")]},
        });
        for (key, value) in discovery.as_object().unwrap() {
            settings["discovery"][key] = value.clone();
        }
        let gateway = start(&directory, &settings).await;
        Self { sims, directory, gateway }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("workers.json")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.file(), text).unwrap();
    }

    fn source(&self) -> String {
        format!("file:{}", self.file().display())
    }
}

async fn start(directory: &TempDir, settings: &Value) -> Gateway {
    let path = directory.path().join("warmpath.yaml");
    std::fs::write(&path, settings.to_string()).unwrap();
    Gateway::start(&[], &["--config", path.to_str().unwrap()]).await
}

fn list(sims: &[SimHandle]) -> String {
    let entry = |(number, url)| json!({"url": url, "name": format!("w{number}")});
    json!(urls(sims).into_iter().enumerate().map(entry).collect::<Vec<_>>()).to_string()
}

/// Waits until the fleet is these workers, whatever order they are in.
async fn fleet_is(gateway: &Gateway, names: &[&str]) {
    eventually(&format!("a fleet of {names:?}"), || async {
        let mut now: Vec<String> =
            gateway.workers().await.iter().map(|w| w["name"].as_str().unwrap().to_owned()).collect();
        now.sort();
        (now == names).then_some(())
    })
    .await;
}

async fn metric_is(gateway: &Gateway, series: &str, value: f64) {
    eventually(&format!("{series} {value}"), || async {
        ((gateway.metric(series).await - value).abs() < 0.5).then_some(())
    })
    .await;
}

async fn says(gateway: &Gateway, words: &str) {
    eventually(words, || async { gateway.output().contains(words).then_some(()) }).await;
}

#[tokio::test]
async fn workers_of_a_file_come_and_go_as_it_says_however_it_is_changed() {
    let site = Site::start(3, 1, json!({})).await;
    fleet_is(&site.gateway, &["w0"]).await;
    assert_eq!(site.gateway.chat("hello").await.header("x-warmpath-worker"), "w0");
    let directory = site.directory.path();
    // As careful programs do it.
    std::fs::write(directory.join("new"), list(&site.sims[..2])).unwrap();
    std::fs::rename(directory.join("new"), site.file()).unwrap();
    fleet_is(&site.gateway, &["w0", "w1"]).await;
    // As Kubernetes does it: a link through a directory that is swapped.
    for (version, count) in [("v1", 3), ("v2", 2)] {
        std::fs::create_dir(directory.join(version)).unwrap();
        std::fs::write(directory.join(version).join("workers.json"), list(&site.sims[..count])).unwrap();
        std::os::unix::fs::symlink(directory.join(version), directory.join("link")).unwrap();
        std::fs::rename(directory.join("link"), directory.join("current")).unwrap();
        if version == "v1" {
            std::os::unix::fs::symlink("current/workers.json", directory.join("file")).unwrap();
            std::fs::rename(directory.join("file"), site.file()).unwrap();
        }
        fleet_is(&site.gateway, &["w0", "w1", "w2"][..count]).await;
    }
    let source = site.source();
    metric_is(
        &site.gateway,
        &format!("warmpath_discovery_workers{{source=\"{source}\",state=\"ready\"}}"),
        2.0,
    )
    .await;
    assert!(site.gateway.metric(&format!("warmpath_discovery_up{{source=\"{source}\"}}")).await > 0.5);
    let answered = format!("warmpath_discovery_last_answer_timestamp_seconds{{source=\"{source}\"}}");
    assert!(site.gateway.metric(&answered).await > 1e9);
}

#[tokio::test]
async fn a_worker_that_goes_away_finishes_what_it_has_and_gets_no_more() {
    let site = Site::start(2, 2, json!({})).await;
    fleet_is(&site.gateway, &["w0", "w1"]).await;
    let mut stream = site.gateway.stream("a long answer", 1_200).await;
    stream.next().await.unwrap().unwrap();
    let name = stream.header("x-warmpath-worker").to_owned();
    let kept = usize::from(name == "w0");
    site.write(&json!([{"url": site.sims[kept].url(), "name": format!("w{kept}")}]).to_string());
    let leaving = eventually("it leaves", || async {
        let shown = get(site.gateway.admin, &format!("/workers/{name}")).await.json();
        (shown["standing"] == "leaving").then_some(shown)
    })
    .await;
    assert!(leaving["cut_off_in_seconds"].as_f64().unwrap() > 300.0, "{leaving}");
    for _ in 0..4 {
        assert_ne!(site.gateway.chat("hello").await.header("x-warmpath-worker"), name);
    }
    let (text, ended) = stream.rest().await;
    assert!(ended && text.ends_with("data: [DONE]\n\n"), "{text}");
    fleet_is(&site.gateway, &[&format!("w{kept}")]).await;
}

#[tokio::test]
async fn what_is_in_flight_on_a_worker_that_has_gone_is_cut_off_when_its_time_is_over() {
    let site = Site::start(2, 1, json!({"drain_timeout": "300ms"})).await;
    fleet_is(&site.gateway, &["w0"]).await;
    let mut stream = site.gateway.stream("an endless answer", 100_000).await;
    stream.next().await.unwrap().unwrap();
    site.write(&json!([{"url": site.sims[1].url(), "name": "w1"}]).to_string());
    let (text, ended) = stream.rest().await;
    // A copied stream ends with an error event, any other with its connection.
    assert!(!ended || text.contains("\"error\""), "it was finished: {text}");
    fleet_is(&site.gateway, &["w1"]).await;
}

#[tokio::test]
async fn a_file_that_is_wrong_or_gone_changes_nothing_and_is_named() {
    let site = Site::start(2, 2, json!({})).await;
    fleet_is(&site.gateway, &["w0", "w1"]).await;
    let source = site.source();
    let failed = format!("warmpath_discovery_answers_total{{result=\"failed\",source=\"{source}\"}}");
    site.write("- url: http://127.0.0.1:1\n  nmae: x\n");
    says(&site.gateway, "nmae").await;
    assert!(site.gateway.output().contains("at line 2"), "{}", site.gateway.output());
    metric_is(&site.gateway, &failed, 1.0).await;
    std::fs::remove_file(site.file()).unwrap();
    says(&site.gateway, "cannot read").await;
    metric_is(&site.gateway, &format!("warmpath_discovery_up{{source=\"{source}\"}}"), 0.0).await;
    fleet_is(&site.gateway, &["w0", "w1"]).await;
    assert_eq!(site.gateway.chat("hello").await.status, 200);
    site.write(&list(&site.sims[..1]));
    fleet_is(&site.gateway, &["w0"]).await;
    says(&site.gateway, "the source answers").await;
    metric_is(&site.gateway, &format!("warmpath_discovery_up{{source=\"{source}\"}}"), 1.0).await;
}

#[tokio::test]
async fn an_empty_list_is_believed_only_when_no_worker_is_healthy() {
    let site = Site::start(2, 2, json!({})).await;
    fleet_is(&site.gateway, &["w0", "w1"]).await;
    site.write("[]");
    says(&site.gateway, "names nobody any more").await;
    for sim in &site.sims[..1] {
        sim.kill().await;
    }
    eventually("w0 is unhealthy", || async {
        (get(site.gateway.admin, "/workers/w0").await.json()["health"] == "unhealthy").then_some(())
    })
    .await;
    fleet_is(&site.gateway, &["w0", "w1"]).await;
    assert_eq!(site.gateway.chat("hello").await.status, 200);
    site.sims[1].kill().await;
    fleet_is(&site.gateway, &[]).await;
}

#[tokio::test]
async fn discovered_workers_stand_beside_the_configured_ones_and_a_reload_changes_sources() {
    let all = sims(3).await;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("workers.json");
    // The first is configured as well, and another has its name.
    let entries = json!([{"url": all[0].url(), "name": "other"}, {"url": all[1].url(), "name": "own"}]);
    std::fs::write(&file, entries.to_string()).unwrap();
    let settings = |files: Value| {
        json!({
            "workers": [{"url": all[0].url(), "name": "own"}],
            "discovery": {"gone_after": "100ms", "files": files},
        })
    };
    let gateway = start(&directory, &settings(json!([file]))).await;
    let second = all[1].addr().to_string();
    let expected = [second.as_str(), "own"];
    fleet_is(&gateway, &expected).await;
    // What operators do stays.
    request(gateway.admin, "POST", &format!("/workers/{second}/drain"), &[], "").await;
    std::fs::write(directory.path().join("warmpath.yaml"), settings(json!([])).to_string()).unwrap();
    request(gateway.admin, "POST", "/admin/reload", &[], "").await;
    fleet_is(&gateway, &["own"]).await;
    let metrics = get(gateway.admin, "/metrics").await.text();
    assert!(!metrics.contains("source=\"file:"), "the series of a source go with it");
    std::fs::write(directory.path().join("warmpath.yaml"), settings(json!([file])).to_string()).unwrap();
    request(gateway.admin, "POST", "/admin/reload", &[], "").await;
    fleet_is(&gateway, &expected).await;
    let standing = get(gateway.admin, &format!("/workers/{second}")).await.json()["standing"].clone();
    assert_eq!(standing, "serving", "it is another worker");
}

#[tokio::test]
async fn a_gateway_without_a_worker_yet_is_not_ready_and_says_so() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("workers.json");
    let settings = json!({"discovery": {"files": [file]}, "timeouts": {"queue": "100ms"}});
    let gateway = start(&directory, &settings).await;
    assert_eq!(get(gateway.admin, "/ready").await.status, 503);
    assert_eq!(gateway.chat("hello").await.status, 503);
    says(&gateway, "cannot read").await;
    let sims = sims(1).await;
    std::fs::write(&file, list(&sims)).unwrap();
    fleet_is(&gateway, &["w0"]).await;
    assert_eq!((get(gateway.admin, "/ready").await.status, gateway.chat("hello").await.status), (200, 200));
}

/// Where a gateway with a source in the DNS asks.
fn dns_settings(dns: &DnsServer, source: Value) -> Value {
    let mut source = source;
    source["servers"] = json!([dns.address.to_string()]);
    json!({
        "routing": {"policy": "round_robin"},
        "health": {"interval": "200ms"},
        "discovery": {"gone_after": "100ms", "dns": [source]},
    })
}

fn names(sims: &[SimHandle]) -> Vec<String> {
    let mut names: Vec<String> = sims.iter().map(|sim| sim.addr().to_string()).collect();
    names.sort();
    names
}

fn texts(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

const SERVICE: &str = "_http._tcp.vllm.test";

/// Every worker is a target of its own.
fn publish(dns: &DnsServer, sims: &[SimHandle], priority: u16) {
    let hosts: Vec<String> = (0..sims.len()).map(|number| format!("gpu{number}.vllm.test")).collect();
    let mut services = Vec::new();
    for (host, sim) in hosts.iter().zip(sims) {
        dns.set_addresses(host, &[sim.addr().ip()]);
        services.push((priority, sim.addr().port(), host.as_str()));
    }
    dns.set_services(SERVICE, &services);
}

#[tokio::test]
async fn srv_records_are_workers_and_their_changes_are_followed() {
    let (dns, sims, directory) = (DnsServer::start().await, sims(3).await, TempDir::new().unwrap());
    publish(&dns, &sims[..2], 10);
    let gateway = start(&directory, &dns_settings(&dns, json!({"name": SERVICE}))).await;
    fleet_is(&gateway, &texts(&names(&sims[..2]))).await;
    assert_eq!(gateway.chat("hello").await.status, 200);
    publish(&dns, &sims, 10);
    fleet_is(&gateway, &texts(&names(&sims))).await;
    // A backup is not used while there are others.
    dns.set_services(
        SERVICE,
        &[(10, sims[0].addr().port(), "gpu0.vllm.test"), (20, sims[1].addr().port(), "gpu1.vllm.test")],
    );
    fleet_is(&gateway, &texts(&names(&sims[..1]))).await;
}

#[tokio::test]
async fn addresses_with_a_configured_port_are_workers() {
    let (dns, sims, directory) = (DnsServer::start().await, sims(1).await, TempDir::new().unwrap());
    dns.set_addresses("vllm.test", &[IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 9])]);
    let port = sims[0].addr().port();
    let gateway = start(&directory, &dns_settings(&dns, json!({"name": "vllm.test", "port": port}))).await;
    fleet_is(&gateway, &[&format!("127.0.0.1:{port}"), &format!("127.0.0.9:{port}")]).await;
    assert_eq!(gateway.chat("hello").await.status, 200, "the one that is not there is not asked");
    dns.set_addresses("vllm.test", &[IpAddr::from([127, 0, 0, 1])]);
    fleet_is(&gateway, &[&format!("127.0.0.1:{port}")]).await;
}

#[tokio::test]
async fn what_a_source_says_of_its_workers_holds_for_each() {
    let (dns, directory) = (DnsServer::start().await, TempDir::new().unwrap());
    let locked = sim(SimConfig { api_key: Some("k3y".to_owned()), ..SimConfig::default() }).await;
    let open = sim(SimConfig::default()).await;
    dns.set_addresses("vllm.test", &[IpAddr::from([127, 0, 0, 1])]);
    let worker = json!({"api_key": "k3y", "role": "decode"});
    let source = json!({"name": "vllm.test", "port": locked.addr().port(), "worker": worker});
    let mut settings = dns_settings(&dns, source);
    let url = urls(std::slice::from_ref(&open)).remove(0);
    settings["workers"] = json!([{"url": url, "name": "open", "models": ["another"]}]);
    let gateway = start(&directory, &settings).await;
    let name = locked.addr().to_string();
    fleet_is(&gateway, &[&name, "open"]).await;
    let workers = gateway.workers().await;
    let found = workers.iter().find(|worker| worker["name"] == name).unwrap();
    assert_eq!(found["role"], "decode");
    // Only the one with the key serves what the other one is not said to serve.
    for (model, expected) in [("sim", name.as_str()), ("another", "open")] {
        let body =
            json!({"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1});
        let reply = gateway.post("/v1/chat/completions", &body).await;
        assert_eq!(reply.header("x-warmpath-worker"), expected, "{model}: {}", reply.text());
        assert_eq!(reply.status == 200, model == "sim", "{model}: {}", reply.text());
    }
}

#[tokio::test]
async fn a_dns_that_fails_or_names_nobody_leaves_the_fleet_as_it_is() {
    let (dns, sims, directory) = (DnsServer::start().await, sims(2).await, TempDir::new().unwrap());
    publish(&dns, &sims, 10);
    let gateway = start(&directory, &dns_settings(&dns, json!({"name": SERVICE}))).await;
    let both = names(&sims);
    fleet_is(&gateway, &texts(&both)).await;
    let up = format!("warmpath_discovery_up{{source=\"dns:{SERVICE}\"}}");
    dns.fail(true);
    metric_is(&gateway, &up, 0.0).await;
    fleet_is(&gateway, &texts(&both)).await;
    dns.fail(false);
    metric_is(&gateway, &up, 1.0).await;
    dns.be_silent(true);
    metric_is(&gateway, &up, 0.0).await;
    dns.be_silent(false);
    dns.set_services(SERVICE, &[]);
    says(&gateway, "names nobody any more").await;
    tokio::time::sleep(Duration::from_millis(300)).await; // longer than gone_after
    fleet_is(&gateway, &texts(&both)).await;
    assert_eq!(gateway.chat("hello").await.status, 200);
    publish(&dns, &sims[..1], 10);
    fleet_is(&gateway, &texts(&names(&sims[..1]))).await;
}
