//! The XDP guard's user-space half: loads the program, attaches it to interfaces, keeps its rules, reads its counters
//! and its log. What the program does with a packet is in `router-ebpf/src/xdp.rs`; `docs/guard.md` is for operators.
//!
//! The program is attached by BPF links that this process holds: however it ends, SIGKILL included, the kernel takes
//! the program off. An interface that has an XDP program already is left alone and named with that program's id.

mod interfaces;
mod pinned;
mod rules;

use std::{
    mem::offset_of,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray},
    programs::{ProgramError, TestRun as _, TestRunOptions, Xdp, XdpMode, loaded_programs, xdp::XdpLink},
};
use aya_log::EbpfLogger;
use parking_lot::Mutex;
use router_common::{
    MapValue,
    guard::{Counts, Settings, Source, SourceKey},
    names,
};

pub use self::{
    interfaces::names as interface_names,
    pinned::{PinnedRule, PinnedSource},
    rules::{GuardRule, GuardRuleCount},
};
pub use router_common::guard::{Action as GuardAction, Counts as GuardCounts};

use self::{interfaces::Found, rules::Rules};
use super::{
    Capability,
    error::{KernelError, chain, errno},
    sys::SharedArray,
};
use crate::config::{Cidr, GuardInterface, GuardMode};

/// The program's name in the object.
const PROGRAM: &str = "guard";

/// The map of aya-log's ring buffer.
pub(super) const LOG_MAP: &str = "AYA_LOGS";

/// The guard's maps that are pinned, where there is a guard.
pub(super) const PINNED: [&str; 5] =
    [names::GUARD_RULES, names::GUARD_HITS, names::GUARD_SRC, names::GUARD_STATS, names::GUARD_SETTINGS];

/// What to guard, and against whom.
#[derive(Clone, Debug)]
pub struct GuardOptions {
    /// The gateway's listening port.
    pub port: u16,
    /// Where to attach; none: the program is loaded only ([`super::Kernel::guard_verdict`] runs it).
    pub interfaces: Vec<GuardInterface>,
    /// How to attach where the interface does not say.
    pub mode: GuardMode,
    /// At the start.
    pub rules: Vec<GuardRule>,
    /// At the start.
    pub limit: SynLimit,
}

/// How fast one source may open connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynLimit {
    interval_ns: u64,
    window_ns: u64,
}

impl SynLimit {
    /// Connections as fast as anyone likes.
    pub const NONE: Self = Self { interval_ns: 0, window_ns: 0 };

    /// `rate` new connections per second and source, 0 for no limit, and `burst` at once after a pause.
    pub const fn new(rate: u32, burst: u32) -> Self {
        match 1_000_000_000_u64.checked_div(rate as u64) {
            None => Self::NONE,
            // At more than one per nanosecond there would be no limit either.
            Some(interval_ns) => Self::every(if interval_ns == 0 { 1 } else { interval_ns }, burst),
        }
    }

    /// One new connection per `interval_ns` and source, and `burst` at once after a pause.
    pub const fn every(interval_ns: u64, burst: u32) -> Self {
        Self { interval_ns, window_ns: interval_ns.saturating_mul(burst as u64) }
    }
}

/// How an interface fared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attached {
    /// In the driver.
    Native,
    /// In the network stack; with what the driver said, where native was tried.
    Generic(Option<String>),
    /// Not at all: why.
    Refused(String),
}

impl Attached {
    /// In lower case, for metrics and JSON.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic(_) => "generic",
            Self::Refused(_) => "refused",
        }
    }

    /// Why it is not what was asked for, if it is not.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Native => None,
            Self::Generic(reason) => reason.as_deref(),
            Self::Refused(reason) => Some(reason),
        }
    }
}

/// The guard of one gateway. Cheap to clone. It stands for as long as one clone lives.
#[derive(Clone)]
pub struct Guard {
    shared: Arc<Shared>,
}

