//! `cargo xtask vllm`: real vLLM servers on this machine's CPU, and the gateway in front of them.
//!
//! | command | does |
//! |---|---|
//! | `up` | installs vLLM on first use (`tests/real-vllm/setup.sh` into `tools/real-vllm`, 5 GB), starts the servers in the background, waits until they are healthy, prints their addresses |
//! | `down` | stops them |
//! | `check` | what the gateway knows of the servers' caches, held against what they report (`tests/real-vllm/kv_events_check.py`), the `openai` client's view of it, one line per behaviour (`client_check.py`), and the gateway's own tokens beside vLLM's (`check_tokens.py`) |
//! | `demo` | multi-turn conversations through the gateway under each policy, and a table of cached tokens and TTFT (`tests/real-vllm/conversations.py`) |
//!
//! `check` and `demo` use servers that are up, or start their own and stop them again. Whatever is started is stopped by
//! its own process id.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace;

const SERVERS_READY_TIMEOUT: Duration = Duration::from_mins(3);
const GATEWAY_READY_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const SERVER_PORT_FIRST: u16 = 8001;

/// Arguments of `cargo xtask vllm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: VllmCommand,
    /// How many servers
    #[arg(long, global = true, default_value_t = 3)]
    servers: u16,
    /// Where the gateway listens in `check` and `demo`; its admin port is the next one
    #[arg(long, global = true, default_value_t = 18_080)]
    gateway_port: u16,
}

#[derive(Debug, clap::Subcommand)]
enum VllmCommand {
    /// Install vLLM if need be, start the servers in the background and print their addresses
    Up,
    /// Stop what `up` started
    Down,
    /// Check through the gateway what the `openai` client relies on
    Check,
    /// Compare policies on multi-turn conversations
    Demo {
        /// Policies, in the order of each round
        #[arg(long, value_delimiter = ',', default_value = "warm,round_robin")]
        policies: Vec<String>,
        /// Times that every policy is run, interleaved
        #[arg(long, default_value_t = 2)]
        rounds: u32,
        /// More arguments for `conversations.py run`
        #[arg(last = true)]
        args: Vec<String>,
    },
}

/// Runs from the root of the workspace.
pub(crate) fn run(args: &Args) -> Result<()> {
    let place = Place::new();
    match &args.command {
        VllmCommand::Up => {
            place.install()?;
            place.up(args.servers)
        }
        VllmCommand::Down => place.down(),
        VllmCommand::Check => {
            place.install()?;
            place.build_gateway()?;
            let servers = Servers::running_or_new(&place, args.servers)?;
            place.check(&servers, args.gateway_port)
        }
        VllmCommand::Demo { policies, rounds, args: more } => {
            place.install()?;
            place.build_gateway()?;
            let servers = Servers::running_or_new(&place, args.servers)?;
            place.demo(&servers, args.gateway_port, policies, *rounds, more)
        }
    }
}

/// Where things are. The installation is outside `target`, so that `cargo clean` does not cost 5 GB.
struct Place {
    root: PathBuf,
    scripts: PathBuf,
    dir: PathBuf,
    python: PathBuf,
    pid_file: PathBuf,
}

impl Place {
    fn new() -> Self {
        let root = workspace::root();
        let dir = root.join("tools/real-vllm");
        Self {
            scripts: root.join("tests/real-vllm"),
            python: dir.join("venv/bin/python"),
            pid_file: dir.join("fleet.pid"),
            dir,
            root,
        }
    }

    fn install(&self) -> Result<()> {
        if !self.dir.join("ready").exists() {
            println!("Installing vLLM into {} (3 GB to download, 5 GB on disk) ...", self.dir.display());
        }
        let status = Command::new(self.scripts.join("setup.sh")).arg(&self.dir).status()?;
        ensure!(status.success(), "setup.sh failed");
        Ok(())
    }

    fn build_gateway(&self) -> Result<()> {
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--release", "-p", "router-agent"])
            .current_dir(&self.root)
            .status()?;
        ensure!(status.success(), "the build failed");
        Ok(())
    }

    /// `fleet.py` for `count` servers, ready to be spawned.
    fn fleet(&self, count: u16) -> Result<Command> {
        std::fs::create_dir_all(self.dir.join("logs"))?;
        let log = File::create(self.dir.join("logs/fleet.log"))?;
        let mut command = Command::new(&self.python);
        command
            .arg(self.scripts.join("fleet.py"))
            .args([
                count.to_string(),
                "--base-port".to_owned(),
                SERVER_PORT_FIRST.to_string(),
                "--dir".to_owned(),
            ])
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }

    fn up(&self, count: u16) -> Result<()> {
        if let Some(pid) = self.running_fleet() {
            bail!("servers are up already (process {pid}): `cargo xtask vllm down` stops them");
        }
        refuse_foreign(count)?;
        // Its own process group: Ctrl-C in this terminal is not meant for it.
        let child = self.fleet(count)?.process_group(0).spawn()?;
        std::fs::write(&self.pid_file, child.id().to_string())?;
        let mut process = Process { child, name: "fleet.py" };
        await_servers(count, &mut process, &self.dir)?;
        std::mem::forget(process); // it stays
        for port in ports(count) {
            println!("http://127.0.0.1:{port}");
        }
        println!("logs in {}; stop with: cargo xtask vllm down", self.dir.join("logs").display());
        Ok(())
    }

    fn down(&self) -> Result<()> {
        let Some(pid) = self.running_fleet() else {
            println!("no servers are up");
            return Ok(());
        };
        terminate(&pid);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.running_fleet().is_some() {
            ensure!(Instant::now() < deadline, "process {pid} does not stop");
            std::thread::sleep(Duration::from_millis(50));
        }
        std::fs::remove_file(&self.pid_file)?;
        println!("stopped");
        Ok(())
    }

    /// The process id that `up` wrote down, if that process is alive and still the fleet.
    fn running_fleet(&self) -> Option<String> {
        let pid = std::fs::read_to_string(&self.pid_file).ok()?.trim().to_owned();
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        String::from_utf8_lossy(&command_line).contains("fleet.py").then_some(pid)
    }

