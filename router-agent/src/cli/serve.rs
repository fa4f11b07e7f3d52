//! `warmpath serve`: from flags to a running gateway, and from a signal to its end.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use super::{banner::Banner, guard, publish};
use crate::{
    admin::{self, Admin},
    config::{self, Config, ConfigError, Live, LogFormat, Splice},
    fleet::{self, Fleet},
    gateway::{self, CacheView, DataThread, KernelSide, ListenError, Listeners, Phase, Shared},
    index::PrefixIndex,
    kernel::{self, Capabilities, Capability, Kernel, Steering},
    kv_events::{self, Indices, Predictions},
    lifecycle::{Members, Reload},
    telemetry::{self, Metrics, RelayPath},
    tokenize::{LoadError, Tokenizers},
};

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

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::System { what, source }
}

impl ServeArgs {
    /// The configuration that these flags, the environment and the file make.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        fn set<T>(target: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *target = value;
            }
        }
        let mut config = Config::default();
        if let Some(path) = &self.config {
            config::load(path)?.apply(&mut config)?;
        }
        set(&mut config.listen, self.listen);
        set(&mut config.admin, self.admin);
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
        config.validate()?;
        Ok(config)
    }
}

/// Runs the gateway until a signal ends it.
pub(super) fn run(args: ServeArgs) -> Result<(), ServeError> {
    let started = Instant::now();
    let config = args.clone().resolve()?;
    guard::check_interfaces(&config.guard)?;
    telemetry::init_logging(config.log_format);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("cannot start the control thread"))?;
    runtime.block_on(serve(args, config, started))
}

async fn serve(args: ServeArgs, config: Config, started: Instant) -> Result<(), ServeError> {
    // Before anything that a second Ctrl-C could interrupt half-way.
    let mut signals = Signals::new().map_err(system("cannot listen for signals"))?;
    let tokenizers = Tokenizers::load(&config.tokenizers)?;
    let listeners = Listeners::open(config.listen, config.threads)?;
    let admin_listener = tokio::net::TcpListener::bind(config.admin)
        .await
        .map_err(|source| Listeners::explain(config.admin, "admin", source))?;
    let admin_address = admin_listener.local_addr().map_err(system("cannot read the admin address"))?;

    let (config, simulated) = simulate(config)?;

    let metrics = Metrics::new()?;
    // Held until the end: its pins go with it.
    let (mut kernel, mut capabilities) = Kernel::open(&kernel::Options {
        instance: (config.instance != config::DEFAULT_INSTANCE).then(|| config.instance.clone()),
        threads: config.threads as u32,
        bypass: config.splice == Splice::Auto && config.relay.allows(config.relay.bypass),
        splice: config.splice == Splice::Auto && config.relay.allows(config.relay.splice),
        guard: guard::options(&config, listeners.address.port()),
        ..kernel::Options::default()
    });
    let steering = attach_steering(&mut kernel, &mut capabilities, &listeners.sockets);
    for (name, capability) in capabilities.iter() {
        metrics.set_kernel(name, capability.is_available());
    }
    metrics.relay.available(RelayPath::Copy, true);
    metrics.relay.available(RelayPath::Bypass, capabilities.bypass.is_available());
    metrics.relay.available(RelayPath::Splice, capabilities.splice.is_available());

    let guard = kernel.guard();
    if let Some(guard) = &guard {
        metrics.guard.set_interfaces(guard.interfaces());
        guard::say(guard);
    }

    let index = Arc::new(PrefixIndex::new(config.index.bytes_max));
    let indices =
        Indices { tokens: Arc::new(PrefixIndex::new(config.index.bytes_max)), bytes: index.clone() };
    let (predictions, ended_predictions) = Predictions::new(indices.tokens.clone(), metrics.clone());
    let fleet = Arc::new(build_fleet(&config, &metrics).await);
    let flows = kernel.flows()?;
    metrics.show_latency(flows.clone(), fleet.list())?;
    let live = Arc::new(Live::new(config.clone()));
    let shared = Arc::new(Shared::new(
        live.clone(),
        fleet,
        CacheView { indices: indices.clone(), predictions },
        metrics,
        KernelSide { relays: kernel.relays(), flows, decisions: kernel.take_decisions() },
        tokenizers,
    ));

    let (phase, phases) = watch::channel(Phase::Serve);
    let threads = start_threads(&shared, listeners.sockets, &phases, steering.as_ref())?;
    let monitors = {
        let shared = shared.clone();
        tokio::spawn(async move {
            fleet::monitor(&shared.fleet, &shared.index, &shared.flows, &shared.config).await;
        })
    };
    let members = Arc::new(Members::new(shared.clone()));
    let seeing_off = {
        let members = members.clone();
        tokio::spawn(async move { members.see_off().await })
    };
    let lmcache = tokio::spawn(gateway::watch_lmcache(shared.clone()));
    let verifier = tokio::spawn(gateway::verify_tokenizers(shared.clone()));
    let kv_events = kv_events::start(&live, &shared.fleet, &indices, &shared.metrics, ended_predictions)
        .map_err(system("cannot start the thread of KV events"))?;
    let publisher = kernel.take_workers().map(|map| tokio::spawn(publish::workers(shared.clone(), map)));
    let sampler = kernel.take_prefixes().map(|map| tokio::spawn(publish::prefixes(index.clone(), map)));
    let simulated_workers = if simulated.is_empty() { Vec::new() } else { config.workers.clone() };
    let resolve = move || {
        let mut config = args.clone().resolve()?;
        if config.sim_workers > 0 {
            config.workers.clone_from(&simulated_workers);
        }
        Ok(config)
    };
    let guarding = guard.clone().map(|guard| (guard, guard::settings as _));
    let reload =
        Arc::new(Reload::new(Box::new(resolve), config.clone(), shared.clone(), members.clone(), guarding));
    let admin = tokio::spawn(admin::serve(
        admin_listener,
        Admin {
            shared: shared.clone(),
            phase: phases.clone(),
            steering,
            guard: guard.clone(),
            guard_state: match &capabilities.guard {
                Capability::Available => "it stands".into(),
                Capability::Unavailable(why) => why.as_str().into(),
            },
            reload: reload.clone(),
            members,
        },
    ));
    let banner = Banner {
        config: &config,
        listen: listeners.address,
        admin: admin_address,
        capabilities: &capabilities,
        simulated: simulated.len(),
        started,
    };
    banner.announce(&shared.fleet);

    let guard_log = guard.clone().map(|guard| tokio::spawn(guard::forward_log(guard)));
    signals.next_but_reload(&reload).await;
    let drain_timeout = live.get().timeouts.drain;
    tracing::info!(timeout = ?drain_timeout, "draining: no new connections; a second signal ends at once");
    phase.send_replace(Phase::Drain);
    let joined = tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(DataThread::join));
    tokio::pin!(joined);
    let ended = tokio::select! {
        ended = &mut joined => ended,
        () = tokio::time::sleep(drain_timeout) => {
            tracing::warn!("drain timeout: requests still in flight are cut off");
            phase.send_replace(Phase::Stop);
            joined.await
        }
        () = signals.next() => {
            phase.send_replace(Phase::Stop);
            joined.await
        }
    };
    drop(kv_events);
    monitors.abort();
    seeing_off.abort();
    admin.abort();
    verifier.abort();
    lmcache.abort();
    for publisher in publisher.into_iter().chain(sampler) {
        publisher.abort();
    }
    if let Some(guard_log) = guard_log {
        guard_log.abort();
    }
    drop((guard, kernel));
    drop(simulated);
    match ended {
        Ok(result) => result.map_err(system("a data thread could not run"))?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
    tracing::info!("stopped");
    Ok(())
}

