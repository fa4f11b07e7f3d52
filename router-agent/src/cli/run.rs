//! A running gateway: put together, serving, and brought to its end.

use std::{io, sync::Arc, time::Instant};

use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};

use super::{
    banner::Banner,
    doors::{self, Doors, Succession},
    guard, publish,
    serve::{ServeArgs, ServeError, system},
};
use crate::{
    admin::{self, Admin, Followers, Recent},
    config::{self, Config, Front, Live, Splice},
    descriptors, discovery,
    fleet::{self, Fleet},
    gateway::{self, CacheView, DataThread, KernelSide, Phase, Shared},
    index::PrefixIndex,
    kernel::{self, Capabilities, Capability, Kernel, Steering},
    kv_events::{self, Indices, KvEvents, Predictions},
    lifecycle::{
        Keeper, Members, Reload, Roster, Signals, Wanted, Watch, handover::Release, systemd, thrift,
    },
    privileges::{self, Account},
    telemetry::{LogFilter, Metrics, RelayPath},
    tls::{self, ServerTls},
    tokenize::Tokenizers,
};

/// From the configuration to the end of the process.
pub(super) async fn serve(
    args: ServeArgs,
    config: Config,
    log_filter: LogFilter,
    started: Instant,
) -> Result<(), ServeError> {
    // Before anything that a second Ctrl-C could interrupt half-way.
    let files = args.clone();
    let watch = Watch::new(&files.files(&config));
    let signals = Signals::new().map_err(system("cannot listen for signals"))?;
    // With the privileges of the start; this process is about to give them up.
    let keeper = Keeper::start()
        .inspect_err(|error| tracing::warn!(%error, "no upgrade by SIGUSR2: its process cannot be started"))
        .ok();
    if let Some(user) = &config.user {
        privileges::become_account(&Account::find(user)?)?;
    }
    let connections_max = raise_descriptors(config.limits.connections);
    let tls = load_tls("tls", config.tls.as_ref(), gateway::ALPN)?;
    let admin_tls = load_tls("admin_tls", config.admin_tls.as_ref(), admin::ALPN)?;
    let mut doors = doors::open(&config)?;

    let metrics = Metrics::new()?;
    // Held until the end: its pins go with it.
    let (mut kernel, mut capabilities) = Kernel::open(&kernel::Options {
        instance: (config.instance != config::DEFAULT_INSTANCE).then(|| config.instance.clone()),
        threads: config.threads as u32,
        bypass: config.splice == Splice::Auto && config.relay.allows(config.relay.bypass),
        splice: config.splice == Splice::Auto && config.relay.allows(config.relay.splice),
        guard: guard::options(&config, doors.actual.listen.port()),
        is_successor: doors.offer.is_some(),
        ..kernel::Options::default()
    });
    let steering = open_steering(&mut kernel, &mut capabilities, &doors);
    // A successor needs its privileges until it serves; threads that serve have none from the first.
    let (config, simulated) = privileges::without(|| kernel.can_use_maps(), || simulate(config))??;
    let tokenizers = privileges::without(|| kernel.can_use_maps(), || Tokenizers::load(&config.tokenizers))??;

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
        metrics.clone(),
        KernelSide { relays: kernel.relays(), flows, decisions: kernel.take_decisions(), connections_max },
        tokenizers,
        tls.clone(),
    ));

    let mut tasks = JoinSet::new();
    let members = Arc::new(Members::new(shared.clone()));
    let roster = Arc::new(Roster::new(shared.clone(), members.clone(), &config.workers));
    let (mut discovered, discovery) =
        discovery::start(live.clone(), shared.fleet.clone(), shared.metrics.clone());
    tasks.spawn(discovery);
    // Before anybody is served, and before the gateway that runs is told to stop.
    roster.begin(&mut discovered).await;
    if doors.offer.is_some() && shared.fleet.workers().is_empty() {
        return Err(ServeError::NoWorkersYet);
    }

    let sockets = doors.sockets().map_err(system("cannot keep a handle on the listening sockets"))?;
    let (phase, phases) = watch::channel(Phase::Serve);
    let listeners = std::mem::take(&mut doors.listeners.threads);
    let threads = privileges::without(
        || kernel.can_use_maps(),
        || start_threads(&shared, listeners, &phases, steering.as_ref()),
    )??;
    if let Some(offer) = doors.offer.take() {
        let released = tokio::task::spawn_blocking(|| offer.ready()).await;
        if let Err(error) = joined(released) {
            tracing::warn!(%error, "upgrade: the gateway before has not said that it stops; it may still accept, too");
        }
        kernel.succeed(&mut capabilities);
        take_over_steering(&mut kernel, &mut capabilities, &sockets.clients, config.threads);
    }
    // What needs privileges is open. A thread that is started from here on has none.
    let rights = privileges::drop(|| kernel.can_use_maps())?;
    let succession = Succession::start(&config.instance, sockets);
    let _traces = shared.tracer.start().map_err(system("cannot start the thread of traces"))?;
    let _decision_log =
        shared.records.log().start().map_err(system("cannot start the thread of the decision log"))?;

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

    let reload = {
        let simulated_workers = if simulated.is_empty() { Vec::new() } else { config.workers.clone() };
        let resolve = move || {
            let mut config = args.clone().resolve()?;
            if config.sim_workers > 0 {
                config.workers.clone_from(&simulated_workers);
            }
            Ok(config)
        };
        let guarding = guard.clone().map(|guard| (guard, guard::settings as _));
        Arc::new(Reload::new(Box::new(resolve), config.clone(), shared.clone(), roster.clone(), guarding))
    };
    tasks.spawn({
        let shared = shared.clone();
        async move { fleet::monitor(&shared.fleet, &shared.index, &shared.flows, &shared.config).await }
    });
    tasks.spawn({
        let members = members.clone();
        async move { members.see_off().await }
    });
    tasks.spawn(async move { roster.follow(discovered).await });
    {
        let (ports, metrics) = (tls.into_iter().chain(admin_tls.clone()).collect(), shared.metrics.clone());
        let reloads = live.changes();
        tasks.spawn(async move { tls::watch(ports, reloads, |ok| metrics.tls.reloaded(ok)).await });
    }
    tasks.spawn(thrift::watch(shared.clone()));
    tasks.spawn(gateway::watch_lmcache(shared.clone()));
    if config.front == Front::EndpointPicker {
        tasks.spawn(gateway::report_picker_health(shared.clone(), phases.clone()));
    }
    tasks.spawn(gateway::verify_tokenizers(shared.clone()));
    tasks.spawn(systemd::feed_watchdog(shared.pulses.clone()));
    let kv_events = kv_events::start(&live, &shared.fleet, &indices, &shared.metrics, ended_predictions)
        .map_err(system("cannot start the thread of KV events"))?;
    if let Some(map) = kernel.take_workers() {
        tasks.spawn(publish::workers(shared.clone(), map));
    }
    let hottest = publish::HottestNow::default();
    tasks.spawn(publish::prefixes(index.clone(), hottest.clone(), kernel.take_prefixes()));
    let recent = Arc::new(Recent::default());
    tasks.spawn(recent.clone().watch(shared.clone()));
    if let Some(guard) = &guard {
        tasks.spawn(guard::forward_log(guard.clone()));
    }
    let admin_socket = tokio::net::TcpListener::from_std(doors.admin)
        .map_err(system("cannot accept on the admin address"))?;
    tasks.spawn(admin::serve(
        admin_socket,
        admin_tls,
        Admin {
            shared: shared.clone(),
            phase: phases,
            steering,
            guard,
            guard_state: match &capabilities.guard {
                Capability::Available => "it stands".into(),
                Capability::Unavailable(why) => why.as_str().into(),
            },
            reload: reload.clone(),
            members,
            recent,
            hottest,
            log_filter,
            followers: Followers::default(),
            started: Instant::now(),
        },
    ));
    let banner = Banner {
        config: &config,
        listen: doors.actual.listen,
        admin: doors.actual.admin,
        capabilities: &capabilities,
        rights: &rights,
        simulated: simulated.len(),
        started,
    };
    banner.announce(&shared.fleet);
    systemd::ready("serving");

    Running {
        signals,
        keeper,
        succession,
        reload,
        files,
        watch,
        live,
        phase,
        threads,
        kernel,
        kv_events: Some(kv_events),
    }
    .until_stopped()
    .await?;
    tracing::info!("stopped");
    Ok(())
}

