//! The storm of `warmpath_tests::stress` over each relay, at full length; gateway, worker and client are processes of
//! their own, on request in network namespaces with bad cables in between.
//!
//! | layout | worker | gateway | client |
//! |---|---|---|---|
//! | loopback | all in this namespace | | |
//! | apart | one namespace | another | a third; both ways over a bad cable |
//! | client apart | one namespace for both | | another, over a bad cable |
//!
//! The relay past the gateway needs the worker in the gateway's namespace, so it is not tried apart.

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path as FilePath,
    process::{Child, Command, Stdio},
    sync::{atomic::Ordering::Relaxed, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use warmpath_tests::stress::{Finding, Profile, Storm, Summary, serve, storm};

use super::{
    Args,
    cable::Cable,
    kmsg::KernelLog,
    path::{Options, Path, Proxy, Start, value},
};
use crate::{
    namespace::{Place, remove_leftovers},
    processes::{Process, free_ports, resident_kib},
};

/// Worker deaths must not take it out of service; checks are kept rare, so that the storm is the traffic; over a bad
/// cable the first packets of a connection are lost too.
const CONFIG: &str = "breaker: {failures: 1000000, volume: 1000000}\nhealth: {interval: 60s, timeout: 20s}\nscrape_interval: 60s\n\
    timeouts: {connect: 20s}\n";
/// Responses unless told otherwise; bad cables are slow.
const RESPONSES: u64 = 50_000;
const RESPONSES_OVER_CABLES: u64 = 5_000;
/// Packets lost, of a hundred; drawn from the seed.
const LOST_PERCENT_MAX: u64 = 5;
/// How often the client process says that it is there.
const ALIVE: Duration = Duration::from_secs(5);
/// How long the gateway may take to notice that all is over.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Findings that are kept with all that the gateway says.
const KEPT_MAX: usize = 3;

#[derive(Debug, clap::Args)]
pub(crate) struct WorkerArgs {
    #[arg(long)]
    listen: SocketAddr,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ClientArgs {
    #[arg(long)]
    gateway: SocketAddr,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    responses: u64,
    #[arg(long)]
    connections: u64,
    #[arg(long)]
    size_max: u64,
    #[arg(long)]
    patience_s: u64,
    #[arg(long)]
    resets: bool,
}

/// What the client process says, a line each.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    Alive,
    Finding(Finding),
    Summary(Summary),
}

fn say(line: &Line) {
    println!("{}", serde_json::to_string(line).expect("plain data"));
}

/// Runs until it is killed.
pub(crate) fn run_worker(args: &WorkerArgs) -> Result<bool> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async { Err(serve(tokio::net::TcpListener::bind(args.listen).await?).await.into()) })
}

/// Runs the storm and says what came of it.
pub(crate) fn run_client(args: &ClientArgs) -> Result<bool> {
    let summary = tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        tokio::spawn(async {
            loop {
                tokio::time::sleep(ALIVE).await;
                say(&Line::Alive);
            }
        });
        storm(
            Storm {
                gateway: args.gateway,
                seed: args.seed,
                responses: args.responses,
                connections: args.connections,
                profile: Profile { size_max: args.size_max, deaths: true, resets: args.resets },
                hang_ups: true,
                patience: Duration::from_secs(args.patience_s),
            },
            |finding| say(&Line::Finding(finding.clone())),
        )
        .await
    });
    say(&Line::Summary(summary));
    Ok(true)
}

/// Who is where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Loopback,
    Apart,
    ClientApart,
}

impl Layout {
    fn label(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Apart => "apart",
            Self::ClientApart => "client apart",
        }
    }
}

/// A layout set up: places and addresses. Gone when dropped.
struct Stage {
    worker: Place,
    worker_host: IpAddr,
    gateway: Place,
    gateway_host: IpAddr,
    client: Place,
    cables: Vec<Cable>,
}

