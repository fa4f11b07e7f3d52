//! A real `redis-server` for a test: on a socket of its own or on a free port, in memory only, killed when dropped.
//!
//! Where there is none, tests say `skipped` and why; `cargo xtask test` installs it where it can.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    process::{Child, Command},
};

use crate::eventually;

/// A running server.
#[derive(Debug)]
pub struct Redis {
    directory: TempDir,
    arguments: Vec<String>,
    address: Option<SocketAddr>,
    child: Child,
}

impl Redis {
    /// On a socket, without a password; none where `redis-server` is not installed, which is said.
    pub async fn start(test: &str) -> Option<Self> {
        Self::with(test, &[]).await
    }

    /// On a socket, with more arguments.
    pub async fn with(test: &str, arguments: &[&str]) -> Option<Self> {
        let directory = TempDir::new().expect("a directory");
        let socket = directory.path().join("redis.sock");
        let mut all = vec!["--port", "0", "--unixsocket", socket.to_str().expect("UTF-8")];
        all.extend(arguments);
        let arguments = all.into_iter().map(str::to_owned).collect();
        Self::run(test, directory, arguments, None).await
    }

    /// On a free port of the loopback; `arguments` are given it and a directory of the server's own.
    pub async fn on_port(test: &str, arguments: impl FnOnce(u16, &Path) -> Vec<String>) -> Option<Self> {
        let directory = TempDir::new().expect("a directory");
        // Given back before the server takes it: another test that binds no port by number cannot be in its way.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let address = free.expect("a free port");
        let arguments = arguments(address.port(), directory.path());
        Self::run(test, directory, arguments, Some(address)).await
    }

    async fn run(
        test: &str,
        directory: TempDir,
        arguments: Vec<String>,
        address: Option<SocketAddr>,
    ) -> Option<Self> {
        let child = match spawn(directory.path(), &arguments) {
            Ok(child) => child,
            Err(error) => {
                eprintln!(
                    "skipped: {test}: redis-server cannot be started (apt-get install redis-server): {error}"
                );
                return None;
            }
        };
        let redis = Self { directory, arguments, address, child };
        redis.await_connection().await;
        Some(redis)
    }

    /// As `shared.urls` names it; by its socket, if it has no port.
    pub fn url(&self) -> String {
        self.address.map_or_else(
            || format!("unix://{}", self.socket().display()),
            |address| format!("redis://{address}"),
        )
    }

    /// Its address, where it has a port.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    async fn await_connection(&self) {
        eventually("a connection to redis-server", || async {
            match self.address {
                Some(address) => TcpStream::connect(address).await.map(drop).ok(),
                None => UnixStream::connect(self.socket()).await.map(drop).ok(),
            }
        })
        .await;
    }

    /// Stands still (`SIGSTOP`) or goes on (`SIGCONT`).
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("it runs").cast_signed();
        kill_process(Pid::from_raw(pid).expect("not zero"), signal).expect("it is there");
    }

    /// Ends it at once.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it runs");
    }

    /// Starts it again, empty, where it was.
    pub async fn restart(&mut self) {
        let _ = std::fs::remove_file(self.socket()); // of one that was killed
        self.child = spawn(self.directory.path(), &self.arguments).expect("it has run before");
        self.await_connection().await;
    }

    /// What it answers to one command, as it stands on the wire; of several lines all of them.
    pub async fn ask(&self, command: &[&str]) -> String {
        match self.address {
            Some(address) => exchange(TcpStream::connect(address).await.expect("connects"), command).await,
            None => exchange(UnixStream::connect(self.socket()).await.expect("connects"), command).await,
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
    }
}

fn spawn(directory: &Path, arguments: &[String]) -> std::io::Result<Child> {
    Command::new("redis-server")
        .args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir"])
        .arg(directory)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

/// Inline commands are enough: no argument has a space. `QUIT` ends the answer.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, command: &[&str]) -> String {
    let line = format!("{}\r\nQUIT\r\n", command.join(" "));
    stream.write_all(line.as_bytes()).await.expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("it answers");
    let text = String::from_utf8_lossy(&answer);
    text.strip_suffix("+OK\r\n").unwrap_or(&text).to_owned()
}