/// What a gateway is ended with.
struct Running {
    signals: Signals,
    /// Starts successors, if it could be started itself.
    keeper: Option<Keeper>,
    succession: Succession,
    reload: Arc<Reload>,
    files: ServeArgs,
    watch: Watch,
    live: Arc<Live>,
    phase: watch::Sender<Phase>,
    threads: Vec<DataThread>,
    kernel: Kernel,
    kv_events: Option<KvEvents>,
}

/// Why a gateway ends.
enum End {
    Signal,
    Successor(Release),
}

impl Running {
    async fn until_stopped(mut self) -> Result<(), ServeError> {
        let end = self.until_the_end().await;
        let threads = std::mem::take(&mut self.threads);
        let all = tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(DataThread::join));
        tokio::pin!(all);
        if let End::Successor(release) = end {
            self.hand_over(release);
            let timeout = self.live.get().timeouts.upgrade;
            tokio::select! {
                ended = &mut all => return joined(ended).map_err(system("a data thread could not run")),
                () = tokio::time::sleep(timeout) => {
                    tracing::warn!("upgrade timeout: requests still in flight here are cut off");
                    self.phase.send_replace(Phase::Stop);
                }
                () = self.signals.end() => self.drain(),
            }
        } else {
            systemd::stopping("draining");
            self.drain();
        }
        let timeout = self.live.get().timeouts.drain;
        let ended = tokio::select! {
            ended = &mut all => ended,
            () = tokio::time::sleep(timeout) => {
                tracing::warn!("drain timeout: requests still in flight are cut off");
                self.phase.send_replace(Phase::Stop);
                all.await
            }
            () = self.signals.end() => {
                self.phase.send_replace(Phase::Stop);
                all.await
            }
        };
        joined(ended).map_err(system("a data thread could not run"))
    }

    async fn until_the_end(&mut self) -> End {
        loop {
            tokio::select! {
                wanted = self.signals.next() => match wanted {
                    Wanted::End => return End::Signal,
                    Wanted::Reload => {
                        let _ = self.reload.run().await; // it is in the log
                    }
                    Wanted::Upgrade => {
                        let started = self.keeper.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into());
                        if let Err(error) = started.and_then(Keeper::start_successor) {
                            tracing::error!(%error, "upgrade: the successor could not be started");
                        }
                    }
                },
                () = self.watch.changed(|| self.files.files(&self.live.load())) => {
                    tracing::info!("a file of the configuration has changed");
                    let _ = self.reload.run().await; // as above
                }
                release = self.succession.next() => return End::Successor(release),
            }
        }
    }

    /// Takes no more connections.
    fn drain(&mut self) {
        // With the second handles on them, the listening sockets would stay open.
        drop(self.succession.giver.take());
        let timeout = self.live.get().timeouts.drain;
        tracing::info!(?timeout, "draining: no new connections; a second signal ends at once");
        self.phase.send_replace(Phase::Drain);
    }

    /// Leaves new connections, and everything that only one process can have, to the successor.
    fn hand_over(&mut self, Release { pid, released }: Release) {
        let timeout = self.live.get().timeouts.upgrade;
        tracing::info!(pid, ?timeout, "upgrade: the successor serves; what is in flight here is finished");
        self.phase.send_replace(Phase::HandOver);
        drop(self.succession.giver.take());
        self.kernel.release();
        drop(self.kv_events.take()); // endpoints that it has bound
        systemd::main_process(pid);
        let _ = released.send(()); // the thread that waits for it may have lost its successor
    }
}

