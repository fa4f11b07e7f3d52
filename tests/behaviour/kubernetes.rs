//! Workers that Kubernetes tells of: the same stories with a real API server, where one can be had, and with one that speaks
//! its protocol; and some that a real one cannot be made to tell.

use std::{future::Future, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use warmpath_tests::{
    Gateway, SimHandle, eventually, eventually_within, get,
    kubernetes::{Cluster, NAMESPACE, START_PATIENCE},
    sims,
};

const POOL: (&str, &str, &str) = ("inference.networking.k8s.io", "v1", "InferencePool");
const SLICE: (&str, &str, &str) = ("discovery.k8s.io", "v1", "EndpointSlice");

/// A gateway that follows a cluster.
struct Site {
    gateway: Gateway,
    _directory: TempDir,
}

impl Site {
    async fn start(kubeconfig: PathBuf, source: Value) -> Self {
        let directory = TempDir::new().unwrap();
        let mut source = source;
        source["kubeconfig"] = json!(kubeconfig);
        let settings = json!({
            "routing": {"policy": "round_robin"},
            "health": {"interval": "200ms"},
            "timeouts": {"queue": "100ms"},
            "discovery": {"gone_after": "100ms", "kubernetes": [source]},
        });
        let path = directory.path().join("warmpath.yaml");
        std::fs::write(&path, settings.to_string()).unwrap();
        let gateway = Gateway::start(&[], &["--config", path.to_str().unwrap()]).await;
        Self { gateway, _directory: directory }
    }

    /// Waits until the fleet is these workers, `NAME STANDING` each.
    async fn fleet_is(&self, expected: &[&str]) {
        eventually(&format!("a fleet of {expected:?}"), || async {
            let shown = |worker: &Value| {
                format!("{} {}", worker["name"].as_str().unwrap(), worker["standing"].as_str().unwrap())
            };
            let mut now: Vec<String> = self.gateway.workers().await.iter().map(shown).collect();
            now.sort();
            (now == expected).then_some(())
        })
        .await;
    }

    async fn says(&self, words: &str) {
        eventually(words, || async { self.gateway.output().contains(words).then_some(()) }).await;
    }

    async fn served_by(&self) -> Vec<String> {
        let mut names = Vec::new();
        for number in 0..6 {
            let reply = self.gateway.chat(&format!("hello {number}")).await;
            assert_eq!(reply.status, 200);
            names.push(reply.header("x-warmpath-worker").to_owned());
        }
        names.sort();
        names.dedup();
        names
    }
}

fn by_label() -> Value {
    json!({"pods": "app=vllm", "namespace": NAMESPACE})
}

/// Where its simulated worker listens.
fn port(sim: &SimHandle) -> Value {
    json!({"warmpath.dev/port": sim.addr().port().to_string()})
}

/// Tells the story with each API server that can be had.
async fn with_each<F: Future<Output = ()>>(story: impl Fn(Cluster) -> F) {
    story(Cluster::recorded().await).await;
    match Cluster::real().await {
        Some(cluster) => story(cluster).await,
        None => {
            eprintln!("skipped with a real API server: KUBEBUILDER_ASSETS names no kube-apiserver and etcd");
        }
    }
}

#[tokio::test]
async fn pods_come_are_not_ready_and_go() {
    with_each(|cluster| async move {
        let sims = sims(3).await;
        cluster.add_pod("a", port(&sims[0]), true).await;
        cluster.add_pod("b", port(&sims[1]), false).await;
        let site = Site::start(cluster.reader(), by_label()).await;
        site.fleet_is(&["a serving"]).await;
        cluster.set_ready("b", true).await;
        cluster.add_pod("c", port(&sims[2]), true).await;
        site.fleet_is(&["a serving", "b serving", "c serving"]).await;
        assert_eq!(site.served_by().await, ["a", "b", "c"]);

        cluster.set_ready("b", false).await;
        site.fleet_is(&["a serving", "b unready", "c serving"]).await;
        assert_eq!(site.served_by().await, ["a", "c"], "one that is not ready gets no requests");
        cluster.set_ready("b", true).await;
        site.fleet_is(&["a serving", "b serving", "c serving"]).await;
        assert_eq!(site.served_by().await, ["a", "b", "c"]);

        cluster.remove("c").await;
        site.fleet_is(&["a serving", "b serving"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_terminates_finishes_what_it_has_and_gets_no_more() {
    with_each(|cluster| async move {
        let sims = sims(2).await;
        cluster.add_pod("a", port(&sims[0]), true).await;
        let site = Site::start(cluster.reader(), by_label()).await;
        site.fleet_is(&["a serving"]).await;
        let mut stream = site.gateway.stream("a long answer", 1_200).await;
        stream.next().await.unwrap().unwrap();
        cluster.add_pod("b", port(&sims[1]), true).await;
        site.fleet_is(&["a serving", "b serving"]).await;
        cluster.terminate("a").await;
        site.fleet_is(&["a leaving", "b serving"]).await;
        assert_eq!(site.served_by().await, ["b"]);
        let (text, ended) = stream.rest().await;
        assert!(ended && text.ends_with("data: [DONE]\n\n"), "{text}");
        site.fleet_is(&["b serving"]).await;
        // The last one, too: it says itself that it ends.
        cluster.terminate("b").await;
        site.fleet_is(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn a_pod_in_the_place_of_another_has_an_empty_cache() {
    with_each(|cluster| async move {
        let sims = sims(1).await;
        cluster.add_pod("a", port(&sims[0]), true).await;
        let site = Site::start(cluster.reader(), by_label()).await;
        site.fleet_is(&["a serving"]).await;
        site.gateway.chat(&"a prompt of many blocks ".repeat(100)).await;
        let blocks = async || get(site.gateway.admin, "/workers/a").await.json()["index_blocks"].as_u64();
        eventually("the index knows the prompt", || async { blocks().await.filter(|blocks| *blocks > 5) })
            .await;
        // The same name, address and port: as a StatefulSet's.
        cluster.remove("a").await;
        cluster.add_pod("a", port(&sims[0]), true).await;
        eventually("the index knows nothing of the new one", || async {
            blocks().await.filter(|blocks| *blocks == 0)
        })
        .await;
        site.fleet_is(&["a serving"]).await;
    })
    .await;
}

#[tokio::test]
async fn an_api_server_that_is_away_leaves_the_fleet_as_it_was() {
    with_each(|mut cluster| async move {
        let sims = sims(2).await;
        cluster.add_pod("a", port(&sims[0]), true).await;
        let site = Site::start(cluster.reader(), by_label()).await;
        site.fleet_is(&["a serving"]).await;
        let source = format!("kubernetes:pods/{NAMESPACE}/app=vllm");
        let up = format!("warmpath_discovery_up{{source=\"{source}\"}}");
        cluster.stop().await;
        site.says("what it said last holds").await;
        eventually("it is down", || async { (site.gateway.metric(&up).await < 0.5).then_some(()) }).await;
        assert_eq!(site.served_by().await, ["a"]);
        cluster.resume().await;
        eventually_within(START_PATIENCE, "it is up", || async {
            (site.gateway.metric(&up).await > 0.5).then_some(())
        })
        .await;
        cluster.add_pod("b", port(&sims[1]), true).await;
        site.fleet_is(&["a serving", "b serving"]).await;
    })
    .await;
}

#[tokio::test]
async fn what_rbac_refuses_is_named_with_the_rule_that_is_missing() {
    with_each(|cluster| async move {
        let site = Site::start(cluster.nobody(), by_label()).await;
        site.says(
            "missing RBAC rule: {apiGroups: [\"\"], resources: [\"pods\"], verbs: [\"list\", \"watch\"]}",
        )
        .await;
        site.says("in namespace gpu").await;
        let reply = site.gateway.chat("hello").await;
        assert_eq!(reply.status, 503);
        let pool = Site::start(cluster.nobody(), json!({"inference_pool": "pool"})).await;
        pool.says("resources: [\"inferencepools\"]").await;
    })
    .await;
}

#[tokio::test]
async fn an_inference_pool_s_pods_are_workers_at_its_target_ports() {
    let cluster = Cluster::recorded().await;
    let sims = sims(2).await;
    let ports: Vec<Value> = sims.iter().map(|sim| json!({"number": sim.addr().port()})).collect();
    let pool = |label: &str, ports: &[Value]| {
        json!({
            "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": "pool"},
            "spec": {
                "selector": {"matchLabels": {"app": label}}, "targetPorts": ports,
                "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
            },
        })
    };
    cluster.add_pod("a", json!({}), true).await;
    let site = Site::start(cluster.reader(), json!({"inference_pool": "pool"})).await;
    site.says("the source answers").await;
    site.fleet_is(&[]).await;
    cluster.put(POOL, "inferencepools", pool("vllm", &ports[..1])).await;
    site.fleet_is(&["a serving"]).await;
    cluster.put(POOL, "inferencepools", pool("vllm", &ports)).await;
    let mut both = sims.iter().map(|sim| format!("a:{} serving", sim.addr().port())).collect::<Vec<_>>();
    both.sort();
    site.fleet_is(&both.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(site.served_by().await.len(), 2);
}

#[tokio::test]
async fn changes_that_a_watch_has_missed_are_listed_anew() {
    let sims = sims(3).await;
    let cluster = Cluster::recorded().await;
    cluster.add_pod("a", port(&sims[0]), true).await;
    cluster.add_pod("b", port(&sims[1]), true).await;
    let site = Site::start(cluster.reader(), by_label()).await;
    site.fleet_is(&["a serving", "b serving"]).await;
    cluster.expire(); // 410 Gone for whoever goes on from before
    cluster.remove("b").await;
    cluster.add_pod("c", port(&sims[2]), true).await;
    cluster.expire();
    site.fleet_is(&["a serving", "c serving"]).await;
    assert!(!site.gateway.output().contains("410"), "nothing is wrong: {}", site.gateway.output());
}

#[tokio::test]
async fn endpoint_slices_of_a_service_are_followed() {
    let sims = sims(3).await;
    let cluster = Cluster::recorded().await;
    let endpoint = |name: &str, conditions: Value| {
        json!({
            "addresses": ["127.0.0.1"], "conditions": conditions,
            "targetRef": {"kind": "Pod", "name": name, "uid": format!("uid of {name}")},
        })
    };
    let slice = |number: usize, endpoints: Value| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("vllm-{number}"), "labels": {"kubernetes.io/service-name": "vllm"}},
            "endpoints": endpoints, "ports": [{"name": "http", "port": sims[number].addr().port()}],
        })
    };
    let put = async |number: usize, endpoints: Value| {
        cluster.put(SLICE, "endpointslices", slice(number, endpoints)).await;
    };
    let ready = json!({"ready": true});
    put(0, json!([endpoint("a", ready.clone())])).await;
    put(1, json!([endpoint("b", json!({"ready": false}))])).await;
    let mut other = slice(2, json!([endpoint("other", ready.clone())]));
    other["metadata"]["labels"]["kubernetes.io/service-name"] = json!("another");
    cluster.put(SLICE, "endpointslices", other).await;
    let site = Site::start(cluster.reader(), json!({"service": "vllm"})).await;
    site.fleet_is(&["a serving"]).await;
    put(1, json!([endpoint("b", ready.clone())])).await;
    site.fleet_is(&["a serving", "b serving"]).await;
    put(1, json!([endpoint("b", json!({"ready": false}))])).await;
    site.fleet_is(&["a serving", "b unready"]).await;
    put(1, json!([endpoint("b", json!({"ready": false, "serving": true, "terminating": true}))])).await;
    site.fleet_is(&["a serving"]).await;
    put(0, json!([])).await;
    site.says("names nobody any more").await;
    site.fleet_is(&["a serving"]).await;
    assert_eq!(
        site.served_by().await,
        ["a"],
        "a Service that lost its endpoints is no reason to serve nobody"
    );
}

#[tokio::test]
async fn annotations_say_models_and_a_wrong_one_is_named() {
    let sims = sims(2).await;
    let cluster = Cluster::recorded().await;
    let mut annotations = port(&sims[0]);
    annotations["warmpath.dev/models"] = json!("base, sql-lora");
    annotations["warmpath.dev/kv-events"] = json!("off");
    cluster.add_pod("a", annotations, true).await;
    let mut annotations = port(&sims[1]);
    annotations["warmpath.dev/kv-events"] = json!("5557");
    cluster.add_pod("b", annotations, true).await;
    let site = Site::start(cluster.reader(), by_label()).await;
    site.fleet_is(&["a serving", "b serving"]).await;
    site.says("annotation=\"warmpath.dev/kv-events\"").await;
    let ask = async |model: &str| {
        let body =
            json!({"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1});
        site.gateway.post("/v1/chat/completions", &body).await.header("x-warmpath-worker").to_owned()
    };
    for _ in 0..3 {
        assert_eq!(ask("sql-lora").await, "a", "b has not listed it");
    }
}
