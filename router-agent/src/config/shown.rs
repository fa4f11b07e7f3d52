//! The configuration in force as an operator may see it: the keys of the file, every default filled in, secrets masked.
//! What is shown is a configuration itself, but for what is masked.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::{
    Alias, AllowedModels, BodyDefault, Cidr, Config, GuardInterface, HookConfig, KeyConfig, Limits,
    ModelPattern, Overrides, Routing, Timeouts, Tokenizers, WorkerConfig, WorkerKvEvents,
};

use crate::routing::Policy;

/// In place of a secret, or of what could be guessed from it.
pub const MASK: &str = "***";

/// See the module. What is not set is left out.
pub fn shown(config: &Config) -> Value {
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
        user,
        admin_token,
        admin_open_metrics,
        tls,
        admin_tls,
        trusted_proxies,
        decisions,
        decision_log,
        traces,
        aliases,
        hooks,
        overrides,
        cache,
    } = config;
    let mut value = json!({
        "listen": listen,
        "admin": admin,
        "workers": workers.iter().map(worker).collect::<Vec<_>>(),
        "routing": of_routing(routing),
        "disaggregation": {
            "mode": if disaggregation.is_on { "auto" } else { "off" },
            "tokens_min": disaggregation.tokens_min.map_or_else(|| json!("auto"), Value::from),
        },
        "threads": threads,
        "splice": splice,
        "relay": {
            "bypass": relay.bypass,
            "splice": relay.splice,
            "copy": relay.copy,
            "min_bytes": relay.min_bytes,
            "sample": relay.sample,
        },
        "log_format": log_format,
        "instance": instance,
        "drain_timeout": time(timeouts.drain),
        "upgrade_timeout": time(timeouts.upgrade),
        "scrape_interval": time(*scrape_interval),
        "health": {
            "interval": time(health.interval),
            "timeout": time(health.timeout),
            "unhealthy_after": health.unhealthy_after,
            "healthy_after": health.healthy_after,
            "silence": time(health.silence),
            "probe_timeout": time(health.probe_timeout),
        },
        "breaker": {
            "failures": breaker.failures,
            "window": time(breaker.window),
            "volume": breaker.volume,
            "error_share": breaker.error_share,
            "open_for": time(breaker.open_for),
        },
        "outliers": {
            "share_max": outliers.share_max,
            "volume": outliers.volume,
            "errors": outliers.errors,
            "slowness": outliers.slowness,
            "eject_for": time(outliers.eject_for),
            "eject_max": time(outliers.eject_max),
        },
        "index": {
            "block_bytes": index.block_bytes,
            "max_bytes": index.bytes_max,
            "worker_capacity_tokens": index.worker_capacity_tokens,
        },
        "kv_events": {
            "mode": if kv_events.is_on { "auto" } else { "off" },
            // Who knows it can make blocks that collide.
            "hash_seed": masked(kv_events.hash_seed.as_ref()),
        },
        "limits": of_limits(limits),
        "timeouts": of_timeouts(timeouts),
        "guard": {
            "interfaces": guard.interfaces.iter().map(interface).collect::<Vec<_>>(),
            "mode": guard.mode,
            "deny": ranges(&guard.deny),
            "allow": ranges(&guard.allow),
            "syn_rate": guard.syn_rate,
            "syn_burst": guard.syn_burst,
        },
        "tokenizers": of_tokenizers(tokenizers),
        "keys": keys.iter().map(key).collect::<Vec<_>>(),
        "keys_file": keys_file,
        "user": user,
        "admin_token": masked(admin_token.as_ref()),
        "admin_open_metrics": admin_open_metrics,
        "tls": tls,
        "admin_tls": admin_tls,
        "trusted_proxies": ranges(trusted_proxies),
        "decisions": { "keep": decisions.keep, "max_bytes": decisions.bytes_max },
        "decision_log": {
            "path": decision_log.path,
            "rotate_bytes": decision_log.rotate_bytes,
            "keep": decision_log.keep,
            "prompts": decision_log.prompts,
            "sample": decision_log.sample,
        },
        "traces": {
            "endpoint": traces.endpoint,
            "protocol": traces.protocol,
            "sample": traces.sample,
            "service_name": traces.service_name,
            "headers": traces.headers.keys().map(|name| (name.as_str(), MASK)).collect::<BTreeMap<_, _>>(),
        },
        "aliases": aliases.all().map(alias).collect::<Vec<_>>(),
        "hooks": hooks.iter().map(hook).collect::<Vec<_>>(),
        "overrides": overrides.map(Overrides::names),
        "cache": {
            "mode": cache.mode,
            "max_bytes": cache.bytes_max,
            "max_entry": cache.entry_bytes_max,
            "ttl": time(cache.ttl),
        },
    });
    // The macro has no room for one key more.
    value["discovery"] = super::shown_discovery::shown(discovery);
    without_nulls(value)
}

