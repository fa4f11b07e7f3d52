//! Workers come and go while the gateway runs: drained, removed, added, by the admin port and by a reload.

use serde_json::{Value, json};
use tempfile::TempDir;
use warmpath_tests::{Gateway, Reply, SimHandle, eventually, get, request, sims, urls};

/// A gateway in front of `count` workers named `w0`, `w1` …, from a file.
struct Site {
    sims: Vec<SimHandle>,
    directory: TempDir,
    gateway: Gateway,
}

impl Site {
    async fn start(count: u64, listed: usize) -> Self {
        let sims = sims(count).await;
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("warmpath.yaml");
        std::fs::write(&path, file(&sims[..listed])).unwrap();
        let gateway = Gateway::start(&[], &["--config", path.to_str().unwrap()]).await;
        Self { sims, directory, gateway }
    }

    async fn admin(&self, method: &'static str, path: &str, body: &str) -> Reply {
        request(self.gateway.admin, method, path, &[], body.to_owned()).await
    }

    async fn show(&self, name: &str) -> Value {
        get(self.gateway.admin, &format!("/workers/{name}")).await.json()
    }

    async fn reload(&self, listed: &[SimHandle]) -> Reply {
        std::fs::write(self.directory.path().join("warmpath.yaml"), file(listed)).unwrap();
        self.admin("POST", "/admin/reload", "").await
    }

    /// Who serves each of `count` requests.
    async fn served_by(&self, count: usize) -> Vec<String> {
        let mut workers = Vec::new();
        for number in 0..count {
            let reply = self.gateway.chat(&format!("hello {number}")).await;
            assert_eq!(reply.status, 200);
            workers.push(reply.header("x-warmpath-worker").to_owned());
        }
        workers
    }

    async fn names(&self) -> Vec<String> {
        self.gateway.workers().await.iter().map(|w| w["name"].as_str().unwrap().to_owned()).collect()
    }

    async fn gone(&self, name: &str) {
        eventually("the worker is gone", || async {
            (!self.names().await.iter().any(|other| other == name)).then_some(())
        })
        .await;
    }
}

/// Round robin, so that whoever may be chosen is.
fn file(sims: &[SimHandle]) -> String {
    let workers: Vec<Value> = urls(sims)
        .into_iter()
        .enumerate()
        .map(|(number, url)| json!({"url": url, "name": format!("w{number}")}))
        .collect();
    json!({"routing": {"policy": "round_robin"}, "workers": workers}).to_string()
}

#[tokio::test]
async fn a_drained_worker_finishes_what_it_has_and_gets_no_more_until_it_is_put_back() {
    let site = Site::start(2, 2).await;
    let mut stream = site.gateway.stream("a long answer", 300).await;
    stream.next().await.unwrap().unwrap();
    let name = stream.header("x-warmpath-worker").to_owned();
    let drained = site.admin("POST", &format!("/workers/{name}/drain"), "").await;
    assert_eq!((drained.status, &drained.json()["standing"]), (200, &json!("draining")));
    assert!(!site.served_by(6).await.contains(&name));
    let shown = site.show(&name).await;
    assert_eq!(shown["in_flight_requests"], 1, "{shown}");
    assert!(shown["drained_for_seconds"].as_f64().unwrap() > 0.0);
    let series = format!("warmpath_worker_standing{{standing=\"draining\",worker=\"{name}\"}}");
    assert!(site.gateway.metric(&series).await > 0.5);
    // A reload leaves what the admin port has done.
    assert_eq!(site.reload(&site.sims).await.status, 200);
    let (text, ended) = stream.rest().await;
    assert!(ended && text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(site.show(&name).await["standing"], "draining");
    assert!(!site.served_by(4).await.contains(&name));
    let back = site.admin("POST", &format!("/workers/{name}/undrain"), "").await;
    assert_eq!((back.status, &back.json()["standing"]), (200, &json!("serving")));
    assert!(site.served_by(4).await.contains(&name));
}

#[tokio::test]
async fn a_worker_is_removed_when_its_last_request_has_ended() {
    let site = Site::start(2, 2).await;
    let mut stream = site.gateway.stream("a long answer", 300).await;
    stream.next().await.unwrap().unwrap();
    let name = stream.header("x-warmpath-worker").to_owned();
    let removal = site.admin("DELETE", &format!("/workers/{name}"), "").await;
    assert_eq!((removal.status, &removal.json()["standing"]), (202, &json!("leaving")));
    assert!(!site.served_by(4).await.contains(&name));
    assert_eq!(site.show(&name).await["in_flight_requests"], 1);
    let (text, ended) = stream.rest().await;
    assert!(ended && text.ends_with("data: [DONE]\n\n"), "{text}");
    site.gone(&name).await;
    assert_eq!(
        site.show(&name).await["error"],
        format!("there is no worker {name:?} (GET /workers lists them)")
    );
    let metrics = get(site.gateway.admin, "/metrics").await.text();
    assert!(!metrics.contains(&format!("worker=\"{name}\"")), "its series are gone with it");
}

#[tokio::test]
async fn a_removal_by_force_breaks_streams_off_honestly_and_sends_the_rest_elsewhere() {
    let site = Site::start(2, 1).await;
    let mut stream = site.gateway.stream("an endless answer", 100_000).await;
    stream.next().await.unwrap().unwrap();
    let waiting = {
        let address = site.gateway.address;
        let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 100_000, "ignore_eos": true});
        let headers = [("content-type", "application/json")];
        tokio::spawn(async move {
            request(address, "POST", "/v1/chat/completions", &headers, body.to_string()).await
        })
    };
    eventually("both are in flight", || async {
        (site.show("w0").await["in_flight_requests"] == 2).then_some(())
    })
    .await;
    let added =
        site.admin("POST", "/workers", &json!({"url": urls(&site.sims)[1], "name": "w1"}).to_string()).await;
    assert_eq!(added.status, 201);
    assert_eq!(site.admin("DELETE", "/workers/w0?timeout=1h", "").await.status, 202);
    assert!(site.show("w0").await["cut_off_in_seconds"].as_f64().unwrap() > 3000.0);
    assert_eq!(site.admin("DELETE", "/workers/w0?force", "").await.status, 202);
    let (text, ended) = stream.rest().await;
    assert!(!ended || text.contains("\"code\":502"), "the client can tell that it is cut off: {text}");
    site.gone("w0").await;
    eventually("the worker gave up", || async { (site.sims[0].stats().generating == 0).then_some(()) }).await;
    eventually("the other one goes on elsewhere", || async {
        (site.show("w1").await["in_flight_requests"] == 1).then_some(())
    })
    .await;
    waiting.abort();
}

