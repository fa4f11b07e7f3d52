//! Memory under clients that wear a gateway out: those that read slowly, send slowly, send too much, do nothing, or are too
//! many. Each on a fresh gateway, whose memory is read before, at its highest, and when they have left.

mod clients;
mod report;
mod scenario;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use router_agent::descriptors;

use self::{report::Row, scenario::Scenario};
use crate::{
    document::{self, Marks},
    gateway::Gateway,
    processes::{Process, free_ports, peak_resident_kib, resident_kib, sibling},
};

const MARKS: Marks = Marks {
    begin: "<!-- memory: begin (written by `cargo xtask bench memory --markdown`) -->",
    end: "<!-- memory: end -->",
};
/// How long the gateway may take to give back what nobody uses.
const SETTLE: Duration = Duration::from_secs(3);

/// How many clients of each kind.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Streams whose clients do not read
    #[arg(long, default_value_t = 5_000)]
    readers: usize,
    /// Clients that send their heads, and as many that send their bodies, a byte a second
    #[arg(long, default_value_t = 1_000)]
    senders: usize,
    /// Connections that are opened against a limit of a tenth of them
    #[arg(long, default_value_t = 100_000)]
    crowd: usize,
    /// Where logs are kept
    #[arg(long, value_name = "DIR", default_value = "target/memory")]
    logs: PathBuf,
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Scenario::ALL)]
    scenarios: Vec<Scenario>,
    /// Write the report into this document, between its marks
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Returns whether every client was treated as it must be.
pub(crate) fn run(args: &Args) -> Result<bool> {
    std::fs::create_dir_all(&args.logs).with_context(|| args.logs.display().to_string())?;
    let most = args.readers.max(args.senders).max(args.crowd / scenario::CROWD_OVER) as u64 + 1_000;
    if let Some(descriptors) = descriptors::raise() {
        ensure!(
            most <= descriptors,
            "{most} connections at once need more file descriptors than {descriptors} (ulimit -Hn)"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = args
        .scenarios
        .iter()
        .map(|scenario| runtime.block_on(measure(*scenario, args)))
        .collect::<Result<Vec<_>>>()?;
    let report = report::Report { rows: &rows };
    println!("{report}");
    if let Some(path) = &args.markdown {
        document::write(path, MARKS, &report.to_string())?;
    }
    Ok(rows.iter().all(|row| row.findings.is_empty()))
}

async fn measure(scenario: Scenario, args: &Args) -> Result<Row> {
    println!("{}", scenario.title(args));
    let port = free_ports(1)?;
    let worker = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let worker_args = ["relay-worker", "--listen", &worker.to_string()].map(str::to_owned);
    let mut process =
        Process::start(&sibling("warmpath-bench")?, &worker_args, args.logs.join("worker.log"))?;
    process.await_ready(worker, "/health")?;
    let gateway = Gateway::start("memory", &scenario.config(worker, args), &args.logs)?;
    let id = gateway.process.id();
    let before_kib = resident_kib(id);
    let seen = scenario.run(&gateway, args).await?;
    let peak_kib = peak_resident_kib(id);
    tokio::time::sleep(SETTLE).await;
    Ok(Row {
        title: scenario.title(args),
        before_kib,
        held_kib: seen.held_kib,
        peak_kib,
        after_kib: resident_kib(id),
        outcome: seen.outcome,
        findings: seen.findings,
    })
}
