//! The bypass: bodies from a worker on this host go from its `sendmsg` straight into the client's socket, past
//! loopback and past this process. The protocol is in `router_common::relay`, its argument in `docs/relay.md`.
//!
//! [`Bypass`] knows sockets and slots; what a response is and when it is worth it, the gateway knows. Nothing here
//! blocks: handing a stream over is four stores into shared memory, and the program's answer is a load.
//!
//! Needs Linux 5.17 with BTF. [`probe`] tries everything on connections of its own before the first response is
//! trusted to it.

mod events;
mod probe;
mod slots;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, MapError, RingBuf, SockHash},
    programs::{CgroupAttachMode, SkMsg, SockOps},
};
use parking_lot::Mutex;
use router_common::{
    MapValue, names,
    relay::{Accepted, PORT_OF_CLIENTS, PORT_OF_WORKER, Pair},
};

use self::{events::Waiters, slots::Slots};
pub use self::{
    probe::{ProbeError, probe},
    slots::{Stop, WorkerEnd},
};
use super::{
    error::KernelError,
    sys::{self, SocketOption},
    vmlinux::Vmlinux,
};

const CATCH: &str = "note_accepted";
const RELAY: &str = "relay_message";

/// Whose sockets are noted.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    /// Where workers listen.
    pub workers: Vec<u16>,
    /// Where this gateway listens for clients.
    pub clients: Option<u16>,
}

type PairBytes = <Pair as MapValue>::Bytes;
type AcceptedBytes = <Accepted as MapValue>::Bytes;

/// The bypass of one gateway. Cheap to clone, for every thread.
#[derive(Clone)]
pub struct Bypass {
    shared: Arc<Shared>,
}

struct Shared {
    on: AtomicBool,
    ports: Mutex<HashMap<MapData, u32, u32>>,
    accepted: HashMap<MapData, PairBytes, AcceptedBytes>,
    clients: Mutex<SockHash<MapData, u64>>,
    slots: Slots,
}

/// A client's socket that a stream can be redirected into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientEnd {
    pub(super) cookie: u64,
}

/// What the programs are told of this kernel when they are loaded.
pub(super) struct Constants {
    write_seq: u32,
    wmem_queued: u32,
    sndbuf: u32,
    cookie: u32,
    netns: u64,
}

impl Constants {
    pub(super) fn read() -> Result<Self, KernelError> {
        let vmlinux = Vmlinux::read()?;
        Ok(Self {
            write_seq: vmlinux.offset("tcp_sock", "write_seq")?,
            wmem_queued: vmlinux.offset("sock", "sk_wmem_queued")?,
            sndbuf: vmlinux.offset("sock", "sk_sndbuf")?,
            cookie: vmlinux.offset("sock_common", "skc_cookie")?,
            netns: netns_cookie()
                .map_err(|source| KernelError::Socket { what: "SO_NETNS_COOKIE", source })?,
        })
    }

    pub(super) fn give<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global("TCP_WRITE_SEQ", &self.write_seq, true)
            .override_global("SOCK_WMEM_QUEUED", &self.wmem_queued, true)
            .override_global("SOCK_SNDBUF", &self.sndbuf, true)
            .override_global("SOCK_COOKIE", &self.cookie, true)
            .override_global("NETNS_COOKIE", &self.netns, true);
    }
}

fn netns_cookie() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    sys::socket_option(&socket, SocketOption::NetnsCookie)
}

impl Bypass {
    /// Loads and attaches both programs and names the ports.
    pub(super) fn attach(ebpf: &mut Ebpf, ports: &Ports) -> Result<Self, KernelError> {
        // First: a program refers to its maps by file descriptors, and some of those close below.
        let program = |name| move |source| KernelError::Program { name, source };
        program_of::<SkMsg>(ebpf, RELAY)?.load().map_err(program(RELAY))?;
        program_of::<SockOps>(ebpf, CATCH)?.load().map_err(program(CATCH))?;

        let mut take =
            |name: &'static str| ebpf.take_map(name).ok_or(KernelError::Missing { what: "map", name });
        let mapped =
            |name: &'static str| move |source: MapError| KernelError::Map { name: name.to_owned(), source };
        let workers: SockHash<MapData, u64> =
            take(names::RELAY_WORKERS)?.try_into().map_err(mapped(names::RELAY_WORKERS))?;
        let events: RingBuf<MapData> =
            take(names::RELAY_EVENTS)?.try_into().map_err(mapped(names::RELAY_EVENTS))?;
        let slots = Slots::new(
            take(names::RELAY_SLOTS)?.try_into().map_err(mapped(names::RELAY_SLOTS))?,
            take(names::RELAY_ORDERS)?,
            take(names::RELAY_STATES)?,
            Waiters::start(events)
                .map_err(|source| KernelError::Socket { what: "a thread for relay events", source })?,
        )?;
        let shared = Shared {
            on: AtomicBool::new(true),
            ports: Mutex::new(take(names::RELAY_PORTS)?.try_into().map_err(mapped(names::RELAY_PORTS))?),
            accepted: take(names::RELAY_ACCEPTED)?.try_into().map_err(mapped(names::RELAY_ACCEPTED))?,
            clients: Mutex::new(
                take(names::RELAY_CLIENTS)?.try_into().map_err(mapped(names::RELAY_CLIENTS))?,
            ),
            slots,
        };
        let bypass = Self { shared: Arc::new(shared) };
        for port in &ports.workers {
            bypass.note(*port, PORT_OF_WORKER)?;
        }
        if let Some(port) = ports.clients {
            bypass.note(port, PORT_OF_CLIENTS)?;
        }

        program_of::<SkMsg>(ebpf, RELAY)?.attach(workers.fd()).map_err(program(RELAY))?;
        let cgroup = cgroup_root()?;
        program_of::<SockOps>(ebpf, CATCH)?
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(program(CATCH))?;
        Ok(bypass)
    }

