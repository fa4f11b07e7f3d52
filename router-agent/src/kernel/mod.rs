//! The kernel side as user space sees it: load the embedded BPF object, say what the kernel allows, publish maps,
//! steer connections. All `unsafe` of the product is in this folder's `sys` module.
//!
//! ```no_run
//! # use router_agent::kernel::{Kernel, Options};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let listeners: Vec<std::net::TcpListener> = Vec::new();
//! let (mut kernel, capabilities) = Kernel::open(&Options { threads: 2, ..Options::default() });
//! for (name, capability) in capabilities.iter() {
//!     println!("{name}: {capability}"); // steering: yes
//! }
//! let workers = kernel.take_workers(); // for the control thread
//! if capabilities.steering.is_available() {
//!     let steering = kernel.attach_steering(&listeners)?; // one listener per data thread, SO_REUSEPORT
//!     let core = steering.core(0); // in data thread 0, every 25 ms:
//!     core.report(120, 40);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Kernel::open`] never fails: what is refused is a [`Capability`] with its reason, and everything works without.
//! Dropping the [`Kernel`] removes the pins; the program stays attached for as long as its listeners are open.
//!
//! Needs Linux 5.14 and `CAP_BPF`, `CAP_NET_ADMIN`, `CAP_PERFMON` (or root); the object is built by
//! `cargo xtask ebpf` and embedded, see `docs/kernel.md`. Opening takes about 50 ms, most of it for reading the
//! kernel's own BTF and for the verifier.

pub mod bypass;
mod capability;
mod decisions;
mod epoll;
mod error;
pub mod flows;
mod guard;
pub mod heap;
mod pinned;
mod pins;
mod prefixes;
pub mod relay;
pub mod splice;
mod steering;
mod succession;
mod sys;
mod vmlinux;
mod watch;
mod workers;

use std::{
    net::IpAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, Map},
    programs::SkReuseport,
};
use router_common::{
    MapValue, SCHEMA_VERSION, cores::SteeringCounts, instance::InstanceValue, limits::CORES_MAX, names,
};

pub use self::{
    bypass::Bypass,
    capability::{Capabilities, Capability},
    decisions::Decisions,
    error::{KernelError, chain},
    flows::Flows,
    guard::{
        Attached, Guard, GuardAction, GuardCounts, GuardOptions, GuardRule, GuardRuleCount, GuardVerdict,
        PinnedRule, PinnedSource, SynLimit, interface_names,
    },
    pinned::{PinnedMap, PinnedMaps, Row, now_ns},
    pins::{DEFAULT_ROOT, directory as pin_directory},
    prefixes::PrefixesMap,
    splice::Splice,
    steering::{Core, Steering},
    workers::WorkersMap,
};
use self::{
    capability::missing_privileges,
    error::errno,
    pins::{Pins, Staged},
    relay::{Clients, Offsets},
};

/// The kernel programs, as `cargo xtask ebpf` built them from `router-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("warmpath.bpf.o");

/// The steering program's name in the object.
const PROGRAM: &str = "select_core";

/// The maps that are pinned.
const PINNED: [&str; 8] = [
    names::WORKERS,
    names::CORES,
    names::STEERING,
    names::INSTANCE,
    names::PREFIXES,
    names::DECISIONS,
    names::FLOWS,
    names::LATENCY,
];

/// The least that a ring buffer may have, on machines with pages of up to 64 KiB.
const LEAST_RING_BYTES: u32 = 64 * 1024;

/// How to open the kernel side.
#[derive(Clone, Debug)]
pub struct Options {
    /// Distinguishes gateways on one host, by their pin directories; `None` for the default instance.
    pub instance: Option<String>,
    /// A mounted BPF file system.
    pub pin_root: PathBuf,
    /// Data threads that will report and have a listener each.
    pub threads: u32,
    /// Whether event streams and other bodies of workers on this host may be lent to the kernel.
    pub bypass: bool,
    /// The same for workers on other hosts.
    pub splice: bool,
    /// What the XDP guard looks at; `None`: it stays off.
    pub guard: Option<GuardOptions>,
    /// Another gateway of this name runs, and will release what only one can have ([`Kernel::succeed`]).
    pub is_successor: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            instance: None,
            pin_root: PathBuf::from(DEFAULT_ROOT),
            threads: 1,
            bypass: false,
            splice: false,
            guard: None,
            is_successor: false,
        }
    }
}

