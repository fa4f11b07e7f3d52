//! `discovery:` as an operator may see it.

use serde_json::{Value, json};

use super::{
    Discovery, DnsSource, KubernetesSource, Source, WorkerTemplate,
    shown::{kv_events, masked, time},
};

/// The section; what is not set is null.
pub(super) fn shown(discovery: &Discovery) -> Value {
    let Discovery { sources, gone_after, drain_timeout } = discovery;
    let (mut files, mut names, mut objects) = (Vec::new(), Vec::new(), Vec::new());
    for source in sources {
        match source {
            Source::File(path) => files.push(json!(path)),
            Source::Dns(source) => names.push(dns(source)),
            Source::Kubernetes(source) => objects.push(kubernetes(source)),
        }
    }
    json!({
        "gone_after": time(*gone_after),
        "drain_timeout": time(*drain_timeout),
        "files": files,
        "dns": names,
        "kubernetes": objects,
    })
}

fn dns(source: &DnsSource) -> Value {
    let DnsSource { name, port, interval, servers, worker } = source;
    json!({ "name": name, "port": port, "interval": time(*interval), "servers": servers, "worker": template(worker) })
}

fn kubernetes(source: &KubernetesSource) -> Value {
    let KubernetesSource { objects, namespace, port, kubeconfig, context, worker } = source;
    let (kind, name) = objects.kind_and_name();
    json!({
        kind: name,
        "namespace": namespace,
        "port": port,
        "kubeconfig": kubeconfig,
        "context": context,
        "worker": template(worker),
    })
}

fn template(template: &WorkerTemplate) -> Value {
    let WorkerTemplate { role, is_tls, kv_events: events, authorization, tls, models } = template;
    json!({
        "role": role,
        "scheme": if *is_tls { "https" } else { "http" },
        "kv_events": kv_events(events),
        "api_key": masked(authorization.as_ref()),
        "tls": tls.as_ref().map(|tls| json!({ "ca": tls.ca(), "server_name": tls.name() })),
        "models": models,
    })
}
