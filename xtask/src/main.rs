//! `cargo xtask COMMAND`: build, run and test Warmpath. One file per command in `commands/`; a new command is a
//! file there and a line in [`COMMANDS`].
#![forbid(unsafe_code)]

mod bpffs;
mod commands {
    pub(crate) mod ebpf;
    pub(crate) mod run;
    pub(crate) mod test;
}
mod elf;
mod linker;
mod process;
mod record;
mod toolchain;
mod workspace;

use std::{env, process::ExitCode};

/// A command's entry point; it gets the arguments after its name.
type Entry = fn(&[String]) -> anyhow::Result<()>;

const COMMANDS: [(&str, &str, Entry); 3] = [
    ("run", "[-- ARGS]  build, and serve with three simulated workers or as ARGS say", commands::run::main),
    (
        "test",
        "           everything that must hold: format, clippy, kernel object, tests",
        commands::test::main,
    ),
    ("ebpf", "[--check]  build the kernel object (or compare it with its sources)", commands::ebpf::main),
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some(name) = args.first() else {
        print!("{}", usage());
        return ExitCode::SUCCESS;
    };
    let Some((_, _, entry)) = COMMANDS.iter().find(|(command, ..)| command == name) else {
        let asked = matches!(name.as_str(), "help" | "--help" | "-h");
        if asked {
            print!("{}", usage());
            return ExitCode::SUCCESS;
        }
        eprint!("no command `{name}`\n\n{}", usage());
        return ExitCode::from(2);
    };
    match entry(&args[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> String {
    let commands = COMMANDS.map(|(name, help, _)| format!("  {name:5} {help}\n"));
    format!("cargo xtask COMMAND\n\n{}", commands.concat())
}
