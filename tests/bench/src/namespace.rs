//! Network namespaces of the benchmark's own, joined by cables that lose, repeat, reorder and delay packets. Removed
//! when dropped; what an earlier run left behind because it was killed is removed at the next.

use std::{fs::File, os::fd::AsFd, process::Command, sync::Arc};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Names are this and the process's id and a word.
const PREFIX: &str = "warmpath-bench-";

/// Where something runs: this namespace, or one of those.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place(Option<Arc<Namespace>>);

#[derive(Debug)]
struct Namespace {
    name: String,
}

impl Place {
    /// A new namespace, its loopback interface up.
    pub(crate) fn new(word: &str) -> Result<Self> {
        let name = format!("{PREFIX}{}-{word}", std::process::id());
        ip(&["netns", "add", &name])?;
        let place = Self(Some(Arc::new(Namespace { name })));
        place.ip(&["link", "set", "lo", "up"])?;
        Ok(place)
    }

    fn name(&self) -> Option<&str> {
        self.0.as_ref().map(|namespace| namespace.name.as_str())
    }

    /// Runs `work` there, on a thread of its own: what it starts and opens is in that namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let Some(name) = self.name() else { return Ok(work()) };
        let path = format!("/run/netns/{name}");
        let namespace = File::open(&path).with_context(|| path.clone())?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .with_context(|| format!("cannot enter {path}"))?;
                Ok(work())
            });
            thread.join().map_err(|_| anyhow!("a thread in {path} panicked"))?
        })
    }

    /// Takes an interface of this process's namespace.
    pub(crate) fn adopt(&self, interface: &str) -> Result<()> {
        let Some(name) = self.name() else { return Ok(()) };
        ip(&["link", "set", interface, "netns", name])
    }

    /// `ip` in this namespace.
    pub(crate) fn ip(&self, args: &[&str]) -> Result<()> {
        match self.name() {
            Some(name) => ip(&[&["-n", name], args].concat()),
            None => ip(args),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.name]) {
            eprintln!("namespace {} is left behind: {error:#}", self.name);
        }
    }
}

/// Removes namespaces of benchmarks that do not run any more.
pub(crate) fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(id) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if !std::path::Path::new("/proc").join(id).exists() {
            drop(Namespace { name });
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("cannot run `ip` (iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", args.join(" "), said.trim());
    Ok(())
}
