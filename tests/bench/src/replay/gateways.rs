//! Several gateways in front of the same workers, each with one data thread, and the Redis by which they share.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::contender::Router;
use crate::processes::{Process, free_ports, get, output};

/// How many gateways a contender is, and whether they share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gateways {
    count: u16,
    shares: bool,
    /// One that is written without a number runs as it would anywhere.
    is_plain: bool,
}

impl Default for Gateways {
    fn default() -> Self {
        Self { count: 1, shares: false, is_plain: true }
    }
}

impl Gateways {
    /// Of `NAME*COUNT[+redis]`, with what is in front of it.
    pub(super) fn parse(label: &str) -> Result<(&str, Self)> {
        let Some((name, several)) = label.split_once('*') else { return Ok((label, Self::default())) };
        let (count, shares) = match several.split_once('+') {
            None => (several, false),
            Some((count, "redis")) => (count, true),
            Some((_, what)) => anyhow::bail!("`{label}`: gateways share by redis, not by `{what}`"),
        };
        let count =
            count.parse().with_context(|| format!("`{label}`: `{count}` is no number of gateways"))?;
        ensure!((1..=64).contains(&count), "`{label}`: 1 to 64 gateways");
        Ok((name, Self { count, shares, is_plain: false }))
    }

    /// Whether what they need is there.
    pub(super) fn prepare(self) -> Result<()> {
        if self.shares {
            output(Path::new("redis-server"), &["--version"])
                .context("redis-server (apt-get install redis-server)")?;
        }
        Ok(())
    }

    /// Starts them, and waits until each serves its workers and knows the others.
    pub(super) fn start(
        self,
        binary: &Path,
        policy: &str,
        more: &[String],
        workers: &[SocketAddr],
        log: &Path,
    ) -> Result<Router> {
        let port = free_ports(2 * self.count)?;
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (mut addresses, mut admins, mut processes) = (Vec::new(), Vec::new(), Vec::new());
        let config = if self.shares { Some(redis(log, &mut processes)?) } else { None };
        for number in 0..self.count {
            let (address, admin) = (at(port + 2 * number), at(port + 2 * number + 1));
            let mut serve: Vec<String> = ["serve", "--policy", policy].map(str::to_owned).into();
            serve.extend(["--listen".to_owned(), address.to_string()]);
            serve.extend(["--admin".to_owned(), admin.to_string()]);
            serve.extend(workers.iter().flat_map(|w| ["--worker".to_owned(), format!("http://{w}")]));
            if !self.is_plain {
                serve.extend(["--instance".to_owned(), format!("bench-{number}")]);
                serve.extend(["--threads".to_owned(), "1".to_owned()]);
            }
            serve.extend(config.iter().flat_map(|file| ["--config".to_owned(), file.clone()]));
            serve.extend(more.iter().cloned());
            let log = log.with_extension(format!("{number}.log"));
            processes.push(Process::start(binary, &serve, log)?);
            addresses.push(address);
            admins.push(admin);
        }
        let gateways = processes.len() - usize::from(self.count);
        for (process, address) in processes[gateways..].iter_mut().zip(&addresses) {
            process.await_ready(*address, "/v1/models")?;
        }
        if self.shares {
            admins.iter().try_for_each(|admin| await_peers(*admin, self.count - 1))?;
        }
        Ok(Router { addresses, processes })
    }
}

/// A server of their own, and the configuration that names it.
fn redis(log: &Path, processes: &mut Vec<Process>) -> Result<String> {
    let port = free_ports(1)?;
    let mut arguments = vec!["--port".to_owned(), port.to_string()];
    arguments.extend(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"].map(str::to_owned));
    processes.push(Process::start(Path::new("redis-server"), &arguments, log.with_extension("redis.log"))?);
    let file = log.with_extension("yaml");
    std::fs::write(&file, format!("shared: {{urls: ['redis://127.0.0.1:{port}']}}\n"))?;
    file.to_str().map(str::to_owned).context("a path that is no text")
}

fn await_peers(admin: SocketAddr, peers: u16) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let wanted = format!("warmpath_shared_peers {peers}");
    loop {
        let (_, metrics) = get(admin, "/metrics")?;
        if metrics.lines().any(|line| line == wanted) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the gateway at {admin} does not know {peers} others");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_gateways_stands_behind_a_star() {
        let parse = |label| Gateways::parse(label).unwrap();
        assert_eq!(parse("warm@old"), ("warm@old", Gateways::default()));
        assert_eq!(parse("warm*4"), ("warm", Gateways { count: 4, shares: false, is_plain: false }));
        assert_eq!(parse("warm*8+redis"), ("warm", Gateways { count: 8, shares: true, is_plain: false }));
        for (label, expected) in
            [("warm*0", "1 to 64"), ("warm*many", "no number"), ("warm*2+etcd", "not by `etcd`")]
        {
            let error = format!("{:#}", Gateways::parse(label).unwrap_err());
            assert!(error.contains(expected), "{label}: {error}");
        }
    }
}