/// The ways past this process that the kernel has for bodies. Cheap to clone, for every thread.
#[derive(Clone, Default)]
pub struct Relays {
    /// For workers on this host.
    pub bypass: Option<Bypass>,
    /// For all.
    pub splice: Option<Splice>,
    /// What both redirect into.
    pub clients: Option<Clients>,
}

impl Relays {
    /// Whether any of them may be used.
    pub fn are_on(&self) -> bool {
        self.bypass.as_ref().is_some_and(Bypass::is_on) || self.splice.as_ref().is_some_and(Splice::is_on)
    }

    /// Makes a client's socket, whose cookie this is, one that streams can be redirected into.
    pub fn client(&self, socket: impl AsFd, cookie: u64) -> Option<relay::ClientEnd> {
        self.clients.as_ref()?.add(socket, cookie)
    }
}

/// The loaded object, and the pins for as long as it lives.
pub struct Kernel {
    ebpf: Option<Ebpf>,
    steering: Option<Steering>,
    relays: Relays,
    flows: Option<Flows>,
    guard: Option<Guard>,
    pins: Option<Pins>,
    /// Until the one before has released its own.
    staged: Option<Staged>,
    /// Until the one before is off the interfaces.
    deferred_guard: Option<GuardOptions>,
    threads: u32,
}

impl Kernel {
    /// Loads what the kernel allows, and says what that is. Takes about 50 ms; call it once, before the data
    /// threads start.
    pub fn open(options: &Options) -> (Self, Capabilities) {
        let threads = options.threads.max(1);
        let mut kernel = Self {
            ebpf: None,
            steering: None,
            relays: Relays::default(),
            guard: None,
            flows: None,
            pins: None,
            staged: None,
            deferred_guard: None,
            threads,
        };
        let offsets = (options.bypass || options.splice).then(Offsets::read);
        let known = offsets.as_ref().and_then(|offsets| offsets.as_ref().ok());
        let mut ebpf = match load(threads, known, options.guard.as_ref()) {
            Ok(ebpf) => ebpf,
            Err(error) => return (kernel, Capabilities::none(&refusal(&error))),
        };
        kernel.flows = share_flows(&ebpf);
        let steering = if threads > CORES_MAX {
            Capability::unavailable(format!("{threads} data threads; steering places on at most {CORES_MAX}"))
        } else {
            capability(load_steering(&mut ebpf), refusal)
        };
        let (bypass, splice) = kernel.open_relays(&mut ebpf, options, offsets);
        let workers_map = capability(map(&mut ebpf, names::WORKERS).map(|_| ()), KernelError::to_string);
        let pins = match kernel.pin(&mut ebpf, options) {
            Ok(()) => Capability::Available,
            Err(reason) => Capability::Unavailable(reason),
        };
        let guard = match &options.guard {
            Some(guard) if options.is_successor => {
                kernel.deferred_guard = Some(guard.clone());
                Capability::unavailable("the gateway before has not released it")
            }
            Some(options) => kernel.open_guard(&mut ebpf, options),
            None => Capability::unavailable("switched off: `--guard IFACE` switches it on"),
        };
        kernel.ebpf = Some(ebpf);
        let capabilities =
            Capabilities { load: Capability::Available, workers_map, steering, pins, bypass, splice, guard };
        (kernel, capabilities)
    }

