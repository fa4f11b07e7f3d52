//! The configuration is read again, from file, environment and flags as at the start, and put in force as far as that can
//! be done without a restart. A configuration that is wrong changes nothing.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::{MemberError, Roster, systemd};
use crate::{
    config::{Changes, Config, ConfigError, settle},
    gateway::Shared,
    kernel::{Guard, GuardRule, KernelError, SynLimit, chain},
};

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The fleet would be too large.
    #[error("workers: {0}")]
    Members(#[from] MemberError),
    /// The guard's rules could not be replaced.
    #[error("guard: {}", chain(_0))]
    Guard(#[from] KernelError),
}

/// Reads the configuration anew, from wherever it came at the start.
type Resolve = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// What the guard is told of a configuration.
type GuardSettings = fn(&Config) -> (Vec<GuardRule>, SynLimit);

/// What a reload needs.
pub struct Reload {
    resolve: Resolve,
    /// What the gateway was started with.
    started: Config,
    shared: Arc<Shared>,
    roster: Arc<Roster>,
    guard: Option<(Guard, GuardSettings)>,
    /// One at a time.
    running: Mutex<()>,
}

impl Reload {
    /// `started`: the configuration that is in force now.
    pub fn new(
        resolve: Resolve,
        started: Config,
        shared: Arc<Shared>,
        roster: Arc<Roster>,
        guard: Option<(Guard, GuardSettings)>,
    ) -> Self {
        Self { resolve, started, shared, roster, guard, running: Mutex::default() }
    }

    /// Reloads, and says in the log what came of it.
    pub async fn run(&self) -> Result<Changes, ReloadError> {
        systemd::reloading();
        let result = self.reload().await;
        systemd::ready(match &result {
            Ok(_) => "serving",
            Err(_) => "serving; the last reload changed nothing, the log says why",
        });
        let metrics = &self.shared.metrics;
        match &result {
            Err(error) => {
                metrics.reloads_failed.inc();
                tracing::error!("reload: nothing changed: {error}");
            }
            Ok(Changes { changed, needs_restart }) => {
                metrics.reloads_done.inc();
                if !needs_restart.is_empty() {
                    tracing::warn!("reload: these take a restart: {}", needs_restart.join(", "));
                }
                let list =
                    |keys: &[&str]| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
                tracing::info!("reload: changed: {}", list(changed));
            }
        }
        result
    }

    async fn reload(&self) -> Result<Changes, ReloadError> {
        let _one_at_a_time = self.running.lock().await;
        let mut new = (self.resolve)()?;
        let running = self.shared.config.get();
        let changes = settle(&self.started, &running, &mut new);
        self.roster.check(&new.workers).await?;
        // First, because it can fail. Always: rules may have been added or removed over the admin port.
        if let Some((guard, settings)) = &self.guard {
            let (rules, limit) = settings(&new);
            let guard = guard.clone();
            // It waits for the packets under way: not on the control thread.
            let replaced = tokio::task::spawn_blocking(move || {
                guard.replace(&rules)?;
                guard.set_limit(limit)
            });
            match replaced.await {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
        let workers = new.workers.clone();
        self.shared.reconfigure(new);
        self.roster.configure(&workers).await;
        Ok(changes)
    }
}
