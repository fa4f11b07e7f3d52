//! The measured runs: baseline and candidates interleaved, one trial after the other.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path as FilePath,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::{
    Args,
    client::Counts,
    cpu::Sample,
    load::{Load, Workload},
    loopback,
    path::{Options, Path, Proxy, Start, value},
    report::{self, Setup},
};
use crate::{
    namespace::Place,
    processes::{Process, free_ports},
};

/// Everything flows before it is measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// Longest wait for an answer of the client process.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it is looked whether the machine is quiet.
const LOOK: Duration = Duration::from_millis(500);
/// Share of one core that foreign processes may take before a trial counts as disturbed.
pub(super) const FOREIGN_CORES_MAX: f64 = 0.05;

/// What was measured of one way under one load, once. CPU in microseconds per unit of the load.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Trial {
    pub(super) round: usize,
    pub(super) workload: Workload,
    pub(super) path: Path,
    pub(super) seconds: f64,
    /// Events, MB or requests.
    pub(super) units: f64,
    pub(super) units_per_s: f64,
    /// The proxy's processes.
    pub(super) process_us: f64,
    /// The whole machine, foreign processes taken off.
    pub(super) machine_us: f64,
    pub(super) foreign_cores: f64,
    pub(super) lateness_p50_us: Option<f64>,
    pub(super) lateness_p99_us: Option<f64>,
    /// Share of the responses that went the way that is under test; of warmpath's kernel relays.
    pub(super) relayed_share: Option<f64>,
    /// `warmpath_relay_…` at the end.
    pub(super) relay_metrics: String,
}

/// Returns whether every trial ran.
pub(super) fn run(args: &Args, log_dir: &FilePath) -> Result<bool> {
    let setup = Setup::new();
    println!("{setup}");
    if setup.load_average[0] > 0.5 {
        println!("warning: load average {:.2} at the start: other work is running\n", setup.load_average[0]);
    }
    let mut trials: Vec<Trial> = Vec::new();
    let mut unavailable: BTreeMap<Path, String> = BTreeMap::new();
    let mut failures = Vec::new();
    for round in 0..args.rounds {
        for &workload in &args.workloads {
            let mut paths = args.paths.clone().unwrap_or_else(|| Path::ALL.to_vec());
            if round % 2 == 1 {
                paths.reverse();
            }
            for path in paths {
                if unavailable.contains_key(&path) {
                    continue;
                }
                match quiet_trial(args, log_dir, round, Load::standard(workload), path) {
                    Ok(trial) => {
                        eprintln!("{}", report::line(&trial));
                        trials.push(trial);
                    }
                    Err(error) => match error.downcast::<Unavailable>() {
                        Ok(Unavailable(why)) => {
                            eprintln!("{}: skipped: {why}", path.label());
                            unavailable.insert(path, why);
                        }
                        Err(error) => {
                            let failure = format!("{} under {workload:?}: {error:#}", path.label());
                            eprintln!("failed: {failure}");
                            failures.push(failure);
                        }
                    },
                }
            }
        }
    }
    let unavailable = unavailable.into_iter().map(|(path, why)| (path.label().to_owned(), why)).collect();
    let report = report::Report { setup, seconds: args.seconds, trials, unavailable, failures };
    print!("{report}");
    if let Some(dir) = args.report.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(&args.report, serde_json::to_string_pretty(&report)?)
        .with_context(|| args.report.display().to_string())?;
    println!("\nEvery trial: {}", args.report.display());
    Ok(report.failures.is_empty())
}

/// A path cannot be had here: why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unavailable(String);

/// One trial; again while it is disturbed, as often as allowed; the least disturbed one.
fn quiet_trial(args: &Args, log_dir: &FilePath, round: usize, load: Load, path: Path) -> Result<Trial> {
    await_quiet(Duration::from_secs(args.wait_s));
    let mut best = trial(args.seconds, log_dir, round, load, path)?;
    for _ in 0..args.repeats {
        if best.foreign_cores <= FOREIGN_CORES_MAX {
            break;
        }
        eprintln!(
            "{} under {:?} again: foreign processes took {:.2} cores",
            path.label(),
            load.workload,
            best.foreign_cores
        );
        await_quiet(Duration::from_secs(args.wait_s));
        let again = trial(args.seconds, log_dir, round, load, path)?;
        if again.foreign_cores < best.foreign_cores {
            best = again;
        }
    }
    Ok(best)
}

