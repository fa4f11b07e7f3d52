//! `warmpath`: the command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use router_agent::cli::Cli;

/// Gives memory back after a peak, which glibc's keeps (docs/performance.md).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warmpath: {error}");
            ExitCode::FAILURE
        }
    }
}
