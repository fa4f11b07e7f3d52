//! A real `kube-apiserver` with its `etcd`, where the two can be had: in the directory that `KUBEBUILDER_ASSETS` names, as
//! controller-runtime's envtest takes it. No scheduler, no kubelet: what nodes would say of pods, the tests say.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    sync::{Mutex, MutexGuard},
};

use super::{ADMIN, NOBODY, READER};
use crate::{Authority, eventually_within};

/// How long the two may take to start: they are large, and a test machine may be busy.
pub const START_PATIENCE: Duration = Duration::from_mins(3);

/// One at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// See the module. Killed when dropped.
#[derive(Debug)]
pub(super) struct Real {
    pub(super) address: SocketAddr,
    directory: TempDir,
    authority: Authority,
    assets: PathBuf,
    etcd_address: SocketAddr,
    _etcd: Child,
    server: Option<Child>,
    _turn: MutexGuard<'static, ()>,
}

/// Where the programs are; none: there are none.
pub(super) fn assets() -> Option<PathBuf> {
    let directory = PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS")?);
    ["kube-apiserver", "etcd"].iter().all(|program| directory.join(program).is_file()).then_some(directory)
}

impl Real {
    /// Both, with three tokens.
    pub(super) async fn start(assets: &Path) -> Self {
        let turn = TURN.lock().await;
        let directory = TempDir::new().expect("a directory for its data");
        let [etcd_address, peers, address] = free_ports();
        let etcd = Command::new(assets.join("etcd"))
            .arg("--data-dir")
            .arg(directory.path().join("etcd"))
            .args(["--listen-client-urls", &format!("http://{etcd_address}")])
            .args(["--advertise-client-urls", &format!("http://{etcd_address}")])
            .args(["--listen-peer-urls", &format!("http://{peers}"), "--unsafe-no-fsync"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("etcd starts");
        let tokens = [(ADMIN, "system:masters"), (READER, "readers"), (NOBODY, "nobodies")];
        let tokens = tokens.map(|(token, group)| format!("{token},{token},{token},{group}\n")).concat();
        std::fs::write(directory.path().join("tokens.csv"), tokens).expect("it can be written");
        let authority = Authority::default();
        authority.server("server");
        let assets = assets.to_owned();
        let mut real = Self {
            address,
            directory,
            authority,
            assets,
            etcd_address,
            _etcd: etcd,
            server: None,
            _turn: turn,
        };
        real.resume().await;
        real
    }

    /// The CA of its certificate.
    pub(super) fn authority(&self) -> PathBuf {
        self.authority.path("ca.pem")
    }

    pub(super) async fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().await.expect("it can be killed");
        }
    }

    /// Starts the API server, and waits until it takes connections.
    pub(super) async fn resume(&mut self) {
        let path = |name: &str| self.directory.path().join(name);
        let (certificate, key) = (self.authority.path("server.pem"), self.authority.path("server.key"));
        let server = Command::new(self.assets.join("kube-apiserver"))
            .args(["--etcd-servers", &format!("http://{}", self.etcd_address)])
            .args(["--bind-address", "127.0.0.1", "--secure-port", &self.address.port().to_string()])
            .args(["--advertise-address", "127.0.0.1", "--service-cluster-ip-range", "10.0.0.0/24"])
            .args(["--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount"])
            .args(["--service-account-issuer", "https://test", "--allow-privileged=true"])
            .arg("--tls-cert-file")
            .arg(&certificate)
            .arg("--tls-private-key-file")
            .arg(&key)
            .arg("--token-auth-file")
            .arg(path("tokens.csv"))
            .arg("--service-account-key-file")
            .arg(&certificate) // its public key
            .arg("--service-account-signing-key-file")
            .arg(&key)
            .stdout(Stdio::null())
            .stderr(Stdio::from(std::fs::File::create(path("log")).expect("it can be written")))
            .kill_on_drop(true)
            .spawn()
            .expect("kube-apiserver starts");
        self.server = Some(server);
        eventually_within(START_PATIENCE, "kube-apiserver takes connections", || async {
            tokio::net::TcpStream::connect(self.address).await.ok()
        })
        .await;
    }
}

/// Ports of loopback that are free now.
fn free_ports() -> [SocketAddr; 3] {
    let listeners = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has ports"));
    listeners.map(|listener| listener.local_addr().expect("it is bound"))
}
