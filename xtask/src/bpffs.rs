//! The BPF file system that pins need. The product never mounts anything behind its user's back; these development
//! commands do, and say so.

use std::{fs, path::Path};

use crate::process::{command, output};

const ROOT: &str = "/sys/fs/bpf";

/// Mounts it where it is missing and we may.
pub(crate) fn ensure_mounted() {
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else { return };
    let mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(ROOT) && fields.next() == Some("bpf")
    });
    if mounted || !Path::new(ROOT).exists() || !is_root() {
        return;
    }
    match output(command("mount").args(["-t", "bpf", "bpf", ROOT])) {
        Ok(_) => println!("mounted a BPF file system at {ROOT} (it stays until the next boot)"),
        Err(error) => println!("no BPF file system at {ROOT}, so no pins: {error:#}"),
    }
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uid.is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0"))
}
