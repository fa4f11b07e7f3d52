//! `warmpath`: the command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use router_agent::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warmpath: {error}");
            ExitCode::FAILURE
        }
    }
}