struct Shared {
    port: u16,
    interfaces: Vec<(String, Attached)>,
    settings: SharedArray,
    rules: Mutex<Rules>,
    sources: Mutex<HashMap<MapData, <SourceKey as MapValue>::Bytes, <Source as MapValue>::Bytes>>,
    counts: PerCpuArray<MapData, <Counts as MapValue>::Bytes>,
    log: Mutex<EbpfLogger<LogLines>>,
    /// Dropping them takes the program off its interfaces.
    links: Mutex<Vec<XdpLink>>,
}

impl Guard {
    /// Loads the program, fills its maps and only then attaches it. An interface that refuses is no error.
    pub(super) fn open(ebpf: &mut Ebpf, options: &GuardOptions) -> Result<Self, KernelError> {
        // First: the maps' places in the program are theirs for as long as `ebpf` holds them.
        program(ebpf)?.load().map_err(program_error)?;
        let mut take = |name| ebpf.take_map(name).ok_or(KernelError::Missing { what: "map", name });
        let settings = take(names::GUARD_SETTINGS)?;
        let Map::Array(settings) = settings else {
            return Err(KernelError::Missing { what: "array", name: names::GUARD_SETTINGS });
        };
        let settings = SharedArray::map(settings.fd(), size_of::<Settings>())
            .map_err(|source| KernelError::SharedMemory { name: names::GUARD_SETTINGS, source })?;
        let mut rules = Rules::new(take(names::GUARD_RULES)?, take(names::GUARD_HITS)?)?;
        let sources = take(names::GUARD_SRC)?.try_into().map_err(map_error(names::GUARD_SRC))?;
        let counts = take(names::GUARD_STATS)?.try_into().map_err(map_error(names::GUARD_STATS))?;
        let log = EbpfLogger::init_with_logger(ebpf, LogLines)
            .map_err(|_| KernelError::Missing { what: "map", name: LOG_MAP })?;
        rules.replace(&settings, &options.rules)?;
        set_limit(&settings, options.limit);

        let (mut interfaces, mut links) = (Vec::new(), Vec::new());
        for interface in &options.interfaces {
            let mode = interface.mode.unwrap_or(options.mode);
            let (attached, link) = attach(program(ebpf)?, &interface.name, mode);
            links.extend(link);
            interfaces.push((interface.name.clone(), attached));
        }
        let (rules, sources, log) = (Mutex::new(rules), Mutex::new(sources), Mutex::new(log));
        let links = Mutex::new(links);
        let port = options.port;
        let shared = Shared { port, interfaces, settings, rules, sources, counts, log, links };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The port that it guards.
    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// Takes the program off its interfaces; rules and counters stay.
    pub(super) fn detach(&self) {
        self.shared.links.lock().clear();
    }

    /// The interfaces asked for, and how each fared.
    pub fn interfaces(&self) -> &[(String, Attached)] {
        &self.shared.interfaces
    }

    /// Whether it stands wherever it was asked for.
    pub(super) fn capability(&self) -> Capability {
        let refused = self.interfaces().iter().filter_map(|(name, attached)| match attached {
            Attached::Refused(why) => Some(format!("{name}: {why}")),
            _ => None,
        });
        let refused: Vec<_> = refused.collect();
        if refused.is_empty() { Capability::Available } else { Capability::Unavailable(refused.join("; ")) }
    }

    /// Replaces all rules at once: each packet is judged by the old ones or by the new ones. Rules that stay keep their
    /// counts. On an error the old ones stay. Waits for the packets under way (an RCU grace period, 10 ms or so).
    ///
    /// Cost: a system call per rule, about a microsecond.
    pub fn replace(&self, rules: &[GuardRule]) -> Result<(), KernelError> {
        self.shared.rules.lock().replace(&self.shared.settings, rules)
    }

    /// Adds a rule, or gives the one for the same range its action; what was there before.
    pub fn add(&self, rule: GuardRule) -> Result<Option<GuardAction>, KernelError> {
        let mut rules = self.shared.rules.lock();
        let mut new = rules.list();
        let before = new.iter_mut().find(|other| other.cidr == rule.cidr);
        let before = before.map(|other| std::mem::replace(&mut other.action, rule.action));
        if before.is_none() {
            new.push(rule);
        }
        rules.replace(&self.shared.settings, &new)?;
        Ok(before)
    }

    /// Removes the rule for exactly this range; whether there was one.
    pub fn remove(&self, cidr: Cidr) -> Result<bool, KernelError> {
        let mut rules = self.shared.rules.lock();
        let old = rules.list();
        let new: Vec<_> = old.iter().copied().filter(|rule| rule.cidr != cidr).collect();
        if new.len() == old.len() {
            return Ok(false);
        }
        rules.replace(&self.shared.settings, &new)?;
        Ok(true)
    }

    /// Changes the limit. Every source starts with a full bucket.
    pub fn set_limit(&self, limit: SynLimit) -> Result<(), KernelError> {
        let (settings, mut sources) = (&self.shared.settings, self.shared.sources.lock());
        if limit_of(settings) == limit {
            return Ok(());
        }
        set_limit(settings, limit);
        // A bucket says when it will be full at the old rate, which may be far off.
        let keys: Vec<_> = sources.keys().filter_map(Result::ok).collect();
        for key in keys {
            ignore_missing(sources.remove(&key)).map_err(map_error(names::GUARD_SRC))?;
        }
        Ok(())
    }

    /// The rules in use, by age, each with the packets that it has decided on. A system call per rule.
    pub fn rules(&self) -> Result<Vec<GuardRuleCount>, KernelError> {
        self.shared.rules.lock().counts()
    }

    /// What the program has done so far, over all CPUs. One system call.
    pub fn counts(&self) -> Result<Counts, KernelError> {
        let cpus = self.shared.counts.get(&0, 0).map_err(map_error(names::GUARD_STATS))?;
        cpus.iter().try_fold(Counts::ZERO, |sum, bytes| {
            let one = Counts::from_bytes(bytes)
                .ok_or_else(|| KernelError::Entry { name: names::GUARD_STATS.to_owned() })?;
            Ok(sum.plus(&one))
        })
    }

    /// Gives the lines that the program has written since the last time to `tracing`. To be called several times a
    /// second: the program writes [`LOG_LINES_PER_SECOND`](router_common::guard::LOG_LINES_PER_SECOND), and its buffer
    /// has room for hundreds.
    pub fn flush_log(&self) {
        self.shared.log.lock().flush();
    }
}

/// Waits until no other program is on the interfaces asked for, or `patience` is over.
pub(super) fn wait_until_free(options: &GuardOptions, patience: Duration, retry: Duration) {
    let began = Instant::now();
    let is_taken = |interface: &GuardInterface| foreign_program(&interface.name).is_some();
    while options.interfaces.iter().any(is_taken) && began.elapsed() < patience {
        std::thread::sleep(retry);
    }
}

/// The verdict on one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardVerdict {
    pub dropped: bool,
    /// Of one run, the mean where there were several; what the kernel's test frame costs (about 25 ns) included.
    pub duration: Duration,
}

