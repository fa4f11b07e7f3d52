//! A Kubernetes API server for a test: a real `kube-apiserver` where one can be had (`real.rs`), else one that speaks its
//! protocol (`recorded.rs`). What a test does with it is the same.

mod real;
mod recorded;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use self::real::START_PATIENCE;
use self::{real::Real, recorded::Recorded};
use crate::{eventually, eventually_within};

/// The token of who may do anything.
pub(crate) const ADMIN: &str = "admin";
/// The token of who may list and watch what a gateway needs.
pub(crate) const READER: &str = "reader";
/// The token of who may do nothing.
pub(crate) const NOBODY: &str = "nobody";

/// The namespace that a test has to itself.
pub const NAMESPACE: &str = "gpu";

const KINDS: [&str; 3] =
    ["pods", "endpointslices.discovery.k8s.io", "inferencepools.inference.networking.k8s.io"];

/// See the module. Ends when dropped.
#[derive(Debug)]
pub struct Cluster {
    server: Server,
    directory: TempDir,
}

#[derive(Debug)]
enum Server {
    Recorded(Recorded),
    Real(Box<Real>),
}

impl Cluster {
    /// One that speaks the protocol, whatever else can be had: of the newest API, and with faults on demand.
    pub async fn recorded() -> Self {
        let readable = KINDS.into_iter().map(str::to_owned).collect();
        let tokens: [(&str, Option<BTreeSet<String>>); 3] =
            [(ADMIN, None), (READER, Some(readable)), (NOBODY, Some(BTreeSet::new()))];
        let tokens: BTreeMap<_, _> =
            tokens.into_iter().map(|(token, kinds)| (token.to_owned(), kinds)).collect();
        let directory = TempDir::new().expect("a directory");
        Self { server: Server::Recorded(Recorded::start(tokens).await), directory }
    }

    /// A real one; none where none can be had.
    pub async fn real() -> Option<Self> {
        let real = Real::start(&real::assets()?).await;
        let cluster =
            Self { server: Server::Real(Box::new(real)), directory: TempDir::new().expect("a directory") };
        cluster.prepare().await;
        Some(cluster)
    }

    /// A kubeconfig of who may list and watch what a gateway needs.
    pub fn reader(&self) -> PathBuf {
        self.kubeconfig(READER)
    }

    /// A kubeconfig of who may do nothing.
    pub fn nobody(&self) -> PathBuf {
        self.kubeconfig(NOBODY)
    }

    /// Goes away, with every connection.
    pub async fn stop(&mut self) {
        match &mut self.server {
            Server::Recorded(server) => server.stop().await,
            Server::Real(server) => server.stop().await,
        }
    }

    /// Is back, with all that it knew.
    pub async fn resume(&mut self) {
        match &mut self.server {
            Server::Recorded(server) => server.resume().await,
            Server::Real(server) => server.resume().await,
        }
    }

    /// Forgets what was, so that watches that go on are told 410.
    ///
    /// # Panics
    ///
    /// With a real server, which forgets in its own time.
    pub fn expire(&self) {
        match &self.server {
            Server::Recorded(server) => server.expire(),
            Server::Real(_) => panic!("a real server forgets in its own time"),
        }
    }

    /// A running pod of `app=vllm` on loopback, with the annotations.
    pub async fn add_pod(&self, name: &str, annotations: Value, is_ready: bool) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "vllm"}, "annotations": annotations},
            // On a node, so that it takes its time to end.
            "spec": {"nodeName": "node", "containers": [{"name": "vllm", "image": "vllm"}]},
        });
        let pod = serde_json::from_value(pod).expect("a pod");
        self.pods().await.create(&PostParams::default(), &pod).await.expect("it is created");
        self.set_status(name, is_ready, "127.0.0.1").await;
    }

    /// What its kubelet would say.
    pub async fn set_ready(&self, name: &str, is_ready: bool) {
        self.set_status(name, is_ready, "127.0.0.1").await;
    }

    /// Asks it to end; it does so in its own time.
    pub async fn terminate(&self, name: &str) {
        self.pods().await.delete(name, &DeleteParams::default()).await.expect("it is deleted");
    }

    /// It is gone.
    pub async fn remove(&self, name: &str) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        self.pods().await.delete(name, &now).await.expect("it is deleted");
    }

    /// Puts an object of any kind in place.
    pub async fn put(&self, kind: (&str, &str, &str), plural: &str, object: Value) {
        let (group, version, kind) = kind;
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        let api: Api<DynamicObject> = Api::namespaced_with(self.client(ADMIN).await, NAMESPACE, &resource);
        let object: DynamicObject = serde_json::from_value(object).expect("an object");
        let name = object.metadata.name.clone().expect("it has a name");
        // A server that has only just learned of the kind may lose a connection over it.
        eventually("it is put in place", || async {
            if api.get_opt(&name).await.ok()?.is_some() {
                api.patch(&name, &PatchParams::default(), &Patch::Merge(&object)).await.ok()
            } else {
                api.create(&PostParams::default(), &object).await.ok()
            }
        })
        .await;
    }

    async fn set_status(&self, name: &str, is_ready: bool, address: &str) {
        let ready = if is_ready { "True" } else { "False" };
        let status = json!({"status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": ready}],
        }});
        let patched =
            self.pods().await.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await;
        patched.expect("its status is changed");
    }

    async fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client(ADMIN).await, NAMESPACE)
    }

    async fn client(&self, token: &str) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig(token)).expect("it was written here");
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("it is whole");
        Client::try_from(config).expect("a client")
    }

    fn kubeconfig(&self, token: &str) -> PathBuf {
        let server = match &self.server {
            Server::Recorded(server) => json!({"server": format!("http://{}", server.address)}),
            Server::Real(server) => json!({
                "server": format!("https://{}", server.address), "certificate-authority": server.authority(),
            }),
        };
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE}}],
        });
        let path = self.directory.path().join(format!("{token}.kubeconfig"));
        std::fs::write(&path, kubeconfig.to_string()).expect("it can be written");
        path
    }

    /// The namespace, and the rules of a gateway.
    async fn prepare(&self) {
        let client = self.client(ADMIN).await;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace: Namespace =
            serde_json::from_value(json!({"metadata": {"name": NAMESPACE}})).expect("one");
        // Until it serves.
        eventually_within(START_PATIENCE, "the API server has a namespace", || async {
            namespaces.create(&PostParams::default(), &namespace).await.ok()
        })
        .await;
        let role = json!({"metadata": {"name": "reader"}, "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        ]});
        let role: Role = serde_json::from_value(role).expect("a role");
        let roles: Api<Role> = Api::namespaced(client.clone(), NAMESPACE);
        eventually("RBAC is there", || async { roles.create(&PostParams::default(), &role).await.ok() })
            .await;
        let binding = json!({
            "metadata": {"name": "reader"},
            "subjects": [{"kind": "User", "name": READER, "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"kind": "Role", "name": "reader", "apiGroup": "rbac.authorization.k8s.io"},
        });
        let binding: RoleBinding = serde_json::from_value(binding).expect("a binding");
        let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), NAMESPACE);
        bindings.create(&PostParams::default(), &binding).await.expect("it is created");
    }
}
