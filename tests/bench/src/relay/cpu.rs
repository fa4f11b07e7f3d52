//! CPU time over a stretch of wall time: of processes, to the nanosecond where the kernel tells it, and of the whole
//! machine.
//!
//! The machine's is what all cores did but idle (`/proc/stat`; time stolen by the hypervisor counts as idle), less what
//! foreign processes did. Kernel threads are not foreign: they move bytes. A foreign process that ends in between is
//! found in its parent's sum of children, so a compiler run beside the benchmark is not lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Linux accounts to user space in ticks of this length, on every architecture.
const TICK_MS: u64 = 10;
/// `PF_KTHREAD` of include/linux/sched.h, in the flags of `/proc/PID/stat`.
const KERNEL_THREAD: u32 = 0x0020_0000;

/// A moment.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    at: Instant,
    idle: Duration,
    foreign: Duration,
    /// Of the process asked for, with all its descendants.
    process: Duration,
}

/// Between two moments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    pub(super) wall: Duration,
    /// All cores together, foreign processes taken off.
    pub(super) machine: Duration,
    pub(super) foreign: Duration,
    pub(super) process: Duration,
}

impl Sample {
    /// Now; `process`: the one whose time is told apart.
    pub(super) fn take(process: Option<u32>) -> Self {
        let processes = processes();
        let ours = descendants(&processes, std::process::id());
        let foreign = processes
            .iter()
            .filter(|(id, process)| !ours.contains(id) && process.flags & KERNEL_THREAD == 0)
            .map(|(_, process)| ticks(process.own_ticks + process.children_ticks))
            .sum();
        let process = process
            .map_or(Duration::ZERO, |id| descendants(&processes, id).iter().map(|id| on_cpu(*id)).sum());
        Self { at: Instant::now(), idle: idle(), foreign, process }
    }

    /// Since an earlier one.
    pub(super) fn since(&self, earlier: &Self) -> Used {
        let wall = self.at - earlier.at;
        let foreign = self.foreign.saturating_sub(earlier.foreign);
        let idle = self.idle.saturating_sub(earlier.idle);
        let machine = (wall * cores()).saturating_sub(idle).saturating_sub(foreign);
        Used { wall, machine, foreign, process: self.process.saturating_sub(earlier.process) }
    }
}

/// CPUs that the machine has in use.
pub(super) fn cores() -> u32 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let is_core = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    stat.lines().filter(is_core).count().max(1) as u32
}

/// Idle, waiting for a disk, or not given to this machine, all cores since boot.
fn idle() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // proc_stat(5): user nice system idle iowait irq softirq steal
    ticks([3, 4, 7].into_iter().filter_map(|field: usize| fields.get(field)).sum())
}

fn ticks(count: u64) -> Duration {
    Duration::from_millis(TICK_MS * count)
}

#[derive(Debug)]
struct Process {
    parent: u32,
    flags: u32,
    own_ticks: u64,
    children_ticks: u64,
}

fn processes() -> BTreeMap<u32, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    ids.filter_map(|id| Some((id, process(id)?))).collect()
}

fn process(id: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The second field is the name in parentheses and may hold spaces: count from behind it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number)?.parse::<u64>().ok();
    Some(Process {
        parent: field(1)? as u32,
        flags: field(6)? as u32,
        own_ticks: field(11)? + field(12)?,
        children_ticks: field(13)? + field(14)?,
    })
}

/// A process and all that come from it.
fn descendants(processes: &BTreeMap<u32, Process>, root: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::from([root]);
    loop {
        let before = found.len();
        let children = processes.iter().filter(|(_, process)| found.contains(&process.parent));
        let children: Vec<u32> = children.map(|(id, _)| *id).collect();
        found.extend(children);
        if found.len() == before {
            return found;
        }
    }
}

/// Time that all threads of a process have run: `schedstat` counts nanoseconds, `stat` ticks.
fn on_cpu(id: u32) -> Duration {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{id}/task")) else { return Duration::ZERO };
    let nanoseconds: Option<u64> = threads
        .filter_map(Result::ok)
        .map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        })
        .sum();
    match nanoseconds {
        Some(nanoseconds) if nanoseconds > 0 => Duration::from_nanos(nanoseconds),
        _ => crate::processes::cpu_of(&id.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_work_is_counted_and_is_not_foreign() {
        let before = Sample::take(Some(std::process::id()));
        let started = Instant::now();
        let mut sum = 0_u64;
        while on_cpu(std::process::id()) < before.process + Duration::from_millis(50) {
            sum = std::hint::black_box(sum.wrapping_mul(31) + 1);
            assert!(started.elapsed() < Duration::from_secs(30), "no CPU time was counted");
        }
        let used = Sample::take(Some(std::process::id())).since(&before);
        assert!(used.process >= Duration::from_millis(50));
        assert!(used.wall >= Duration::from_millis(50) / cores());
    }
}
