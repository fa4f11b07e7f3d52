//! `cargo xtask bench replay|relay|guard|chaos|memory|scale [ARGS]`: builds in release mode what the benchmark runs, and
//! runs it. All measuring is done in `tests/bench`; docs/replay.md, docs/relay-bench.md, docs/guard.md, docs/reliability.md
//! and docs/scale.md explain it.
//!
//! `cargo xtask bench index`: the prefix index beside its peers, in `tests/bench-index`, which is built apart because of
//! what the peers depend on; docs/routing.md has the figures.
//!
//! `cargo xtask bench decide`: the cost of a decision, in `router-agent/benches/decide.rs`; docs/routing.md, too.
//!
//! `cargo xtask bench steering`: where the kernel program places connections, and where the kernel's hash does. All
//! measuring is done in `router-agent/benches/steering.rs`; docs/kernel.md has the figures.
//!
//! `cargo xtask bench tokenize`: what the exact tokens of a prompt cost (`router-agent/benches/tokenize.rs`, docs/tokens.md).

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
    /// Workers that fail in every way under load, and what comes of it (`-- --help` lists the options)
    Chaos {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Memory of the gateway under clients that are slow, idle, too many, or send too much (`-- --help` lists the options)
    Memory {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Cost of size: fleets of up to 1,024 workers, KV events, 50 million pairs in the index (`-- --help` lists the options)
    Scale {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Connections over data threads, with the steering program and without; one thread blocks (needs root)
    Steering,
    /// Measure the prefix index beside kv-index and dynamo-kv-router (`-- --help` lists the options)
    Index {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Cost of a decision: bodies of 1, 16 and 400 KB over 4, 64 and 256 workers
    Decide,
    /// A conversation's next turn, tokenised exactly
    Tokenize,
    /// Measure the ways that response bodies take to the client; with `--stress`, check that every byte arrives
    /// (`-- --help` lists the options)
    Relay {
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
    match &args.benchmark {
        Benchmark::Replay { args } => bench(
            "replay",
            args,
            &["router-agent", "vllm-sim", "warmpath-bench"],
            "the replay had errors or invalid trials (see above)",
        ),
        Benchmark::Relay { args } => bench(
            "relay",
            args,
            &["router-agent", "warmpath-bench"],
            "a trial did not run, or something was found that must not be (see above)",
        ),
        Benchmark::Guard { args } => bench(
            "guard",
            args,
            &["router-agent", "warmpath-bench"],
            "the measurement of the guard had errors or invalid trials (see above)",
        ),
        Benchmark::Chaos { args } => bench(
            "chaos",
            args,
            &["router-agent", "vllm-sim", "warmpath-bench"],
            "something came out that must not (see above)",
        ),
        Benchmark::Memory { args } => bench(
            "memory",
            args,
            &["router-agent", "warmpath-bench"],
            "a client was not treated as it must be (see above)",
        ),
        Benchmark::Scale { args } => bench(
            "scale",
            args,
            &["router-agent", "vllm-sim", "warmpath-bench"],
            "requests failed (see above)",
        ),
        Benchmark::Index { args } => index(args),
        Benchmark::Decide => in_process("decide"),
        Benchmark::Steering => in_process("steering"),
        Benchmark::Tokenize => in_process("tokenize"),
    }
}

/// A benchmark of router-agent's own.
fn in_process(name: &str) -> Result<()> {
    process::run(process::command("cargo").args([
        "bench",
        "--quiet",
        "--package",
        "router-agent",
        "--bench",
        name,
    ]))
}

fn index(args: &[String]) -> Result<()> {
    let target = workspace::target().join("bench-index");
    let manifest = workspace::root().join("tests/bench-index/Cargo.toml");
    let mut cargo = process::command("cargo");
    cargo.args(["run", "--quiet", "--release", "--locked", "--manifest-path"]).arg(manifest);
    process::run(cargo.arg("--target-dir").arg(target).arg("--").args(args))
}

fn bench(name: &str, args: &[String], packages: &[&str], failure: &'static str) -> Result<()> {
    let root = workspace::root();
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release"])
        .args(packages.iter().flat_map(|package| ["-p", package]))
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
    ensure!(status.success(), "{failure}");
    Ok(())
}