/// Runs the loaded program on `frame` `repeat` times (`BPF_PROG_TEST_RUN`): no packet is sent, but maps, counters and
/// log are the guard's own. `frame` is a whole one, at least 14 bytes.
pub(super) fn verdict(ebpf: &mut Ebpf, frame: &[u8], repeat: u32) -> Result<GuardVerdict, KernelError> {
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.repeat = repeat;
    let result = program(ebpf)?.test_run(options).map_err(program_error)?;
    Ok(GuardVerdict { dropped: result.return_value == XDP_DROP, duration: result.duration })
}

const XDP_DROP: u32 = 1;

/// Attaches the program, or says why not.
fn attach(program: &mut Xdp, interface: &str, mode: GuardMode) -> (Attached, Option<XdpLink>) {
    match mode {
        GuardMode::Native => attach_as(program, interface, XdpMode::Driver, Attached::Native),
        GuardMode::Generic => attach_as(program, interface, XdpMode::Skb, Attached::Generic(None)),
        GuardMode::Auto => {
            let (attached, link) = attach_as(program, interface, XdpMode::Driver, Attached::Native);
            match attached {
                // In generic mode it would be refused for the same reason, or stand beside somebody's program.
                Attached::Refused(why) if foreign_program(interface).is_none() => {
                    let native = format!("native: {why}");
                    attach_as(program, interface, XdpMode::Skb, Attached::Generic(Some(native)))
                }
                other => (other, link),
            }
        }
    }
}

