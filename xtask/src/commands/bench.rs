//! `cargo xtask bench replay [ARGS]`: builds the gateway, the simulated workers and the load generator in release mode
//! and runs the trace replay. All measuring is done in `tests/bench`; docs/replay.md explains it.
//!
//! `cargo xtask bench steering`: where the kernel program places connections, and where the kernel's hash does. All
//! measuring is done in `router-agent/benches/steering.rs`; docs/kernel.md has the figures.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{process, workspace};

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, clap::Subcommand)]
enum Benchmark {
    /// Replay a request trace against simulated workers under each policy (`-- --help` lists the options)
    Replay {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Connections over data threads, with the steering program and without; one thread blocks (needs root)
    Steering,
}

/// Runs from the root of the workspace.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.benchmark {
        Benchmark::Replay { args } => replay(args),
        Benchmark::Steering => steering(),
    }
}

fn steering() -> Result<()> {
    process::run(process::command("cargo").args([
        "bench",
        "--quiet",
        "--package",
        "router-agent",
        "--bench",
        "steering",
    ]))
}

fn replay(args: &[String]) -> Result<()> {
    let root = workspace::root();
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "-p", "router-agent", "-p", "vllm-sim", "-p", "warmpath-bench"])
        .current_dir(&root)
        .status()
        .context("cannot start cargo")?;
    ensure!(built.success(), "the build failed");
    let status = Command::new(root.join("target/release/warmpath-bench"))
        .arg("replay")
        .args(args)
        .current_dir(&root)
        .status()
        .context("cannot start warmpath-bench")?;
    ensure!(status.success(), "the replay had errors or invalid trials (see above)");
    Ok(())
}