/// SIGTERM and SIGINT, which end the gateway, and SIGHUP, which reloads its configuration.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal that ends the gateway; on the way, reloads at each SIGHUP.
    async fn next_but_reload(&mut self, reload: &Reload) {
        loop {
            tokio::select! {
                _ = self.hang_up.recv() => {
                    let _ = reload.run().await; // it is in the log
                }
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
            }
        }
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(feature = "sim")]
fn simulate(mut config: Config) -> Result<(Config, Vec<vllm_sim::SimHandle>), ServeError> {
    let mut simulated = Vec::new();
    for number in 0..config.sim_workers {
        let settings = vllm_sim::SimConfig { seed: number as u64, ..Default::default() };
        // A thread of its own, as a worker is a process of its own: it must not slow down the control thread.
        let handle = vllm_sim::Sim::start_thread(settings)?;
        let url = format!("http://{}", handle.addr());
        config.workers.push(config::worker_config(&url, Some(format!("sim-{number}")))?);
        simulated.push(handle);
    }
    Ok((config, simulated))
}

#[cfg(not(feature = "sim"))]
#[expect(clippy::unnecessary_wraps, reason = "with the feature it can fail")]
fn simulate(config: Config) -> Result<(Config, Vec<()>), ServeError> {
    Ok((config, Vec::new()))
}

/// The fleet as configured, its health known.
async fn build_fleet(config: &Config, metrics: &Metrics) -> Fleet {
    let fleet = Fleet::default();
    let make = |worker: &config::WorkerConfig| fleet.make(worker, config.breaker, metrics);
    let workers: Vec<_> = config.workers.iter().filter_map(make).collect();
    assert_eq!(workers.len(), config.workers.len(), "validated: at most 256 workers");
    fleet::check_all(&workers, config).await;
    for worker in &workers {
        fleet.admit(worker);
    }
    fleet
}

fn start_threads(
    shared: &Arc<Shared>,
    sockets: Vec<std::net::TcpListener>,
    phases: &watch::Receiver<Phase>,
    steering: Option<&Steering>,
) -> Result<Vec<DataThread>, ServeError> {
    let start = |(number, socket)| {
        let core = steering.map(|steering| steering.core(number as u32));
        gateway::start(number, socket, shared.clone(), phases.clone(), core)
    };
    sockets
        .into_iter()
        .enumerate()
        .map(start)
        .collect::<io::Result<_>>()
        .map_err(system("cannot start a data thread"))
}

/// Attaches the steering program where the kernel took it; a refusal here is a capability lost, not a failure.
fn attach_steering(
    kernel: &mut Kernel,
    capabilities: &mut Capabilities,
    listeners: &[std::net::TcpListener],
) -> Option<Steering> {
    if !capabilities.steering.is_available() {
        return None;
    }
    match kernel.attach_steering(listeners) {
        Ok(steering) => Some(steering),
        Err(error) => {
            capabilities.steering = Capability::Unavailable(kernel::chain(&error));
            None
        }
    }
}
