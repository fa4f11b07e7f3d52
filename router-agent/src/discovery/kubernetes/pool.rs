//! An `InferencePool` (Gateway API inference extension, `inference.networking.k8s.io/v1`): the pods that it selects, a
//! worker at each of its target ports.

use std::collections::BTreeMap;

use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::watcher::Config,
};
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    super::teller::Teller,
    client::Cluster,
    error::Needed,
    pods::{self, Ports},
    watch::Watched,
};
use crate::config::KubernetesSource;

const GROUP: &str = "inference.networking.k8s.io";
const RESOURCE: &str = "inferencepools";

/// What matters of a pool here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    selector: Selector,
    target_ports: Vec<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Port {
    number: u16,
}

/// What is known of the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pool {
    /// Nobody has said yet.
    Unknown,
    /// There is none of this name.
    Absent,
    /// It is as this says.
    Present(Spec),
}

/// Tells the pool's workers, for ever.
pub(super) async fn follow(cluster: &Cluster, name: &str, source: &KubernetesSource, teller: &Teller) {
    let (publish, pool) = watch::channel(Pool::Unknown);
    tokio::join!(watch_pool(cluster, name, teller, publish), follow_pods(cluster, source, teller, pool));
}

async fn watch_pool(cluster: &Cluster, name: &str, teller: &Teller, publish: watch::Sender<Pool>) {
    let namespace = cluster.namespace.as_deref();
    let kind = GroupVersionKind::gvk(GROUP, "v1", "InferencePool");
    let resource = ApiResource::from_gvk_with_plural(&kind, RESOURCE);
    let client = cluster.client.clone();
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    let needed = Needed { group: GROUP, resource: RESOURCE, namespace };
    let read = |pool: &DynamicObject| pool.data.get("spec").and_then(Spec::read);
    let config = Config::default().fields(&format!("metadata.name={name}"));
    let mut pools = Watched::new(api, config, needed, read);
    loop {
        let pool = match pools.next().await {
            Err(failure) => {
                teller.fail(failure).await;
                continue;
            }
            Ok(pools) => match pools.values().next() {
                None => Pool::Absent,
                Some(Some(spec)) => Pool::Present(spec.clone()),
                Some(None) => {
                    teller.fail(format!("InferencePool {name} has no `selector` or no `targetPorts`")).await;
                    continue;
                }
            },
        };
        publish.send_if_modified(|published| {
            let is_news = *published != pool;
            *published = pool;
            is_news
        });
    }
}

async fn follow_pods(
    cluster: &Cluster,
    source: &KubernetesSource,
    teller: &Teller,
    mut pool: watch::Receiver<Pool>,
) {
    loop {
        let now = pool.borrow_and_update().clone();
        match now {
            Pool::Unknown => {}
            Pool::Absent => teller.answer(Vec::new()).await,
            Pool::Present(spec) => {
                let selector = spec.selector();
                let ports = Ports::All(spec.target_ports.iter().map(|port| port.number).collect());
                tokio::select! {
                    () = pods::follow_at(cluster, &selector, &ports, source, teller) => {}
                    changed = pool.changed() => if changed.is_err() { return },
                }
                continue;
            }
        }
        if pool.changed().await.is_err() {
            return;
        }
    }
}

impl Spec {
    /// None if it is no pool's, or selects whatever there is.
    fn read(spec: &serde_json::Value) -> Option<Self> {
        let spec = Self::deserialize(spec).ok()?;
        let is_whole = !spec.selector.match_labels.is_empty() && !spec.target_ports.is_empty();
        is_whole.then_some(spec)
    }

    /// As a label selector of a request.
    fn selector(&self) -> String {
        let labels = self.selector.match_labels.iter().map(|(label, value)| format!("{label}={value}"));
        labels.collect::<Vec<_>>().join(",")
    }
}