fn attach_as(
    program: &mut Xdp,
    interface: &str,
    mode: XdpMode,
    done: Attached,
) -> (Attached, Option<XdpLink>) {
    // aya attaches by netlink where a link is refused with EINVAL, which kernels before 5.9 do (this object takes 5.14);
    // dropping the value detaches either kind.
    match program.attach(interface, mode).and_then(|id| program.take_link(id)) {
        Ok(link) => (done, Some(link)),
        Err(error) => (Attached::Refused(why_refused(interface, mode, &error)), None),
    }
}

fn why_refused(interface: &str, mode: XdpMode, error: &ProgramError) -> String {
    if let Some(program) = foreign_program(interface) {
        return format!("{program} is attached there already, and was left alone");
    }
    match (errno(error), mode) {
        (Some(libc::EOPNOTSUPP), XdpMode::Driver) => "its driver knows no XDP".to_owned(),
        _ => chain(error),
    }
}

/// The XDP program that somebody has attached to the interface.
fn foreign_program(interface: &str) -> Option<String> {
    let found = interfaces::list().ok()?;
    let id =
        found.into_iter().find_map(|Found { name, program }| (name == interface).then_some(program)?)?;
    // Reading the name takes CAP_SYS_ADMIN.
    let named = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
    let name = named.and_then(|program| program.name_as_str().map(|name| format!(" (`{name}`)")));
    Some(format!("XDP program {id}{}", name.unwrap_or_default()))
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, KernelError> {
    ebpf.program_mut(PROGRAM)
        .ok_or(KernelError::Missing { what: "program", name: PROGRAM })?
        .try_into()
        .map_err(program_error)
}

fn program_error(source: ProgramError) -> KernelError {
    KernelError::Program { name: PROGRAM, source }
}

fn map_error(name: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| KernelError::Map { name: name.to_owned(), source }
}

/// Somebody else was faster: the kernel (LRU), or an operator with bpftool.
fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn set_limit(settings: &SharedArray, limit: SynLimit) {
    settings.u64(offset_of!(Settings, syn_window_ns)).store(limit.window_ns, SeqCst);
    settings.u64(offset_of!(Settings, syn_interval_ns)).store(limit.interval_ns, SeqCst);
}

fn limit_of(settings: &SharedArray) -> SynLimit {
    SynLimit {
        interval_ns: settings.u64(offset_of!(Settings, syn_interval_ns)).load(SeqCst),
        window_ns: settings.u64(offset_of!(Settings, syn_window_ns)).load(SeqCst),
    }
}

/// Hands the program's lines to `tracing`.
struct LogLines;

impl log::Log for LogLines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::info!("guard: {}", record.args());
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_an_interval_and_a_burst_a_window() {
        assert_eq!(SynLimit::new(0, 5), SynLimit::NONE);
        assert_eq!(SynLimit::new(10, 5), SynLimit { interval_ns: 100_000_000, window_ns: 500_000_000 });
        assert_eq!(SynLimit::new(u32::MAX, 1).interval_ns, 1, "a limit, if one that nobody meets");
        assert_eq!(SynLimit::every(u64::MAX, 2).window_ns, u64::MAX);
    }
}
