//! What is made of the program itself: completions for shells, man pages, the configuration's schema.

use std::{io::Write as _, path::PathBuf};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;
use crate::config::schema;

/// Flags of `warmpath completions`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    warmpath completions bash > /etc/bash_completion.d/warmpath\n  \
    warmpath completions zsh > ~/.zfunc/_warmpath\n  \
    warmpath completions fish > ~/.config/fish/completions/warmpath.fish")]
pub struct CompletionsArgs {
    /// For which shell.
    shell: Shell,
}

/// Flags of `warmpath man`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    warmpath man | man -l -\n  \
    warmpath man --directory /usr/share/man/man1     # one page for each command")]
pub struct ManArgs {
    /// Write warmpath.1 and a page for each command there, instead of warmpath.1 to standard output.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Flags of `warmpath schema`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    warmpath schema > warmpath.schema.json     # then, as the first line of warmpath.yaml:\n  \
    # yaml-language-server: $schema=warmpath.schema.json")]
pub struct SchemaArgs {
    /// As a page of Markdown with every key and its default.
    #[arg(long)]
    markdown: bool,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// Nobody reads standard output.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
    /// The directory is not to be written to.
    #[error("{}: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), GenerateError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "warmpath", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}

pub(super) fn man(args: &ManArgs) -> Result<(), GenerateError> {
    match &args.directory {
        None => Ok(clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout())?),
        Some(path) => clap_mangen::generate_to(Cli::command(), path)
            .map_err(|source| GenerateError::Directory { path: path.clone(), source }),
    }
}

pub(super) fn schema(args: &SchemaArgs) -> Result<(), GenerateError> {
    let text = if args.markdown { schema::markdown() } else { format!("{:#}\n", schema::json()) };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