#[tokio::test]
async fn a_worker_that_is_added_is_checked_first_and_then_used() {
    let site = Site::start(2, 1).await;
    let url = urls(&site.sims)[1].clone();
    let added = site.admin("POST", "/workers", &json!({"url": url, "name": "new"}).to_string()).await;
    assert_eq!((added.status, &added.json()["health"]), (201, &json!("healthy")));
    assert!(site.served_by(4).await.contains(&"new".to_owned()));
    let dead = site.admin("POST", "/workers", r#"{"url": "http://127.0.0.1:9", "name": "dead"}"#).await;
    assert_eq!((dead.status, &dead.json()["health"]), (201, &json!("unhealthy")));
    assert!(!site.served_by(4).await.contains(&"dead".to_owned()));
    for (body, status, word) in [
        (json!({"url": url}), 409, "in the fleet already"),
        (json!({"url": "http://127.0.0.1:10", "name": "new"}), 409, "in the fleet already"),
        (json!({"url": "127.0.0.1:10"}), 400, "http://HOST:PORT"),
        (json!({"url": "http://127.0.0.1:10", "nam": "x"}), 400, "nam"),
        (json!({"name": "x"}), 400, "url"),
    ] {
        let reply = site.admin("POST", "/workers", &body.to_string()).await;
        assert_eq!(reply.status, status, "{body}");
        assert!(reply.text().contains(word), "{body}: {}", reply.text());
    }
    assert_eq!(site.admin("DELETE", "/workers/nobody", "").await.status, 404);
    assert_eq!(site.admin("DELETE", "/workers/new?timeout=soon", "").await.status, 400);
    assert_eq!(site.admin("POST", "/workers/nobody/drain", "").await.status, 404);
}

#[tokio::test]
async fn another_worker_under_the_same_name_does_not_inherit_prefixes() {
    let site = Site::start(2, 1).await;
    let prompt = "a prompt that is long enough for some blocks ".repeat(40);
    let matched = async || site.gateway.chat(&prompt).await.header("x-warmpath-matched-tokens").to_owned();
    assert_eq!(matched().await, "0");
    assert_ne!(matched().await, "0");
    assert_eq!(site.admin("DELETE", "/workers/w0", "").await.status, 202);
    site.gone("w0").await;
    let other = json!({"url": urls(&site.sims)[1], "name": "w0"}).to_string();
    assert_eq!(site.admin("POST", "/workers", &other).await.status, 201);
    assert_eq!(matched().await, "0");
    assert_ne!(matched().await, "0");
}

#[tokio::test]
async fn a_reload_brings_workers_in_and_sees_them_off_and_leaves_the_others_alone() {
    let site = Site::start(3, 2).await;
    let prompt = "a prompt that is long enough for some blocks ".repeat(40);
    for _ in 0..2 {
        site.gateway.chat(&prompt).await; // one for each
    }
    let mut stream = site.gateway.stream("a long answer", 300).await;
    stream.next().await.unwrap().unwrap();
    assert_eq!(stream.header("x-warmpath-worker"), "w0");

    // w1 has another address now, so it is another worker.
    let listed = [&site.sims[0], &site.sims[2]].map(SimHandle::addr).map(|addr| format!("http://{addr}"));
    let text = json!({"routing": {"policy": "round_robin"}, "workers": [
        {"url": listed[0], "name": "w0"}, {"url": listed[1], "name": "w1"},
    ]});
    std::fs::write(site.directory.path().join("warmpath.yaml"), text.to_string()).unwrap();
    let reply = site.admin("POST", "/admin/reload", "").await;
    assert_eq!(reply.json(), json!({"changed": ["workers"], "needs_restart": []}));
    eventually("the old one is gone", || async { (site.names().await == ["w0", "w1"]).then_some(()) }).await;
    assert_eq!(site.show("w1").await["url"], listed[1]);
    for _ in 0..2 {
        let reply = site.gateway.chat(&prompt).await;
        let knows = reply.header("x-warmpath-matched-tokens") != "0";
        assert_eq!(knows, reply.header("x-warmpath-worker") == "w0", "only w0 was there before");
    }
    let (text, ended) = stream.rest().await;
    assert!(ended && text.ends_with("data: [DONE]\n\n"), "{text}");

    let reply = site.reload(&site.sims[..1]).await;
    assert_eq!(reply.json()["changed"], json!(["workers"]));
    site.gone("w1").await;
    assert_eq!(site.served_by(2).await, ["w0", "w0"]);
}
