//! The command line: one module per subcommand, and no logic of the gateway's own.

mod admin;
mod banner;
mod check;
mod doctor;
mod doors;
mod explain;
mod generate;
mod guard;
mod key;
mod maps;
mod publish;
mod replay;
mod run;
mod serve;
mod survey;
mod tokenize;
mod top;
mod workers;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use crate::{config::LogFormat, lifecycle::successor, telemetry};

pub use admin::AdminArgs;
pub use check::CheckArgs;
pub use doctor::DoctorArgs;
pub use explain::ExplainArgs;
pub use generate::{CompletionsArgs, ManArgs, SchemaArgs};
pub use key::KeyArgs;
pub use maps::MapsArgs;
pub use replay::ReplayArgs;
pub use serve::ServeArgs;
pub use tokenize::TokenizeArgs;
pub use top::TopArgs;
pub use workers::WorkersArgs;

/// Routes OpenAI requests to the vLLM worker that already holds the prompt's prefix in its KV cache.
#[derive(Debug, Parser)]
#[command(name = "warmpath", version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: accept OpenAI requests and route them to workers.
    Serve(Box<ServeArgs>),
    /// Tell Envoy where to send requests: an endpoint picker of the Gateway API inference extension (docs/epp.md).
    ///
    /// Configured as `serve`; it listens on 127.0.0.1:9002 where nothing else is said.
    #[command(after_help = "Examples:\n  \
        warmpath epp --worker http://10.0.0.1:8000 --worker http://10.0.0.2:8000\n  \
        warmpath epp --config /etc/warmpath/warmpath.yaml --listen 0.0.0.0:9002")]
    Epp(Box<ServeArgs>),
    /// Check a configuration: its keys, its files, and whether its workers are there.
    Check(CheckArgs),
    /// Look at this host and its workers: what is missing, and the command that mends it.
    Doctor(DoctorArgs),
    /// Watch a running gateway: workers, streams, times to first and between tokens, prefixes, decisions.
    Top(TopArgs),
    /// Show and change the fleet of a running gateway.
    Workers(WorkersArgs),
    /// Say where a request would go, and why, without sending it.
    Explain(ExplainArgs),
    /// Print the gateway's BPF maps: what bpftool shows, without bpftool.
    Maps(MapsArgs),
    /// Print the token ids of request bodies, one JSON body per line of standard input, as the gateway makes them.
    Tokenize(TokenizeArgs),
    /// Replay recorded decisions through another configuration, or a trace against a server.
    Replay(Box<ReplayArgs>),
    /// Print the JSON Schema of the configuration, for editors.
    Schema(SchemaArgs),
    /// Print completions for a shell.
    Completions(CompletionsArgs),
    /// Print the manual page, or write one for each command.
    Man(ManArgs),
    /// Keeps the privileges that a gateway has given up, to start its successor with them.
    #[command(name = successor::KEEPER, hide = true)]
    Keeper {
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Make an API key and print the line of the configuration that lets it in.
    Key(KeyArgs),
}

/// Why a command failed, in one line.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// `serve` could not start, or ended badly.
    #[error(transparent)]
    Serve(#[from] serve::ServeError),
    /// `check` found something wrong.
    #[error(transparent)]
    Check(#[from] check::CheckError),
    /// `doctor` found something wrong, or could not look.
    #[error(transparent)]
    Doctor(#[from] doctor::DoctorError),
    /// `schema`, `completions` or `man` could not write.
    #[error(transparent)]
    Generate(#[from] generate::GenerateError),
    /// `top` has nothing to show, or no terminal.
    #[error(transparent)]
    Top(#[from] top::TopError),
    /// `workers` was refused.
    #[error(transparent)]
    Workers(#[from] workers::WorkersError),
    /// `explain` was refused.
    #[error(transparent)]
    Explain(#[from] explain::ExplainError),
    /// `maps` found nothing to print.
    #[error(transparent)]
    Maps(#[from] maps::MapsError),
    /// `keeper` has lost its gateway.
    #[error("keeper: {0}")]
    Keeper(std::io::Error),
    /// `tokenize` could not read its files.
    #[error(transparent)]
    Tokenize(#[from] tokenize::TokenizeError),
    /// `replay` has no report, or one with failures in it.
    #[error(transparent)]
    Replay(#[from] replay::ReplayError),
    /// `key` could not make one.
    #[error(transparent)]
    Key(#[from] key::KeyError),
}

impl Cli {
    /// Runs the command to its end.
    pub fn run(self) -> Result<(), CliError> {
        match self.command {
            Command::Serve(args) => serve::run(*args)?,
            Command::Epp(args) => serve::run(args.into_endpoint_picker())?,
            Command::Check(args) => check::run(&args)?,
            Command::Doctor(args) => doctor::run(&args)?,
            Command::Schema(args) => generate::schema(&args)?,
            Command::Completions(args) => generate::completions(&args)?,
            Command::Man(args) => generate::man(&args)?,
            Command::Top(args) => top::run(&args)?,
            Command::Workers(args) => workers::run(&args)?,
            Command::Explain(args) => explain::run(&args)?,
            Command::Maps(args) => maps::run(&args)?,
            Command::Tokenize(args) => tokenize::run(&args)?,
            Command::Replay(args) => replay::run(&args)?,
            Command::Key(args) => key::run(&args)?,
            Command::Keeper { command } => {
                telemetry::init_logging(LogFormat::Text);
                successor::keep(&command).map_err(CliError::Keeper)?;
            }
        }
        Ok(())
    }
}

/// Lines whose columns stand below each other; the last one is as long as it is.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: Vec<_> =
        (0..N).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
