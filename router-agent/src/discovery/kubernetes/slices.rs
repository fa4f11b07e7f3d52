//! The EndpointSlices of a Service: each endpoint is a worker. They say nothing of a worker but its address and its pod.

use std::collections::HashSet;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::runtime::watcher::Config;

use super::{
    super::{Found, Readiness, teller::Teller},
    annotations::{Complaints, PORT},
    client::Cluster,
    error::Needed,
    port::Ports,
    watch::Watched,
};
use crate::config::KubernetesSource;

/// The label that names the Service.
const SERVICE: &str = "kubernetes.io/service-name";

/// Workers of one slice.
#[derive(Debug)]
struct Slice {
    is_ipv4: bool,
    workers: Vec<Found>,
}

/// Tells the Service's workers, for ever.
pub(super) async fn follow(cluster: &Cluster, service: &str, source: &KubernetesSource, teller: &Teller) {
    let needed = Needed {
        group: "discovery.k8s.io",
        resource: "endpointslices",
        namespace: cluster.namespace.as_deref(),
    };
    let mut complaints = Complaints::default();
    let read = |slice: &EndpointSlice| read(slice, service, source, &mut complaints);
    let labels = Config::default().labels(&format!("{SERVICE}={service}"));
    let mut slices = Watched::new(cluster.api::<EndpointSlice>(), labels, needed, read);
    loop {
        match slices.next().await {
            Ok(slices) => teller.answer(all(&slices.values())).await,
            Err(failure) => teller.fail(failure).await,
        }
    }
}

/// A pod with two addresses has two endpoints, and is one worker: by IPv4.
fn all<'a>(slices: &(impl Iterator<Item = &'a Slice> + Clone)) -> Vec<Found> {
    let of_family = |is_ipv4| slices.clone().filter(move |slice| slice.is_ipv4 == is_ipv4);
    let ipv4: Vec<Found> = of_family(true).flat_map(|slice| slice.workers.iter().cloned()).collect();
    let pod = |found: &Found| found.worker.incarnation.clone().map(|uid| (uid, found.worker.url.port));
    let known: HashSet<_> = ipv4.iter().filter_map(pod).collect();
    let others = of_family(false).flat_map(|slice| slice.workers.iter());
    let others: Vec<Found> =
        others.filter(|found| pod(found).is_none_or(|pod| !known.contains(&pod))).cloned().collect();
    [ipv4, others].concat()
}

fn read(
    slice: &EndpointSlice,
    service: &str,
    source: &KubernetesSource,
    complaints: &mut Complaints,
) -> Slice {
    let is_ipv4 = slice.address_type == "IPv4";
    let endpoints = slice.endpoints.as_deref().unwrap_or_default();
    let Some(port) = ports(slice).choose(source.port.as_ref()) else {
        if !endpoints.is_empty() {
            let why = "its endpoints are left out: write `port` in the source, or name one of the Service's ports http";
            complaints.make(service, PORT, why);
        }
        return Slice { is_ipv4, workers: Vec::new() };
    };
    let worker = |endpoint: &Endpoint| {
        let address = endpoint.addresses.first()?;
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
        let name = pod.and_then(|pod| pod.name.clone());
        let uid = pod.and_then(|pod| pod.uid.clone());
        let worker = source.worker.at(address, port, name, uid);
        Some(Found { worker, readiness: readiness(endpoint) })
    };
    Slice { is_ipv4, workers: endpoints.iter().filter_map(worker).collect() }
}

fn readiness(endpoint: &Endpoint) -> Readiness {
    let Some(conditions) = &endpoint.conditions else { return Readiness::Ready };
    if conditions.terminating == Some(true) {
        Readiness::Ending
    } else if conditions.ready == Some(false) {
        Readiness::Unready
    } else {
        Readiness::Ready // nothing said: it is, says the API
    }
}

/// A slice has its Service's target ports.
fn ports(slice: &EndpointSlice) -> Ports<'_> {
    let ports = slice.ports.iter().flatten();
    let port = ports
        .filter_map(|port| Some((port.name.as_deref().unwrap_or_default(), u16::try_from(port.port?).ok()?)));
    Ports(port.collect())
}

#[cfg(test)]
mod tests;
