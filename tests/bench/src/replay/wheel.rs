//! Routers that come as Python wheels around a Rust program: `sglang-router`, `vllm-router` and `smg`, each with its
//! cache-aware policy.
//!
//! Each is installed, at a fixed version, into a virtual environment of its own under `--peers`; two of them bring a
//! command of the same name. They are started as a Python process that enters the Rust program and stays in it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::processes::{get, output};

/// Registration of all workers, after the router answers.
const WORKERS_TIMEOUT: Duration = Duration::from_secs(20);

/// One such router.
#[derive(Debug)]
pub(super) struct Wheel {
    pub(super) name: &'static str,
    version: &'static str,
    /// Python module that starts it.
    module: &'static str,
    /// Beside those that every one of them takes.
    arguments: &'static [&'static str],
}

/// Settings are the routers' own defaults but for these:
///
/// - Less is logged, as in our gateway.
/// - `smg` polls its workers' load every second instead of every ten: the replay's clock runs faster than its own. And
///   it is asked to end within a second, when all is answered.
const WHEELS: [Wheel; 3] = [
    Wheel {
        name: "sglang-router",
        version: "0.3.2",
        module: "sglang_router.launch_router",
        arguments: &["--log-level", "warn"],
    },
    Wheel {
        name: "vllm-router",
        version: "0.1.17",
        module: "vllm_router.launch_router",
        arguments: &["--log-level", "warning"],
    },
    Wheel {
        name: "smg",
        version: "1.13.0",
        module: "smg.launch_router",
        arguments: &[
            "--log-level",
            "warn",
            "--load-monitor-interval",
            "1",
            "--shutdown-grace-period-secs",
            "1",
        ],
    },
];

pub(super) fn find(name: &str) -> Option<&'static Wheel> {
    WHEELS.iter().find(|wheel| wheel.name == name)
}

impl Wheel {
    /// Name and version, as pip wants them.
    pub(super) fn package(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }

    fn environment(&self, peers: &Path) -> PathBuf {
        peers.join(format!("{}-{}", self.name, self.version))
    }

    pub(super) fn python(&self, peers: &Path) -> PathBuf {
        self.environment(peers).join("bin/python")
    }

    /// Installs it if it is not there.
    pub(super) fn install(&self, peers: &Path) -> Result<()> {
        let python = self.python(peers);
        let script = format!("import importlib.metadata as m; print(m.version('{}'))", self.name);
        let installed = || output(&python, &["-c", &script]);
        if !installed().is_ok_and(|version| version == self.version) {
            let environment = self.environment(peers);
            let directory = environment.to_str().context("the name in --peers is not UTF-8")?;
            eprintln!("installing {} into {directory}", self.package());
            output(Path::new("python3"), &["-m", "venv", directory])?;
            let package = self.package();
            output(&python, &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", &package])?;
            installed().with_context(|| format!("{package} is not there after pip installed it"))?;
        }
        Ok(())
    }

    pub(super) fn arguments(
        &self,
        listen: SocketAddr,
        metrics_port: u16,
        workers: &[SocketAddr],
    ) -> Vec<String> {
        let mut arguments: Vec<String> =
            ["-m", self.module, "--policy", "cache_aware"].map(str::to_owned).into();
        arguments.extend(["--host".to_owned(), listen.ip().to_string()]);
        arguments.extend(["--port".to_owned(), listen.port().to_string()]);
        arguments.extend(["--prometheus-host".to_owned(), listen.ip().to_string()]);
        arguments.extend(["--prometheus-port".to_owned(), metrics_port.to_string()]);
        arguments.extend(self.arguments.iter().map(ToString::to_string));
        arguments.push("--worker-urls".to_owned());
        arguments.extend(workers.iter().map(|worker| format!("http://{worker}")));
        arguments
    }

    /// Waits until it serves all workers: it answers as ready with one of them.
    pub(super) fn await_workers(&self, address: SocketAddr, workers: usize) -> Result<()> {
        #[derive(Deserialize)]
        struct Readiness {
            healthy_workers: usize,
        }
        let deadline = Instant::now() + WORKERS_TIMEOUT;
        loop {
            let answer = get(address, "/readiness");
            let readiness = answer.as_ref().ok().and_then(|(_, body)| serde_json::from_str(body).ok());
            if readiness.is_some_and(|Readiness { healthy_workers }| healthy_workers == workers) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} does not serve all {workers} workers: {answer:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_an_environment_of_its_own_and_ends_with_its_workers() {
        let workers = ["127.0.0.1:8001".parse().unwrap()];
        for wheel in &WHEELS {
            assert!(
                wheel
                    .python(Path::new("peers"))
                    .starts_with(format!("peers/{}-{}", wheel.name, wheel.version))
            );
            let arguments = wheel.arguments("127.0.0.1:8080".parse().unwrap(), 8081, &workers);
            assert_eq!(arguments[..4], ["-m", wheel.module, "--policy", "cache_aware"]);
            assert_eq!(arguments[arguments.len() - 2..], ["--worker-urls", "http://127.0.0.1:8001"]);
        }
    }
}
