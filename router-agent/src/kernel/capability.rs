//! What the kernel lets this process do: each capability is there, or is not for a reason with its remedy.
//!
//! Nothing here ends the process. A gateway without any of these is the same gateway, a little slower and less
//! visible (promise 4 of the design: never worse than nothing).

use std::fmt;

/// One thing that the kernel may or may not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    Available,
    /// Why not, and what would help, in one line.
    Unavailable(String),
}

impl Capability {
    pub const fn is_available(&self) -> bool {
        matches!(self, Self::Available)
    }

    pub(super) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable(reason.into())
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Available => out.write_str("yes"),
            Self::Unavailable(reason) => write!(out, "no ({reason})"),
        }
    }
}

/// What [`Kernel::open`](super::Kernel::open) found, for the start-up lines and for `warmpath check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The object is loaded: its maps exist.
    pub load: Capability,
    /// The `workers` map can be published.
    pub workers_map: Capability,
    /// The verifier accepted the steering program (attaching it needs listeners).
    pub steering: Capability,
    /// The maps are pinned, so that other processes see them.
    pub pins: Capability,
    /// Bodies of workers on this host go straight into the client's socket.
    pub bypass: Capability,
    /// Bodies of other workers are moved by the kernel.
    pub splice: Capability,
    /// The XDP guard stands on every interface that it was asked for.
    pub guard: Capability,
}

impl Capabilities {
    /// Every capability by name, in the order to print them.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Capability)> {
        [
            ("load", &self.load),
            ("workers map", &self.workers_map),
            ("steering", &self.steering),
            ("pins", &self.pins),
            ("bypass", &self.bypass),
            ("splice", &self.splice),
            ("guard", &self.guard),
        ]
        .into_iter()
    }

    /// Nothing works, all for the same reason.
    pub(super) fn none(reason: &str) -> Self {
        let no = Capability::unavailable(reason);
        Self {
            load: no.clone(),
            workers_map: no.clone(),
            steering: no.clone(),
            pins: no.clone(),
            bypass: no.clone(),
            splice: no.clone(),
            guard: no,
        }
    }
}

/// The capabilities (in the sense of capabilities(7)) that the programs need, with their bit numbers.
const NEEDED: [(&str, u32); 3] = [("CAP_BPF", 39), ("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38)];
const CAP_SYS_ADMIN: u32 = 21;

/// Why a system call was refused (EPERM or EACCES), as far as this process's capabilities explain it.
pub(super) fn missing_privileges() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok();
    match status.as_deref().and_then(effective).map(missing) {
        Some(missing) if missing.is_empty() => None,
        Some(missing) => Some(format!("needs root, or {} (missing here)", missing.join(" + "))),
        None => Some("needs root or CAP_BPF + CAP_NET_ADMIN + CAP_PERFMON".to_owned()),
    }
}

/// `CapEff` of a `/proc/PID/status`.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective & (1 << bit) != 0;
    if has(CAP_SYS_ADMIN) {
        return Vec::new();
    }
    NEEDED.iter().filter(|(_, bit)| !has(*bit)).map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_capabilities_are_read() {
        let status = "Name:\twarmpath\nCapPrm:\t0000000000000000\nCapEff:\t000000c000001000\n";
        assert_eq!(effective(status), Some(0xc0_0000_1000));
        assert_eq!(effective("Name:\tx\n"), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(missing(0), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        assert_eq!(missing(1 << 39 | 1 << 12), ["CAP_PERFMON"]);
        assert!(missing(1 << 39 | 1 << 12 | 1 << 38).is_empty());
        assert!(missing(1 << CAP_SYS_ADMIN).is_empty(), "CAP_SYS_ADMIN covers all three");
    }
}
