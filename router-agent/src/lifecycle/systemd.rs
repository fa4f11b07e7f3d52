//! What systemd is told, where it has started this process (`Type=notify`, sd_notify(3)); nothing happens elsewhere.
//!
//! The watchdog (`WatchdogSec=`) is fed only while every data thread's event loop turns: a thread that hangs is a process to
//! be started anew.

use std::{sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::gateway::Pulses;

/// Says that the gateway serves.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that the configuration is being read again; [`ready`] follows, whatever comes of it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no monotonic clock"),
    }
}

/// Says that the gateway ends.
pub fn stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Says that another process is the service from now on.
pub fn main_process(pid: u32) {
    notify(&[NotifyState::MainPid(pid)]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be told how this gateway is");
    }
}

/// Feeds the watchdog, for ever; ends at once where there is none.
pub async fn feed_watchdog(pulses: Arc<Pulses>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut rounds = interval((limit / 3).max(Duration::from_millis(1)));
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = pulses.look();
    let mut is_silent = false;
    loop {
        rounds.tick().await;
        let now = pulses.look();
        let hung = silent(&seen, &now);
        if hung.is_empty() {
            notify(&[NotifyState::Watchdog]);
        } else if !is_silent {
            tracing::error!(threads = ?hung, "data threads do not turn: systemd's watchdog is not fed");
        }
        is_silent = !hung.is_empty();
        seen = now;
    }
}

/// The threads whose count has not gone on from one look to the next.
fn silent(before: &[u64], now: &[u64]) -> Vec<usize> {
    let pairs = before.iter().zip(now).enumerate();
    pairs.filter(|(_, (before, now))| before == now).map(|(thread, _)| thread).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_that_stands_still_is_enough() {
        assert_eq!(silent(&[1, 7, 3], &[2, 7, 9]), [1]);
        assert!(silent(&[1, 7], &[2, 8]).is_empty());
    }
}
