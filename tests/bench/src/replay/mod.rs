//! `warmpath-bench replay`: the same trace, at the same moments, through Warmpath and through other routers, with fresh
//! workers and a fresh router in every trial.
//!
//! `--speed-up` runs arrivals and the workers' clocks that much faster; every time that is reported is multiplied back,
//! so it reads as trace time. The router's and the generator's own time is multiplied with it: a higher speed-up
//! overstates what they cost, it never hides it. docs/replay.md has the method.

mod capacity;
mod contender;
mod fleet;
mod gateways;
mod nginx;
mod provenance;
mod report;
mod setup;
mod trial;
mod wheel;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyper::header::HeaderValue;
use router_agent::replay::{
    client::Client,
    drive::Drive,
    prompt::TextPool,
    schedule,
    trace::{self, Request},
};

use self::contender::{Contender, Handicap};
use self::fleet::{Fleet, FleetArgs};
use self::provenance::Program;
use self::report::Report;
use self::setup::{Load, Setup};
use self::trial::Trial;
use crate::document::{self, Marks};
use crate::processes::{Process, cpu_of, host_cpu};

/// Where the report stands in the published document.
const MARKS: Marks = Marks {
    begin: "<!-- replay: begin (written by `cargo xtask bench replay --markdown`) -->",
    end: "<!-- replay: end -->",
};
/// The committed sample of the trace.
const SAMPLE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/traces/mooncake_conversation_1000.jsonl");

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// 1,000 requests and three seeds (about 40 minutes) instead of 250 and two (about 9)
    #[arg(long)]
    full: bool,
    /// Trace, JSONL: timestamp (ms), input_length, output_length, hash_ids of 512-token blocks
    #[arg(long, value_name = "FILE", default_value = SAMPLE, hide_default_value = true)]
    file: PathBuf,
    /// Replay the first N requests of the file [default: 250; with --full 1000]
    #[arg(long, value_name = "N")]
    requests: Option<usize>,
    /// Offered loads, per cent of the fleet's capacity
    #[arg(long = "load", value_name = "PERCENT", value_delimiter = ',', default_value = "50,80,100,120")]
    loads: Vec<f64>,
    /// Instead of --load: multiply the trace's own arrival rate
    #[arg(long, conflicts_with = "loads")]
    rate: Option<f64>,
    /// Run arrivals and the workers' clocks this many times faster than the trace
    #[arg(long, default_value_t = 10.0)]
    speed_up: f64,
    /// Trials per contender and load, interleaved, each with the next seed [default: 2; with --full 3]
    #[arg(long)]
    repeat: Option<u64>,
    /// Of the first repeat: arrival jitter and the workers' noise
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Who is compared: NAME[@BINARY][*GATEWAYS[+redis]][/HANDICAP]. NAME is a policy of Warmpath, or nginx, sglang-router, vllm-router,
    /// smg, or no_gateway (round robin by the generator); GATEWAYS of Warmpath take turns, with +redis they share what they
    /// know; HANDICAP is again, prefill+PERCENT or hold+MILLISECONDS. The
    /// first one is compared with each of the others
    #[arg(
        long,
        visible_alias = "policies",
        value_delimiter = ',',
        default_value = "warm,nginx,sglang-router,vllm-router,smg"
    )]
    contenders: Vec<String>,
    /// Another build of Warmpath, for NAME@BINARY (repeatable)
    #[arg(long = "binary", value_name = "NAME=PATH", value_parser = parse_binary)]
    binaries: Vec<(String, PathBuf)>,
    #[command(flatten)]
    fleet: FleetArgs,
    /// Another argument for `warmpath serve` (repeatable)
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    gateway_arg: Vec<String>,
    /// Another argument for sglang-router, vllm-router or smg (repeatable)
    #[arg(long, value_name = "NAME=ARG")]
    peer_arg: Vec<String>,
    /// nginx
    #[arg(long, value_name = "PATH", default_value = "nginx")]
    nginx: PathBuf,
    /// Where the other routers are installed, each in a Python environment of its own
    #[arg(long, value_name = "DIR", default_value = "target/peers")]
    peers: PathBuf,
    /// Run a trial that came out invalid again, at most so many times; what was repeated is reported
    #[arg(long, default_value_t = 1)]
    retries: u32,
    /// Start nothing: send to this address (host:port) and report it as one contender, `direct`
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["loads", "full"])]
    direct: Option<SocketAddr>,
    /// Model name in the requests
    #[arg(long, default_value = "sim")]
    model: String,
    /// Give up on a request after this long, trace time
    #[arg(long, default_value_t = 600.0)]
    timeout_s: f64,
    /// Write every figure, and every request, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report into this document, between its two marks
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Where the logs of the processes go
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    log_dir: PathBuf,
}

