//! What is to be said of this host.

use std::path::Path;

use super::Finding;
use crate::{
    config::Config,
    descriptors,
    kernel::{self, Capability, Kernel},
};

/// The oldest kernel on which every program loads (docs/kernel.md).
const KERNEL: (u32, u32) = (5, 17);
/// Of the table of connections, the share from which on it is worth a word.
const CONNTRACK_FULL: f64 = 0.8;
/// Connections that wait to be accepted; fewer are lost in a burst.
const BACKLOG_MIN: u64 = 1_024;
/// Ports for connections to one worker.
const PORTS_MIN: u64 = 16_000;

/// The lines of this host.
pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut findings = vec![kernel_version(&release())];
    findings.push(btf(Path::new("/sys/kernel/btf/vmlinux").exists()));
    findings.push(bpffs(&read("/proc/mounts")));
    findings.push(cgroup2(&read("/proc/mounts")));
    findings.extend(programs());
    findings.push(open_files(config.limits.connections, descriptors::raise()));
    findings.push(conntrack(
        number("/proc/sys/net/netfilter/nf_conntrack_count"),
        number("/proc/sys/net/netfilter/nf_conntrack_max"),
        config.limits.connections,
    ));
    findings.push(backlog(number("/proc/sys/net/core/somaxconn")));
    findings.push(ports(&read("/proc/sys/net/ipv4/ip_local_port_range")));
    findings
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn number(path: &str) -> Option<u64> {
    read(path).trim().parse().ok()
}

fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn kernel_version(release: &str) -> Finding {
    let mut parts = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = parts.next().zip(parts.next());
    let seen = format!("Linux {release}");
    match version {
        Some(version) if version < KERNEL => {
            let (major, minor) = KERNEL;
            let remedy = format!(
                "every program loads from Linux {major}.{minor} on; others are left out (docs/kernel.md)"
            );
            Finding::no("kernel", seen, remedy)
        }
        _ => Finding::ok("kernel", seen),
    }
}

fn btf(is_there: bool) -> Finding {
    if is_there {
        Finding::ok("BTF", "/sys/kernel/btf/vmlinux")
    } else {
        let remedy =
            "a kernel with CONFIG_DEBUG_INFO_BTF=y (all distributions' are); without it, bodies are copied";
        Finding::no("BTF", "the kernel does not describe its types", remedy)
    }
}

/// Whether `mounts` (as /proc/mounts) has a file system of this type; where.
fn mounted<'a>(mounts: &'a str, kind: &str) -> Option<&'a str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (place, of) = (fields.nth(1)?, fields.next()?);
        (of == kind).then_some(place)
    })
}

fn bpffs(mounts: &str) -> Finding {
    match mounted(mounts, "bpf") {
        Some(place) if place == "/sys/fs/bpf" => Finding::ok("bpffs", place),
        Some(place) => Finding::no("bpffs", format!("at {place}"), "mount -t bpf bpf /sys/fs/bpf"),
        None => Finding::no(
            "bpffs",
            "not mounted: no other process can read the maps",
            "mount -t bpf bpf /sys/fs/bpf (for good: bpf /sys/fs/bpf bpf defaults 0 0 in /etc/fstab)",
        ),
    }
}

fn cgroup2(mounts: &str) -> Finding {
    match mounted(mounts, "cgroup2") {
        Some(place) => Finding::ok("cgroup2", format!("{place}; nothing here needs it")),
        None => Finding::ok("cgroup2", "not mounted; nothing here needs it"),
    }
}

/// What the kernel says to each program: they are loaded, and unloaded again.
fn programs() -> Vec<Finding> {
    let options = kernel::Options {
        instance: Some(format!("doctor-{}", std::process::id())),
        bypass: true,
        splice: true,
        ..kernel::Options::default()
    };
    let (_kernel, capabilities) = Kernel::open(&options);
    // There is nothing to be said of a guard that was not asked for.
    let asked = capabilities.iter().filter(|(name, _)| *name != "guard");
    asked
        .map(|(name, capability)| {
            let what = format!("BPF: {name}");
            match capability {
                Capability::Available => Finding::ok(what, "yes"),
                Capability::Unavailable(why) => Finding::no(what, why, REMEDY),
            }
        })
        .collect()
}

