//! What a reload changes, and what only a restart can.

use super::{Config, Relay};

/// Top-level keys whose values differ, and a few below them where a part of a section is another matter than the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Changes {
    /// These are in force from now on.
    pub changed: Vec<&'static str>,
    /// These stay as they were until the gateway is restarted or upgraded.
    pub needs_restart: Vec<&'static str>,
}

impl Changes {
    /// Whether both configurations say the same.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.needs_restart.is_empty()
    }

    fn live<T: PartialEq>(&mut self, key: &'static str, running: &T, new: &T) {
        if running != new {
            self.changed.push(key);
        }
    }

    fn fixed<T: PartialEq + Clone>(&mut self, key: &'static str, running: &T, new: &mut T) {
        if running != new {
            self.needs_restart.push(key);
            new.clone_from(running);
        }
    }
}

/// Compares `new` with the configuration in force, and puts back in `new` what only a restart can change. `started` is what
/// the process was started with.
pub fn settle(started: &Config, running: &Config, new: &mut Config) -> Changes {
    let mut changes = Changes::default();
    // A way that the kernel was not asked for at the start is not there.
    let Relay { bypass, splice, .. } = started.relay;
    if !started.relay.allows(bypass) && new.relay.allows(new.relay.bypass) {
        changes.needs_restart.push("relay.bypass");
        new.relay.bypass = running.relay.bypass;
    }
    if !started.relay.allows(splice) && new.relay.allows(new.relay.splice) {
        changes.needs_restart.push("relay.splice");
        new.relay.splice = running.relay.splice;
    }
    // Taken apart, so that a new key cannot be forgotten here.
    let Config {
        listen,
        admin,
        workers,
        discovery,
        front: _,       // no key
        sim_workers: _, // no key
        routing,
        disaggregation,
        threads,
        splice,
        relay,
        log_format,
        instance,
        health,
        breaker,
        outliers,
        scrape_interval,
        index,
        kv_events,
        limits,
        timeouts,
        guard,
        tokenizers,
        keys,
        keys_file,
        aliases,
        cache,
        hooks,
        overrides,
        user,
        admin_token,
        admin_open_metrics,
        tls,
        admin_tls,
        trusted_proxies,
        decisions,
        decision_log,
        traces,
    } = running;
    changes.fixed("listen", listen, &mut new.listen);
    changes.fixed("admin", admin, &mut new.admin);
    changes.live("workers", workers, &new.workers);
    changes.live("discovery", discovery, &new.discovery);
    changes.live("routing", routing, &new.routing);
    changes.live("disaggregation", disaggregation, &new.disaggregation);
    changes.fixed("threads", threads, &mut new.threads);
    changes.fixed("splice", splice, &mut new.splice);
    changes.live("relay", relay, &new.relay);
    changes.fixed("log_format", log_format, &mut new.log_format);
    changes.fixed("instance", instance, &mut new.instance);
    let super::Timeouts { drain, upgrade, .. } = *timeouts;
    changes.live("drain_timeout", &drain, &new.timeouts.drain);
    changes.live("upgrade_timeout", &upgrade, &new.timeouts.upgrade);
    changes.live("scrape_interval", scrape_interval, &new.scrape_interval);
    changes.live("health", health, &new.health);
    changes.live("breaker", breaker, &new.breaker);
    changes.live("outliers", outliers, &new.outliers);
    changes.fixed("index.block_bytes", &index.block_bytes, &mut new.index.block_bytes);
    changes.fixed("index.max_bytes", &index.bytes_max, &mut new.index.bytes_max);
    changes.live(
        "index.worker_capacity_tokens",
        &index.worker_capacity_tokens,
        &new.index.worker_capacity_tokens,
    );
    changes.live("kv_events", kv_events, &new.kv_events);
    changes.live("limits", limits, &new.limits);
    changes.live("timeouts", timeouts, &super::Timeouts { drain, upgrade, ..new.timeouts });
    changes.fixed("guard.interfaces", &guard.interfaces, &mut new.guard.interfaces);
    changes.fixed("guard.mode", &guard.mode, &mut new.guard.mode);
    changes.live("guard", guard, &new.guard);
    changes.live("keys", keys, &new.keys);
    changes.live("keys_file", keys_file, &new.keys_file);
    changes.live("aliases", aliases, &new.aliases);
    changes.live("cache", cache, &new.cache);
    changes.live("hooks", hooks, &new.hooks);
    changes.live("overrides", overrides, &new.overrides);
    changes.fixed("user", user, &mut new.user);
    changes.live("admin_token", admin_token, &new.admin_token);
    changes.live("admin_open_metrics", admin_open_metrics, &new.admin_open_metrics);
    changes.fixed("tls", tls, &mut new.tls);
    changes.fixed("admin_tls", admin_tls, &mut new.admin_tls);
    changes.live("trusted_proxies", trusted_proxies, &new.trusted_proxies);
    changes.live("decisions", decisions, &new.decisions);
    changes.live("decision_log", decision_log, &new.decision_log);
    changes.live("traces", traces, &new.traces);
    changes.fixed("tokenizers", tokenizers, &mut new.tokenizers);
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RelayMode;

    fn change(started: &Config, change: impl FnOnce(&mut Config)) -> (Changes, Config) {
        let mut new = started.clone();
        change(&mut new);
        let changes = settle(started, started, &mut new);
        (changes, new)
    }

    #[test]
    fn what_changes_is_named_and_what_cannot_is_left_as_it_was() {
        let old = Config::default();
        assert!(change(&old, |_| {}).0.is_empty());
        let (changes, new) = change(&old, |new| {
            new.guard.deny.push("10.0.0.0/8".parse().expect("a range"));
            new.guard.interfaces.push("lo".parse().expect("an interface"));
            new.timeouts.drain *= 2;
            new.listen.set_port(1);
            new.index.block_bytes *= 2;
            new.index.worker_capacity_tokens *= 2;
        });
        assert_eq!(changes.changed, ["drain_timeout", "index.worker_capacity_tokens", "guard"]);
        assert_eq!(changes.needs_restart, ["listen", "index.block_bytes", "guard.interfaces"]);
        assert_eq!((new.listen, new.index.block_bytes), (old.listen, old.index.block_bytes));
        assert!(new.guard.interfaces.is_empty() && new.guard.deny.len() == 1);
        assert_eq!(new.timeouts.drain, old.timeouts.drain * 2);
        let (changes, _) = change(&old, |new| new.timeouts.head *= 2);
        assert_eq!((changes.changed, changes.needs_restart), (vec!["timeouts"], vec![]));
    }

    #[test]
    fn a_relay_can_be_switched_off_and_on_again_unless_it_was_off_at_the_start() {
        let started = Config::default();
        let (changes, off) = change(&started, |new| new.relay.splice = RelayMode::Off);
        assert_eq!((changes.changed, off.relay.splice), (vec!["relay"], RelayMode::Off));
        let mut on = started.clone();
        assert_eq!(settle(&started, &off, &mut on).changed, ["relay"]);
        assert_eq!(on.relay.splice, RelayMode::Auto);
        let (changes, new) = change(&off, |new| new.relay.splice = RelayMode::On);
        assert_eq!((changes.changed, changes.needs_restart), (vec![], vec!["relay.splice"]));
        assert_eq!(new.relay.splice, RelayMode::Off);
    }
}