fn worker(worker: &WorkerConfig) -> Value {
    // Nobody writes an incarnation.
    let WorkerConfig { url, name, role, kv_events: events, authorization, tls, models, incarnation: _ } =
        worker;
    json!({
        "url": url.to_string(),
        "name": name,
        "role": role,
        "kv_events": kv_events(events),
        "api_key": masked(authorization.as_ref()),
        "tls": tls.as_ref().map(|tls| json!({ "ca": tls.ca(), "server_name": tls.name() })),
        "models": (!models.is_empty()).then_some(models),
    })
}

pub(super) fn kv_events(kv_events: &WorkerKvEvents) -> Value {
    match kv_events {
        WorkerKvEvents::Auto => json!("auto"),
        WorkerKvEvents::Off => json!("off"),
        WorkerKvEvents::At(endpoints) => json!(endpoints),
    }
}

fn of_routing(routing: &Routing) -> Value {
    let Routing { settings, session_header, lmcache } = routing;
    let scorers = settings.weighted.scorers.iter();
    json!({
        "policy": settings.policy.name(),
        "prefix": {
            "blocks_min": settings.prefix.blocks_min,
            "saturation": settings.prefix.saturation,
        },
        "session": { "header": session_header.as_str(), "bound": settings.session.bound },
        "weighted": {
            "scorers": scorers
                .map(|(scorer, weight)| (scorer.name().to_owned(), json!(weight)))
                .collect::<serde_json::Map<_, _>>(),
            "pick": settings.weighted.pick,
            "temperature": settings.weighted.temperature,
        },
        "lmcache": {
            "controller": lmcache.controller.as_ref().map(ToString::to_string),
            "timeout": time(lmcache.timeout),
            "instances": lmcache.instances,
        },
    })
}

fn of_limits(limits: &Limits) -> Value {
    let Limits {
        connections,
        body_bytes,
        bodies_bytes,
        tries,
        retry_share,
        worker_concurrency,
        worker_queued_tokens,
        queue,
    } = limits;
    json!({
        "connections": connections,
        "body_bytes": body_bytes,
        "bodies_bytes": bodies_bytes,
        "tries": tries,
        "retry_share": retry_share,
        "worker_concurrency": worker_concurrency,
        "worker_queued_tokens": worker_queued_tokens,
        "queue": queue,
    })
}

/// Two of them are keys of the top level.
fn of_timeouts(timeouts: &Timeouts) -> Value {
    let Timeouts {
        head,
        body_idle,
        keep_alive,
        connect,
        response_head,
        first_byte,
        hold_head,
        queue,
        drain: _,
        upgrade: _,
    } = *timeouts;
    json!({
        "head": time(head),
        "body_idle": time(body_idle),
        "keep_alive": time(keep_alive),
        "connect": time(connect),
        "response_head": time(response_head),
        "first_byte": first_byte.map(time),
        "hold_head": time(hold_head),
        "queue": time(queue),
    })
}

fn of_tokenizers(tokenizers: &Tokenizers) -> Value {
    let Tokenizers { models, default, threads, queue, deadline, cache_bytes } = tokenizers;
    json!({
        "default": default,
        "models": models,
        "threads": threads,
        "queue": queue,
        "deadline": time(*deadline),
        "cache": cache_bytes,
    })
}

fn key(key: &KeyConfig) -> Value {
    let KeyConfig {
        name,
        digests,
        models,
        requests_per_second,
        burst,
        concurrent,
        tokens_per_minute,
        weight,
        priority,
        all_paths,
        policy,
        defaults,
        overrides,
        cache,
    } = key;
    json!({
        "name": &**name,
        "sha256": digests.iter().map(|_| MASK).collect::<Vec<_>>(),
        "models": match models {
            AllowedModels::All => None,
            AllowedModels::Only(patterns) => Some(texts(patterns)),
        },
        "requests_per_second": requests_per_second,
        "burst": requests_per_second.map(|_| burst),
        "concurrent": concurrent,
        "tokens_per_minute": tokens_per_minute,
        "weight": weight,
        "priority": priority,
        "paths": if *all_paths { "all" } else { "api" },
        "policy": policy.map(Policy::name),
        "defaults": (!defaults.is_empty()).then(|| {
            let member = |default: &BodyDefault| {
                let value = serde_json::from_str::<Value>(&default.json).unwrap_or_default();
                (default.name.to_string(), value)
            };
            defaults.iter().map(member).collect::<serde_json::Map<_, _>>()
        }),
        "overrides": overrides.map(Overrides::names),
        "cache": cache,
    })
}

fn texts(patterns: &[ModelPattern]) -> Vec<String> {
    patterns.iter().map(ToString::to_string).collect()
}