    fn pin(&mut self, ebpf: &mut Ebpf, options: &Options) -> Result<(), String> {
        let (root, instance) = (&options.pin_root, options.instance.as_deref());
        say_who(ebpf, self.threads).map_err(|error| chain(&error))?;
        let guard = if options.guard.is_some() { &guard::PINNED[..] } else { &[] };
        let names = PINNED.iter().chain(guard);
        if options.is_successor && pins::is_held(&pins::directory(root, instance)) {
            let mut staged = Staged::new(root, instance);
            for &name in names {
                let map = map(ebpf, name).map_err(|error| chain(&error))?;
                staged.pin(name, map).map_err(|error| refusal(&error))?;
            }
            self.staged = Some(staged);
            return Ok(());
        }
        let pins = Pins::claim(root, instance)?;
        for &name in names {
            let map = map(ebpf, name).map_err(|error| chain(&error))?;
            pins.pin(name, map).map_err(|error| refusal(&error))?;
        }
        self.pins = Some(pins);
        Ok(())
    }

    /// Opens the ways that are wanted, and says what became of bypass and splice.
    fn open_relays(
        &mut self,
        ebpf: &mut Ebpf,
        options: &Options,
        offsets: Option<Result<Offsets, KernelError>>,
    ) -> (Capability, Capability) {
        let off = || Capability::unavailable("switched off");
        let offsets = match offsets {
            None => return (off(), off()),
            Some(Err(error)) => {
                let why = |wanted: bool| if wanted { Capability::Unavailable(chain(&error)) } else { off() };
                return (why(options.bypass), why(options.splice));
            }
            Some(Ok(offsets)) => offsets,
        };
        // First: a program refers to its maps by file descriptors, and some of those close when a map is taken.
        let splice = options.splice.then(|| {
            if offsets.segments_show_sequence { Splice::attach(ebpf) } else { Err(KernelError::KernelTypes) }
        });
        let bypass = options.bypass.then(|| Bypass::attach(ebpf));
        let Some(flows) = &self.flows else {
            let unshared = || Capability::unavailable("no memory is shared with the kernel");
            return (unshared(), unshared());
        };
        let clients = match Clients::take(ebpf) {
            Ok(clients) => clients,
            Err(error) => {
                let refused = || Capability::Unavailable(refusal(&error));
                return (refused(), refused());
            }
        };
        let (bypass, bypass_is) = opened(bypass, |bypass| bypass::probe(bypass, flows, &clients));
        let (splice, splice_is) = opened(splice, |splice| splice::probe(splice, flows, &clients));
        self.relays = Relays { bypass, splice, clients: Some(clients) };
        (bypass_is, splice_is)
    }

    fn open_guard(&mut self, ebpf: &mut Ebpf, options: &GuardOptions) -> Capability {
        match Guard::open(ebpf, options) {
            Ok(guard) => self.guard.insert(guard).capability(),
            Err(error) => {
                tracing::debug!(?error, "refused by the kernel");
                Capability::Unavailable(refusal(&error))
            }
        }
    }

    /// The XDP guard, if it was asked for and the kernel took its program.
    pub fn guard(&self) -> Option<Guard> {
        self.guard.clone()
    }

    /// What the guard does with `frame`, a whole Ethernet frame, by `repeat` runs without a network. For tests and
    /// measurements; counters and buckets are the guard's own.
    pub fn guard_verdict(&mut self, frame: &[u8], repeat: u32) -> Result<GuardVerdict, KernelError> {
        let ebpf = self.ebpf.as_mut().ok_or(KernelError::Missing { what: "program", name: "guard" })?;
        guard::verdict(ebpf, frame, repeat)
    }

    /// What the kernel may be given to move: the ways that have passed their tests.
    pub fn relays(&self) -> Relays {
        self.relays.clone()
    }

    /// Streams and their times: in the maps, if the kernel has them, else in memory of this process.
    pub fn flows(&self) -> Result<Flows, KernelError> {
        self.flows.clone().map_or_else(Flows::private, Ok)
    }

    /// Whether this thread, with the privileges that it has now, can use the maps that are open.
    pub fn can_use_maps(&mut self) -> bool {
        let Some(ebpf) = &mut self.ebpf else { return true };
        let Ok(map) = map(ebpf, names::INSTANCE) else { return true };
        let instance: Result<Array<_, <InstanceValue as MapValue>::Bytes>, _> = map.try_into();
        instance.is_ok_and(|instance| instance.get(&0, 0).is_ok())
    }