impl Stage {
    fn set_up(layout: Layout, seed: u64) -> Result<Self> {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut stage = Self {
            worker: Place::default(),
            worker_host: loopback,
            gateway: Place::default(),
            gateway_host: loopback,
            client: Place::default(),
            cables: Vec::new(),
        };
        if layout == Layout::Loopback {
            return Ok(stage);
        }
        let lost = 1 + seed % LOST_PERCENT_MAX;
        stage.gateway = Place::new("gateway")?;
        stage.client = Place::new("client")?;
        let ends = ["10.77.2.1", "10.77.2.2"];
        stage.cables.push(Cable::plug([&stage.gateway, &stage.client], ends, "wpclient", lost, seed)?);
        stage.gateway_host = ends[0].parse()?;
        stage.worker = stage.gateway.clone();
        if layout == Layout::Apart {
            stage.worker = Place::new("worker")?;
            let ends = ["10.77.1.1", "10.77.1.2"];
            stage.cables.push(Cable::plug([&stage.worker, &stage.gateway], ends, "wpworker", lost, !seed)?);
            stage.worker_host = ends[0].parse()?;
        }
        Ok(stage)
    }
}

/// Returns whether nothing was found that must not be.
pub(super) fn run(args: &Args, log_dir: &FilePath) -> Result<bool> {
    let paths = args.paths.clone().unwrap_or_else(|| vec![Path::Bypass, Path::Splice, Path::Copy]);
    let layouts: &[Layout] =
        if args.netem { &[Layout::ClientApart, Layout::Apart] } else { &[Layout::Loopback] };
    let responses = args.responses.unwrap_or(if args.netem { RESPONSES_OVER_CABLES } else { RESPONSES });
    remove_leftovers();
    let mut is_clean = true;
    for &layout in layouts {
        let stage = Stage::set_up(layout, args.seed)
            .with_context(|| format!("cannot set up the layout {:?}", layout.label()))?;
        for &path in &paths {
            let title = format!("{}, {}", path.label(), layout.label());
            if path == Path::Bypass && layout == Layout::Apart {
                println!("{title}: skipped: the worker is not in the gateway's network namespace");
                continue;
            }
            is_clean &= weather(args, &stage, path, responses, &title, log_dir)?;
        }
    }
    Ok(is_clean)
}

/// One storm over one relay; whether all was well.
fn weather(
    args: &Args,
    stage: &Stage,
    path: Path,
    responses: u64,
    title: &str,
    log_dir: &FilePath,
) -> Result<bool> {
    ensure!(path.is_warmpath(), "--stress is for the paths of warmpath, not for {}", path.label());
    let own = std::env::current_exe()?;
    let mut kernel_log = KernelLog::from_now();
    let worker_address = SocketAddr::new(stage.worker_host, stage.worker.run(|| free_ports(1))??);
    let listen = ["relay-stress-worker", "--listen", &worker_address.to_string()].map(str::to_owned);
    let mut worker =
        stage.worker.run(|| Process::start(&own, &listen, log_dir.join("stress-worker.log")))??;
    stage.worker.run(|| worker.await_ready(worker_address, "/health"))??;
    let options = Options { config: CONFIG, min_bytes: Some(0) };
    let start = Proxy::start(path, stage.gateway_host, worker_address, &stage.gateway, log_dir, options)?;
    let proxy = match start {
        Start::Runs(proxy) => proxy,
        Start::Unavailable(why) => {
            println!("{title}: skipped: {why}");
            return Ok(true);
        }
    };
    let pid = proxy.pid().context("warmpath is a process")?;
    let resident_before = resident_kib(pid);
    let started = Instant::now();
    let mut client = stage.client.run(|| Client::start(args, proxy.address, responses))??;
    let mut kept = 0;
    let summary = loop {
        match client.line(Duration::from_secs(args.patience_s) + ALIVE * 4)? {
            Line::Alive => {}
            Line::Summary(summary) => break summary,
            Line::Finding(finding) => {
                println!("{title}: {}", describe(&finding));
                kept += 1;
                if kept <= KEPT_MAX {
                    let file = log_dir.join(format!("finding-{}-{kept}.txt", path.label()));
                    let metrics = proxy.metrics().unwrap_or_else(|error| format!("no metrics: {error:#}"));
                    let sockets = stage.gateway.run(|| sockets(finding.port))?;
                    let said = std::fs::read_to_string(&proxy.log).unwrap_or_default();
                    let all = format!("{title}\n{}\n\n{sockets}\n\n{metrics}\n\n{said}", describe(&finding));
                    std::fs::write(&file, all).with_context(|| file.display().to_string())?;
                    println!("    the gateway's metrics, sockets and log at that moment: {}", file.display());
                }
            }
        }
    };
    drop(client);
    let in_flight = settle(&proxy)?;
    let metrics = proxy.metrics()?;
    let resident_after = resident_kib(pid);
    let mismatches = value(&metrics, "warmpath_relay_mismatches_total");
    let alarms = kernel_log.alarms();

    let Summary { whole, broken, hung_up, bytes, connections, .. } = &summary;
    println!(
        "\n### {title}: {responses} responses, seed {}, {:.0} s\n",
        args.seed,
        started.elapsed().as_secs_f64()
    );
    println!(
        "- whole: {whole}; broken off where the worker had died: {broken}; the client hung up: {hung_up}"
    );
    println!("- {:.1} MB of content over {connections} client connections", *bytes as f64 / 1e6);
    println!("- **differences: {}, hangs: {}**", summary.differences(), summary.hangs());
    println!("- in flight afterwards: {in_flight}; relay mismatches: {mismatches}");
    println!("- resident memory of the gateway: {resident_before} KiB before, {resident_after} KiB after");
    for cable in &stage.cables {
        let damage = &cable.damage;
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
        println!(
            "- a cable so far: {} packets passed, {} lost, {} doubled, {} overtook",
            count(&damage.passed),
            count(&damage.lost),
            count(&damage.doubled),
            count(&damage.early)
        );
    }
    let quiet = match alarms {
        Ok(alarms) if alarms.is_empty() => {
            println!("- kernel log: no warning");
            true
        }
        Ok(alarms) => {
            println!("- kernel log: {} alarming lines", alarms.len());
            for line in alarms {
                println!("    {line}");
            }
            false
        }
        Err(why) => {
            println!("- kernel log: skipped: {why}");
            true
        }
    };
    for line in metrics.lines().filter(|line| line.starts_with("warmpath_relay_") && !line.ends_with(" 0")) {
        println!("    {line}");
    }
    let all = whole + broken + hung_up == responses;
    if !all {
        println!("- {} responses have no outcome", responses - whole - broken - hung_up);
    }
    Ok(all && summary.findings.is_empty() && in_flight < 0.5 && mismatches < 0.5 && quiet)
}

