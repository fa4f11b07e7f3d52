//! `cargo xtask <command>`: build, run, test and measure Warmpath.

#![forbid(unsafe_code)]

mod bench;
mod vllm;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, run, test and measure Warmpath")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Benchmarks of the whole gateway
    Bench(bench::Args),
    /// Real vLLM servers on this machine's CPU, and the gateway in front of them
    Vllm(vllm::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Vllm(args) => vllm::run(&args),
    }
}
