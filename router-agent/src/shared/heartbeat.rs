//! Whether the server is there: a write each while, which also tells who this gateway is.
//!
//! It is a write because a server that is out of memory, or a replica, still reads. What it writes is for people:
//! `redis-cli --scan --pattern 'warmpath:gateway:*'` lists the gateways of the last seconds.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};

use super::{
    SharedState,
    link::{CurrentLink, Dialer, Fault},
};
use crate::telemetry::{SharedCondition, SharedOutcome, SharedUse};

/// Pause between two heartbeats.
const EVERY: Duration = Duration::from_millis(250);
/// How long the server remembers one.
const REMEMBERED: Duration = Duration::from_secs(5);
/// Late ones in a row after which the connection is thought to be dead.
const LATE_MAX: u32 = 8;

/// Beats for ever.
pub(super) async fn beat(state: Arc<SharedState>, dialer: Dialer, link: CurrentLink) {
    let mut beats = interval(EVERY);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let key = format!("{}gateway:{}", state.settings.key_prefix, state.gateway);
    let about = serde_json::json!({
        "process": format!("{:016x}", state.process),
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
    })
    .to_string();
    let mut late = 0;
    loop {
        beats.tick().await;
        let mut command = redis::cmd("SET");
        command.arg(&key).arg(&about).arg("PX").arg(REMEMBERED.as_millis() as u64);
        let asked = Instant::now();
        let answer = link.load_full().run(vec![command]).await;
        let metrics = &state.metrics.shared;
        let (condition, outcome) = match &answer {
            Ok(_) => (SharedCondition::Up, SharedOutcome::Ok),
            Err(fault @ Fault::Late(_)) => (SharedCondition::Slow, fault.outcome()),
            Err(fault @ Fault::Full(_)) => (SharedCondition::Full, fault.outcome()),
            Err(fault) => (SharedCondition::Down, fault.outcome()),
        };
        metrics.count(SharedUse::Heartbeat, outcome);
        if answer.is_ok() {
            metrics.round_trip.observe(asked.elapsed().as_secs_f64());
        }
        late = if condition == SharedCondition::Slow { late + 1 } else { 0 };
        if late >= LATE_MAX {
            late = 0;
            match dialer.dial() {
                Ok(new) => link.store(Arc::new(new)),
                Err(fault) => tracing::debug!(%fault, "shared state: no new connection"),
            }
        }
        state.turned(condition, answer.err());
    }
}

impl SharedState {
    /// The server stands so now; says so when that is news.
    fn turned(&self, now: SharedCondition, fault: Option<Fault>) {
        let before = self.condition.swap(now as u8, Relaxed);
        if before == now as u8 {
            return;
        }
        self.metrics.shared.set_condition(now);
        let server = self.settings.urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match fault {
            None => tracing::info!(server, gateway = %self.gateway, "shared state: up"),
            Some(fault) => tracing::warn!(
                server,
                state = now.label(),
                %fault,
                "shared state is not to be had: this gateway decides by what it knows itself"
            ),
        }
    }
}
