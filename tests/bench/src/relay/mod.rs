//! `warmpath-bench relay`: what it costs, and how long it takes, to bring response bodies to the client: without a
//! proxy, past the gateway, through it, through other proxies. With `--stress`: whether every byte arrives.
//!
//! Worker, proxy and client are processes of their own, started fresh for each trial; the ways are interleaved within
//! each round, so that a slow spell of the machine hits all of them. docs/relay-bench.md has the method.

mod cable;
mod client;
mod cpu;
mod figures;
mod http;
mod kmsg;
mod load;
mod path;
mod pipe;
mod report;
mod stress;
mod worker;

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Result, ensure};

use load::Workload;
use path::Path;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Trials of each way under each load; medians are over rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measured seconds of a trial
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Loads
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Workload::ALL)]
    workloads: Vec<Workload>,
    /// Ways to the client [default: all; with --stress: bypass,splice,copy]
    #[arg(long, value_enum, value_delimiter = ',')]
    paths: Option<Vec<Path>>,
    /// Repeat a trial up to so many times while foreign processes disturb it
    #[arg(long, default_value_t = 2)]
    repeats: usize,
    /// Wait so long, at most, before each trial for foreign processes to leave the machine alone
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    wait_s: u64,
    /// Measure nothing: send a storm of random responses over each way and check every byte
    #[arg(long)]
    stress: bool,
    /// Of the storm [default: 50000; with --netem 5000]
    #[arg(long, value_name = "N")]
    responses: Option<u64>,
    /// Of the storm
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Client connections of the storm at once
    #[arg(long, default_value_t = 32)]
    connections: u64,
    /// Longest response of the storm, bytes
    #[arg(long, default_value_t = 10 << 20)]
    size_max: u64,
    /// The storm waits so many seconds for anything, then it is a hang
    #[arg(long, default_value_t = 30)]
    patience_s: u64,
    /// The storm goes over bad cables between network namespaces: loss, repetition, reordering, delay (needs root)
    #[arg(long)]
    netem: bool,
    /// Write every trial's figures to this file, as JSON
    #[arg(long, value_name = "FILE", default_value = "target/bench/relay.json")]
    report: PathBuf,
    /// Where logs and the configuration of the proxies go
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    log_dir: PathBuf,
}

/// The other processes of a trial.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Part {
    /// Worker of the relay benchmark
    #[command(name = "relay-worker", hide = true)]
    Worker(worker::Args),
    /// Client of the relay benchmark
    #[command(name = "relay-client", hide = true)]
    Client(client::Args),
    /// Plain proxy that uses splice(2)
    #[command(name = "relay-pipe", hide = true)]
    Pipe(pipe::Args),
    /// Worker of the storm
    #[command(name = "relay-stress-worker", hide = true)]
    StressWorker(stress::WorkerArgs),
    /// Client of the storm
    #[command(name = "relay-stress-client", hide = true)]
    StressClient(stress::ClientArgs),
}

/// Returns whether every trial ran, and nothing was found that must not be.
pub(crate) fn run(args: &Args) -> Result<bool> {
    ensure!(args.rounds > 0 && args.seconds > 0.0, "--rounds and --seconds must be above 0");
    std::fs::create_dir_all(&args.log_dir)?;
    // Absolute: proxies take relative paths in their configuration from somewhere else.
    let log_dir = args.log_dir.canonicalize()?;
    if args.stress { stress::run(args, &log_dir) } else { figures::run(args, &log_dir) }
}

/// Runs a process of a trial.
pub(crate) fn run_part(part: &Part) -> Result<bool> {
    match part {
        Part::Worker(args) => worker::run(args),
        Part::Client(args) => client::run(args),
        Part::Pipe(args) => pipe::run(args),
        Part::StressWorker(args) => stress::run_worker(args),
        Part::StressClient(args) => stress::run_client(args),
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port))
}
