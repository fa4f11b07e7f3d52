//! Pods that a label selector matches: each is a worker, at its own address.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{ResourceExt, runtime::watcher::Config};

use super::{
    super::{Found, Readiness, teller::Teller},
    annotations::{self, Complaints},
    client::Cluster,
    error::Needed,
    port,
    watch::Watched,
};
use crate::config::{KubernetesPort, KubernetesSource};

/// Where the workers in a pod listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ports {
    /// One worker: at the port of its annotation, or at this one, or at the only one.
    Own(Option<KubernetesPort>),
    /// A worker at each of them.
    All(Vec<u16>),
}

/// Tells the workers in the pods, for ever.
pub(super) async fn follow(cluster: &Cluster, selector: &str, source: &KubernetesSource, teller: &Teller) {
    follow_at(cluster, selector, &Ports::Own(source.port.clone()), source, teller).await;
}

/// The same, with the ports that somebody else says.
pub(super) async fn follow_at(
    cluster: &Cluster,
    selector: &str,
    ports: &Ports,
    source: &KubernetesSource,
    teller: &Teller,
) {
    let needed = Needed { group: "", resource: "pods", namespace: cluster.namespace.as_deref() };
    let mut complaints = Complaints::default();
    let is_everywhere = cluster.namespace.is_none();
    let read = |pod: &Pod| workers(pod, ports, source, is_everywhere, &mut complaints);
    let mut pods = Watched::new(cluster.api::<Pod>(), Config::default().labels(selector), needed, read);
    loop {
        match pods.next().await {
            Ok(pods) => teller.answer(pods.values().flatten().cloned().collect()).await,
            Err(failure) => teller.fail(failure).await,
        }
    }
}

fn workers(
    pod: &Pod,
    ports: &Ports,
    source: &KubernetesSource,
    is_everywhere: bool,
    complaints: &mut Complaints,
) -> Vec<Found> {
    // Without an address it is not there yet.
    let Some((status, address)) =
        pod.status.as_ref().and_then(|status| Some((status, status.pod_ip.as_ref()?)))
    else {
        return Vec::new();
    };
    let name = pod.name_any();
    let place = format!("{}/{name}", pod.namespace().unwrap_or_default());
    let readiness = readiness(pod, status);
    let shown = if is_everywhere { &place } else { &name };
    let (ports, is_one) = match ports {
        Ports::All(ports) => (ports.clone(), ports.len() == 1),
        Ports::Own(port) => match own_port(pod, port.as_ref(), &place, complaints) {
            Some(port) => (vec![port], true),
            None => return Vec::new(),
        },
    };
    let found = |port: u16| {
        let name = if is_one { shown.clone() } else { format!("{shown}:{port}") };
        let mut worker = source.worker.at(address, port, Some(name), pod.uid());
        annotations::apply(pod.annotations(), &place, &mut worker, complaints);
        Found { worker, readiness }
    };
    ports.into_iter().map(found).collect()
}

fn readiness(pod: &Pod, status: &PodStatus) -> Readiness {
    let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if has_ended || pod.metadata.deletion_timestamp.is_some() {
        return Readiness::Ending;
    }
    let mut conditions = status.conditions.iter().flatten();
    let is_ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
    if is_ready { Readiness::Ready } else { Readiness::Unready }
}

/// The annotation's, or what is configured, or the only one, or the one that is called `http`.
fn own_port(
    pod: &Pod,
    configured: Option<&KubernetesPort>,
    place: &str,
    complaints: &mut Complaints,
) -> Option<u16> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
        Some((port.name.as_deref().unwrap_or_default(), u16::try_from(port.container_port).ok()?))
    });
    let ports = port::Ports(ports.collect());
    if let Some(text) = pod.annotations().get(annotations::PORT) {
        if let Some(port) = text.parse().ok().filter(|port| *port != 0).or_else(|| ports.named(text)) {
            return Some(port);
        }
        let why = format!("{text:?} is neither a port nor the name of one of its containers' ports");
        complaints.make(place, annotations::PORT, &why);
    }
    let port = ports.choose(configured);
    if port.is_none() {
        let why = "the pod is left out: write this annotation, or `port` in the source, or name one of its ports http";
        complaints.make(place, annotations::PORT, why);
    }
    port
}

#[cfg(test)]
mod tests;
