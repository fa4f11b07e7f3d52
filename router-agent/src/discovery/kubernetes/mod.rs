//! Objects of a Kubernetes cluster: EndpointSlices of a Service, pods by a label selector, or the pods of an InferencePool.
//!
//! Objects are listed once and then watched ([`watch`]). A connection that is lost is made again with a pause that grows to
//! 30 seconds, and the watch goes on where it was; where the server no longer knows what was there (410 Gone), it lists
//! anew. Needed of RBAC: `list` and `watch` on the kind of objects, in their namespace; docs/kubernetes.md has the rules.

mod annotations;
mod client;
mod error;
mod pods;
mod pool;
mod port;
mod slices;
mod watch;

use std::time::Duration;

use tokio::time::sleep;

use super::teller::Teller;
use crate::config::{KubernetesObjects, KubernetesSource};

/// Pause before a cluster that cannot be found is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Tells which workers there are, for ever.
pub(super) async fn follow(source: KubernetesSource, teller: Teller) {
    let cluster = loop {
        match client::connect(&source).await {
            Ok(cluster) => break cluster,
            Err(error) => teller.fail(error).await,
        }
        sleep(LOOK_AGAIN).await;
    };
    match &source.objects {
        KubernetesObjects::Service(name) => slices::follow(&cluster, name, &source, &teller).await,
        KubernetesObjects::Pods(selector) => pods::follow(&cluster, selector, &source, &teller).await,
        KubernetesObjects::InferencePool(name) => pool::follow(&cluster, name, &source, &teller).await,
    }
}