    /// Where this instance's maps are pinned, if they are.
    pub fn pin_directory(&self) -> Option<&Path> {
        self.pins.as_ref().map(Pins::directory)
    }

    /// The writer of the `workers` map: `Some` once, if the object is loaded.
    pub fn take_workers(&mut self) -> Option<WorkersMap> {
        WorkersMap::new(self.ebpf.as_mut()?.take_map(names::WORKERS)?).ok()
    }

    /// The writer of the `prefixes` map: `Some` once, if the object is loaded.
    pub fn take_prefixes(&mut self) -> Option<PrefixesMap> {
        PrefixesMap::new(self.ebpf.as_mut()?.take_map(names::PREFIXES)?).ok()
    }

    /// The writer of the `decisions` map: `Some` once, if the object is loaded.
    pub fn take_decisions(&mut self) -> Option<Decisions> {
        Decisions::new(&self.ebpf.as_mut()?.take_map(names::DECISIONS)?).ok()
    }

    /// Attaches the steering program to `listeners`: one per data thread, in their order, all on one address and
    /// all with `SO_REUSEPORT`. Until the threads report, the kernel's hash places connections.
    pub fn attach_steering(&mut self, listeners: &[impl AsFd]) -> Result<Steering, KernelError> {
        if listeners.len() != self.threads as usize {
            return Err(KernelError::Threads { threads: listeners.len(), expected: self.threads });
        }
        let steering = self.prepare_steering()?;
        let missing = KernelError::Missing { what: "program", name: PROGRAM };
        steering.attach(steering_program(self.ebpf.as_mut().ok_or(missing)?)?, listeners)?;
        Ok(steering)
    }

    /// Steering with all that the data threads need to report, not attached yet.
    pub fn prepare_steering(&mut self) -> Result<Steering, KernelError> {
        if self.steering.is_some() {
            return Err(KernelError::Attached);
        }
        let missing = |what, name| KernelError::Missing { what, name };
        let ebpf = self.ebpf.as_mut().ok_or(missing("map", names::CORES))?;
        let mut take = |name| ebpf.take_map(name).ok_or(missing("map", name));
        let (sockets, counts, cores) = (take(names::LISTENERS)?, take(names::STEERING)?, take(names::CORES)?);
        let Map::Array(cores) = cores else { return Err(missing("array", names::CORES)) };
        let steering = Steering::new(&cores, counts, sockets, self.threads)?;
        self.steering = Some(steering.clone());
        Ok(steering)
    }

    /// What the steering program has decided so far; `None` while it is not attached.
    pub fn steering_stats(&self) -> Option<SteeringCounts> {
        self.steering.as_ref()?.stats().ok()
    }
}

/// A way of relaying that was attached, if it was wanted, and passes its start-up test.
fn opened<T, E: std::error::Error>(
    attached: Option<Result<T, KernelError>>,
    probe: impl FnOnce(&T) -> Result<(), E>,
) -> (Option<T>, Capability) {
    match attached {
        None => (None, Capability::unavailable("switched off")),
        Some(Err(error)) => {
            tracing::debug!(?error, "refused by the kernel");
            (None, Capability::Unavailable(refusal(&error)))
        }
        Some(Ok(way)) => match probe(&way) {
            Ok(()) => (Some(way), Capability::Available),
            Err(error) => (None, Capability::Unavailable(error.to_string())),
        },
    }
}

/// The memory of the maps `flows` and `latency`; `None`, and a line in the log, where it cannot be had.
fn share_flows(ebpf: &Ebpf) -> Option<Flows> {
    let flows = (|| {
        let map = |name| ebpf.map(name).ok_or(KernelError::Missing { what: "map", name });
        Flows::over(map(names::FLOWS)?, map(names::LATENCY)?)
    })();
    flows.inspect_err(|error| tracing::warn!(error = %chain(error), "streams are not shown in BPF maps")).ok()
}

