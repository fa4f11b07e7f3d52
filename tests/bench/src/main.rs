//! `warmpath-bench`: benchmarks of the whole gateway, every part a process of its own and real HTTP in between.
//!
//! `cargo xtask bench replay` builds what it needs and runs `warmpath-bench replay`; docs/replay.md says what the
//! numbers mean and where the method is weak. `cargo xtask bench guard` does the same for the guard (docs/guard.md).

#![forbid(unsafe_code)]

mod chaos;
mod document;
mod gateway;
mod guard;
mod memory;
mod namespace;
mod processes;
mod relay;
mod replay;
mod scale;
mod verdict;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "warmpath-bench", about = "Benchmarks of the whole gateway")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Replay a request trace against simulated workers, once per policy, and compare
    Replay(Box<replay::Args>),
    /// Measure, or put under stress, the ways that response bodies take to the client
    Relay(relay::Args),
    #[command(flatten)]
    Part(relay::Part),
    /// Workers that fail in every way under load, and what comes of it
    Chaos(chaos::Args),
    /// Memory of the gateway under clients that are slow, idle, too many, or send too much
    Memory(memory::Args),
    /// What size costs: workers, KV events, blocks
    Scale(scale::Args),
    /// Cost per packet of the XDP guard, and a SYN flood with and without it
    Guard(guard::Args),
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::Replay(args) => replay::run(&args),
        Command::Relay(args) => relay::run(&args),
        Command::Part(part) => relay::run_part(&part),
        Command::Chaos(args) => chaos::run(&args),
        Command::Memory(args) => memory::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::Guard(args) => guard::run(&args),
    };
    match result {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::FAILURE,
        Err(error) => {
            eprintln!("warmpath-bench: {error:#}");
            std::process::ExitCode::from(2)
        }
    }
}
