//! The kernel side against the running kernel: needs root (or the three capabilities) and a BPF file system, and
//! says `skipped: why` where it has neither. Each test has an instance, and so a pin directory, of its own.

mod bypass;
mod isolation;
mod steering;
mod workers;

use std::path::Path;

use router_agent::kernel::{Capabilities, Kernel, Options};

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
