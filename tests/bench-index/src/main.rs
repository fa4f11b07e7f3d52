//! The prefix index measured beside `kv-index` (`ChainIndex`) and `dynamo-kv-router`
//! (`ConcurrentRadixTreeCompressed`, `PositionalIndexer`) on one and the same workload.
//!
//! A trace becomes the events that engines with bounded caches would send (`workload.rs`); every index gets all of them
//! and must then answer as a literal reference does, before anything is timed. Every trial is a process of its own, and
//! the systems take turns. What a trial measures is in `trial.rs`.
//!
//! `warmpath-slowed` is our index doing everything twice: the check that this harness sees a factor of two.
#![forbid(unsafe_code)]

// The product's own source, so that building this does not build the whole gateway.
#[path = "../../../router-agent/src/index/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub)]
mod index;
mod report;
mod systems;
mod trial;
mod workload;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use systems::System;
use trial::Figures;

#[global_allocator]
static ALLOCATED: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

#[derive(Debug, Parser)]
#[command(about = "Measure the prefix index beside its peers")]
struct Args {
    /// Mooncake trace: JSON lines with `hash_ids`
    #[arg(default_value = "tests/fixtures/traces/mooncake_conversation_1000.jsonl")]
    trace: PathBuf,
    /// Workers, at most 1,024
    #[arg(long, default_value_t = 64)]
    workers: u16,
    /// Blocks that a worker's cache holds
    #[arg(long, default_value_t = 65_536)]
    capacity: usize,
    /// Blocks per hash id (an id stands for 512 tokens: 16 gives blocks of 32)
    #[arg(long, default_value_t = 16)]
    per_id: u64,
    /// Trials per system, each a process of its own
    #[arg(long, default_value_t = 10)]
    trials: usize,
    /// Run one trial of this system and print its figures as JSON
    #[arg(long, hide = true)]
    only: Option<System>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(system) = args.only {
        let figures = trial::run(system, &workload::Workload::new(&args)?);
        println!("{}", serde_json::to_string(&figures)?);
        return Ok(());
    }
    ensure!(args.trials > 0, "--trials must be at least 1");
    ensure!((1..=1024).contains(&args.workers), "--workers must be 1 to 1,024");
    println!("{}", workload::Workload::new(&args)?.describe());
    let mut results: Vec<(System, Vec<Figures>)> =
        System::ALL.iter().map(|system| (*system, vec![])).collect();
    for trial in 0..args.trials {
        // Everyone has been first, and behind everyone.
        let count = results.len();
        for turn in 0..count {
            let (system, figures) = &mut results[(trial + turn) % count];
            figures.push(child(*system).with_context(|| format!("trial {trial} of {system:?}"))?);
        }
        eprintln!("trial {} of {} done", trial + 1, args.trials);
    }
    report::print(&results);
    Ok(())
}

/// One trial in a fresh process.
fn child(system: System) -> Result<Figures> {
    let output = std::process::Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .args(["--only", system.name()])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("figures that cannot be read")
}