fn describe(finding: &Finding) -> String {
    let Finding { seed, is_hang, port, what } = finding;
    let kind = if *is_hang { "HANG" } else { "DIFFERENCE" };
    format!("{kind}: seed {seed}, client port {port}: {what}")
}

/// Waits until nothing is in flight; what is after all.
fn settle(proxy: &Proxy) -> Result<f64> {
    let deadline = Instant::now() + IDLE_TIMEOUT;
    loop {
        let metrics = proxy.metrics()?;
        let gauges = metrics.lines().filter(|line| line.starts_with("warmpath_worker_in_flight_requests{"));
        let in_flight: f64 = gauges.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum();
        if in_flight < 0.5 || Instant::now() > deadline {
            return Ok(in_flight);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The kernel's table of the connections of one port in this thread's namespace, and of the workers' that wait.
fn sockets(port: u16) -> String {
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap_or_default();
    let wanted = format!(":{port:04X}");
    let has_queue =
        |line: &str| line.split_whitespace().nth(4).is_some_and(|queues| queues != "00000000:00000000");
    let mut lines = table.lines();
    let title = lines.next().unwrap_or_default().to_owned();
    let rows = lines.filter(|line| line.contains(&wanted) || has_queue(line)).take(40);
    std::iter::once(title.as_str()).chain(rows).collect::<Vec<_>>().join("\n")
}

/// The client process. Killed when dropped.
struct Client {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Client {
    fn start(args: &Args, gateway: SocketAddr, responses: u64) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["relay-stress-client", "--gateway", &gateway.to_string()])
            .args(["--seed", &args.seed.to_string(), "--responses", &responses.to_string()])
            .args(["--connections", &args.connections.to_string()])
            .args(["--size-max", &args.size_max.to_string(), "--patience-s", &args.patience_s.to_string()])
            .args((!args.netem).then_some("--resets"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the client")?;
        let output = child.stdout.take().context("its output is piped")?;
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    fn line(&mut self, patience: Duration) -> Result<Line> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => serde_json::from_str(&line).with_context(|| format!("the client said {line:?}")),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("the client itself hangs: nothing for {patience:?}")
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the client ended: {}", self.child.wait()?),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}
