//! The ways that a body can take to the client, and the proxies that go them: started fresh for each trial, in front of
//! one worker, on free ports.

use std::{
    fmt::Write as _,
    io::{Read, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path as FilePath, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    namespace::Place,
    processes::{Process, free_ports, sibling},
};

/// How long an answer of an admin port may take.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Path {
    /// No proxy
    Direct,
    /// Warmpath, every relay switched off
    Copy,
    /// A plain proxy of the benchmark's own that moves bodies with splice(2)
    Splice2,
    /// Warmpath, the relay past the gateway wherever it can be
    Bypass,
    /// Warmpath, the relay in the gateway's socket wherever it can be
    Splice,
    /// Warmpath as it decides for itself, every relay allowed
    Auto,
    /// nginx, if it is installed
    Nginx,
    /// HAProxy, if it is installed
    Haproxy,
}

impl Path {
    pub(super) const ALL: [Self; 8] = [
        Self::Direct,
        Self::Copy,
        Self::Splice2,
        Self::Bypass,
        Self::Splice,
        Self::Auto,
        Self::Nginx,
        Self::Haproxy,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Copy => "copy",
            Self::Splice2 => "splice(2)",
            Self::Bypass => "bypass",
            Self::Splice => "splice",
            Self::Auto => "auto",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
        }
    }

    /// `relay:` and `splice:` of warmpath.yaml, if it is warmpath. `spliceable`: whether this gateway knows the key;
    /// `min_bytes`: what counts as a long body, if not the default.
    fn relay(self, spliceable: bool, min_bytes: Option<u64>) -> Option<String> {
        let (all, bypass, splice) = match self {
            Self::Copy => ("off", "off", "off"),
            Self::Bypass => ("auto", "on", "off"),
            Self::Splice => ("auto", "off", "on"),
            Self::Auto => ("auto", "auto", "auto"),
            Self::Direct | Self::Splice2 | Self::Nginx | Self::Haproxy => return None,
        };
        // All of them by the one way that is measured; `auto` copies its sample.
        let sample = if self == Self::Auto { "" } else { ", sample: 0" };
        let splice = if spliceable { format!(", splice: {splice}{sample}") } else { String::new() };
        let min_bytes = min_bytes.map_or(String::new(), |bytes| format!(", min_bytes: {bytes}B"));
        Some(format!("splice: {all}\nrelay: {{bypass: {bypass}{splice}{min_bytes}}}\n"))
    }

    pub(super) fn is_warmpath(self) -> bool {
        self.relay(false, None).is_some()
    }

    /// Its label in `warmpath_relay_available`, if it is one of the kernel's.
    pub(super) fn kernel_relay(self) -> Option<&'static str> {
        match self {
            Self::Bypass => Some("bypass"),
            Self::Splice => Some("splice"),
            _ => None,
        }
    }
}

/// A proxy that runs, or the worker itself.
pub(super) struct Proxy {
    /// Where clients connect.
    pub(super) address: SocketAddr,
    /// Of warmpath.
    pub(super) admin: Option<SocketAddr>,
    pub(super) process: Option<Process>,
    pub(super) log: PathBuf,
    place: Place,
}

/// What came of starting one.
pub(super) enum Start {
    Runs(Proxy),
    /// It cannot be had here: why.
    Unavailable(String),
}

/// What warmpath is started with beyond its relay.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Options<'a> {
    /// More of warmpath.yaml.
    pub(super) config: &'a str,
    /// Bodies of known length from here on go the way under test.
    pub(super) min_bytes: Option<u64>,
}

impl Proxy {
    /// Starts the proxy of `path` at `host` in `place`, logging into `dir`.
    pub(super) fn start(
        path: Path,
        host: IpAddr,
        worker: SocketAddr,
        place: &Place,
        dir: &FilePath,
        options: Options<'_>,
    ) -> Result<Start> {
        let port = place.run(|| free_ports(2))??;
        let address = SocketAddr::new(host, port);
        let log = dir.join(format!("{}.log", path.label()));
        let (program, args) = match path {
            Path::Direct => {
                let (admin, process) = (None, None);
                return Ok(Start::Runs(Self { address: worker, admin, process, log, place: place.clone() }));
            }
            Path::Splice2 => {
                let args = ["relay-pipe", "--listen", &address.to_string(), "--worker", &worker.to_string()];
                (std::env::current_exe()?, args.map(str::to_owned).to_vec())
            }
            Path::Nginx => {
                let Some(program) = installed("nginx") else { return Ok(not_installed("nginx")) };
                (program, nginx(address, worker, dir)?)
            }
            Path::Haproxy => {
                let Some(program) = installed("haproxy") else { return Ok(not_installed("haproxy")) };
                (program, haproxy(address, worker, dir)?)
            }
            Path::Copy | Path::Bypass | Path::Splice | Path::Auto => {
                return Self::warmpath(path, address, worker, place, dir, options);
            }
        };
        let mut process = place.run(|| Process::start(&program, &args, log.clone()))??;
        place.run(|| process.await_ready(address, "/health"))??;
        Ok(Start::Runs(Self { address, admin: None, process: Some(process), log, place: place.clone() }))
    }

