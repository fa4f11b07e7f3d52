//! `cargo xtask COMMAND`: build, run, test and measure Warmpath. One file per command in `commands/`.
#![forbid(unsafe_code)]

mod bpffs;
mod commands {
    pub(crate) mod bench;
    pub(crate) mod deny;
    pub(crate) mod dist;
    pub(crate) mod ebpf;
    pub(crate) mod fuzz;
    pub(crate) mod instructions;
    pub(crate) mod run;
    pub(crate) mod test;
    pub(crate) mod vllm;
}
mod elf;
mod linker;
mod process;
mod record;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::{bench, dist, ebpf, fuzz, instructions, run, test, vllm};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, run, test and measure Warmpath")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build, and serve with three simulated workers, or as ARGS say
    Run {
        /// Arguments of `warmpath serve`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Everything that must hold: format, clippy, kernel object, tests
    Test,
    /// Build the kernel object from source
    Ebpf {
        /// Compare it with the committed one instead of replacing that
        #[arg(long)]
        check: bool,
    },
    /// The release binary, a Debian package and a container image, in target/dist
    Dist,
    /// Benchmarks of the whole gateway
    Bench(bench::Args),
    /// Count the hot path's instructions, and compare them with the committed figures
    Instructions {
        /// Write what was counted
        #[arg(long)]
        update: bool,
    },
    /// Throw random inputs at parsers and at the index (needs a nightly toolchain)
    Fuzz(fuzz::Args),
    /// Real vLLM servers on this machine's CPU, and the gateway in front of them
    Vllm(vllm::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run { args } => run::main(&args),
        Command::Test => test::main(),
        Command::Ebpf { check: true } => ebpf::check(),
        Command::Ebpf { check: false } => ebpf::write(),
        Command::Dist => dist::main(),
        Command::Bench(args) => bench::run(&args),
        Command::Instructions { update } => instructions::main(update),
        Command::Fuzz(args) => fuzz::main(&args),
        Command::Vllm(args) => vllm::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
