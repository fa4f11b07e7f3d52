//! `cargo xtask bench replay|guard [ARGS]`: builds the gateway, the simulated workers and the load generator in release
//! mode and runs a benchmark. All measuring is done in `tests/bench`; docs/replay.md and docs/guard.md explain it.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace;

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
    /// Measure the XDP guard: cost per packet, and a SYN flood with and without it; needs root (`-- --help` lists the
    /// options)
    Guard {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

/// Runs from the root of the workspace.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (name, args) = match &args.benchmark {
        Benchmark::Replay { args } => ("replay", args),
        Benchmark::Guard { args } => ("guard", args),
    };
    let root = workspace::root();
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "-p", "router-agent", "-p", "vllm-sim", "-p", "warmpath-bench"])
        .current_dir(&root)
        .status()
        .context("cannot start cargo")?;
    ensure!(built.success(), "the build failed");
    let status = Command::new(root.join("target/release/warmpath-bench"))
        .arg(name)
        .args(args)
        .env("WARMPATH_BIN", root.join("target/release/warmpath"))
        .current_dir(&root)
        .status()
        .context("cannot start warmpath-bench")?;
    ensure!(status.success(), "the {name} benchmark had errors or invalid trials (see above)");
    Ok(())
}
