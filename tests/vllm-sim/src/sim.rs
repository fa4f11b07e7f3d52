//! Starting, steering and ending a simulated worker.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::config::SimConfig;
use crate::engine::EngineHandle;
use crate::engine::sequence::Finish;
use crate::faults::Fault;
use crate::kv_transfer::{self, Connector};
use crate::stats::SimStats;
use crate::worker::{Phase, Worker, stopping};

/// uvicorn's listen backlog.
const BACKLOG: i32 = 2048;
/// From the engine's death to the API server's.
const ENGINE_DEATH_NOTICED: Duration = Duration::from_millis(300);
/// How long a stopping worker waits for connections that do not end.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Why a worker could not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("cannot listen on {addr}: {source}")]
    Listen { addr: SocketAddr, source: std::io::Error },
    #[error("block size {0} is not supported: at least 4 tokens per block")]
    BlockSize(usize),
    #[error("{name} must be positive")]
    NotPositive { name: &'static str },
    #[error("KV events: {0}")]
    Events(#[from] crate::kv_events::PublishError),
    #[error("KV transfer: {0}")]
    Transfer(std::io::Error),
    #[error("cannot start the worker's thread: {0}")]
    Thread(std::io::Error),
}

/// The way to start a simulated worker.
#[derive(Debug)]
pub struct Sim;

impl Sim {
    /// Starts a worker on the current tokio runtime.
    pub async fn start(config: SimConfig) -> Result<SimHandle, StartError> {
        let config = checked(config)?;
        let listener = listen(config.listen)?;
        run(config, listener).await
    }

    /// Starts a worker on a thread and a runtime of its own, for callers that have no runtime or a busy one.
    pub fn start_thread(config: SimConfig) -> Result<SimHandle, StartError> {
        let (started, result) = std::sync::mpsc::channel();
        let spawned = thread::Builder::new().name(format!("sim-{}", config.listen.port())).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(StartError::Thread(error)))),
            };
            runtime.block_on(async move {
                let handle = match Self::start(config).await {
                    Ok(handle) => handle,
                    Err(error) => return drop(started.send(Err(error))),
                };
                let ended = handle.ended();
                let _ = started.send(Ok(handle)); // the starter waits for it
                ended.await;
            });
        });
        spawned.map_err(StartError::Thread)?;
        result.recv().unwrap_or(Err(StartError::Thread(std::io::ErrorKind::BrokenPipe.into())))
    }
}

fn checked(mut config: SimConfig) -> Result<SimConfig, StartError> {
    let engine = &mut config.engine;
    if engine.block_size < 4 {
        return Err(StartError::BlockSize(engine.block_size));
    }
    for (name, positive) in [
        ("num_blocks - 1", engine.num_blocks > 1),
        ("max_num_seqs", engine.max_num_seqs > 0),
        ("max_num_batched_tokens", engine.max_num_batched_tokens > 0),
        ("prefill_tokens_per_s", engine.time.prefill_tokens_per_s > 0.0),
        ("time_scale", engine.time.time_scale > 0.0),
        ("kv_transfer tokens_per_s", config.kv_transfer.as_ref().is_none_or(|own| own.tokens_per_s > 0.0)),
    ] {
        if !positive {
            return Err(StartError::NotPositive { name });
        }
    }
    // A sequence must fit the empty pool, or it could wait for ever.
    engine.max_model_len = engine.max_model_len.min((engine.num_blocks - 1) * engine.block_size);
    Ok(config)
}

fn listen(addr: SocketAddr) -> Result<TcpListener, StartError> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    bind().map_err(|source| StartError::Listen { addr, source })
}

async fn run(mut config: SimConfig, listener: TcpListener) -> Result<SimHandle, StartError> {
    let addr = listener.local_addr().unwrap_or(config.listen);
    config.listen = addr;
    let event_batches = Arc::new(AtomicU64::new(0));
    let sink = match &mut config.kv_events {
        Some(events) => {
            let loras = config.loras.iter().map(|lora| lora.name.clone()).collect();
            Some(crate::kv_events::start(events, loras, event_batches.clone()).await?)
        }
        None => None,
    };
    let engine = EngineHandle::start(config.engine.clone(), sink);
    let (connector, side_channel) = match &config.kv_transfer {
        Some(transfer) => {
            let bound =
                Connector::bind(transfer, engine.clone(), addr.ip()).await.map_err(StartError::Transfer)?;
            (Some(bound.0), Some(bound.1))
        }
        None => (None, None),
    };
    let side_channel = connector
        .clone()
        .zip(side_channel)
        .map(|(connector, listener)| tokio::spawn(kv_transfer::serve(connector, listener)));
    let worker = Arc::new(Worker::new(config, engine, connector, event_batches));
    let (kill, killed) = oneshot::channel();
    let (done, ended) = tokio::sync::watch::channel(false);
    let serving = worker.clone();
    tokio::spawn(async move {
        serve(serving.clone(), listener, killed).await;
        if let Some(side_channel) = side_channel {
            side_channel.abort();
        }
        serving.engine.exit();
        done.send_replace(true);
    });
    Ok(SimHandle { addr, worker, kill: parking_lot::Mutex::new(Some(kill)), ended })
}