/// Until foreign processes take no more than a trial may be disturbed by, or the limit.
fn await_quiet(limit: Duration) {
    let started = Instant::now();
    while started.elapsed() < limit {
        let before = Sample::take(None);
        std::thread::sleep(LOOK);
        let used = Sample::take(None).since(&before);
        if used.foreign.as_secs_f64() <= FOREIGN_CORES_MAX * used.wall.as_secs_f64() {
            return;
        }
    }
}

fn trial(seconds: f64, log_dir: &FilePath, round: usize, load: Load, path: Path) -> Result<Trial> {
    let here = Place::default();
    let own = std::env::current_exe()?;
    let worker_address = loopback(free_ports(1)?);
    let listen = ["relay-worker", "--listen", &worker_address.to_string()].map(str::to_owned);
    let mut worker = Process::start(&own, &listen, log_dir.join("relay-worker.log"))?;
    worker.await_ready(worker_address, "/health")?;
    let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let proxy = match Proxy::start(path, host, worker_address, &here, log_dir, Options::default())? {
        Start::Runs(proxy) => proxy,
        Start::Unavailable(why) => return Err(Unavailable(why).into()),
    };

    let mut client = Client::start(proxy.address, load)?;
    client.expect_ready()?;
    std::thread::sleep(WARM_UP);
    client.mark()?;
    let before = Sample::take(proxy.pid());
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let counts = client.mark()?;
    let used = Sample::take(proxy.pid()).since(&before);

    let units = match load.workload {
        Workload::Paced | Workload::Saturated => counts.events as f64,
        Workload::Bulk => counts.bytes as f64 / 1e6,
        Workload::Unary => counts.responses as f64,
    };
    ensure!(units > 0.0, "nothing came");
    let wall = used.wall.as_secs_f64();
    let per_unit = |time: Duration| time.as_secs_f64() * 1e6 / units;
    let metrics = proxy.metrics()?;
    let share = |relay: &str| {
        let of = |path: &str| value(&metrics, &format!("warmpath_relay_responses_total{{path=\"{path}\"}}"));
        of(relay) / (of("copy") + of("bypass") + of("splice"))
    };
    Ok(Trial {
        round,
        workload: load.workload,
        path,
        seconds: wall,
        units,
        units_per_s: units / wall,
        process_us: per_unit(used.process),
        machine_us: per_unit(used.machine),
        foreign_cores: used.foreign.as_secs_f64() / wall,
        lateness_p50_us: counts.lateness_p50_us,
        lateness_p99_us: counts.lateness_p99_us,
        relayed_share: path.kernel_relay().map(share),
        relay_metrics: proxy.relay_metrics()?,
    })
}

/// The client process and its two pipes. Killed when dropped: its connections are what it leaves, as a client's are.
struct Client {
    child: Child,
    input: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Client {
    fn start(address: SocketAddr, load: Load) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["relay-client", "--address", &address.to_string()])
            .args(["--load", &serde_json::to_string(&load)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the client")?;
        let input = child.stdin.take().context("its input is piped")?;
        let output: ChildStdout = child.stdout.take().context("its output is piped")?;
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, input, lines })
    }

    fn line(&mut self) -> Result<String> {
        match self.lines.recv_timeout(CLIENT_TIMEOUT) {
            Ok(line) => Ok(line),
            Err(mpsc::RecvTimeoutError::Timeout) => bail!("the client says nothing for {CLIENT_TIMEOUT:?}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the client ended: {}", self.child.wait()?),
        }
    }

    fn expect_ready(&mut self) -> Result<()> {
        let line = self.line()?;
        ensure!(line == "ready", "the client said {line:?}");
        Ok(())
    }

    /// What came since the last mark.
    fn mark(&mut self) -> Result<Counts> {
        let marked = writeln!(self.input, "mark");
        let line = self.line()?; // its end says more than the broken pipe
        marked?;
        serde_json::from_str(&line).with_context(|| format!("the client said {line:?}"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}
