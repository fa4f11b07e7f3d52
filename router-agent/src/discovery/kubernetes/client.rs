//! How the API server is reached, and as whom.

use std::time::Duration;

use kube::{
    Api, Client, Config, Resource,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
    core::NamespaceResourceScope,
};

use super::watch::WATCH_TIMEOUT;
use crate::config::KubernetesSource;

/// How long connecting to the API server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why no cluster is known.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The file of the configuration cannot be used.
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] KubeconfigError),
    /// Neither inside of a pod, nor with a kubeconfig.
    #[error("this is no pod of a cluster, and there is no kubeconfig: {0}")]
    NoCluster(#[from] kube::config::InferConfigError),
    /// Certificates or credentials cannot be used.
    #[error("{0}")]
    Client(#[from] kube::Error),
}

/// A cluster, seen from one namespace of it.
#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) client: Client,
    /// None: all.
    pub(super) namespace: Option<String>,
}

impl Cluster {
    /// Objects of a kind that is in namespaces.
    pub(super) fn api<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(&self) -> Api<K> {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }
}

/// A client for the cluster that is configured. It connects when it is used.
pub(super) async fn connect(source: &KubernetesSource) -> Result<Cluster, ClientError> {
    let mut config = match (&source.kubeconfig, &source.context) {
        (None, None) => Config::infer().await?,
        (path, context) => {
            let kubeconfig = match path {
                Some(path) => Kubeconfig::read_from(path)?,
                None => Kubeconfig::read()?,
            };
            let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(kubeconfig, &options).await?
        }
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // A server that went away without a word is noticed when a watch that it should have ended has not.
    config.read_timeout = Some(WATCH_TIMEOUT + 2 * CONNECT_TIMEOUT);
    config.reset_reader_on_write = true;
    // Whoever watches waits and asks again; before that it says that it has failed.
    config.default_retry = false;
    let namespace = match source.namespace.as_deref() {
        Some("*") => None,
        Some(namespace) => Some(namespace.to_owned()),
        None => Some(config.default_namespace.clone()),
    };
    Ok(Cluster { client: Client::try_from(config)?, namespace })
}
