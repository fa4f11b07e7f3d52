//! `warmpath doctor`: what this host allows and lacks, and the command that mends it.
//!
//! Nothing here is needed to serve: where a line says `no`, the gateway runs without it. A line that says `wrong` is about
//! requests that would fail.

mod host;
mod shared;
mod workers;

use std::{io, path::PathBuf};

use clap::Args;
use serde::Serialize;

use super::{serve::ServeArgs, survey::survey};
use crate::{
    config::{Config, ConfigError},
    telemetry::Metrics,
};

/// Flags of `warmpath doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    warmpath doctor                                    # this host\n  \
    warmpath doctor --worker http://127.0.0.1:8001     # and these workers\n  \
    sudo warmpath doctor --config /etc/warmpath/warmpath.yaml\n\n\
Exit code: 1 if a line says `wrong`, else 0.")]
pub struct DoctorArgs {
    /// The configuration whose workers and limits are looked at.
    #[arg(long, value_name = "FILE", env = "WARMPATH_CONFIG")]
    config: Option<PathBuf>,
    /// A vLLM server, http://HOST:PORT. Repeat for each; replaces the file's list.
    #[arg(long = "worker", value_name = "URL", env = "WARMPATH_WORKER", value_delimiter = ',')]
    workers: Vec<String>,
    /// The lines as JSON.
    #[arg(long)]
    json: bool,
}

/// Why there is no diagnosis.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// The file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A defect of this program: two metrics with one name.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// No thread, or nobody reads what is written.
    #[error("doctor: {0}")]
    Io(#[from] io::Error),
    /// The diagnosis is bad.
    #[error("{0} lines say `wrong` (see above)")]
    Wrong(usize),
}

/// How things stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// It is not there, and nothing fails for that.
    No,
    /// Requests would fail.
    Wrong,
}

/// One line.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    state: State,
    /// What was seen.
    seen: String,
    /// What would mend it.
    remedy: Option<String>,
}

impl Finding {
    fn ok(what: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { what: what.into(), state: State::Ok, seen: seen.into(), remedy: None }
    }

    fn no(what: impl Into<String>, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), state: State::No, seen: seen.into(), remedy: Some(remedy.into()) }
    }

    fn wrong(what: impl Into<String>, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Wrong, ..Self::no(what, seen, remedy) }
    }
}

/// Looks at this host, and at the workers if there are any.
pub(super) fn run(args: &DoctorArgs) -> Result<(), DoctorError> {
    let config = match (&args.config, args.workers.is_empty()) {
        (None, true) => Config::default(),
        _ => ServeArgs::of_workers(args.config.clone(), args.workers.clone()).resolve()?,
    };
    let mut findings = host::look(&config);
    if !config.workers.is_empty() {
        let metrics = Metrics::new()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        findings.extend(workers::judge(&runtime.block_on(survey(&config, &metrics))));
    }
    if !config.shared.urls.is_empty() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        findings.push(shared::judge(&runtime.block_on(crate::shared::probe(&config.shared))));
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings).expect("strings serialise"));
    } else {
        print!("{}", shown(&findings));
    }
    match findings.iter().filter(|finding| finding.state == State::Wrong).count() {
        0 => Ok(()),
        wrong => Err(DoctorError::Wrong(wrong)),
    }
}

fn shown(findings: &[Finding]) -> String {
    let rows: Vec<_> = findings
        .iter()
        .map(|Finding { what, state, seen, .. }| {
            let state = match state {
                State::Ok => "ok",
                State::No => "no",
                State::Wrong => "wrong",
            };
            [state.to_owned(), what.clone(), seen.clone()]
        })
        .collect();
    let lines = super::columns(&rows);
    let remedies = findings.iter().map(|finding| finding.remedy.as_deref());
    let with_remedy = |(line, remedy): (&str, Option<&str>)| match remedy {
        None => format!("{line}\n"),
        Some(remedy) => format!("{line}\n       → {remedy}\n"),
    };
    lines.lines().zip(remedies).map(with_remedy).collect()
}
