//! EndpointSlices as the API server writes them.

use serde_json::{Value, json};

use super::*;
use crate::config::{KubernetesObjects, KubernetesPort, WorkerTemplate};

fn source(port: Option<KubernetesPort>) -> KubernetesSource {
    KubernetesSource {
        objects: KubernetesObjects::Service("vllm".to_owned()),
        namespace: None,
        port,
        kubeconfig: None,
        context: None,
        worker: WorkerTemplate::default(),
    }
}

fn slice(family: &str, endpoints: &Value, ports: &Value) -> EndpointSlice {
    let slice = json!({"metadata": {"name": "vllm-x"}, "addressType": family, "endpoints": endpoints, "ports": ports});
    serde_json::from_value(slice).expect("a slice")
}

fn endpoint(address: &str, pod: &str, conditions: &Value) -> Value {
    json!({
        "addresses": [address],
        "conditions": conditions,
        "targetRef": {"kind": "Pod", "name": pod, "uid": format!("uid of {pod}")},
    })
}

fn read_one(slice: &EndpointSlice, port: Option<KubernetesPort>) -> Slice {
    read(slice, "vllm", &source(port), &mut Complaints::default())
}

/// `NAME URL READINESS`.
fn show(found: &[Found]) -> Vec<String> {
    found
        .iter()
        .map(|found| format!("{} {} {:?}", found.worker.name, found.worker.url, found.readiness))
        .collect()
}

#[test]
fn endpoints_are_workers_as_their_conditions_say() {
    let endpoints = json!([
        endpoint("10.0.0.1", "a", &json!({"ready": true, "serving": true, "terminating": false})),
        endpoint("10.0.0.2", "b", &json!({"ready": false})),
        endpoint("10.0.0.3", "c", &json!({"ready": false, "serving": true, "terminating": true})),
        {"addresses": ["10.0.0.4"]},
    ]);
    let slice = slice("IPv4", &endpoints, &json!([{"name": "http", "port": 8000}]));
    let expected = [
        "a http://10.0.0.1:8000 Ready",
        "b http://10.0.0.2:8000 Unready",
        "c http://10.0.0.3:8000 Ending",
        "10.0.0.4:8000 http://10.0.0.4:8000 Ready",
    ];
    assert_eq!(show(&read_one(&slice, None).workers), expected);
}

#[test]
fn the_port_is_the_source_s_or_the_only_one_or_the_one_that_is_called_http() {
    let port = |ports: &Value, configured: Option<KubernetesPort>| {
        let slice = slice("IPv4", &json!([endpoint("10.0.0.1", "a", &json!({}))]), ports);
        read_one(&slice, configured).workers.first().map(|found| found.worker.url.port)
    };
    let two = json!([{"name": "metrics", "port": 9090}, {"name": "http", "port": 8000}]);
    assert_eq!(port(&two, None), Some(8000));
    assert_eq!(port(&two, Some(KubernetesPort::Name("metrics".to_owned()))), Some(9090));
    assert_eq!(port(&two, Some(KubernetesPort::Number(7))), Some(7));
    assert_eq!(port(&json!([{"port": 8000}]), None), Some(8000));
    assert_eq!(port(&json!([{"name": "a", "port": 1}, {"name": "b", "port": 2}]), None), None);
}

#[test]
fn a_pod_with_an_address_of_either_family_is_one_worker() {
    let ports = json!([{"name": "http", "port": 8000}]);
    let of = |family, endpoints: &Value| read_one(&slice(family, endpoints, &ports), None);
    let slices = [
        of(
            "IPv6",
            &json!([endpoint("fd00::1", "a", &json!({})), endpoint("fd00::9", "only-ipv6", &json!({}))]),
        ),
        of("IPv4", &json!([endpoint("10.0.0.1", "a", &json!({}))])),
    ];
    let expected = ["a http://10.0.0.1:8000 Ready", "only-ipv6 http://[fd00::9]:8000 Ready"];
    assert_eq!(show(&all(&slices.iter())), expected);
}
