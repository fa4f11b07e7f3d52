//! What several gateways know together, through Redis or Valkey (docs/shared-state.md).
//!
//! Promise: everything here is an addition. Without a server, with one that is slow, full or gone, a gateway decides by
//! what it knows itself, and no request waits longer than the time that is configured for what it asks. What comes from
//! others is never the truth about a worker: a load that is 50 ms old, a prefix that was sent there once.
//!
//! ```text
//! data threads ──loads (atomics)──▶ say ──PUBLISH──▶ ┌───────┐ ──▶ hear ──sums (atomics)──▶ decisions
//!      │                                             │ Redis │
//!      ├──hints: asks, and what was sent──▶ hints ──▶ │       │        heartbeat: is it there?
//!      └──leases of tenants' limits ───────▶ limits ─▶ └───────┘
//! ```
//!
//! All of it is on one thread of its own. Data threads read atomics, leave things in bounded queues, and wait for an answer
//! only within a deadline.

mod heartbeat;
mod hints;
mod limits;
mod link;
mod load;
mod message;
mod peers;
mod probe;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use self::{
    hints::Hints,
    limits::Limits,
    link::{CurrentLink, Dialer},
};
use crate::{
    config::{self, Config},
    fleet::Fleet,
    telemetry::{Metrics, SharedCondition},
};

pub use self::{
    hints::Hinted,
    limits::Lent,
    link::Fault,
    probe::{Probed, probe},
};

/// What data threads ask.
#[derive(Debug)]
struct Asked {
    hints: Option<mpsc::Receiver<hints::Ask>>,
    leases: Option<mpsc::Receiver<limits::Ask>>,
}

/// What data threads have of the shared state. One for all.
#[derive(Debug)]
pub struct SharedState {
    settings: config::SharedState,
    /// What this gateway is called.
    gateway: String,
    /// Which process it is.
    process: u64,
    condition: AtomicU8,
    /// None where there are none.
    hints: Option<Hints>,
    /// None where each gateway has its own.
    limits: Option<Limits>,
    /// Of the thread, until it is started.
    asked: Mutex<Asked>,
    /// Gateways besides this one, as last heard while the server was there.
    peers: AtomicUsize,
    dialer: Dialer,
    metrics: Arc<Metrics>,
}

impl SharedState {
    /// As configured; none where nothing is shared. Nobody is asked yet.
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Result<Option<Arc<Self>>, Fault> {
        let settings = &config.shared;
        if settings.urls.is_empty() {
            return Ok(None);
        }
        metrics.shared.set_condition(SharedCondition::Down);
        let (hints, asked_hints) = settings.hints.is_on.then(Hints::new).unzip();
        let (limits, asked_leases) = settings.limits.is_on.then(Limits::new).unzip();
        Ok(Some(Arc::new(Self {
            gateway: gateway_name(config),
            process: fastrand::u64(..),
            condition: AtomicU8::new(SharedCondition::Down as u8),
            hints,
            limits,
            asked: Mutex::new(Asked { hints: asked_hints, leases: asked_leases }),
            peers: AtomicUsize::new(0),
            dialer: Dialer::new(settings)?,
            settings: settings.clone(),
            metrics,
        })))
    }

    /// Starts the thread that speaks with the server. To be called once.
    pub fn start(self: &Arc<Self>, fleet: &Arc<Fleet>) -> io::Result<SharedThread> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let (state, fleet) = (self.clone(), fleet.clone());
        let run = async move {
            let link = match state.dialer.dial() {
                Ok(link) => link,
                Err(fault) => {
                    tracing::error!(%fault, "shared state: off");
                    return;
                }
            };
            let link: CurrentLink = Arc::new(ArcSwap::from_pointee(link));
            let mut tasks = state.clone().tasks(&fleet, &link);
            let _ = stopped.await; // said, or its sender dropped: the end
            tasks.shutdown().await;
            if state.condition() == SharedCondition::Up {
                load::say_goodbye(&state, &link).await;
            }
        };
        let handle = std::thread::Builder::new()
            .name("shared-state".to_owned())
            .spawn(move || runtime.block_on(run))?;
        Ok(SharedThread { stop: Some(stop), handle: Some(handle) })
    }

    fn tasks(self: Arc<Self>, fleet: &Arc<Fleet>, link: &CurrentLink) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(heartbeat::beat(self.clone(), self.dialer.clone(), link.clone()));
        tasks.spawn(load::say(self.clone(), fleet.clone(), link.clone()));
        tasks.spawn(load::hear(self.clone(), fleet.clone(), self.dialer.clone()));
        let mut asked = self.asked.lock();
        if let Some(asked) = asked.hints.take() {
            tasks.spawn(hints::write(self.clone(), link.clone()));
            tasks.spawn(hints::answer(self.clone(), fleet.clone(), link.clone(), asked));
        }
        if let Some(asked) = asked.leases.take() {
            tasks.spawn(limits::answer(self.clone(), link.clone(), asked));
        }
        drop(asked);
        tasks
    }

    /// Gateways that share, this one included.
    fn gateways(&self) -> f64 {
        (self.peers.load(Relaxed) + 1) as f64
    }

    /// How the server stands.
    pub fn condition(&self) -> SharedCondition {
        let now = self.condition.load(Relaxed);
        SharedCondition::ALL.into_iter().find(|state| *state as u8 == now).unwrap_or(SharedCondition::Down)
    }
}

/// As configured, else after the host, and the instance where there are several.
fn gateway_name(config: &Config) -> String {
    if let Some(name) = &config.shared.gateway {
        return name.clone();
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if config.instance == config::DEFAULT_INSTANCE { host } else { format!("{host}/{}", config.instance) }
}

/// The thread. Dropped, it says goodbye and ends.
#[derive(Debug)]
pub struct SharedThread {
    stop: Option<oneshot::Sender<()>>,
    handle: Option<JoinHandle<()>>,
}

impl Drop for SharedThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(handle) = self.handle.take() {
            let _ = handle.join(); // a panic there has been printed
        }
    }
}