/// The result of what ran on another thread; its panic goes on here.
fn joined<T, E>(result: Result<Result<T, E>, JoinError>) -> Result<T, E> {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
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
    assert_eq!(workers.len(), config.workers.len(), "validated: no more than there are slots");
    fleet::check_all(&workers, config).await;
    for worker in &workers {
        fleet.admit(worker);
    }
    fleet
}

/// Client connections that the system allows; says so if `wanted` are more.
fn raise_descriptors(wanted: usize) -> usize {
    let descriptors = descriptors::raise();
    let max = descriptors::connections_max(descriptors);
    if let Some(descriptors) = descriptors.filter(|_| max < wanted) {
        tracing::info!(
            "limits.connections: {wanted} client connections need {} file descriptors, and this process may have \
             {descriptors}: it takes {max} connections (LimitNOFILE= in the unit, or ulimit -Hn, allows more)",
            descriptors::needed(wanted)
        );
    }
    max
}

/// The certificate of a port, if one is configured.
fn load_tls(
    key: &'static str,
    config: Option<&config::ServerTls>,
    protocols: &'static [&'static [u8]],
) -> Result<Option<Arc<ServerTls>>, ServeError> {
    let load = |config| ServerTls::load(config, protocols);
    config.map(load).transpose().map_err(|source| ServeError::Tls { key, source })
}

fn start_threads(
    shared: &Arc<Shared>,
    listeners: Vec<Vec<std::net::TcpListener>>,
    phases: &watch::Receiver<Phase>,
    steering: Option<&Steering>,
) -> Result<Vec<DataThread>, ServeError> {
    let start = |(number, sockets)| {
        let core = steering.map(|steering| steering.core(number as u32));
        gateway::start(number, sockets, shared.clone(), phases.clone(), core)
    };
    listeners
        .into_iter()
        .enumerate()
        .map(start)
        .collect::<io::Result<_>>()
        .map_err(system("cannot start a data thread"))
}

/// Attaches the steering program where the kernel took it and the sockets are this process's own; a refusal here is a
/// capability lost, not a failure.
fn open_steering(kernel: &mut Kernel, capabilities: &mut Capabilities, doors: &Doors) -> Option<Steering> {
    if !capabilities.steering.is_available() {
        return None;
    }
    let Some(listeners) = doors.listeners.one_each() else {
        capabilities.steering =
            Capability::Unavailable("the data threads share one listening socket".to_owned());
        return None;
    };
    let steering =
        if doors.offer.is_some() { kernel.prepare_steering() } else { kernel.attach_steering(&listeners) };
    steering.inspect_err(|error| capabilities.steering = Capability::Unavailable(kernel::chain(error))).ok()
}

/// As [`open_steering`], of the sockets that the gateway before has let go of. `clients`: in the order of the threads, the
/// first of each thread first.
fn take_over_steering(
    kernel: &mut Kernel,
    capabilities: &mut Capabilities,
    clients: &[std::net::TcpListener],
    threads: usize,
) {
    if capabilities.steering.is_available()
        && let Err(error) = kernel.take_over_steering(&clients[..threads.min(clients.len())])
    {
        capabilities.steering = Capability::Unavailable(kernel::chain(&error));
    }
}