    fn warmpath(
        path: Path,
        address: SocketAddr,
        worker: SocketAddr,
        place: &Place,
        dir: &FilePath,
        options: Options<'_>,
    ) -> Result<Start> {
        let program = sibling("warmpath")?;
        let admin = SocketAddr::new(address.ip(), address.port() + 1);
        let log = dir.join(format!("{}.log", path.label()));
        let config = dir.join(format!("{}.yaml", path.label()));
        // The newer key first; a gateway that does not know it says so and ends.
        for spliceable in [true, false] {
            let relay = path.relay(spliceable, options.min_bytes).context("not a path of warmpath")?;
            let text = format!(
                "listen: {address}\nadmin: {admin}\nworkers: [\"http://{worker}\"]\ninstance: bench-{}\n{relay}{}",
                std::process::id(),
                options.config
            );
            std::fs::write(&config, text).with_context(|| config.display().to_string())?;
            let args = ["serve".to_owned(), "--config".to_owned(), config.display().to_string()];
            let mut process = place.run(|| Process::start(&program, &args, log.clone()))??;
            let Err(error) = place.run(|| process.await_ready(address, "/v1/models"))? else {
                let process = Some(process);
                let proxy = Self { address, admin: Some(admin), process, log, place: place.clone() };
                return proxy.check(path);
            };
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            if !(spliceable && said.contains("unknown") && said.contains("splice")) {
                return Err(error);
            }
            if path == Path::Splice {
                return Ok(Start::Unavailable("this gateway has no `relay: {splice}`".to_owned()));
            }
        }
        unreachable!("the second try returns whatever comes of it")
    }

    /// Whether the kernel allows what is to be tested.
    fn check(self, path: Path) -> Result<Start> {
        let Some(relay) = path.kernel_relay() else { return Ok(Start::Runs(self)) };
        if self.metric(&format!("warmpath_relay_available{{path=\"{relay}\"}}"))? > 0.5 {
            return Ok(Start::Runs(self));
        }
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        let line = said.lines().find(|line| line.trim_start().starts_with("kernel") && line.contains(relay));
        let why = line.map_or("the gateway does not say why", str::trim);
        Ok(Start::Unavailable(why.to_owned()))
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// All metrics of a gateway, as text; nothing of another proxy.
    pub(super) fn metrics(&self) -> Result<String> {
        let Some(admin) = self.admin else { return Ok(String::new()) };
        self.place.run(|| get(admin, "/metrics"))?
    }

    /// One series, zero if it is not there.
    pub(super) fn metric(&self, series: &str) -> Result<f64> {
        Ok(value(&self.metrics()?, series))
    }

    /// What the gateway counts of its relays.
    pub(super) fn relay_metrics(&self) -> Result<String> {
        let text = self.metrics()?;
        let mut relay = String::new();
        for line in text.lines().filter(|line| line.starts_with("warmpath_relay_")) {
            writeln!(relay, "{line}")?;
        }
        Ok(relay)
    }
}

/// A series in the text of `/metrics`, zero if it is not there.
pub(super) fn value(metrics: &str, series: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or(0.0)
}

/// `GET path`, its body.
pub(super) fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ADMIN_TIMEOUT)?;
    stream.set_read_timeout(Some(ADMIN_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => bail!("http://{address}{path} answered {:?}", text.lines().next()),
    }
}

fn installed(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    // Where distributions put servers; not in an ordinary user's PATH.
    let more = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&paths).chain(more).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn not_installed(name: &str) -> Start {
    Start::Unavailable(format!("{name} is not installed"))
}

/// What a program says of its version, first line.
pub(super) fn version(name: &str, flag: &str) -> Option<String> {
    let output = Command::new(installed(name)?).arg(flag).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&text).lines().next()?.trim().to_owned())
}

/// As its documentation has it for streams: HTTP/1.1 and kept connections to the worker, no buffering, no log, a process
/// per core. The body buffer is 64 KiB instead of 4 KiB, which is better for long bodies and no worse for events.
fn nginx(address: SocketAddr, worker: SocketAddr, dir: &FilePath) -> Result<Vec<String>> {
    let file = dir.join("nginx.conf");
    let temporary = dir.join("nginx-temporary");
    std::fs::create_dir_all(&temporary)?;
    let temporary = temporary.display();
    // Only root may say who the processes run as, and only root's would run as nobody without it.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {temporary}/{kind};\n"))
        .concat();
    let text = format!(
        "{user}
worker_processes auto;
pid {temporary}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
{paths}    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    tcp_nodelay on;
    client_body_buffer_size 64k;
    upstream worker {{ server {worker}; keepalive 512; keepalive_requests 1000000000; }}
    server {{
        listen {address} backlog=4096 reuseport;
        location / {{
            proxy_pass http://worker;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffering off;
            proxy_buffer_size 64k;
            proxy_buffers 8 64k;
            proxy_busy_buffers_size 128k;
            proxy_read_timeout 600s;
        }}
    }}
}}
"
    );
    std::fs::write(&file, text)?;
    let file = file.display().to_string();
    Ok(["-p", &dir.display().to_string(), "-c", &file, "-e", "stderr", "-g", "daemon off;"]
        .map(str::to_owned)
        .to_vec())
}

/// A thread per core, kept connections that any request may use, no delay for small pieces, splice(2) where HAProxy
/// thinks that it pays.
fn haproxy(address: SocketAddr, worker: SocketAddr, dir: &FilePath) -> Result<Vec<String>> {
    let file = dir.join("haproxy.cfg");
    let text = format!(
        "global
    maxconn 4096
    nbthread {}
defaults
    mode http
    option http-no-delay
    option splice-auto
    http-reuse always
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    timeout http-keep-alive 75s
frontend clients
    bind {address}
    default_backend workers
backend workers
    server worker {worker}
",
        super::cpu::cores()
    );
    std::fs::write(&file, text)?;
    Ok(vec!["-db".to_owned(), "-f".to_owned(), file.display().to_string()])
}
