//! `warmpath replay`: recorded decisions through another configuration, or a trace against a server.

use std::{
    fs::File,
    io::{self, BufReader},
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use http::HeaderValue;
use serde::Serialize;

use crate::{
    config::{self, Config, ConfigError, WorkerUrl},
    replay::{
        live::{self, Settings},
        plot::{PlotError, PlotFile, plot},
        trace::{self, TraceError},
        what_if::{WhatIfError, what_if},
    },
};

/// Flags of `warmpath replay`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    warmpath replay --decisions decisions.jsonl --config new.yaml             # what would change; sends nothing\n  \
    warmpath replay --trace trace.jsonl --against http://127.0.0.1:8080 --speed 2 --plot ttft.svg\n\n\
A trace is Mooncake's JSONL, lines with messages or prompts, or a decision log (docs/replay.md).")]
pub struct ReplayArgs {
    /// A decision log with prompt hashes: replay it in simulated time.
    #[arg(long, value_name = "FILE", requires = "config", conflicts_with = "trace")]
    decisions: Option<PathBuf>,
    /// The configuration whose workers and policy are tried.
    #[arg(long, value_name = "FILE", requires = "decisions")]
    config: Option<PathBuf>,
    /// A trace: send it.
    #[arg(long, value_name = "FILE", requires = "against", required_unless_present = "decisions")]
    trace: Option<PathBuf>,
    /// Where to send it, http://HOST:PORT. Shown the key in WARMPATH_REPLAY_KEY, if there is one.
    #[arg(long, value_name = "URL", requires = "trace")]
    against: Option<String>,
    /// Run the trace's clock so many times faster.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// The first N requests only.
    #[arg(long, value_name = "N")]
    requests: Option<usize>,
    /// Requests under way at once; one more waits, which counts as its latency.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    concurrency_max: usize,
    /// Model that requests name where the trace names none.
    #[arg(long, default_value = "sim")]
    model: String,
    /// Give up on an answer after this long.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Give up on everything after this long.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    time_max: Duration,
    /// Of the times of requests within a tick of the trace's clock.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write every figure to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the times to first token into this file, by its name as SVG or PNG.
    #[arg(long, value_name = "FILE.svg|FILE.png", requires = "trace")]
    plot: Option<PlotFile>,
}

/// Why there is no report, or one with failures in it.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A trace or a log is not one.
    #[error("{}: {source}", path.display())]
    Trace {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: TraceError,
    },
    /// The log says nothing that could be replayed.
    #[error("{}: {source}", path.display())]
    WhatIf {
        /// Which.
        path: PathBuf,
        /// Why.
        source: WhatIfError,
    },
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A flag is wrong.
    #[error("--{flag}: {message}")]
    Flag {
        /// Which.
        flag: &'static str,
        /// What would be right.
        message: String,
    },
    /// There is nothing to draw, or it cannot be drawn.
    #[error("--plot: {0}")]
    Plot(#[from] PlotError),
    /// The runtime could not be started.
    #[error("cannot start: {0}")]
    Start(io::Error),
    /// The report was printed; not every request was answered.
    #[error("{0} of {1} requests were not completed")]
    Incomplete(usize, usize),
}

pub(super) fn run(args: &ReplayArgs) -> Result<(), ReplayError> {
    match (&args.decisions, &args.config, &args.trace, &args.against) {
        (Some(log), Some(config), ..) => decisions(args, log, config),
        (_, _, Some(trace), Some(url)) => against(args, trace, url),
        _ => Err(wrong("trace", "--trace FILE --against URL, or --decisions FILE --config FILE")),
    }
}

fn wrong(flag: &'static str, message: impl Into<String>) -> ReplayError {
    ReplayError::Flag { flag, message: message.into() }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ReplayError {
    move |source| ReplayError::File { path: path.to_owned(), source }
}

fn open(path: &Path) -> Result<BufReader<File>, ReplayError> {
    File::open(path).map(BufReader::new).map_err(at(path))
}

fn write_json(path: Option<&PathBuf>, report: &impl Serialize) -> Result<(), ReplayError> {
    let Some(path) = path else { return Ok(()) };
    let mut text = serde_json::to_vec_pretty(report).map_err(|error| at(path)(error.into()))?;
    text.push(b'\n');
    std::fs::write(path, text).map_err(at(path))
}

fn decisions(args: &ReplayArgs, log: &Path, file: &Path) -> Result<(), ReplayError> {
    let mut config = Config::default();
    config::load(file)?.apply(&mut config).map_err(|error| error.in_file(file))?;
    config.validate().map_err(|error| error.in_file(file))?;
    let trace = |source| ReplayError::Trace { path: log.to_owned(), source };
    let mut records = trace::decisions::records(open(log)?).map_err(trace)?;
    records.truncate(args.requests.unwrap_or(usize::MAX));
    let report =
        what_if(&records, &config).map_err(|source| ReplayError::WhatIf { path: log.to_owned(), source })?;
    print!("{report}");
    write_json(args.json.as_ref(), &report)
}

fn against(args: &ReplayArgs, file: &Path, url: &str) -> Result<(), ReplayError> {
    if !(args.speed > 0.0 && args.speed.is_finite()) {
        return Err(wrong("speed", format!("{}: above 0", args.speed)));
    }
    if args.concurrency_max == 0 || args.requests == Some(0) {
        return Err(wrong(
            if args.concurrency_max == 0 { "concurrency-max" } else { "requests" },
            "at least 1",
        ));
    }
    let trace = trace::read(open(file)?, args.requests.unwrap_or(usize::MAX))
        .map_err(|source| ReplayError::Trace { path: file.to_owned(), source })?;
    let (address, host) = resolve(url)?;
    let settings = Settings {
        address,
        host,
        authorization: key()?,
        model: args.model.clone(),
        speed: args.speed,
        concurrency_max: args.concurrency_max,
        timeout: args.timeout,
        time_max: args.time_max,
        seed: args.seed,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ReplayError::Start)?;
    let report = runtime.block_on(live::run(&trace, &settings));
    print!("{report}");
    write_json(args.json.as_ref(), &report)?;
    if let Some(PlotFile { path, format }) = &args.plot {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let title = format!("{name} against {url}, {} requests, speed {}", report.completed, args.speed);
        std::fs::write(path, plot(&title, &report.records, *format)?).map_err(at(path))?;
    }
    if report.is_complete() {
        Ok(())
    } else {
        Err(ReplayError::Incomplete(report.requests - report.completed, report.requests))
    }
}

fn resolve(url: &str) -> Result<(SocketAddr, HeaderValue), ReplayError> {
    let parsed: WorkerUrl = url.parse().map_err(|error| wrong("against", format!("{url:?}: {error}")))?;
    if parsed.is_tls {
        return Err(wrong("against", format!("{url:?}: only http:// is supported")));
    }
    let authority = parsed.authority();
    let address = authority
        .to_socket_addrs()
        .map_err(|error| wrong("against", format!("{authority}: {error}")))?
        .next();
    let address = address.ok_or_else(|| wrong("against", format!("{authority} has no address")))?;
    let host = HeaderValue::from_str(&authority).map_err(|error| wrong("against", error.to_string()))?;
    Ok((address, host))
}

/// From the environment: flags can be seen by everyone on the host.
fn key() -> Result<Option<HeaderValue>, ReplayError> {
    let Some(key) = std::env::var_os("WARMPATH_REPLAY_KEY") else { return Ok(None) };
    let value = key.to_str().and_then(|key| HeaderValue::from_str(&format!("Bearer {key}")).ok());
    let mut value = value.ok_or_else(|| {
        wrong("against", "WARMPATH_REPLAY_KEY is no key: printable characters, without line ends")
    })?;
    value.set_sensitive(true);
    Ok(Some(value))
}
