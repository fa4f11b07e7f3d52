//! The guard of `warmpath serve`: from the configuration to the kernel, and its log to ours.

use std::time::Duration;

use crate::{
    config::{Config, ConfigError, Guard as Configured},
    kernel::{Attached, Guard, GuardAction, GuardOptions, GuardRule, SynLimit, interface_names},
};

/// How often the program's log lines are fetched.
const LOG_INTERVAL: Duration = Duration::from_millis(250);

/// Fails if an interface of the configuration is not there: a misspelt name must not leave a port unguarded.
pub(super) fn check_interfaces(guard: &Configured) -> Result<(), ConfigError> {
    if guard.interfaces.is_empty() {
        return Ok(());
    }
    // Who cannot ask gets the answer when the program is attached.
    let Ok(names) = interface_names() else { return Ok(()) };
    match guard.interfaces.iter().find(|interface| !names.contains(&interface.name)) {
        None => Ok(()),
        Some(missing) => Err(ConfigError::Value {
            key: "guard.interfaces",
            message: format!("there is no interface {:?} here, but {}", missing.name, names.join(", ")),
        }),
    }
}

/// What the kernel side is told, for the port that clients connect to; `None` if the guard is off.
pub(super) fn options(config: &Config, port: u16) -> Option<GuardOptions> {
    let guard = &config.guard;
    (!guard.interfaces.is_empty()).then(|| GuardOptions {
        port,
        interfaces: guard.interfaces.clone(),
        mode: guard.mode,
        rules: rules(guard),
        limit: limit(guard),
    })
}

fn rules(guard: &Configured) -> Vec<GuardRule> {
    let deny = guard.deny.iter().map(|cidr| GuardRule { cidr: *cidr, action: GuardAction::Deny });
    let allow = guard.allow.iter().map(|cidr| GuardRule { cidr: *cidr, action: GuardAction::Allow });
    deny.chain(allow).collect()
}

const fn limit(guard: &Configured) -> SynLimit {
    SynLimit::new(guard.syn_rate, guard.syn_burst)
}

/// What a reload may change.
pub(super) fn settings(config: &Config) -> (Vec<GuardRule>, SynLimit) {
    (rules(&config.guard), limit(&config.guard))
}

/// Says where the guard stands, and how.
pub(super) fn say(guard: &Guard) {
    for (interface, attached) in guard.interfaces() {
        let (port, mode) = (guard.port(), attached.label());
        match (attached, attached.reason()) {
            (Attached::Refused(why), _) => tracing::warn!("guard: not on {interface}: {why}"),
            (_, Some(why)) => tracing::info!("guard: port {port} on {interface}, {mode} ({why})"),
            (_, None) => tracing::info!("guard: port {port} on {interface}, {mode}"),
        }
    }
}

/// Brings the program's lines into our log, for ever.
pub(super) async fn forward_log(guard: Guard) {
    let mut ticks = tokio::time::interval(LOG_INTERVAL);
    loop {
        ticks.tick().await;
        guard.flush_log();
    }
}