fn parse_binary(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("expected NAME=PATH")?;
    Ok((name.to_owned(), PathBuf::from(path)))
}

/// Returns whether everybody took part, every request was answered and every trial is valid.
pub(crate) fn run(args: &Args) -> Result<bool> {
    ensure!(args.speed_up > 0.0, "--speed-up must be above 0");
    ensure!(args.rate.is_none_or(|rate| rate > 0.0), "--rate must be above 0");
    ensure!(args.loads.iter().all(|load| *load > 0.0), "--load must be above 0");
    ensure!(args.peer_arg.iter().all(|arg| arg.contains('=')), "--peer-arg: expected NAME=ARG");
    args.fleet.check()?;
    let limit = args.requests.unwrap_or(if args.full { 1_000 } else { 250 });
    let file = std::fs::File::open(&args.file).with_context(|| args.file.display().to_string())?;
    let requests = trace::read(std::io::BufReader::new(file), limit)
        .with_context(|| args.file.display().to_string())?
        .requests;

    let mut contenders = match args.direct {
        Some(address) => vec![Contender::direct(address)],
        None => args
            .contenders
            .iter()
            .map(|label| Contender::parse(label, &args.binaries))
            .collect::<Result<Vec<_>>>()?,
    };
    let (programs, skipped) = prepare(&mut contenders, args)?;
    let setup = Setup::new(args, &requests, programs)?;
    print!("{setup}");
    let minutes = setup.wall_s(contenders.len()) / 60.0;
    eprintln!("\n{} trials, about {minutes:.0} minutes", contenders.len() * setup.trials_each());

    std::fs::create_dir_all(&args.log_dir).with_context(|| args.log_dir.display().to_string())?;
    let replay = Replay { args, pool: TextPool::new(&requests), requests: &requests, loads: &setup.loads };
    let (trials, repeated) = replay.all(&contenders, setup.seeds.len())?;
    let labels: Vec<_> = contenders.into_iter().map(|contender| contender.label).collect();
    let report = Report::new(setup, &labels, skipped, trials, &repeated);
    let text = report.to_string();
    println!("\n{text}");
    if let Some(path) = &args.json {
        let file = std::fs::File::create(path).with_context(|| path.display().to_string())?;
        serde_json::to_writer(std::io::BufWriter::new(file), &report)?;
    }
    if let Some(path) = &args.markdown {
        document::write(path, MARKS, &text)?;
    }
    Ok(report.is_clean())
}

/// Installs what contenders need and takes out those that cannot take part, with the reason. One of ours that cannot
/// is an error.
fn prepare(contenders: &mut Vec<Contender>, args: &Args) -> Result<(Vec<Program>, BTreeMap<String, String>)> {
    let (mut programs, mut skipped) = (Vec::new(), BTreeMap::new());
    for contender in contenders.iter() {
        match contender.prepare(args) {
            Ok(Some(program)) => programs.push(program),
            Ok(None) => {}
            Err(error) if contender.is_ours() => return Err(error),
            Err(error) => {
                eprintln!("skipped: {}: {error:#}", contender.label);
                skipped.insert(contender.label.clone(), format!("{error:#}"));
            }
        }
    }
    contenders.retain(|contender| !skipped.contains_key(&contender.label));
    ensure!(!contenders.is_empty(), "nobody is left to compare");
    Ok((programs, skipped))
}

struct Replay<'a> {
    args: &'a Args,
    pool: TextPool,
    requests: &'a [Request],
    loads: &'a [Load],
}

/// User and system time so far; of the host, busy and total ticks.
struct CpuTimes {
    generator: Duration,
    router: Option<Duration>,
    workers: Option<Duration>,
    host: (u64, u64),
}

