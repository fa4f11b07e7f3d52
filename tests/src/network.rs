//! Two network namespaces joined by a cable (veth): one for a gateway and its workers, one for clients with several
//! addresses. Both go with the value, however the test ends: each lives by a `cat` whose input is a pipe from here.
//!
//! Needs root, `unshare` and `nsenter` (util-linux) and `ip` (iproute2).

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr},
    process::{Child, Command, Stdio},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpSocket;
use vllm_sim::{Sim, SimConfig, SimHandle};

use crate::{binary, client};

/// The gateway's end of the cable.
pub const GATEWAY: &str = "10.99.0.1";
/// The gateway's end of the cable.
pub const GATEWAY_V6: &str = "fd99::1";
/// A client.
pub const CLIENT: &str = "10.99.0.2";
/// Another client.
pub const OTHER_CLIENT: &str = "10.99.0.66";
/// A client.
pub const CLIENT_V6: &str = "fd99::2";

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    holder: Child,
}

impl Namespace {
    fn create() -> Result<Self, String> {
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = unshare.spawn().map_err(|error| format!("unshare: {error}"))?;
        // What comes back comes from `cat`, which runs in the new namespace.
        let mut echo = String::new();
        let stdin = holder.stdin.as_mut().expect("piped");
        let _ = stdin.write_all(b"there\n");
        let stdout = holder.stdout.as_mut().expect("piped");
        let _ = BufReader::new(stdout).read_line(&mut echo);
        let namespace = Self { holder };
        if echo.is_empty() { Err("unshare --net is not allowed here".to_owned()) } else { Ok(namespace) }
    }

    fn file(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// Runs `work` on a thread in the namespace. Sockets made and processes started there stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = File::open(self.file()).expect("the namespace is there");
                move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
                    .expect("who made the namespace may enter it");
                work()
            });
            thread.join().expect("no panic in the namespace")
        })
    }

    /// Runs `ip ARGS`; what it printed.
    pub fn ip(&self, args: &str) -> Result<String, String> {
        let output = self.enter(|| Command::new("ip").args(args.split(' ')).output());
        let output = output.map_err(|error| format!("ip: {error}"))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(format!("ip {args}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
    }

    /// A TCP socket in the namespace, bound to an address of its.
    pub fn socket(&self, source: &str) -> TcpSocket {
        let source: IpAddr = source.parse().expect("an address");
        let socket = self.enter(|| if source.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() });
        let socket = socket.expect("a socket");
        socket.bind(SocketAddr::new(source, 0)).expect("an address of the namespace");
        socket
    }

    /// Sends a request from `source` over a connection of its own and reads the whole response.
    pub async fn request(
        &self,
        source: &str,
        to: SocketAddr,
        method: &str,
        path: &str,
        body: &str,
    ) -> client::Reply {
        let stream = self.socket(source).connect(to).await.expect("connects");
        let headers = [("content-type", "application/json")];
        client::request_over(stream, to, method, path, &headers, body.to_owned()).await
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// The two namespaces. The gateway's interface is `g0`, the clients' `c0`.
#[derive(Debug)]
pub struct Network {
    /// Gateways and workers.
    pub gateway: Namespace,
    /// Clients.
    pub clients: Namespace,
}

impl Network {
    /// Makes both, or says why it cannot.
    pub fn create() -> Result<Self, String> {
        let network = Self { gateway: Namespace::create()?, clients: Namespace::create()? };
        let Self { gateway, clients } = &network;
        gateway.ip("link set lo up")?;
        gateway.ip(&format!("link add g0 type veth peer name c0 netns {}", clients.holder.id()))?;
        gateway.ip(&format!("address add {GATEWAY}/24 dev g0"))?;
        clients.ip(&format!("address add {CLIENT}/24 dev c0"))?;
        clients.ip(&format!("address add {OTHER_CLIENT}/24 dev c0"))?;
        // A kernel may be without IPv6: tests that need it find no address.
        let _ = gateway.ip(&format!("address add {GATEWAY_V6}/64 dev g0 nodad"));
        let _ = clients.ip(&format!("address add {CLIENT_V6}/64 dev c0 nodad"));
        gateway.ip("link set g0 up")?;
        clients.ip("link set c0 up")?;
        Ok(network)
    }

    /// Whether there are IPv6 addresses.
    pub fn has_v6(&self) -> bool {
        self.clients.ip("-6 address show dev c0").is_ok_and(|text| text.contains(CLIENT_V6))
    }

    /// A simulated worker beside the gateway.
    pub fn sim(&self) -> SimHandle {
        self.gateway.enter(|| Sim::start_thread(SimConfig::default())).expect("a simulated worker starts")
    }

    /// `warmpath serve` with `args`, on the cable's address and with the admin port inside the gateway's namespace.
    pub fn gateway(&self, worker: &SimHandle, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("nsenter");
        command.arg(format!("--net={}", self.gateway.file())).arg(binary());
        command.args([
            "serve",
            "--listen",
            &format!("{GATEWAY}:0"),
            "--admin",
            "127.0.0.1:0",
            "--threads",
            "2",
        ]);
        command.args(["--instance", &format!("test-{:08x}", client::random())]);
        command.args(["--worker", &format!("http://{}", worker.addr())]).args(args);
        command
    }
}
