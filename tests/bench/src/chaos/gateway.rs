//! The gateway under test: started, reloaded, and its vital signs read.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::worker::Worker;
use crate::processes::{get, resident_kib, sibling};

/// What a gateway must be told for a storm: an engine that hangs is missed after seconds, not after ten minutes.
const CONFIG: &str = "timeouts: {response_head: 5s, connect: 1s}\nhealth: {interval: 1s, timeout: 1s}\n";
/// A reload changes this and nothing else, and back.
const RELOADED: &str = "routing: {policy: least_loaded}\n";
/// RSS may have grown by this share. The kernel's own accounting moves by some pages either way.
const RSS_GROWTH_MAX: f64 = 0.10;
/// Descriptors may differ by connections that are just being opened or closed: health checks.
const DESCRIPTORS_MORE_MAX: usize = 4;

/// A running gateway.
#[derive(Debug)]
pub(super) struct Gateway {
    running: crate::gateway::Gateway,
    workers: String,
    reloads: u64,
}

/// What a gateway has and holds.
#[derive(Debug, Clone)]
pub(super) struct Vitals {
    pub(super) rss_kib: u64,
    pub(super) descriptors: usize,
    pub(super) threads: usize,
    /// Gauges that are zero when nothing is going on, by name.
    pub(super) open: BTreeMap<String, f64>,
    pub(super) panics: f64,
}

/// Gauges of what is going on: zero when nothing is.
const OPEN: [&str; 3] =
    ["warmpath_worker_in_flight_requests", "warmpath_worker_queued_prefill_tokens", "warmpath_connections"];

impl Gateway {
    /// Starts a gateway in front of the workers.
    pub(super) fn start(workers: &[Worker], logs: &Path) -> Result<Self> {
        let urls: Vec<_> = workers
            .iter()
            .map(|worker| {
                format!("  - {{url: \"http://{}\", name: worker-{}}}\n", worker.address, worker.number)
            })
            .collect();
        let workers = format!("workers:\n{}", urls.concat());
        let running = crate::gateway::Gateway::start("chaos", &format!("{CONFIG}{workers}"), logs)?;
        Ok(Self { running, workers, reloads: 0 })
    }

    /// Where clients connect.
    pub(super) fn address(&self) -> SocketAddr {
        self.running.address
    }

    /// Changes its configuration file and tells it.
    pub(super) fn reload(&mut self) -> Result<()> {
        self.reloads += 1;
        let policy = if self.reloads % 2 == 1 { RELOADED } else { "" };
        std::fs::write(&self.running.config, format!("{CONFIG}{policy}{}", self.workers))?;
        self.running.process.signal(Signal::HUP)
    }

    /// Reads its vital signs.
    pub(super) fn vitals(&self) -> Result<Vitals> {
        let id = self.running.process.id();
        let count =
            |what: &str| Ok::<_, std::io::Error>(std::fs::read_dir(format!("/proc/{id}/{what}"))?.count());
        let (status, metrics) = get(self.running.admin, "/metrics")?;
        ensure!(status == 200, "/metrics: status {status}");
        let sum = |name: &str| {
            let of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
            let value = |line: &str| line.rsplit_once(' ')?.1.parse::<f64>().ok();
            metrics.lines().filter(of).filter_map(value).sum::<f64>()
        };
        for name in OPEN {
            ensure!(metrics.contains(name), "the gateway has no metric {name}");
        }
        let mut open: BTreeMap<_, _> = OPEN.map(|name| (name.to_owned(), sum(name))).into();
        open.insert("streams in the kernel's map".to_owned(), self.flows()? as f64);
        Ok(Vitals {
            rss_kib: resident_kib(id),
            descriptors: count("fd")?,
            threads: count("task")?,
            open,
            panics: sum("warmpath_panics_total"),
        })
    }

    /// Streams in the kernel's map, by the product's own command.
    fn flows(&self) -> Result<usize> {
        let instance = &self.running.instance;
        let program = sibling("warmpath")?;
        let shown = crate::processes::output(&program, &["maps", "flows", "--json", "--instance", instance]);
        let Ok(shown) = shown else { return Ok(0) }; // no BPF here: no map
        let flows: serde_json::Value =
            serde_json::from_str(&shown).context("`warmpath maps flows --json`")?;
        Ok(flows.as_array().map_or(0, Vec::len))
    }
}

impl Vitals {
    /// What is not as it was.
    pub(super) fn against(&self, before: &Self) -> Vec<String> {
        let mut findings = Vec::new();
        for (name, value) in &self.open {
            if *value > 0.0 {
                findings.push(format!("{name} is {value} with nothing going on"));
            }
        }
        if self.panics > 0.0 {
            findings.push(format!("{} panics", self.panics));
        }
        if self.descriptors > before.descriptors + DESCRIPTORS_MORE_MAX {
            findings.push(format!("{} file descriptors, {} before", self.descriptors, before.descriptors));
        }
        if self.threads > before.threads {
            findings.push(format!("{} threads, {} before", self.threads, before.threads));
        }
        if self.rss_kib as f64 > before.rss_kib as f64 * (1.0 + RSS_GROWTH_MAX) {
            findings.push(format!("RSS {} KiB, {} KiB before", self.rss_kib, before.rss_kib));
        }
        findings
    }
}

/// How long between reloads.
pub(super) const RELOAD_EVERY: Duration = Duration::from_secs(5);