    /// Adds `role` to what is known of `port`.
    fn note(&self, port: u16, role: u32) -> Result<(), KernelError> {
        let mut ports = self.shared.ports.lock();
        let port = u32::from(port);
        let before = ports.get(&port, 0).unwrap_or(0);
        ports
            .insert(port, before | role, 0)
            .map_err(|source| KernelError::Map { name: names::RELAY_PORTS.to_owned(), source })
    }

    fn forget(&self, port: u16) {
        let _ = self.shared.ports.lock().remove(&u32::from(port));
    }

    /// Whether it may be used.
    pub fn is_on(&self) -> bool {
        self.shared.on.load(Relaxed)
    }

    /// For good: the kernel did something that it must not do. Streams in its hands end as they can.
    pub fn switch_off(&self) {
        self.shared.on.store(false, Relaxed);
    }

    /// Takes a slot for a connection of ours to a worker, if the worker's end of it was noted: it is on this host, in
    /// this network namespace, and was accepted after the programs were attached. One system call where it was not,
    /// two where it was.
    pub fn worker(&self, worker: SocketAddr, ours: SocketAddr) -> Option<WorkerEnd> {
        let pair = Pair {
            local: octets(worker.ip()),
            remote: octets(ours.ip()),
            local_port: u32::from(worker.port()),
            remote_port: u32::from(ours.port()),
        };
        let accepted = self.shared.accepted.get(&pair.to_bytes(), 0).ok()?;
        let Accepted { cookie, first_seq, .. } = Accepted::from_bytes(&accepted)?;
        Slots::take(&self.shared.slots, &self.shared, cookie, first_seq)
    }

    /// Makes a client's socket one that streams can be redirected into. It leaves the map when it is closed.
    pub fn client(&self, socket: impl AsFd) -> Option<ClientEnd> {
        let cookie = sys::socket_option(&socket, SocketOption::Cookie).ok()?;
        let raw = socket.as_fd().as_raw_fd();
        self.shared.clients.lock().insert(cookie, raw, 0).ok()?;
        Some(ClientEnd { cookie })
    }
}

/// Bytes that were ever given to this socket's TCP, by whomever.
pub fn written(socket: impl AsFd) -> io::Result<u64> {
    loop {
        // What is acknowledged between the two readings would be missing from, or be twice in, the sum.
        let acknowledged = sys::bytes_acknowledged(&socket)?;
        let outstanding = sys::bytes_outstanding(&socket)?;
        if sys::bytes_acknowledged(&socket)? == acknowledged {
            return Ok(acknowledged + u64::from(outstanding));
        }
    }
}

/// Bytes that the peer of this socket has not acknowledged yet.
pub fn outstanding(socket: impl AsFd) -> io::Result<u32> {
    sys::bytes_outstanding(&socket)
}

/// Whether the connection of this socket stands, in both directions or in ours.
pub fn is_established(socket: impl AsFd) -> bool {
    sys::is_writable_connection(&socket)
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn program_of<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(KernelError::Missing { what: "program", name })?;
    program.try_into().map_err(|source| KernelError::Program { name, source })
}

/// The root of the cgroup2 hierarchy, wherever it is mounted.
fn cgroup_root() -> Result<std::fs::File, KernelError> {
    let mounts = std::path::Path::new("/proc/self/mounts");
    let io = |path: &std::path::Path| {
        let path = path.to_owned();
        move |source| KernelError::Io { path, source }
    };
    let text = std::fs::read_to_string(mounts).map_err(io(mounts))?;
    let point = text.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| std::path::PathBuf::from(point))
    });
    let point = point.ok_or(KernelError::NoCgroup)?;
    std::fs::File::open(&point).map_err(io(&point))
}