fn alias(alias: &Alias) -> Value {
    let Alias { pattern, to, fallback } = alias;
    json!({
        "match": pattern.to_string(),
        "to": (!to.is_empty()).then_some(to),
        "fallback": (!fallback.is_empty()).then_some(fallback),
    })
}

fn hook(hook: &HookConfig) -> Value {
    let HookConfig {
        name,
        url,
        timeout,
        passes_on_error,
        routes,
        models,
        sends_body,
        body_bytes_max,
        headers,
        concurrency,
    } = hook;
    json!({
        "name": &**name,
        "url": url.to_string(),
        "timeout": time(*timeout),
        "on_error": if *passes_on_error { "pass" } else { "block" },
        "routes": routes.iter().map(|kind| kind.label()).collect::<Vec<_>>(),
        "models": (!models.is_empty()).then(|| texts(models)),
        "body": if *sends_body { "full" } else { "none" },
        "max_body": body_bytes_max,
        "headers": headers.iter().map(http::HeaderName::as_str).collect::<Vec<_>>(),
        "concurrency": concurrency,
    })
}

fn interface(interface: &GuardInterface) -> Value {
    let GuardInterface { name, mode } = interface;
    let mode = mode.map(|mode| json!(mode).as_str().map(|mode| format!(":{mode}")).unwrap_or_default());
    json!(format!("{name}{}", mode.unwrap_or_default()))
}

fn ranges(ranges: &[Cidr]) -> Vec<String> {
    ranges.iter().map(ToString::to_string).collect()
}

pub(super) fn masked<T>(secret: Option<&T>) -> Option<&'static str> {
    secret.map(|_| MASK)
}

pub(super) fn time(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::File;

    fn configured(yaml: &str) -> Config {
        let mut config = Config::default();
        File::parse(yaml).expect("it parses").apply(&mut config).expect("it is right");
        config
    }

    const EXAMPLE: &str = include_str!("../../../deploy/warmpath.yaml");

    #[test]
    fn what_is_shown_is_a_configuration_that_says_the_same() {
        let more = "workers:\n  - { url: 'https://10.0.0.1:8000', name: a, kv_events: off }\n\
            routing: { policy: session, session: { bound: 2.5 }, weighted: { pick: weighted_random } }\n\
            timeouts: { first_byte: 1500ms }\nlimits: { worker_concurrency: 7 }\n\
            guard: { deny: [10.0.0.0/8], interfaces: ['lo:generic'] }\n\
            tokenizers: { default: worker, models: { m: { local: /models/m } } }\ntrusted_proxies: [10.0.0.7]\n\
            discovery:\n  gone_after: 2s\n  files: [/w.yaml]\n  dns: [{ name: _http._tcp.v, servers: ['10.0.0.2'] }]\n\
            \x20 kubernetes:\n  - { service: v, namespace: n, port: 8000, worker: { kv_events: { endpoint: 'tcp://*:5557' } } }\n\
            \x20 - { pods: 'app=v', namespace: '*', port: http, context: c, kubeconfig: /k, worker: { models: [m] } }\n\
            \x20 - { inference_pool: p }\n";
        for yaml in [EXAMPLE, more] {
            let config = configured(yaml);
            assert_eq!(configured(&shown(&config).to_string()), config);
        }
    }

    /// Every key of the example that shows them all.
    #[test]
    fn every_key_is_shown() {
        fn missing(example: &Value, shown: &Value, path: &str) -> Vec<String> {
            let Some(members) = example.as_object() else { return Vec::new() };
            let below = |(name, value): (&String, &Value)| match shown.get(name) {
                None => vec![format!("{path}{name}")],
                Some(shown) => missing(value, shown, &format!("{path}{name}.")),
            };
            members.iter().flat_map(below).collect()
        }
        let example: Value = serde_saphyr::from_str(EXAMPLE).expect("YAML");
        assert!(example.as_object().is_some_and(|keys| keys.len() > 15));
        assert_eq!(missing(&example, &shown(&configured(EXAMPLE)), ""), Vec::<String>::new());
    }

    #[test]
    fn secrets_are_masked_and_what_they_are_for_is_not() {
        let digest = crate::config::SecretDigest::of(b"sk-S3CRET").to_string();
        let config = configured(&format!(
            "workers: [{{url: 'http://127.0.0.1:1', api_key: S3CRET}}]\nadmin_token: S3CRET\n\
             kv_events: {{hash_seed: S3CRET}}\nkeys: [{{name: team-a, sha256: '{digest}'}}]\n"
        ));
        let shown = shown(&config);
        assert_eq!(shown["keys"][0]["name"], "team-a");
        for place in [&shown["keys"][0]["sha256"][0], &shown["admin_token"], &shown["workers"][0]["api_key"]]
        {
            assert_eq!(place, MASK);
        }
        let said = shown.to_string();
        assert!(!said.contains("S3CRET") && !said.contains(&digest[..8]), "{said}");
    }
}
