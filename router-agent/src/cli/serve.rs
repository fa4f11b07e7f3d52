//! `warmpath serve`: its flags, and the configuration that they make with the environment and the file.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::{Args, FromArgMatches as _};

use super::{guard, run};
use crate::{
    config::{self, Config, ConfigError, Front, LogFormat, Splice},
    gateway::ListenError,
    kernel,
    privileges::PrivilegeError,
    telemetry,
    tls::TlsError,
    tokenize::LoadError,
};

/// Where an endpoint picker listens where nothing else is said: the Gateway API inference extension's port.
const EPP_PORT: u16 = 9002;

/// Flags of `warmpath serve`. Each overrides its environment variable, that the file, and that the default.
#[derive(Clone, Debug, Default, Args)]
#[command(args_override_self = true)]
#[command(after_help = "Examples:\n  \
    warmpath serve --worker http://127.0.0.1:8001 --worker http://127.0.0.1:8002\n  \
    warmpath serve --config /etc/warmpath/warmpath.yaml --log-format json")]
pub struct ServeArgs {
    /// Configuration file (YAML, strict: unknown keys are errors).
    #[arg(long, value_name = "FILE", env = "WARMPATH_CONFIG")]
    config: Option<PathBuf>,
    /// Where clients connect [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR:PORT", env = "WARMPATH_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where operators connect: metrics, health, fleet [default: 127.0.0.1:9090].
    #[arg(long, value_name = "ADDR:PORT", env = "WARMPATH_ADMIN")]
    admin: Option<SocketAddr>,
    /// A vLLM server, http://HOST:PORT. Repeat for each; replaces the file's list.
    #[arg(long = "worker", value_name = "URL", env = "WARMPATH_WORKER", value_delimiter = ',')]
    workers: Vec<String>,
    /// How a worker is chosen: warm, prefix, session, lmcache, weighted, round_robin, random, least_loaded or power_of_two
    /// [default: warm].
    #[arg(long, value_name = "NAME", env = "WARMPATH_POLICY")]
    policy: Option<String>,
    /// Data threads [default: one per core].
    #[arg(long, value_name = "N", env = "WARMPATH_THREADS")]
    threads: Option<usize>,
    /// Whether the kernel may move response bodies [default: auto].
    #[arg(long, value_enum, env = "WARMPATH_SPLICE")]
    splice: Option<Splice>,
    /// How log lines are written [default: text].
    #[arg(long, value_enum, env = "WARMPATH_LOG_FORMAT")]
    log_format: Option<LogFormat>,
    /// How long requests in flight may take to end after SIGTERM or Ctrl-C, e.g. 30s [default: 30s].
    #[arg(long, value_name = "DURATION", env = "WARMPATH_DRAIN_TIMEOUT", value_parser = humantime::parse_duration)]
    drain_timeout: Option<Duration>,
    /// Name of this gateway among several on one host: part of its pin path [default: default].
    #[arg(long, value_name = "NAME", env = "WARMPATH_INSTANCE")]
    instance: Option<String>,
    /// Guard the listening port on IFACE by XDP, native, generic or auto [default: auto]. Repeat for each interface;
    /// replaces the file's list.
    #[arg(long, value_name = "IFACE[:MODE]", env = "WARMPATH_GUARD", value_delimiter = ',')]
    guard: Vec<String>,
    /// Start N simulated workers in this process if no worker is configured (for trying things out).
    #[cfg(feature = "sim")]
    #[arg(long, value_name = "N", default_value_t = 0)]
    sim_workers: usize,
    /// What clients speak, by the command.
    #[arg(skip)]
    front: Front,
}

