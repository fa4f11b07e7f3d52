//! What size costs: a gateway in front of 8 to 1,024 workers, the rate of KV events that it follows, and the prefix index
//! with 50 million pairs of block and worker.

mod client;
mod events;
mod fleet;
mod index;
mod report;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use crate::document::{self, Marks};

const MARKS: Marks = Marks {
    begin: "<!-- scale: begin (written by `cargo xtask bench scale --markdown`) -->",
    end: "<!-- scale: end -->",
};

/// How much of everything.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Workers in front of which a gateway is measured
    #[arg(long, value_delimiter = ',', default_value = "8,64,256,1024")]
    fleets: Vec<u16>,
    /// Requests for each of them
    #[arg(long, default_value_t = 20_000)]
    requests: usize,
    /// How long a gateway without requests is watched
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    idle: Duration,
    /// Workers that publish KV events
    #[arg(long, default_value_t = 16)]
    publishers: u16,
    /// Prompts that they prefill, of 512 blocks each
    #[arg(long, default_value_t = 4_000)]
    prompts: usize,
    /// Workers in the index by itself
    #[arg(long, default_value_t = 1_024)]
    index_workers: u16,
    /// Pairs of block and worker in it
    #[arg(long, default_value_t = 50_000_000)]
    pairs: u64,
    /// Where logs are kept
    #[arg(long, value_name = "DIR", default_value = "target/scale")]
    logs: PathBuf,
    /// Write the report into this document, between its marks
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Returns whether everything was answered.
pub(crate) fn run(args: &Args) -> Result<bool> {
    std::fs::create_dir_all(&args.logs).with_context(|| args.logs.display().to_string())?;
    let index = index::measure(args.index_workers, args.pairs)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let fleets = args
        .fleets
        .iter()
        .map(|workers| {
            println!("a fleet of {workers}");
            runtime.block_on(fleet::measure(*workers, args))
        })
        .collect::<Result<Vec<_>>>()?;
    println!("events of {} workers", args.publishers);
    let events = runtime.block_on(events::measure(args))?;
    let report = report::Report { fleets: &fleets, events: &events, index: &index };
    println!("{report}");
    if let Some(path) = &args.markdown {
        document::write(path, MARKS, &report.to_string())?;
    }
    Ok(fleets.iter().all(|fleet| fleet.failed == 0) && events.failed == 0)
}
