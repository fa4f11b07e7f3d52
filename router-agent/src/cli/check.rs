//! `warmpath check FILE`: whether a configuration is right, and its workers are there.

use std::{io, path::PathBuf};

use clap::Args;

use super::{
    serve::ServeArgs,
    survey::{Surveyed, survey},
};
use crate::{
    config::{Config, ConfigError},
    telemetry::Metrics,
    tls::{ServerTls, TlsError},
};

/// Flags of `warmpath check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    warmpath check /etc/warmpath/warmpath.yaml\n  \
    warmpath check warmpath.yaml --offline     # the file only, e.g. in a build\n\n\
Exit code: 0 if everything is right, 1 if the file is wrong, a worker cannot take requests, or the server of the shared state \
    does not answer.")]
pub struct CheckArgs {
    /// The configuration.
    file: PathBuf,
    /// Ask no worker.
    #[arg(long)]
    offline: bool,
    /// The workers' answers as JSON.
    #[arg(long, conflicts_with = "offline")]
    json: bool,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A certificate that it names.
    #[error("{key}: {source}")]
    Tls {
        /// The key of the configuration.
        key: &'static str,
        /// What is wrong, and in which file.
        source: TlsError,
    },
    /// Workers.
    #[error("{faulty} of {workers} workers cannot take requests (see above)")]
    Workers {
        /// How many.
        faulty: usize,
        /// Of how many.
        workers: usize,
    },
    /// Redis or Valkey, which is configured and cannot be used.
    #[error("shared state: {0}")]
    Shared(#[from] crate::shared::Fault),
    /// A defect of this program: two metrics with one name.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// No thread, no sockets, or nobody reads what is written.
    #[error("check: {0}")]
    Io(#[from] io::Error),
}

/// Reads the file as `serve` would, and asks its workers.
pub(super) fn run(args: &CheckArgs) -> Result<(), CheckError> {
    let config = ServeArgs::of_file(&args.file).resolve()?;
    super::guard::check_interfaces(&config.guard)?;
    for (key, tls, protocols) in
        [("tls", &config.tls, crate::gateway::ALPN), ("admin_tls", &config.admin_tls, crate::admin::ALPN)]
    {
        if let Some(tls) = tls {
            ServerTls::load(tls, protocols).map_err(|source| CheckError::Tls { key, source })?;
        }
    }
    if args.offline {
        println!("{} is right: {}", args.file.display(), summary(&config));
        return Ok(());
    }
    let metrics = Metrics::new()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let workers = runtime.block_on(survey(&config, &metrics));
    let is_shared = !config.shared.urls.is_empty();
    let shared = is_shared.then(|| runtime.block_on(crate::shared::probe(&config.shared)));
    if args.json {
        println!("{}", serde_json::to_string_pretty(&workers).expect("strings and numbers serialise"));
    } else {
        println!("{} is right: {}\n", args.file.display(), summary(&config));
        print!("{}", table(&workers));
        if let Some(Ok(probed)) = &shared {
            println!("\nshared state: {probed}");
        }
    }
    match workers.iter().filter(|worker| worker.fault.is_some()).count() {
        0 => Ok(shared.transpose().map(drop)?),
        faulty => Err(CheckError::Workers { faulty, workers: workers.len() }),
    }
}

fn summary(config: &Config) -> String {
    let keys = match config.keys.len() {
        0 => "no API keys: everyone may ask".to_owned(),
        keys => format!("{keys} API keys"),
    };
    let sources = config.discovery.sources.iter().map(|source| format!(", workers of {}", source.label()));
    format!(
        "clients at {}, operators at {}, policy {}, {} workers{}, {keys}",
        config.listen,
        config.admin,
        config.routing.settings.policy,
        config.workers.len(),
        sources.collect::<String>()
    )
}

/// One line for each worker.
pub(super) fn table(workers: &[Surveyed]) -> String {
    let mut rows = vec![["WORKER", "URL", "HEALTH", "VLLM", "KV EVENTS", "MODELS"].map(str::to_owned)];
    rows.extend(workers.iter().map(|worker| {
        let health = match (&worker.fault, worker.health_ms) {
            (None, Some(ms)) => format!("ok, {ms} ms"),
            (fault, _) => fault.clone().unwrap_or_default(),
        };
        [
            worker.name.clone(),
            worker.url.clone(),
            health,
            worker.version.clone().unwrap_or_else(|| "?".to_owned()),
            worker.kv_events.label().to_owned(),
            if worker.models.is_empty() { "?".to_owned() } else { worker.models.join(", ") },
        ]
    }));
    super::columns(&rows)
}
