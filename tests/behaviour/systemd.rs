//! As a service of systemd: what it is told, its watchdog, and sockets that it has opened.

use std::{
    os::{fd::AsRawFd, unix::net::UnixDatagram},
    process::Stdio,
    time::Instant,
};

use rustix::process::{Pid, kill_process};
use tempfile::TempDir;
use tokio::process::Command;
use warmpath_tests::{Gateway, PATIENCE, Signal, binary, eventually, get, random, sims, urls};

/// The end at which systemd listens.
struct Notified {
    socket: UnixDatagram,
    directory: TempDir,
}

impl Notified {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, directory }
    }

    /// A gateway that tells it.
    async fn gateway(&self, workers: &[String], more: &[(&str, &str)]) -> Gateway {
        let mut command = Command::new(binary());
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--threads", "2"]);
        command.args(["--instance", &format!("sd-{:08x}", random())]);
        command.args(workers.iter().flat_map(|url| ["--worker", url]));
        command.env("NOTIFY_SOCKET", self.directory.path().join("notify")).envs(more.iter().copied());
        Gateway::spawn(command).await
    }

    /// The next message.
    async fn next(&self) -> String {
        eventually("a word to systemd", || async {
            let mut buffer = [0; 4096];
            let count = self.socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..count]).into_owned())
        })
        .await
    }

    /// The next message that says `what`.
    async fn says(&self, what: &str) -> String {
        let began = Instant::now();
        loop {
            let message = self.next().await;
            if message.lines().any(|line| line.starts_with(what)) {
                return message;
            }
            assert!(began.elapsed() < PATIENCE, "systemd was not told {what}");
        }
    }
}

#[tokio::test]
async fn systemd_is_told_of_readiness_reloads_and_the_end() {
    let (sims, systemd) = (sims(1).await, Notified::new());
    let mut gateway = systemd.gateway(&urls(&sims), &[]).await;
    assert!(systemd.next().await.contains("READY=1"));
    gateway.signal(Signal::HUP);
    let reloading = systemd.next().await;
    let since = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect(&reloading);
    assert!(reloading.contains("RELOADING=1") && since.parse::<u64>().unwrap() > 0);
    assert!(systemd.next().await.contains("READY=1"));
    gateway.signal(Signal::TERM);
    assert!(systemd.next().await.contains("STOPPING=1"));
    assert_eq!(gateway.ended().await, Some(0));
}

#[tokio::test]
async fn the_watchdog_is_fed_while_the_data_threads_turn() {
    let (sims, systemd) = (sims(1).await, Notified::new());
    let _gateway = systemd.gateway(&urls(&sims), &[("WATCHDOG_USEC", "900000")]).await;
    systemd.says("WATCHDOG=1").await;
    systemd.says("WATCHDOG=1").await;
    systemd.says("WATCHDOG=1").await;
}

#[tokio::test]
async fn a_successor_is_named_to_systemd_and_feeds_the_watchdog() {
    let (sims, systemd) = (sims(1).await, Notified::new());
    let mut gateway = systemd.gateway(&urls(&sims), &[("WATCHDOG_USEC", "900000")]).await;
    systemd.says("READY=1").await;
    gateway.signal(Signal::USR2);
    let main = systemd.says("MAINPID=").await;
    let successor: i32 = main.trim().strip_prefix("MAINPID=").unwrap().parse().unwrap();
    assert_ne!(successor, gateway.pid().cast_signed());
    systemd.says("READY=1").await;
    assert_eq!(gateway.ended().await, Some(0));
    systemd.says("WATCHDOG=1").await;
    kill_process(Pid::from_raw(successor).unwrap(), Signal::TERM).unwrap();
    systemd.says("STOPPING=1").await;
}

/// Starts a gateway with sockets on its descriptors 3 and 4, as systemd does.
async fn activated(workers: &[String], names: &str) -> (Gateway, [std::net::TcpListener; 2]) {
    let sockets = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    // Two descriptors of ours that the shell inherits, by number, and puts where systemd would.
    let inherited = sockets.each_ref().map(|socket| {
        let descriptor = rustix::io::dup(socket).unwrap();
        rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::empty()).unwrap();
        descriptor
    });
    let [clients, admin] = inherited.each_ref().map(AsRawFd::as_raw_fd);
    let mut command = Command::new("bash");
    command.args([
        "-c",
        &format!("export LISTEN_PID=$$; exec 3<&{clients} 4<&{admin}; exec \"$@\""),
        "activated",
    ]);
    command.arg(binary()).args([
        "serve",
        "--listen",
        "127.0.0.1:1",
        "--admin",
        "127.0.0.1:2",
        "--threads",
        "2",
    ]);
    command.args(["--instance", &format!("sd-{:08x}", random())]);
    command.args(workers.iter().flat_map(|url| ["--worker", url]));
    command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", names).stdin(Stdio::null());
    (Gateway::spawn(command).await, sockets)
}

#[tokio::test]
async fn sockets_of_systemd_are_used() {
    let sims = sims(1).await;
    let (mut gateway, [clients, admin]) = activated(&urls(&sims), "warmpath.socket:admin").await;
    assert_eq!(gateway.address, clients.local_addr().unwrap());
    assert_eq!(gateway.admin, admin.local_addr().unwrap());
    for _ in 0..4 {
        assert_eq!(gateway.chat("hello").await.status, 200);
    }
    assert_eq!(get(gateway.admin, "/ready").await.text(), "ready\n");
    // While it is stopped and started again, clients wait: systemd has the sockets.
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().await, Some(0));
    tokio::net::TcpStream::connect(gateway.address).await.unwrap();
}
