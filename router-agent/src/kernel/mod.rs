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
mod error;
mod guard;
mod pinned;
mod pins;
mod steering;
mod sys;
mod vmlinux;
mod workers;

use std::{
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
    error::{KernelError, chain},
    guard::{
        Attached, Guard, GuardAction, GuardCounts, GuardOptions, GuardRule, GuardRuleCount, GuardVerdict,
        PinnedRule, PinnedSource, SynLimit, interface_names,
    },
    pinned::{PinnedMap, PinnedMaps, Row, now_ns},
    pins::{DEFAULT_ROOT, directory as pin_directory},
    steering::{Core, Steering},
    workers::WorkersMap,
};
use self::{
    bypass::Constants,
    capability::{missing_privileges, not_built},
    error::errno,
    pins::Pins,
};

/// The kernel programs, as `cargo xtask ebpf` built them from `router-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("warmpath.bpf.o");

/// The steering program's name in the object.
const PROGRAM: &str = "select_core";

/// The maps that are pinned.
const PINNED: [&str; 4] = [names::WORKERS, names::CORES, names::STEERING, names::INSTANCE];

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
    /// Whose sockets the bypass relay may note; `None`: it stays off.
    pub bypass: Option<bypass::Ports>,
    /// What the XDP guard looks at; `None`: it stays off.
    pub guard: Option<GuardOptions>,
}

impl Default for Options {
    fn default() -> Self {
        Self { instance: None, pin_root: PathBuf::from(DEFAULT_ROOT), threads: 1, bypass: None, guard: None }
    }
}

/// The loaded object, and the pins for as long as it lives.
pub struct Kernel {
    ebpf: Option<Ebpf>,
    steering: Option<Steering>,
    bypass: Option<Bypass>,
    guard: Option<Guard>,
    pins: Option<Pins>,
    threads: u32,
}

impl Kernel {
    /// Loads what the kernel allows, and says what that is. Takes about 50 ms; call it once, before the data
    /// threads start.
    pub fn open(options: &Options) -> (Self, Capabilities) {
        let threads = options.threads.max(1);
        let mut kernel = Self { ebpf: None, steering: None, bypass: None, guard: None, pins: None, threads };
        let constants = options.bypass.as_ref().map(|_| Constants::read());
        let known = constants.as_ref().and_then(|constants| constants.as_ref().ok());
        let mut ebpf = match load(threads, known, options.guard.as_ref()) {
            Ok(ebpf) => ebpf,
            Err(error) => return (kernel, Capabilities::none(&refusal(&error))),
        };
        let steering = if threads > CORES_MAX {
            Capability::unavailable(format!("{threads} data threads; steering places on at most {CORES_MAX}"))
        } else {
            capability(load_steering(&mut ebpf), refusal)
        };
        let bypass = match (&options.bypass, constants) {
            (Some(ports), Some(Ok(_))) => kernel.attach_bypass(&mut ebpf, ports),
            (_, Some(Err(error))) => Capability::Unavailable(chain(&error)),
            _ => Capability::unavailable("switched off"),
        };
        let workers_map = capability(map(&mut ebpf, names::WORKERS).map(|_| ()), KernelError::to_string);
        let pins = match kernel.pin(&mut ebpf, options) {
            Ok(()) => Capability::Available,
            Err(reason) => Capability::Unavailable(reason),
        };
        let guard = match &options.guard {
            Some(options) => kernel.open_guard(&mut ebpf, options),
            None => Capability::unavailable("switched off: `--guard IFACE` switches it on"),
        };
        kernel.ebpf = Some(ebpf);
        let capabilities = Capabilities {
            load: Capability::Available,
            workers_map,
            steering,
            pins,
            bypass,
            splice: not_built(),
            guard,
        };
        (kernel, capabilities)
    }

    fn pin(&mut self, ebpf: &mut Ebpf, options: &Options) -> Result<(), String> {
        let pins = Pins::claim(&options.pin_root, options.instance.as_deref())?;
        say_who(ebpf, self.threads).map_err(|error| chain(&error))?;
        let guard = if options.guard.is_some() { &guard::PINNED[..] } else { &[] };
        for &name in PINNED.iter().chain(guard) {
            let map = map(ebpf, name).map_err(|error| chain(&error))?;
            pins.pin(name, map).map_err(|error| refusal(&error))?;
        }
        self.pins = Some(pins);
        Ok(())
    }

    fn attach_bypass(&mut self, ebpf: &mut Ebpf, ports: &bypass::Ports) -> Capability {
        let attached = match Bypass::attach(ebpf, ports) {
            Ok(attached) => attached,
            Err(error) => {
                tracing::debug!(?error, "refused by the kernel");
                return Capability::Unavailable(refusal(&error));
            }
        };
        match bypass::probe(&attached) {
            Ok(()) => {
                self.bypass = Some(attached);
                Capability::Available
            }
            Err(error) => Capability::Unavailable(error.to_string()),
        }
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

    /// The relay past this process, for workers on this host; `None` if the kernel did not pass its test.
    pub fn bypass(&self) -> Option<Bypass> {
        self.bypass.clone()
    }

    /// Where this instance's maps are pinned, if they are.
    pub fn pin_directory(&self) -> Option<&Path> {
        self.pins.as_ref().map(Pins::directory)
    }

    /// The writer of the `workers` map: `Some` once, if the object is loaded.
    pub fn take_workers(&mut self) -> Option<WorkersMap> {
        WorkersMap::new(self.ebpf.as_mut()?.take_map(names::WORKERS)?).ok()
    }

    /// Attaches the steering program to `listeners`: one per data thread, in their order, all on one address and
    /// all with `SO_REUSEPORT`. Until the threads report, the kernel's hash places connections.
    pub fn attach_steering(&mut self, listeners: &[impl AsFd]) -> Result<Steering, KernelError> {
        if self.steering.is_some() {
            return Err(KernelError::Attached);
        }
        if listeners.len() != self.threads as usize {
            return Err(KernelError::Threads { threads: listeners.len(), expected: self.threads });
        }
        let missing = |what, name| KernelError::Missing { what, name };
        let ebpf = self.ebpf.as_mut().ok_or(missing("map", names::CORES))?;
        let mut take = |name| ebpf.take_map(name).ok_or(missing("map", name));
        let (sockets, counts, cores) = (take(names::LISTENERS)?, take(names::STEERING)?, take(names::CORES)?);
        let Map::Array(cores) = cores else { return Err(missing("array", names::CORES)) };
        let sockets = sockets
            .try_into()
            .map_err(|source| KernelError::Map { name: names::LISTENERS.to_owned(), source })?;
        let steering = Steering::new(&cores, counts, self.threads)?;
        Steering::attach(steering_program(ebpf)?, sockets, listeners)?;
        self.steering = Some(steering.clone());
        Ok(steering)
    }

    /// What the steering program has decided so far; `None` while it is not attached.
    pub fn steering_stats(&self) -> Option<SteeringCounts> {
        self.steering.as_ref()?.stats().ok()
    }
}

fn load(
    threads: u32,
    constants: Option<&Constants>,
    guard: Option<&GuardOptions>,
) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    loader
        // On a refusal, the verifier's verdict; with its whole trace it takes seconds, and runs out of room.
        .verifier_log_level(VerifierLogLevel::STATS)
        .map_max_entries(names::CORES, threads.min(CORES_MAX));
    if let Some(constants) = constants {
        constants.give(&mut loader);
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