    /// A gateway in front of the servers, with `more` arguments for `warmpath serve`.
    fn gateway(&self, servers: &Servers, port: u16, policy: &str, more: &[&OsStr]) -> Result<Process> {
        let log_path = self.dir.join(format!("logs/gateway-{policy}.log"));
        let log = File::create(&log_path)?;
        let mut command = Command::new(self.warmpath());
        command.args(["serve", "--policy", policy]).args(more);
        command.args([
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--admin",
            &format!("127.0.0.1:{}", port + 1),
        ]);
        for port in ports(servers.count) {
            command.args(["--worker", &format!("http://127.0.0.1:{port}")]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start target/release/warmpath")?;
        let mut gateway = Process { child, name: "warmpath" };
        gateway.await_ok(port, "/v1/models", GATEWAY_READY_TIMEOUT, &log_path)?;
        Ok(gateway)
    }

    fn check(&self, servers: &Servers, gateway_port: u16) -> Result<()> {
        let model = self.dir.join("models/small");
        let config = self.dir.join("logs/gateway-check.yaml");
        let tokenizer = format!("tokenizers: {{default: {{local: {:?}}}, deadline: 10s}}\n", model.display());
        std::fs::write(&config, tokenizer)?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let script = |name: &str| {
            let mut command = Command::new(&self.python);
            command.arg(self.scripts.join(name));
            command
        };
        let of_all = |name: &str| {
            let mut command = script(name);
            for port in ports(servers.count) {
                command.args(["--worker", &url(port)]);
            }
            command
        };
        ensure!(of_all("kv_events_check.py").arg("warm").status()?.success(), "the servers do not answer");
        let _gateway =
            self.gateway(servers, gateway_port, "warm", &["--config".as_ref(), config.as_os_str()])?;
        let (gateway, admin) = (url(gateway_port), url(gateway_port + 1));
        let caches = of_all("kv_events_check.py")
            .args(["check", "--gateway", &gateway, "--admin", &admin])
            .status()?;
        let client =
            of_all("client_check.py").args(["--gateway", "--base-url", &format!("{gateway}/v1")]).status()?;
        let tokens = script("check_tokens.py")
            .arg("--warmpath")
            .arg(self.warmpath())
            .arg("--model-directory")
            .arg(&model)
            .args(["--worker", &url(SERVER_PORT_FIRST), "--gateway", &gateway, "--admin", &admin])
            .status()?;
        ensure!(tokens.success(), "the gateway's tokens are not those of vLLM (see above)");
        ensure!(caches.success() && client.success(), "some checks failed");
        Ok(())
    }

    fn warmpath(&self) -> PathBuf {
        self.root.join("target/release/warmpath")
    }

    fn demo(
        &self,
        servers: &Servers,
        gateway_port: u16,
        policies: &[String],
        rounds: u32,
        more: &[String],
    ) -> Result<()> {
        let results = self.root.join("target/real-vllm-demo.jsonl");
        File::create(&results)?;
        let script = self.scripts.join("conversations.py");
        let mut failed = false;
        for round in 1..=rounds {
            for policy in policies {
                servers.clear_caches()?;
                let gateway = self.gateway(servers, gateway_port, policy, &[])?;
                let status = Command::new(&self.python)
                    .arg(&script)
                    .args(["run", "--base-url", &format!("http://127.0.0.1:{gateway_port}/v1")])
                    .args(["--label", policy, "--seed", &round.to_string(), "--out"])
                    .arg(&results)
                    .args(more)
                    .status()?;
                failed |= !status.success();
                drop(gateway);
            }
        }
        println!();
        let status = Command::new(&self.python).arg(&script).arg("table").arg(&results).status()?;
        ensure!(status.success() && !failed, "some requests failed (see above)");
        Ok(())
    }
}

/// Servers to measure against; stopped when dropped if they were started for it.
struct Servers {
    count: u16,
    own: Option<Process>,
}

impl Servers {
    fn running_or_new(place: &Place, count: u16) -> Result<Self> {
        if place.running_fleet().is_some() {
            for port in ports(count) {
                ensure!(
                    get(port, "/health") == Some(200),
                    "servers are up, but none on port {port}: run `cargo xtask vllm down` first"
                );
            }
            return Ok(Self { count, own: None });
        }
        refuse_foreign(count)?;
        println!("Starting {count} vLLM servers (about 25 s) ...");
        let child = place.fleet(count)?.arg("--with-parent").spawn()?;
        let mut own = Process { child, name: "fleet.py" };
        await_servers(count, &mut own, &place.dir)?;
        Ok(Self { count, own: Some(own) })
    }

    /// Empties every prefix cache, and has each server answer one short request: vLLM tells of the emptied cache with
    /// its next step only, and the first request after a start compiles kernels.
    fn clear_caches(&self) -> Result<()> {
        const ONE_TOKEN: &str = r#"{"model":"small","prompt":[5,6,7,8],"max_tokens":2}"#;
        for port in ports(self.count) {
            for (path, body) in [("/reset_prefix_cache", ""), ("/v1/completions", ONE_TOKEN)] {
                let status = request(port, "POST", path, body);
                ensure!(status == Some(200), "{path} on port {port}: status {status:?}");
            }
        }
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if self.own.is_some() {
            println!("Stopping the servers ...");
        }
    }
}

/// A child process. Dropped, it is asked to stop (SIGTERM) and awaited, then killed.
struct Process {
    child: Child,
    name: &'static str,
}

impl Process {
    fn await_ok(&mut self, port: u16, path: &str, timeout: Duration, log: &Path) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while get(port, path) != Some(200) {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at once ({status}): see {}", self.name, log.display());
            }
            ensure!(
                Instant::now() < deadline,
                "{path} on port {port} does not answer 200 after {timeout:?}: see {}",
                log.display()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return; // its id may be somebody else's by now
        }
        terminate(&self.child.id().to_string());
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} did not stop on SIGTERM within {STOP_TIMEOUT:?}: killed", self.name);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ports(count: u16) -> impl Iterator<Item = u16> {
    (0..count).map(|index| SERVER_PORT_FIRST + index)
}

/// Something else on our ports would answer our health checks.
fn refuse_foreign(count: u16) -> Result<()> {
    for port in ports(count) {
        ensure!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(), "port {port} is in use");
    }
    Ok(())
}

fn await_servers(count: u16, process: &mut Process, dir: &Path) -> Result<()> {
    ports(count)
        .try_for_each(|port| process.await_ok(port, "/health", SERVERS_READY_TIMEOUT, &dir.join("logs")))
}

/// std can only SIGKILL; the shell's built-in `kill` is there on every system.
fn terminate(pid: &str) {
    let _ = Command::new("sh").args(["-c", "kill -TERM \"$1\"", "sh", pid]).status();
}

fn get(port: u16, path: &str) -> Option<u16> {
    request(port, "GET", path, "")
}

/// One HTTP request to 127.0.0.1, read to its end: its status, none when there was no answer.
fn request(port: u16, method: &str, path: &str, body: &str) -> Option<u16> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_mins(1))).ok()?;
    let head = "host: 127.0.0.1\r\ncontent-type: application/json\r\nconnection: close";
    write!(stream, "{method} {path} HTTP/1.1\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let status = answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(status).ok()?.parse().ok()
}