impl Replay<'_> {
    /// Every contender at every load with every seed: those that count, and those that were repeated.
    fn all(&self, contenders: &[Contender], seeds: usize) -> Result<(Vec<Trial>, Vec<Trial>)> {
        let (mut trials, mut repeated) = (Vec::new(), Vec::new());
        for repeat in 0..seeds {
            for load in 0..self.loads.len() {
                for index in 0..contenders.len() {
                    // Interleaved and rotated, so that a slow spell of the machine does not always hit the same one.
                    let contender = &contenders[(index + repeat + load) % contenders.len()];
                    let mut left = self.args.retries;
                    let trial = loop {
                        let trial = self.trial(contender, load, repeat as u64);
                        let trial = trial.with_context(|| format!("contender {}", contender.label))?;
                        eprintln!("{}", trial.line(&self.loads[load].label()));
                        if trial.invalid().is_empty() || left == 0 {
                            break trial;
                        }
                        left -= 1;
                        repeated.push(trial);
                    };
                    trials.push(trial);
                }
            }
        }
        Ok((trials, repeated))
    }

    fn trial(&self, contender: &Contender, load: usize, repeat: u64) -> Result<Trial> {
        let (args, seed) = (self.args, self.args.seed + repeat);
        let log =
            args.log_dir.join(format!("{}-{load}-{repeat}", contender.label.replace(['/', '*', '+'], "-")));
        let fleet = if contender.is_direct() {
            None
        } else {
            let mut fleet = args.fleet.clone();
            if let Handicap::Prefill { percent } = contender.handicap {
                fleet.prefill_tokens_per_s /= 1.0 + percent / 100.0;
            }
            let log = log.with_extension("sims.log");
            Some(Fleet::start(&fleet, &args.model, args.speed_up, seed, log)?)
        };
        let workers = fleet.as_ref().map_or(&[][..], |fleet| &fleet.addresses);
        let router = contender.start(args, workers, &log)?;

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let cpu = || CpuTimes {
            generator: cpu_of("self"),
            router: (!router.processes.is_empty()).then(|| router.processes.iter().map(Process::cpu).sum()),
            workers: fleet.as_ref().map(Fleet::cpu),
            host: host_cpu(),
        };
        let host = HeaderValue::from_static("warmpath-bench");
        let client = |address: &SocketAddr| Arc::new(Client::new(*address, host.clone(), None));
        let clients: Vec<_> = router.addresses.iter().map(client).collect();
        let drive = Drive {
            requests: self.requests,
            pool: &self.pool,
            model: &args.model,
            clients: &clients,
            speed_up: args.speed_up,
            timeout: Duration::from_secs_f64(args.timeout_s),
            hold: contender.handicap.hold(),
            concurrency_max: None,
            time_max: None,
            is_strict: true,
        };
        let times = schedule::arrivals(self.requests, self.loads[load].rate, seed);
        let before = cpu();
        let started = Instant::now();
        let records = runtime.block_on(drive.run(&times));
        let wall_s = started.elapsed().as_secs_f64();
        let after = cpu();
        drop(runtime); // closes the connections, so that the router can stop at once
        let work = fleet.as_ref().map_or_else(|| Ok(Vec::new()), Fleet::work)?;

        let per_request = |after: Option<Duration>, before: Option<Duration>| {
            Some(after?.saturating_sub(before?).as_secs_f64() * 1e3 / records.len() as f64)
        };
        Ok(Trial {
            contender: contender.label.clone(),
            load,
            repeat,
            seed,
            wall_s,
            router_cpu_ms_per_request: per_request(after.router, before.router),
            workers_cpu_ms_per_request: per_request(after.workers, before.workers),
            generator_cpu_ms_per_request: per_request(Some(after.generator), Some(before.generator)),
            host_cpu_busy_share: (after.host.0 - before.host.0) as f64
                / (after.host.1 - before.host.1) as f64,
            work,
            records,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_document_has_the_marks() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/benchmarks.md");
        document::replace(&std::fs::read_to_string(path).unwrap(), MARKS, "x").unwrap();
    }

    #[test]
    fn the_committed_sample_is_whole() {
        let file = std::fs::File::open(SAMPLE).unwrap();
        let requests = trace::read(std::io::BufReader::new(file), usize::MAX).unwrap().requests;
        assert_eq!(requests.len(), 1_000);
        let ceiling = trace::ceiling(&requests, usize::MAX);
        assert_eq!(ceiling.prompt_tokens, 13_732_944);
        assert!((ceiling.share() - 0.2157).abs() < 0.0001, "{}", ceiling.share());
    }
}
