//! The kernel side against the running kernel: needs root (or the three capabilities) and a BPF file system, and
//! says `skipped: why` where it has neither. Each test has an instance, and so a pin directory, of its own.

mod bypass;
mod guard;
mod isolation;
mod splice;
mod splice_stress;
mod steering;
mod workers;

use std::path::{Path, PathBuf};

use router_agent::kernel::{Capabilities, DEFAULT_ROOT, Kernel, Options};

/// Opens the kernel side as instance `test-NAME-PID`; `None`, having said why, where this process may not.
fn open(name: &str, threads: u32) -> Option<(Kernel, Capabilities)> {
    let (kernel, capabilities) = Kernel::open(&options(name, threads));
    for needed in [&capabilities.load, &capabilities.pins] {
        let reason = needed.to_string();
        if reason.contains("needs root") || reason.contains("no BPF file system") {
            println!("skipped: {reason}");
            return None;
        }
        // Anything else is not the machine's fault.
        assert!(needed.is_available(), "{capabilities:?}");
    }
    Some((kernel, capabilities))
}

fn options(name: &str, threads: u32) -> Options {
    Options { instance: Some(instance(name)), threads, ..Options::default() }
}

fn instance(name: &str) -> String {
    format!("test-{name}-{}", std::process::id())
}

/// A place for pins of this test's own, so that no other test's gateway sweeps what this one leaves behind.
struct PinRoot(PathBuf);

impl PinRoot {
    /// `None`, having said why, where there is no BPF file system or no right to it.
    fn create(name: &str) -> Option<Self> {
        open(name, 1)?;
        let path = Path::new(DEFAULT_ROOT).join(format!("wp-{}", instance(name)));
        std::fs::create_dir(&path).expect("a directory on bpffs");
        Some(Self(path))
    }

    fn options(&self, instance: &str) -> Options {
        Options { instance: Some(instance.to_owned()), pin_root: self.0.clone(), ..Options::default() }
    }
}

impl Drop for PinRoot {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs bpftool on a pinned map; `None`, having said why, where there is none.
fn bpftool_dump(pin: &Path) -> Option<serde_json::Value> {
    let output =
        match std::process::Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(pin).output() {
            Ok(output) => output,
            Err(error) => {
                println!("skipped: bpftool: {error}");
                return None;
            }
        };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).expect("bpftool -j prints JSON"))
}