const REMEDY: &str = "run as root, or by deploy/systemd/warmpath.service, or: setcap cap_bpf,cap_net_admin,cap_perfmon+ep /usr/bin/warmpath";

fn open_files(connections: usize, descriptors: Option<u64>) -> Finding {
    let (max, needed) = (descriptors::connections_max(descriptors), descriptors::needed(connections));
    let Some(descriptors) = descriptors else { return Finding::ok("open files", "no limit") };
    if max >= connections {
        return Finding::ok("open files", format!("{descriptors}, enough for {connections} connections"));
    }
    Finding::no(
        "open files",
        format!("{descriptors}, enough for {max} client connections; limits.connections is {connections}"),
        format!("LimitNOFILE={needed} in the unit, or ulimit -Hn {needed}"),
    )
}

fn conntrack(count: Option<u64>, max: Option<u64>, connections: usize) -> Finding {
    let Some((count, max)) = count.zip(max) else {
        return Finding::ok("conntrack", "not loaded");
    };
    let seen = format!("{count} of {max} connections");
    // Each request is one to the gateway and one to a worker.
    let wanted = 2 * connections as u64;
    let set = |max: u64| format!("sysctl -w net.netfilter.nf_conntrack_max={max}");
    if count as f64 > CONNTRACK_FULL * max as f64 {
        let remedy = set((2 * max).max(wanted));
        return Finding::wrong("conntrack", format!("{seen}: packets are dropped when it is full"), remedy);
    }
    if max < wanted {
        return Finding::no(
            "conntrack",
            format!("{seen}, fewer than limits.connections may need"),
            set(wanted),
        );
    }
    Finding::ok("conntrack", seen)
}

fn backlog(somaxconn: Option<u64>) -> Finding {
    match somaxconn {
        Some(limit) if limit < BACKLOG_MIN => Finding::no(
            "accept queue",
            format!("net.core.somaxconn is {limit}: bursts of connections are dropped"),
            "sysctl -w net.core.somaxconn=4096",
        ),
        Some(limit) => Finding::ok("accept queue", format!("net.core.somaxconn {limit}")),
        None => Finding::ok("accept queue", "net.core.somaxconn cannot be read"),
    }
}

fn ports(range: &str) -> Finding {
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<u64>().ok());
    let count = ends.next().zip(ends.next()).map(|(first, last)| (last + 1).saturating_sub(first));
    match count {
        Some(count) if count < PORTS_MIN => Finding::no(
            "local ports",
            format!("{count}: so many connections to one worker, those that just ended included"),
            "sysctl -w net.ipv4.ip_local_port_range='1024 65535'",
        ),
        Some(count) => Finding::ok("local ports", format!("{count} for each worker")),
        None => Finding::ok("local ports", "their range cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::State;

    #[test]
    fn what_is_wrong_is_said_with_its_remedy() {
        for (finding, state) in [
            (kernel_version("6.18.0-1-amd64"), State::Ok),
            (kernel_version("5.10.0"), State::No),
            (kernel_version("5.17.1"), State::Ok),
            (btf(false), State::No),
            (bpffs("proc /proc proc rw 0 0\n"), State::No),
            (bpffs("bpf /sys/fs/bpf bpf rw,relatime 0 0\n"), State::Ok),
            (bpffs("bpf /mnt bpf rw 0 0\n"), State::No),
            (open_files(65_536, Some(20_000)), State::No),
            (open_files(65_536, Some(262_144)), State::Ok),
            (open_files(65_536, None), State::Ok),
            (conntrack(None, None, 100), State::Ok),
            (conntrack(Some(90), Some(100), 10), State::Wrong),
            (conntrack(Some(1), Some(100), 100), State::No),
            (conntrack(Some(1), Some(1_000), 100), State::Ok),
            (backlog(Some(128)), State::No),
            (backlog(Some(4_096)), State::Ok),
            (ports("32768\t60999\n"), State::Ok),
            (ports("50000 50099"), State::No),
        ] {
            assert_eq!(finding.state, state, "{finding:?}");
            assert_eq!(finding.remedy.is_some(), state != State::Ok, "{finding:?}");
        }
    }
}