/// Why the gateway did not start, or how it ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Flags, environment or file are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data or the admin address cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Something that the system always gives was not given.
    #[error("{what}: {source}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// A simulated worker did not start.
    #[cfg(feature = "sim")]
    #[error("simulated worker: {0}")]
    Sim(#[from] vllm_sim::StartError),
    /// A certificate or a key cannot be used.
    #[error("{key}: {source}")]
    Tls {
        /// The key of the configuration.
        key: &'static str,
        /// What is wrong, and in which file.
        source: TlsError,
    },
    /// Privileges cannot be given up.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// A successor would have nobody to send requests to.
    #[error("no source of workers has named one yet: the gateway that runs goes on")]
    NoWorkersYet,
    /// A tokenizer cannot be used.
    #[error("tokenizers: {0}")]
    Tokenizers(#[from] LoadError),
    /// A defect of this program: two metrics with one name.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// No memory for the streams under way.
    #[error("{}", kernel::chain(_0))]
    Memory(#[from] kernel::KernelError),
}

pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::System { what, source }
}

impl ServeArgs {
    /// As `serve --config FILE`, with the environment.
    pub(super) fn of_file(file: &Path) -> Self {
        Self { config: Some(file.to_owned()), ..Self::of_environment() }
    }

    /// As `serve --config FILE --worker URL ...`.
    pub(super) fn of_workers(config: Option<PathBuf>, workers: Vec<String>) -> Self {
        Self { config, workers, ..Self::of_environment() }
    }

    /// The same for `warmpath epp`.
    pub(super) fn into_endpoint_picker(self) -> Self {
        Self { front: Front::EndpointPicker, ..self }
    }

    /// As `serve` without a flag.
    fn of_environment() -> Self {
        let command = Self::augment_args(clap::Command::new("serve"));
        let matches = command.get_matches_from(["serve"]);
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// The files that `config` was read from.
    pub(super) fn files(&self, config: &Config) -> Vec<PathBuf> {
        self.config.iter().chain(&config.keys_file).cloned().collect()
    }

    /// The configuration that these flags, the environment and the file make.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        fn set<T>(target: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *target = value;
            }
        }
        let mut config = Config { front: self.front, ..Config::default() };
        if self.front == Front::EndpointPicker {
            config.listen.set_port(EPP_PORT);
        }
        let in_file = |error: ConfigError| match &self.config {
            Some(path) => error.in_file(path),
            None => error,
        };
        if let Some(path) = &self.config {
            config::load(path)?.apply(&mut config).map_err(in_file)?;
        }
        set(&mut config.listen, self.listen);
        set(&mut config.admin, self.admin);
        if let Some(token) = config::admin_token_of_environment()? {
            config.admin_token = Some(token);
        }
        set(&mut config.threads, self.threads);
        set(&mut config.splice, self.splice);
        set(&mut config.log_format, self.log_format);
        set(&mut config.timeouts.drain, self.drain_timeout);
        set(&mut config.instance, self.instance);
        if let Some(policy) = &self.policy {
            config.routing.settings.policy = config::parse_policy(policy)?;
        }
        if !self.workers.is_empty() {
            config.workers =
                self.workers.iter().map(|url| config::worker_config(url, None)).collect::<Result<_, _>>()?;
        }
        if !self.guard.is_empty() {
            config.guard.interfaces =
                self.guard.iter().map(|interface| interface.parse()).collect::<Result<_, _>>()?;
        }
        #[cfg(feature = "sim")]
        if config.workers.is_empty() {
            config.sim_workers = self.sim_workers;
        }
        if config.front == Front::EndpointPicker {
            config.splice = Splice::Off; // Envoy has the bodies
        }
        config.validate().map_err(in_file)?;
        Ok(config)
    }
}

/// Runs the gateway until a signal ends it.
pub(super) fn run(args: ServeArgs) -> Result<(), ServeError> {
    let started = Instant::now();
    let config = args.clone().resolve()?;
    guard::check_interfaces(&config.guard)?;
    let log_filter = telemetry::init_logging(config.log_format);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("cannot start the control thread"))?;
    runtime.block_on(run::serve(args, config, log_filter, started))
}