fn load(threads: u32, offsets: Option<&Offsets>, guard: Option<&GuardOptions>) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    loader
        // On a refusal, the verifier's verdict; with its whole trace it takes seconds, and runs out of room.
        .verifier_log_level(VerifierLogLevel::STATS)
        .map_max_entries(names::CORES, threads.min(CORES_MAX));
    if let Some(offsets) = offsets {
        offsets.give(&mut loader);
    }
    if let Some(guard) = guard {
        loader.override_global("GUARD_PORT", &guard.port, true);
    } else {
        // Its maps are part of the object; without a guard they take no memory to speak of.
        for name in [names::GUARD_RULES, names::GUARD_HITS, names::GUARD_SRC] {
            loader.map_max_entries(name, 1);
        }
        loader.map_max_entries(guard::LOG_MAP, LEAST_RING_BYTES);
    }
    loader.load(OBJECT).map_err(KernelError::Load)
}

fn load_steering(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    steering_program(ebpf)?.load().map_err(|source| KernelError::Program { name: PROGRAM, source })
}

fn steering_program(ebpf: &mut Ebpf) -> Result<&mut SkReuseport, KernelError> {
    ebpf.program_mut(PROGRAM)
        .ok_or(KernelError::Missing { what: "program", name: PROGRAM })?
        .try_into()
        .map_err(|source| KernelError::Program { name: PROGRAM, source })
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Map, KernelError> {
    ebpf.map_mut(name).ok_or(KernelError::Missing { what: "map", name })
}

/// Writes the `instance` map.
fn say_who(ebpf: &mut Ebpf, threads: u32) -> Result<(), KernelError> {
    let value = InstanceValue {
        schema_version: SCHEMA_VERSION,
        pid: std::process::id(),
        started_ns: sys::monotonic_ns(),
        threads,
        padding: 0,
    };
    let mut array: Array<_, <InstanceValue as MapValue>::Bytes> = map(ebpf, names::INSTANCE)?
        .try_into()
        .map_err(|source| KernelError::Map { name: names::INSTANCE.to_owned(), source })?;
    array
        .set(0, value.to_bytes(), 0)
        .map_err(|source| KernelError::Map { name: names::INSTANCE.to_owned(), source })
}

fn capability(result: Result<(), KernelError>, why: impl FnOnce(&KernelError) -> String) -> Capability {
    match result {
        Ok(()) => Capability::Available,
        Err(error) => {
            // The verifier's verdict is in here, and only here.
            tracing::debug!(?error, "refused by the kernel");
            Capability::Unavailable(why(&error))
        }
    }
}

/// As the maps have addresses: IPv6, or IPv4 mapped into it, in network byte order.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// `SO_COOKIE`: a number that no other socket has had or will have.
pub fn socket_cookie(socket: impl AsFd) -> std::io::Result<u64> {
    sys::socket_cookie(&socket)
}

/// Why the kernel refused, and what would help.
fn refusal(error: &KernelError) -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match (errno(error), missing_privileges()) {
        // Without CAP_PERFMON the verifier also follows what the CPU might speculate. It refuses what it then finds
        // (EACCES), or gives up on so many paths (E2BIG, EFAULT), or does not know the helpers called (EINVAL).
        (Some(libc::EPERM | libc::EACCES | libc::E2BIG | libc::EFAULT | libc::EINVAL), Some(missing)) => missing,
        (Some(libc::EPERM), None) => {
            "forbidden although the capabilities are there: by a container's seccomp profile or a kernel lockdown"
                .to_owned()
        }
        (Some(libc::ENOSYS), _) => format!("Linux {release} is built without bpf(2)"),
        (Some(libc::EINVAL), _) => format!("Linux {release} refuses it, 5.14 or later is needed ({})", chain(error)),
        // EACCES is also the verifier's answer to a program that it does not accept.
        _ => chain(error),
    }
}