async fn serve(worker: Arc<Worker>, listener: TcpListener, mut killed: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    let mut phase = worker.phase.subscribe();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(worker.clone().serve(stream));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            () = stopping(&mut phase) => break,
            _ = &mut killed => {
                worker.killed.store(true, Ordering::Release);
                connections.shutdown().await;
                return;
            }
        }
    }
    drop(listener);
    worker.engine.end_all(Finish::Abort);
    let all = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        _ = tokio::time::timeout(STOP_PATIENCE, all) => {}
        _ = &mut killed => worker.killed.store(true, Ordering::Release),
    }
    connections.shutdown().await;
}

/// A running worker. Dropping the handle kills it.
pub struct SimHandle {
    addr: SocketAddr,
    worker: Arc<Worker>,
    kill: parking_lot::Mutex<Option<oneshot::Sender<()>>>,
    ended: tokio::sync::watch::Receiver<bool>,
}

impl SimHandle {
    /// Where the worker listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Where KV events are published and replayed, with the ports that were bound.
    pub fn kv_events(&self) -> Option<&crate::KvEventsConfig> {
        self.worker.config.kv_events.as_ref()
    }

    /// The worker's counters now.
    pub fn stats(&self) -> SimStats {
        self.worker.snapshot()
    }

    /// Arms faults, in place of those armed before; none clears them.
    pub fn set_faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.worker.set_faults(faults.into_iter().collect());
    }

    /// Arms one fault, in place of those armed before.
    pub fn set_fault(&self, fault: Fault) {
        self.set_faults([fault]);
    }

    /// Clears all faults.
    pub fn clear_faults(&self) {
        self.set_faults([]);
    }

    /// Forgets the prefix cache; false while blocks are in use.
    pub async fn reset_prefix_cache(&self) -> bool {
        self.worker.engine.reset_prefix_cache().await
    }

    /// What SIGTERM does. With `shutdown_timeout` zero the listener closes at once and in-flight streams end with
    /// `finish_reason: "abort"`; else they may end first, while new generation requests get 500. Returns when all
    /// connections have ended.
    pub async fn stop(&self) {
        let drain = self.worker.config.shutdown_timeout;
        if !drain.is_zero() {
            self.worker.phase.send_replace(Phase::Draining);
            let idle = async {
                while self.worker.stats.generating.now() > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let _ = tokio::time::timeout(drain, idle).await; // at the end of its patience it stops all the same
        }
        self.worker.phase.send_replace(Phase::Stopping);
        self.ended().await;
    }

    /// What SIGKILL does, but for sure: every connection is reset, the listener is gone. Returns when done.
    pub async fn kill(&self) {
        self.start_kill();
        self.ended().await;
    }

    /// What SIGKILL does to the engine process: streams end with an error event and `[DONE]`, whole responses and new
    /// requests are 500, `/health` is 503; 0.3 s later the API server gives up, and every connection with it. Returns
    /// then.
    pub async fn kill_engine(&self) {
        self.worker.engine_dead.store(true, Ordering::Release);
        self.worker.engine.end_all(Finish::Error);
        tokio::time::sleep(ENGINE_DEATH_NOTICED).await;
        self.kill().await;
    }

    fn start_kill(&self) {
        if let Some(kill) = self.kill.lock().take() {
            let _ = kill.send(()); // it may have ended by itself
        }
    }

    /// Completes when the worker has ended.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut ended = self.ended.clone();
        async move {
            let _ = ended.wait_for(|ended| *ended).await; // a runtime that ends drops the sender
        }
    }
}

impl Drop for SimHandle {
    fn drop(&mut self) {
        self.start_kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_can_be_started_and_held_from_any_task() {
        fn sendable<T: Send>(_: &T) {}
        fn shareable<T: Send + Sync>() {}
        sendable(&Sim::start(SimConfig::default()));
        shareable::<SimHandle>();
    }

    #[test]
    fn what_a_sequence_could_never_fit_is_cut_down_or_refused() {
        let mut config = SimConfig::default();
        config.engine.num_blocks = 11;
        assert_eq!(checked(config.clone()).unwrap().engine.max_model_len, 160);
        config.engine.block_size = 2;
        assert!(matches!(checked(config), Err(StartError::BlockSize(2))));
    }
}
