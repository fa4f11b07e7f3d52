//! SIGHUP: the configuration is read again, from file, environment and flags as at the start, and the guard's rules and
//! limit are replaced by what it says now. Nothing else changes while the gateway runs: other keys that differ are named
//! in the log. A configuration that is wrong changes nothing.

use super::{guard, serve::ServeArgs};
use crate::{
    config::{Config, needing_restart},
    kernel::{Guard, KernelError, chain},
};

/// What a reload needs.
pub(super) struct Reload {
    args: ServeArgs,
    /// What the gateway was started with.
    configured: Config,
    guard: Option<Guard>,
}

impl Reload {
    pub(super) fn new(args: ServeArgs, configured: Config, guard: Option<Guard>) -> Self {
        Self { args, configured, guard }
    }

    /// Reads the configuration again and says what came of it.
    pub(super) async fn run(&self) {
        let new = match self.args.clone().resolve() {
            Ok(new) => new,
            Err(error) => {
                tracing::error!("reload: nothing changed: {error}");
                return;
            }
        };
        let others = needing_restart(&self.configured, &new);
        if !others.is_empty() {
            tracing::warn!("reload: these take a restart: {}", others.join(", "));
        }
        let Some(guard) = self.guard.clone() else {
            tracing::info!("reload: there is no guard, and nothing else is reloaded");
            return;
        };
        let (rules, limit) = (guard::rules(&new.guard), guard::limit(&new.guard));
        let count = rules.len();
        // It waits for the packets under way: not on the control thread.
        let replaced = tokio::task::spawn_blocking(move || {
            guard.replace(&rules)?;
            guard.set_limit(limit)
        });
        match replaced.await {
            Ok(Ok(())) => tracing::info!(
                rules = count,
                syn_rate = new.guard.syn_rate,
                syn_burst = new.guard.syn_burst,
                "reload: the guard's rules are replaced"
            ),
            Ok(Err(error)) => say_failure(&error),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

fn say_failure(error: &KernelError) {
    tracing::error!("reload: the guard: {}", chain(error));
}
