//! What a reload would change.

use super::Config;

/// The top-level keys whose values differ, the `guard:` rules apart: those can change while the gateway runs, all else
/// with a restart.
pub fn needing_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    // Taken apart, so that a new key cannot be forgotten here.
    let Config {
        listen,
        admin,
        workers,
        sim_workers: _, // no key
        routing,
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
    } = old;
    let drain = timeouts.drain;
    let timeouts_differ = super::Timeouts { drain, ..new.timeouts } != *timeouts;
    [
        ("listen", *listen != new.listen),
        ("admin", *admin != new.admin),
        ("workers", *workers != new.workers),
        ("routing", *routing != new.routing),
        ("threads", *threads != new.threads),
        ("splice", *splice != new.splice),
        ("relay", *relay != new.relay),
        ("log_format", *log_format != new.log_format),
        ("instance", *instance != new.instance),
        ("drain_timeout", drain != new.timeouts.drain),
        ("scrape_interval", *scrape_interval != new.scrape_interval),
        ("health", *health != new.health),
        ("breaker", *breaker != new.breaker),
        ("outliers", *outliers != new.outliers),
        ("index", *index != new.index),
        ("kv_events", *kv_events != new.kv_events),
        ("limits", *limits != new.limits),
        ("timeouts", timeouts_differ),
        ("guard.interfaces", guard.interfaces != new.guard.interfaces),
        ("guard.mode", guard.mode != new.guard.mode),
        ("tokenizers", *tokenizers != new.tokenizers),
    ]
    .into_iter()
    .filter_map(|(key, differs)| differs.then_some(key))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_named_and_the_rules_of_the_guard_are_not() {
        let old = Config::default();
        let mut new = old.clone();
        assert!(needing_restart(&old, &new).is_empty());
        new.guard.deny.push("10.0.0.0/8".parse().unwrap());
        new.guard.syn_rate += 1;
        assert!(needing_restart(&old, &new).is_empty());
        new.timeouts.drain *= 2;
        assert_eq!(needing_restart(&old, &new), ["drain_timeout"]);
        new.timeouts.head *= 2;
        new.listen.set_port(1);
        new.guard.interfaces.push("lo".parse().unwrap());
        assert_eq!(needing_restart(&old, &new), ["listen", "drain_timeout", "timeouts", "guard.interfaces"]);
    }
}
