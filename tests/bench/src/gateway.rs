//! A gateway as a process, from a configuration file.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::processes::{Process, free_ports, sibling};

/// A running gateway on ports of its own.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) instance: String,
    pub(crate) process: Process,
    pub(crate) config: PathBuf,
}

impl Gateway {
    /// Writes `config` to `name`.yaml in `logs`, and waits until a gateway serves by it.
    pub(crate) fn start(name: &str, config: &str, logs: &Path) -> Result<Self> {
        let port = free_ports(2)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port + 1));
        let instance = format!("{name}-{port}");
        let file = logs.join(format!("{name}.yaml"));
        std::fs::write(&file, config).with_context(|| file.display().to_string())?;
        let args: Vec<String> = [
            "serve",
            "--config",
            file.to_str().context("a path of UTF-8")?,
            "--listen",
            &address.to_string(),
            "--admin",
            &admin.to_string(),
            "--instance",
            &instance,
        ]
        .map(str::to_owned)
        .to_vec();
        let log = logs.join(format!("{name}-gateway.log"));
        let mut process = Process::start(&sibling("warmpath")?, &args, log)?;
        process.await_ready(admin, "/ready")?;
        Ok(Self { address, admin, instance, process, config: file })
    }
}
