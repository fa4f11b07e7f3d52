//! Chaos: streams and whole answers from a fleet whose workers are killed, stopped, cut off, slowed down and lied for, with a
//! gateway that is reloaded and clients that vanish. Then the accounts: every answer exact or honestly failed, nothing lost
//! that another worker could have served, and a gateway as it was before.
//!
//! The same accounts after a soak: a longer time, and no trouble.

mod answers;
mod client;
mod gateway;
mod load;
mod report;
mod trouble;
mod worker;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use self::{answers::Answers, gateway::Gateway, load::Clients, report::Report, worker::Worker};
use crate::{
    document::{self, Marks},
    namespace::remove_leftovers,
};

/// Where the report stands in the published document.
const MARKS: Marks = Marks {
    begin: "<!-- chaos: begin (written by `cargo xtask bench chaos --markdown`) -->",
    end: "<!-- chaos: end -->",
};
const SOAK_MARKS: Marks = Marks {
    begin: "<!-- soak: begin (written by `cargo xtask bench chaos --soak 20m --markdown`) -->",
    end: "<!-- soak: end -->",
};
/// Seed of every worker: whichever answers, the words are the same.
const SEED: u64 = 7;
/// Load before the accounts are opened: pools, buffers and the index are as large as they get.
const WARM_UP: Duration = Duration::from_secs(20);
/// How long the gateway may take to close what nobody uses any more.
const SETTLE: Duration = Duration::from_secs(8);

/// What happens, how long, and how much of it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Requests per second, at random moments
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// How long there is trouble
    #[arg(long, value_parser = humantime::parse_duration, default_value = "3m")]
    duration: Duration,
    /// How long there is load without trouble instead (the soak)
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    soak: Option<Duration>,
    /// Workers; three of eight are behind cables of their own, where this is allowed
    #[arg(long, default_value_t = 8)]
    workers: u8,
    /// Of requests, troubles and their moments
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where logs are kept
    #[arg(long, value_name = "DIR", default_value = "target/chaos")]
    logs: PathBuf,
    /// Write the report into this document, between its marks
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Returns whether the accounts are in order.
pub(crate) fn run(args: &Args) -> Result<bool> {
    ensure!(args.rate > 0.0, "--rate must be above 0");
    ensure!(args.workers >= 2, "--workers must be at least 2: another one is to take over");
    remove_leftovers();
    std::fs::create_dir_all(&args.logs).with_context(|| args.logs.display().to_string())?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(storm(args))
}

async fn storm(args: &Args) -> Result<bool> {
    let answers = Answers::learn(args.seed).await?;
    let workers = Worker::fleet(args.workers, &args.logs)?;
    let gateway = Gateway::start(&workers, &args.logs)?;
    let load = load::Load { gateway: gateway.address(), rate: args.rate, seed: args.seed };

    println!("warming up for {WARM_UP:?}");
    let warm_up = load.run(&answers, WARM_UP, Clients::Patient).await;
    tokio::time::sleep(SETTLE).await;
    let before = gateway.vitals()?;

    let (tally, troubles, workers, gateway) = if let Some(soak) = args.soak {
        println!("load for {soak:?}, no trouble");
        let tally = load.run(&answers, soak, Clients::Patient).await;
        (tally, trouble::Log::default(), workers, gateway)
    } else {
        println!("trouble for {:?}", args.duration);
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let makers = trouble::Makers::start(workers, gateway, args.seed, &args.logs, stopped);
        let tally = load.run(&answers, args.duration, Clients::Flighty).await;
        stop.send_replace(true);
        let (log, workers, gateway) = makers.join().await?;
        (tally, log, workers, gateway)
    };
    tokio::time::sleep(SETTLE).await;
    let after = gateway.vitals()?;
    drop((gateway, workers));
    let report = Report { args, warm_up, tally, troubles, before, after };
    println!("{report}");
    if let Some(path) = &args.markdown {
        document::write(path, if args.soak.is_some() { SOAK_MARKS } else { MARKS }, &report.to_string())?;
    }
    Ok(report.findings().is_empty())
}

/// A log file of this run.
fn log(logs: &Path, name: &str) -> PathBuf {
    logs.join(format!("{name}.log"))
}
