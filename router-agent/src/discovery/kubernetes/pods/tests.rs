//! Pods as the API server writes them.

use serde_json::{Value, json};

use super::*;
use crate::config::{KubernetesObjects, WorkerTemplate};

fn source(port: Option<KubernetesPort>) -> KubernetesSource {
    KubernetesSource {
        objects: KubernetesObjects::Pods("app=vllm".to_owned()),
        namespace: None,
        port,
        kubeconfig: None,
        context: None,
        worker: WorkerTemplate::default(),
    }
}

fn pod(change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "metadata": {"name": "vllm-0", "namespace": "gpu", "uid": "u-1", "annotations": {}},
        "spec": {"containers": [
            {"name": "vllm", "ports": [{"name": "http", "containerPort": 8000}, {"name": "kv", "containerPort": 5557}]}
        ]},
        "status": {"phase": "Running", "podIP": "10.1.2.3", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    change(&mut pod);
    serde_json::from_value(pod).expect("a pod")
}

/// `NAME URL READINESS` of each worker.
fn read(pod: &Pod, ports: &Ports) -> Vec<String> {
    let source = source(None);
    let found = workers(pod, ports, &source, false, &mut Complaints::default());
    found
        .iter()
        .map(|found| format!("{} {} {:?}", found.worker.name, found.worker.url, found.readiness))
        .collect()
}

#[test]
fn a_pod_is_a_worker_at_the_port_that_is_called_http() {
    let found = read(&pod(|_| ()), &Ports::Own(None));
    assert_eq!(found, ["vllm-0 http://10.1.2.3:8000 Ready"]);
    let ipv6 = pod(|pod| pod["status"]["podIP"] = json!("fd00::7"));
    assert_eq!(read(&ipv6, &Ports::Own(None)), ["vllm-0 http://[fd00::7]:8000 Ready"]);
}

#[test]
fn readiness_is_the_condition_s_and_a_pod_that_is_deleted_or_done_is_ending() {
    let readiness = |change: fn(&mut Value)| {
        let found = read(&pod(change), &Ports::Own(None));
        found.first().map(|found| found.rsplit(' ').next().unwrap_or_default().to_owned())
    };
    assert_eq!(
        readiness(|pod| pod["status"]["conditions"][0]["status"] = json!("False")).as_deref(),
        Some("Unready")
    );
    assert_eq!(readiness(|pod| pod["status"]["conditions"] = json!([])).as_deref(), Some("Unready"));
    assert_eq!(readiness(|pod| pod["status"]["phase"] = json!("Failed")).as_deref(), Some("Ending"));
    let deleted = |pod: &mut Value| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(readiness(deleted).as_deref(), Some("Ending"));
    assert_eq!(
        readiness(|pod| pod["status"]["podIP"] = Value::Null),
        None,
        "without an address it is not there"
    );
}

#[test]
fn the_port_is_the_annotation_s_or_the_source_s_or_the_pod_s() {
    let port = |annotation: Option<&str>, configured: Option<KubernetesPort>, change: fn(&mut Value)| {
        let pod = pod(|pod| {
            if let Some(annotation) = annotation {
                pod["metadata"]["annotations"]["warmpath.dev/port"] = json!(annotation);
            }
            change(pod);
        });
        let ports = Ports::Own(configured.clone());
        let found = workers(&pod, &ports, &source(configured), false, &mut Complaints::default());
        found.first().map(|found| found.worker.url.port)
    };
    let named = |name: &str| Some(KubernetesPort::Name(name.to_owned()));
    let only_kv = |pod: &mut Value| {
        drop(pod["spec"]["containers"][0]["ports"].as_array_mut().map(|ports| ports.remove(0)));
    };
    let none = |pod: &mut Value| pod["spec"]["containers"][0]["ports"] = json!([]);
    assert_eq!(port(Some("9000"), named("kv"), |_| ()), Some(9000));
    assert_eq!(port(Some("kv"), None, |_| ()), Some(5557));
    assert_eq!(port(Some("no such"), Some(KubernetesPort::Number(7)), |_| ()), Some(7));
    assert_eq!(port(None, named("kv"), |_| ()), Some(5557));
    assert_eq!(port(None, None, only_kv), Some(5557), "the only one");
    assert_eq!(port(None, None, none), None);
}

#[test]
fn a_pool_s_pod_is_a_worker_at_each_target_port() {
    let found = read(&pod(|_| ()), &Ports::All(vec![8000, 8001]));
    assert_eq!(found, ["vllm-0:8000 http://10.1.2.3:8000 Ready", "vllm-0:8001 http://10.1.2.3:8001 Ready"]);
}

#[test]
fn a_worker_of_all_namespaces_is_named_with_its_own_and_a_long_name_is_an_address() {
    let name = |pod: &Pod| {
        let ports = Ports::Own(None);
        workers(pod, &ports, &source(None), true, &mut Complaints::default())[0].worker.name.clone()
    };
    assert_eq!(name(&pod(|_| ())), "gpu/vllm-0");
    assert_eq!(name(&pod(|pod| pod["metadata"]["name"] = json!("v".repeat(80)))), "10.1.2.3:8000");
}
