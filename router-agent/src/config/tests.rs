//! What a configuration file may say, and what is said of a wrong one.

use super::*;

fn apply(text: &str) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    let file =
        File::parse(text).map_err(|message| ConfigError::Parse { path: "warmpath.yaml".into(), message })?;
    file.apply(&mut config)?;
    config.validate()?;
    Ok(config)
}

#[test]
fn every_key_has_its_effect() {
    let config = apply(
        "listen: 0.0.0.0:80\nadmin: 127.0.0.1:81\nworkers:\n  - http://10.0.0.1:8000\n  - {url: 'http://[::1]:8001', name: gpu1, role: prefill}\n\
         routing: {policy: round_robin}\ndisaggregation: {mode: off, tokens_min: 300}\nthreads: 3\nsplice: off\nlog_format: json\ninstance: blue\ndrain_timeout: 5s\nupgrade_timeout: 6s\n\
         scrape_interval: 250ms\nhealth: {interval: 1s, timeout: 300ms, unhealthy_after: 4, healthy_after: 2, silence: 6s, probe_timeout: 7s}\n\
         breaker: {failures: 7, window: 20s, volume: 8, error_share: 0.25, open_for: 9s}\n\
         outliers: {share_max: 0.25, volume: 3, errors: 0.5, slowness: 4, eject_for: 3s, eject_max: 30s}\nrelay: {bypass: on, splice: off, copy: off, min_bytes: 2KiB, sample: 0.5}\nindex: {block_bytes: 64, max_bytes: 32MiB, worker_capacity_tokens: 1000}\n\
         limits: {connections: 10, body_bytes: 1MiB, bodies_bytes: 8MiB, tries: 2, retry_share: 0.5, worker_concurrency: 12,\n\
         \x20 worker_queued_tokens: 13, queue: 14}\n\
         timeouts: {head: 1s, body_idle: 2s, keep_alive: 3s, connect: 4s, response_head: 5s, first_byte: 6s, hold_head: 7s, queue: 8s}\n\
         guard: {interfaces: ['eth0', 'lo:generic'], mode: native, deny: ['10.0.0.0/8', '::/0'], allow: ['10.1.2.3'],\n\
         \x20 syn_rate: 7, syn_burst: 9}\n\
         trusted_proxies: ['10.0.0.0/8']\n\
         cache: {mode: all, max_bytes: 1MiB, max_entry: 8KiB, ttl: 1s}\n\
         decisions: {keep: 5, max_bytes: 2MiB}\n\
         traces: {endpoint: 'http://c:4318', protocol: http, sample: 0.5, service_name: edge, headers: {x-key: k3y}}\n\
         shared: {urls: ['rediss://a:1', 'rediss://b'], cluster: on, username: u, password: p4ss, ca: /ca.pem, key_prefix: 'x:', gateway: gw1,\n\
         \x20 timeout: 1s, load_interval: 20ms, peer_ttl: 2s, hints: {mode: off, deadline: 3ms, ttl: 4s}, limits: {mode: off, deadline: 5ms}}\n\
         decision_log: {path: /var/log/d.jsonl, rotate_bytes: 1MiB, keep: 2, prompts: hashes, sample: 0.5}\n\
         tokenizers: {default: worker, models: {a/b: off, c: {local: /models/c}}, threads: 4, queue: 5, deadline: 6ms, cache: 7MiB}\n",
    )
    .unwrap();
    let ms = Duration::from_millis;
    assert_eq!(config.listen.to_string(), "0.0.0.0:80");
    assert_eq!(config.admin.to_string(), "127.0.0.1:81");
    assert_eq!(config.workers[0].name, "10.0.0.1:8000");
    assert_eq!(config.workers[1].name, "gpu1");
    assert_eq!(config.workers[1].url.authority(), "[::1]:8001");
    assert_eq!(config.routing.settings.policy.to_string(), "round_robin");
    assert_eq!((config.workers[0].role, config.workers[1].role), (WorkerRole::Both, WorkerRole::Prefill));
    assert_eq!(config.disaggregation, Disaggregation { is_on: false, tokens_min: Some(300) });
    assert_eq!((config.threads, config.splice, config.log_format), (3, Splice::Off, LogFormat::Json));
    assert_eq!(config.instance, "blue");
    assert_eq!(config.scrape_interval, ms(250));
    assert_eq!(
        config.health,
        Health {
            interval: ms(1000),
            timeout: ms(300),
            unhealthy_after: 4,
            healthy_after: 2,
            silence: ms(6000),
            probe_timeout: ms(7000),
        }
    );
    assert_eq!(
        config.breaker,
        Breaker { failures: 7, window: ms(20_000), volume: 8, error_share: 0.25, open_for: ms(9000) }
    );
    assert_eq!(
        config.outliers,
        Outliers {
            share_max: 0.25,
            volume: 3,
            errors: 0.5,
            slowness: 4.0,
            eject_for: ms(3000),
            eject_max: ms(30_000),
        }
    );
    assert_eq!(
        config.relay,
        Relay {
            bypass: RelayMode::On,
            splice: RelayMode::Off,
            copy: RelayMode::Off,
            min_bytes: 2048,
            sample: 0.5
        }
    );
    assert_eq!(config.index, Index { block_bytes: 64, bytes_max: 32 << 20, worker_capacity_tokens: 1000 });
    assert_eq!(
        config.limits,
        Limits {
            connections: 10,
            body_bytes: 1 << 20,
            bodies_bytes: 8 << 20,
            tries: 2,
            retry_share: 0.5,
            worker_concurrency: Some(12),
            worker_queued_tokens: Some(13),
            queue: 14,
        }
    );
    assert_eq!(
        config.timeouts,
        Timeouts {
            head: ms(1000),
            body_idle: ms(2000),
            keep_alive: ms(3000),
            connect: ms(4000),
            response_head: ms(5000),
            first_byte: Some(ms(6000)),
            hold_head: ms(7000),
            queue: ms(8000),
            drain: ms(5000),
            upgrade: ms(6000),
        }
    );
    assert_eq!(config.decisions, Decisions { keep: 5, bytes_max: 2 << 20 });
    assert_eq!(
        config.decision_log,
        DecisionLog {
            path: Some("/var/log/d.jsonl".into()),
            rotate_bytes: 1 << 20,
            keep: 2,
            prompts: LoggedPrompts::Hashes,
            sample: 0.5,
        }
    );
    assert!(!format!("{:?}", config.traces).contains("k3y"));
    assert_eq!(
        config.traces,
        Traces {
            endpoint: Some("http://c:4318".to_owned()),
            protocol: TraceProtocol::Http,
            sample: 0.5,
            service_name: "edge".to_owned(),
            headers: [(http::HeaderName::from_static("x-key"), HeaderValue::from_static("k3y"))]
                .into_iter()
                .collect(),
        }
    );
    let shared = &config.shared;
    assert_eq!(
        shared.urls.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["rediss://a:1", "rediss://b:6379"]
    );
    assert_eq!(shared.password.as_ref().map(Hidden::reveal), Some("p4ss"));
    assert!(!format!("{shared:?}").contains("p4ss"));
    assert_eq!(
        *shared,
        SharedState {
            urls: shared.urls.clone(),
            is_cluster: true,
            username: Some("u".to_owned()),
            password: shared.password.clone(),
            ca: Some("/ca.pem".into()),
            key_prefix: "x:".to_owned(),
            gateway: Some("gw1".to_owned()),
            timeout: ms(1000),
            load_interval: ms(20),
            peer_ttl: ms(2000),
            hints: Hints { is_on: false, deadline: ms(3), ttl: ms(4000) },
            limits: SharedLimits { is_on: false, deadline: ms(5) },
        }
    );
    let cache = Cache { mode: CacheMode::All, bytes_max: 1 << 20, entry_bytes_max: 8 << 10, ttl: ms(1000) };
    assert_eq!(config.cache, cache);
    assert_eq!(config.trusted_proxies, ["10.0.0.0/8".parse().unwrap()]);
    let interface = |name: &str, mode| GuardInterface { name: name.to_owned(), mode };
    assert_eq!(
        config.guard,
        Guard {
            interfaces: vec![interface("eth0", None), interface("lo", Some(GuardMode::Generic))],
            mode: GuardMode::Native,
            deny: vec!["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()],
            allow: vec!["10.1.2.3/32".parse().unwrap()],
            syn_rate: 7,
            syn_burst: 9,
        }
    );
    assert_eq!(
        config.tokenizers,
        Tokenizers {
            models: [
                ("a/b".to_owned(), TokenSource::Off),
                ("c".to_owned(), TokenSource::Local("/models/c".into()))
            ]
            .into(),
            default: TokenSource::Worker,
            threads: 4,
            queue: 5,
            deadline: ms(6),
            cache_bytes: 7 << 20,
        }
    );
}

#[test]
fn keys_have_their_effect_and_their_defaults() {
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let config = apply(&format!(
        "workers: ['http://a:1']\nkeys:\n  - {{name: a, sha256: {abc}, models: [m, 'q*'], requests_per_second: 2.5,\n\
         \x20     concurrent: 4, tokens_per_minute: 5, weight: 6, priority: -7, paths: all, policy: random,\n\
         \x20     defaults: {{max_tokens: 8, temperature: 0.5, model: m}}, overrides: [worker], cache: all}}\n\
         \x20 - {{name: b, sha256: ['{}', '{}']}}\n",
        "0".repeat(64),
        "1".repeat(64),
    ))
    .unwrap();
    let full = KeyConfig {
        name: "a".into(),
        digests: vec![SecretDigest::of(b"abc")],
        models: AllowedModels::Only(vec![ModelPattern::Exact("m".into()), ModelPattern::Prefix("q".into())]),
        requests_per_second: Some(2.5),
        burst: 3,
        concurrent: Some(4),
        tokens_per_minute: Some(5),
        weight: 6,
        priority: -7,
        all_paths: true,
        policy: Some(Policy::Random),
        cache: Some(CacheMode::All),
        defaults: [("max_tokens", "8"), ("model", "\"m\""), ("temperature", "0.5")]
            .map(|(name, json)| BodyDefault { name: name.into(), json: json.into() })
            .into(),
        overrides: Some(Overrides { worker: true, ..Overrides::default() }),
    };
    assert_eq!(config.keys[0], full);
    let KeyConfig { digests, models, requests_per_second, concurrent, weight, all_paths, .. } =
        &config.keys[1];
    assert_eq!((digests.len(), models, *weight), (2, &AllowedModels::All, 1));
    assert_eq!((*requests_per_second, *concurrent, *all_paths), (None, None, false));
}

#[test]
fn discovery_has_its_effect_and_its_defaults() {
    let config = apply(
        "discovery:\n  gone_after: 1s\n  drain_timeout: 2s\n  files: [/w.yaml]\n  dns:\n\
         \x20   - {name: vllm, port: 8000, interval: 3s, servers: ['10.0.0.1', '[::1]:54'],\n\
         \x20      worker: {scheme: https, tls: {server_name: v}, api_key: k3y, models: [m], kv_events: off, role: decode}}\n\
         \x20   - name: _http._tcp.vllm\n  kubernetes:\n    - {service: a, namespace: n, port: 80, kubeconfig: /k, context: c}\n\
         \x20   - {pods: 'app=b', namespace: '*', port: http}\n    - inference_pool: c\n",
    )
    .unwrap();
    let Discovery { sources, gone_after, drain_timeout } = &config.discovery;
    assert_eq!((*gone_after, *drain_timeout), (Duration::from_secs(1), Duration::from_secs(2)));
    let labels: Vec<_> = sources.iter().map(Source::label).collect();
    let expected = [
        "file:/w.yaml",
        "dns:vllm:8000",
        "dns:_http._tcp.vllm",
        "kubernetes:service/n/a",
        "kubernetes:pods/*/app=b",
        "kubernetes:inference_pool/c",
    ];
    assert_eq!(labels, expected);
    let (Source::Dns(dns), Source::Kubernetes(service)) = (&sources[1], &sources[3]) else {
        panic!("{sources:?}")
    };
    assert_eq!(dns.interval, Duration::from_secs(3));
    assert_eq!(dns.servers, ["10.0.0.1:53".parse().unwrap(), "[::1]:54".parse().unwrap()]);
    let worker = dns.worker.at("10.1.1.1", 8000, Some("gpu".to_owned()), None);
    assert_eq!((worker.url.to_string().as_str(), worker.name.as_str()), ("https://10.1.1.1:8000", "gpu"));
    assert_eq!((worker.models, worker.kv_events), (vec!["m".to_owned()], WorkerKvEvents::Off));
    assert_eq!(worker.role, WorkerRole::Decode);
    assert!(worker.authorization.is_some_and(|key| key.is_sensitive()));
    assert!(worker.tls.is_some_and(|tls| tls.name() == "v"));
    let KubernetesSource { port, kubeconfig, context, worker, .. } = service;
    assert_eq!((port, context.as_deref()), (&Some(KubernetesPort::Number(80)), Some("c")));
    assert_eq!((kubeconfig.as_deref(), worker), (Some("/k".as_ref()), &WorkerTemplate::default()));
    let Source::Dns(second) = &sources[2] else { panic!("{sources:?}") };
    assert_eq!((second.interval, second.port), (Duration::from_secs(30), None));
}

#[test]
fn wrong_sources_are_named() {
    let wrong = |text: &str, words: &[&str]| fails_with(&format!("discovery: {text}"), words);
    wrong("{file: /w}", &["file", "files"]);
    wrong("{dns: [{name: vllm}]}", &["discovery.dns.port", "_http._tcp.vllm"]);
    wrong("{dns: [{name: 'http://vllm', port: 1}]}", &["discovery.dns.name", "vllm.example.com"]);
    wrong("{dns: [{name: vllm, port: 1, interval: 1ms}]}", &["discovery.dns.interval", "at least 1s"]);
    wrong(
        "{dns: [{name: vllm, port: 1, servers: [ns1]}]}",
        &["discovery.dns.servers", "ns1", "10.0.0.10:53"],
    );
    wrong("{dns: [{name: v, port: 1, worker: {scheme: https}}]}", &["discovery.dns.worker", "server_name"]);
    wrong("{dns: [{name: v, port: 1, worker: {tls: {server_name: v}}}]}", &["scheme: https"]);
    wrong("{kubernetes: [{service: a, pods: b}]}", &["discovery.kubernetes", "exactly one of"]);
    wrong("{kubernetes: [{namespace: a}]}", &["discovery.kubernetes", "exactly one of"]);
    wrong("{kubernetes: [{inference_pool: a, port: 1}]}", &["discovery.kubernetes.port", "its ports itself"]);
    wrong("{kubernetes: [{service: a, namespace: '*'}]}", &["discovery.kubernetes.namespace", "pods"]);
    wrong("{kubernetes: [{pods: a=b}, {pods: a=b}]}", &["kubernetes:pods/a=b", "listed twice"]);
}

#[test]
fn aliases_and_overrides_have_their_effect() {
    let config = apply(
        "workers: ['http://a:1']\noverrides: [session, policy]\naliases:\n  - {match: gpt, to: llama}\n  - match: 'big-*'\n\
         \x20   to: [{model: a, weight: 95}, {model: b}]\n    fallback: [c]\n",
    )
    .unwrap();
    assert_eq!(config.overrides, Some(Overrides { worker: false, policy: true, session: true }));
    assert!(config.hooks.is_empty());
    let target = |model: &str, weight| Target { model: model.into(), weight };
    assert_eq!(config.aliases.find("gpt").unwrap().to, [target("llama", 1)]);
    let canary = config.aliases.find("big-1").unwrap();
    assert_eq!(
        (canary.to.as_slice(), canary.fallback.as_slice()),
        (&[target("a", 95), target("b", 1)][..], &["c".into()][..])
    );
}

#[test]
fn hooks_have_their_effect_and_their_defaults() {
    use crate::prompt::ApiKind;
    let config = apply(
        "workers: ['http://a:1']\nhooks:\n  - {name: a, url: 'http://h:1/x?y=1', timeout: 1s, on_error: block, routes: [chat],\n\
         \x20    models: ['m*'], body: none, max_body: 2KiB, headers: [X-Team], concurrency: 3}\n  - {name: b, url: 'http://h'}\n",
    )
    .unwrap();
    let full = HookConfig {
        name: "a".into(),
        url: "http://h:1/x?y=1".parse().unwrap(),
        timeout: Duration::from_secs(1),
        passes_on_error: false,
        routes: vec![ApiKind::Chat],
        models: vec![ModelPattern::Prefix("m".into())],
        sends_body: false,
        body_bytes_max: 2048,
        headers: vec!["x-team".parse().unwrap()],
        concurrency: 3,
    };
    assert_eq!(config.hooks[0], full);
    let HookConfig { timeout, passes_on_error, routes, models, sends_body, body_bytes_max, .. } =
        &config.hooks[1];
    assert_eq!((*timeout, *passes_on_error, *sends_body), (Duration::from_millis(200), true, true));
    assert_eq!((routes.len(), models.len(), *body_bytes_max), (4, 0, 1 << 20));
}

#[test]
fn wrong_aliases_overrides_and_defaults_are_named() {
    let wrong = |text: &str, words: &[&str]| fails_with(&format!("workers: ['http://a:1']\n{text}"), words);
    wrong("aliases: [{match: a}]", &["aliases.to", "a:", "fallback"]);
    wrong("aliases: [{match: 'a*b', to: c}]", &["aliases.match", "a*b", "beginning"]);
    wrong("aliases: [{match: a, to: b}, {match: a, to: c}]", &["aliases.match", "a is listed twice"]);
    wrong("aliases: [{match: a, fallback: []}]", &["aliases.fallback", "empty"]);
    wrong("aliases: [{match: a, to: []}]", &["aliases.to", "weight above 0"]);
    wrong("aliases: [{match: a, to: [{model: b, weight: 0}]}]", &["aliases.to", "weight above 0"]);
    wrong("aliases: [{match: a, to: 'b c'}]", &["aliases.to", "b c", "printable"]);
    wrong("aliases: [{match: a, too: b}]", &["too"]);
    wrong("aliases: [{match: a, to: [{modell: b}]}]", &["aliases", "[{model: a, weight: 95}"]);
    wrong("cache: {mode: on}", &["on", "deterministic"]);
    wrong("cache: {ttl: 0s}", &["cache.ttl"]);
    wrong("cache: {max_entry: 1KiB}", &["cache.max_entry", "4096"]);
    wrong("cache: {max_bytes: 1MiB}", &["cache.max_entry", "1/8", "1048576"]);
    wrong("overrides: [workers]", &["workers", "policy"]);
    let hook =
        |text: &str, words: &[&str]| wrong(&format!("hooks: [{{name: h, url: 'http://h/', {text}}}]"), words);
    wrong("hooks: [{name: h, url: 'h:1'}]", &["hooks.url", "h:1", "http://"]);
    wrong("hooks: [{name: 'a,b', url: 'http://h/'}]", &["hooks.name", "a,b"]);
    wrong("hooks: [{name: h, url: 'http://h/'}, {name: h, url: 'http://h/'}]", &["hooks.name", "twice"]);
    hook("timeout: 0s", &["hooks.timeout", "longer than zero"]);
    hook("on_error: perhaps", &["perhaps", "block"]);
    hook("routes: [embeddings]", &["embeddings", "chat"]);
    hook("routes: []", &["hooks.routes", "leave it out"]);
    hook("models: ['*a']", &["hooks.models", "*a"]);
    hook("headers: [Cookie]", &["hooks.headers", "cookie", "secret"]);
    hook("headers: ['a b']", &["hooks.headers", "a b"]);
    hook("concurrency: 0", &["hooks.concurrency", "1 to 4096"]);
    hook("retries: 3", &["retries"]);
    let key = |text: &str, words: &[&str]| {
        wrong(&format!("keys: [{{name: a, sha256: '{}', {text}}}]", "0".repeat(64)), words);
    };
    key("policy: fastest", &["keys.policy", "fastest", "round_robin"]);
    key("policy: lmcache", &["keys.policy", "routing.policy"]);
    key("defaults: {max_output_tokens: 5}", &["keys.defaults", "max_tokens"]);
    key("defaults: {messages: []}", &["keys.defaults", "messages"]);
    key("defaults: {model: 5}", &["keys.defaults", "string"]);
    key(&format!("defaults: {{x: {}}}", "y".repeat(20_000)), &["keys.defaults", "16384"]);
    key("overrides: [all]", &["all", "session"]);
}

#[test]
fn a_keys_file_adds_to_the_keys_and_is_strict_too() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = |keys: &str| {
        std::fs::write(file.path(), keys).unwrap();
        apply(&format!("workers: ['http://a:1']\nkeys_file: {}", file.path().display()))
    };
    let zeros = "0".repeat(64);
    let found = config(&format!("- {{name: a, sha256: '{zeros}'}}\n")).unwrap();
    assert_eq!(found.keys.len(), 1);
    let error = config(&format!("- {{name: a, sha256: '{zeros}', modells: [x]}}\n")).unwrap_err().to_string();
    let path = file.path().display().to_string();
    assert!(error.contains(&path) && error.contains("modells"), "{error}");
    let error = config("# nobody\n").unwrap_err().to_string();
    assert!(error.contains("keys_file") && error.contains("everyone may ask"), "{error}");
}

#[test]
fn wrong_keys_are_named_and_what_may_be_a_secret_is_not_repeated() {
    let zeros = "0".repeat(64);
    let keys = |text: &str, words: &[&str]| {
        let text = text.replace("ZEROS", &format!("'{zeros}'"));
        fails_with(&format!("workers: ['http://a:1']\nkeys: [{text}]"), words);
    };
    keys("{name: a, sha256: sk-in-clear-text}", &["keys.sha256", "a:", "64 hexadecimal"]);
    keys("{name: a, sha256: []}", &["keys.sha256", "at least one"]);
    keys("{name: a b, sha256: ZEROS}", &["keys.name", "a b"]);
    keys("{sha256: ZEROS}", &["name"]);
    keys("{name: a}", &["sha256"]);
    keys("{name: a, sha256: ZEROS}, {name: a, sha256: ZEROS}", &["keys.name", "a is listed twice"]);
    keys("{name: a, sha256: ZEROS}, {name: b, sha256: ZEROS}", &["keys.sha256", "b", "twice"]);
    keys("{name: a, sha256: ZEROS, models: []}", &["keys.models", "nothing"]);
    keys("{name: a, sha256: ZEROS, models: ['a*b']}", &["keys.models", "a*b", "pattern"]);
    keys("{name: a, sha256: ZEROS, requests_per_second: 0}", &["keys.requests_per_second", "more than 0"]);
    keys("{name: a, sha256: ZEROS, burst: 5}", &["keys.burst", "requests_per_second"]);
    keys("{name: a, sha256: ZEROS, concurrent: 0}", &["keys.concurrent", "at least 1"]);
    keys("{name: a, sha256: ZEROS, tokens_per_hour: 1}", &["tokens_per_hour"]);
    let error = apply("workers: ['http://a:1']\nkeys: [{name: a, sha256: sk-in-clear-text}]").unwrap_err();
    assert!(!error.to_string().contains("sk-in-clear-text"), "{error}");
    // Nor by the parser, which shows lines around a mistake.
    let secret = "s3cret-of-the-worker";
    for wrong in ["urll: x", "kv_events: perhaps", "name: [1]"] {
        let text = format!("workers:\n  - url: http://a:1\n    api_key: {secret}\n    {wrong}\n");
        let error = apply(&text).unwrap_err().to_string();
        assert!(!error.contains(secret), "{error}");
    }
    let config = apply(&format!("workers: [{{url: 'http://a:1', api_key: {secret}}}]")).unwrap();
    assert!(!format!("{config:?}").contains(secret));
    assert_eq!(config.workers[0].authorization.as_ref().unwrap(), format!("Bearer {secret}").as_str());
}

#[test]
fn an_admin_port_that_others_can_reach_needs_a_token_or_client_certificates() {
    let with = |text: &str| format!("workers: ['http://a:1']\nadmin: 0.0.0.0:9090\n{text}");
    fails_with(&with(""), &["admin", "0.0.0.0:9090", "admin_token", "client_ca"]);
    fails_with(&with("admin_tls: {certificate: c, key: k}"), &["client_ca"]);
    assert!(apply(&with("admin_tls: {certificate: c, key: k, client_ca: a}")).is_ok());
    let config = apply(&with("admin_token: t0ken\nadmin_open_metrics: true")).unwrap();
    assert_eq!((config.admin_token, config.admin_open_metrics), (Some(SecretDigest::of(b"t0ken")), true));
    assert!(!format!("{config:?}").contains("t0ken"));
    assert!(apply("workers: ['http://a:1']\nadmin: '[::1]:9090'").is_ok());
}

#[test]
fn certificates_are_configured_for_ports_and_workers() {
    let config = apply(
        "workers: ['http://a:1']\ntls: {certificate: c, key: k, client_ca: a, min_version: '1.3'}\nadmin_tls: {certificate: c, \
         key: k}",
    )
    .unwrap();
    let tls = config.tls.unwrap();
    assert_eq!((tls.min_version, tls.client_ca), (TlsVersion::V1_3, Some("a".into())));
    assert_eq!(config.admin_tls.unwrap().min_version, TlsVersion::V1_2);
    fails_with("workers: ['http://a:1']\ntls: {certificate: c}", &["tls", "key"]);
    fails_with("workers: [{url: 'http://a:1', tls: {server_name: b}}]", &["workers.tls", "https://"]);
    fails_with(
        "workers: [{url: 'https://a:1', tls: {ca: /no/such/ca.pem}}]",
        &["workers.tls", "/no/such/ca.pem"],
    );
}

#[test]
fn a_worker_added_over_the_admin_port_gets_no_secrets_of_this_host() {
    let parse = |key: &str| parse_worker(format!("{{\"url\": \"http://a:1\", {key}}}").as_bytes());
    assert!(parse("\"api_key\": \"k\"").unwrap().authorization.is_some());
    for wrong in ["\"api_key_file\": \"/etc/shadow\"", "\"api_key\": \"${HOME}\""] {
        let error = parse(wrong).unwrap_err().to_string();
        assert!(error.contains("write the key itself"), "{error}");
    }
}

/// The message an operator sees for `text` must hold each of `words`.
fn fails_with(text: &str, words: &[&str]) {
    let message = apply(text).expect_err(text).to_string();
    for word in words {
        assert!(message.contains(word), "{text:?} gave {message:?}, which does not say {word:?}");
    }
}

#[test]
fn unknown_keys_are_errors_that_name_key_and_line() {
    fails_with("workers: ['http://a:1']\npolicyy: warm\n", &["policyy", "2"]);
    fails_with("workers: ['http://a:1']\nhealth:\n  intervall: 1s\n", &["intervall", "3"]);
}

#[test]
fn bad_values_say_what_would_be_right() {
    fails_with(
        "routing: {policy: fastest}\nworkers: ['http://a:1']",
        &["policy", "fastest", "warm", "round_robin"],
    );
    fails_with("workers: ['ftp://a:1']", &["ftp", "http://", "https://"]);
    fails_with("workers: ['a:1']", &["a:1", "http://HOST:PORT"]);
    fails_with("workers: ['http://a:1/v1']", &["/v1", "path"]);
    fails_with("workers: ['http://a:1', 'http://a:1']", &["twice"]);
    fails_with("workers: []", &["--worker"]);
    fails_with("threads: 0\nworkers: ['http://a:1']", &["threads", "1 to 1024"]);
    fails_with("listen: 127.0.0.1:1\nadmin: 127.0.0.1:1\nworkers: ['http://a:1']", &["admin", "port"]);
    fails_with("instance: ../x\nworkers: ['http://a:1']", &["instance"]);
    fails_with("drain_timeout: 5 bananas\nworkers: ['http://a:1']", &["drain_timeout"]);
    fails_with(
        "breaker: {open_for: 5s}\ntimeouts: {connect: 0s}\nworkers: ['http://a:1']",
        &["timeouts.connect"],
    );
}

#[test]
fn wrong_bounds_of_faults_are_named() {
    let wrong = |text: &str, words: &[&str]| fails_with(&format!("workers: ['http://a:1']\n{text}"), words);
    wrong("breaker: {error_share: 0}", &["breaker.error_share", "up to 1"]);
    wrong("breaker: {window: 0s}", &["breaker.window"]);
    wrong("health: {silence: 0s}", &["health.silence"]);
    wrong("outliers: {share_max: 2}", &["outliers.share_max", "0 (nobody is left out) to 1"]);
    wrong("outliers: {slowness: 1}", &["outliers.slowness", "above 1"]);
    wrong("outliers: {errors: -1}", &["outliers.errors"]);
    wrong("outliers: {eject_for: 10m}", &["outliers.eject_max", "outliers.eject_for"]);
}

#[test]
fn wrong_limits_are_named() {
    let wrong = |text: &str, words: &[&str]| fails_with(&format!("workers: ['http://a:1']\n{text}"), words);
    wrong("limits: {worker_concurrency: 0}", &["limits.worker_concurrency", "leave it out"]);
    wrong("limits: {worker_queued_tokens: 0}", &["limits.worker_queued_tokens", "leave it out"]);
    wrong("limits: {bodies_bytes: 1MiB}", &["limits.bodies_bytes", "1048576", "67108864"]);
    wrong("timeouts: {first_byte: 1m}", &["timeouts.first_byte", "timeouts.hold_head"]);
    wrong("timeouts: {first_byte: 0s}", &["timeouts.first_byte", "longer than zero"]);
}

#[test]
fn wrong_rules_of_the_guard_are_named() {
    let guard =
        |text: &str, words: &[&str]| fails_with(&format!("workers: ['http://a:1']\nguard: {text}"), words);
    guard("{deny: ['10.0.0.1/8']}", &["guard.deny", "10.0.0.1/8", "10.0.0.0/8"]);
    guard("{allow: ['nobody']}", &["guard.allow", "nobody", "192.0.2.0/24"]);
    guard("{allow: ['::/200']}", &["guard.allow", "128"]);
    guard("{deny: ['10.0.0.0/8', '::1', '10.0.0.0/8']}", &["guard.deny", "10.0.0.0/8", "twice"]);
    guard("{deny: ['::1'], allow: ['::1/128']}", &["guard.allow", "::1/128", "guard.deny"]);
    guard("{interfaces: ['eth0:fast']}", &["guard.interfaces", "native, generic or auto"]);
    guard("{interfaces: ['a/b']}", &["guard.interfaces", "a/b", "eth0:native"]);
    guard("{interfaces: ['interface-name-too-long']}", &["guard.interfaces", "too-long"]);
    guard("{interfaces: ['eth0', 'eth0:generic']}", &["guard.interfaces", "eth0", "twice"]);
    guard("{mode: slow}", &["slow", "native"]);
    guard("{syn_burst: 0}", &["guard.syn_burst", "at least 1"]);
    guard("{syn_rate: -1}", &["syn_rate"]);
    guard("{denyy: []}", &["denyy"]);
    let many: Vec<String> =
        (0..=crate::limits::GUARD_RULES_MAX).map(|i| format!("'10.0.{}.{}'", i / 256, i % 256)).collect();
    guard(&format!("{{deny: [{}]}}", many.join(", ")), &["4097", "4096"]);
}

#[test]
fn wrong_tokenizers_are_named() {
    let tokenizers = |text: &str, words: &[&str]| {
        fails_with(&format!("workers: ['http://a:1']\ntokenizers: {text}"), words);
    };
    tokenizers("{threads: 0}", &["tokenizers.threads", "1 to 256"]);
    tokenizers("{deadline: 0s}", &["tokenizers.deadline"]);
    tokenizers("{cache: 1KiB}", &["tokenizers.cache", "1048576"]);
    tokenizers("{default: lokal}", &["lokal", "worker"]);
    tokenizers("{models: {a: {path: /models/a}}}", &["path", "local"]);
    tokenizers("{modells: {}}", &["modells"]);
}

#[test]
fn wrong_settings_of_records_are_named() {
    let wrong = |text: &str, words: &[&str]| fails_with(&format!("workers: ['http://a:1']\n{text}"), words);
    wrong("decisions: {keep: 1000001}", &["decisions.keep", "0 (none) to 1000000"]);
    wrong("decisions: {max_bytes: 1KiB}", &["decisions.max_bytes", "1048576"]);
    wrong("decision_log: {path: ''}", &["decision_log.path", "leave it out"]);
    wrong("decision_log: {rotate_bytes: 1KiB}", &["decision_log.rotate_bytes", "65536"]);
    wrong("decision_log: {keep: 1001}", &["decision_log.keep", "1000"]);
    wrong("decision_log: {sample: 0}", &["decision_log.sample", "above 0"]);
    wrong("decision_log: {prompts: text}", &["text", "hashes"]);
    wrong("decision_log: {paht: x}", &["paht"]);
    wrong("traces: {endpoint: 'collector:4317'}", &["traces.endpoint", "http://127.0.0.1:4317"]);
    wrong("traces: {sample: 2}", &["traces.sample", "0 to 1"]);
    wrong("traces: {headers: {'a b': x}}", &["traces.headers", "a b"]);
    wrong("traces: {protocol: udp}", &["udp", "grpc"]);
}

#[test]
fn kv_events_are_configured_for_all_and_for_one() {
    let config = apply(
        "workers:\n  - http://a:1\n  - {url: 'http://b:1', kv_events: off}\n  - url: http://c:1\n    kv_events: \
         {endpoint: 'tcp://*:5557', topic: kv}\nkv_events: {mode: off, hash_seed: '0'}",
    )
    .unwrap();
    let own: Vec<_> = config.workers.into_iter().map(|worker| worker.kv_events).collect();
    let endpoints =
        KvEndpoints { endpoint: "tcp://*:5557".into(), replay_endpoint: None, topic: "kv".into() };
    assert_eq!(own, [WorkerKvEvents::Auto, WorkerKvEvents::Off, WorkerKvEvents::At(endpoints)]);
    assert_eq!(config.kv_events, KvEvents { is_on: false, hash_seed: Some("0".into()) });
    fails_with("workers: [{url: 'http://a:1', kv_events: maybe}]", &["kv_events"]);
    fails_with(
        "workers: [{url: 'http://a:1', kv_events: {replay_endpoint: 'tcp://*:1'}}]",
        &["workers[0].kv_events"],
    );
    fails_with(
        "workers: [{url: 'http://a:1', kv_events: {endpoint: 'gpu1:5557'}}]",
        &["workers.kv_events.endpoint", "gpu1:5557", "tcp://HOST:PORT"],
    );
    fails_with("kv_events: {mode: perhaps}\nworkers: ['http://a:1']", &["perhaps", "auto"]);
}

#[test]
fn an_empty_file_is_an_empty_configuration() {
    let mut config = Config::default();
    File::parse("# nothing\n\n").unwrap().apply(&mut config).unwrap();
    assert_eq!(config, Config::default());
}

#[test]
fn the_example_file_shows_the_defaults() {
    let example = include_str!("../../../deploy/warmpath.yaml");
    let mut config = apply(example).unwrap();
    let names: Vec<String> = config.workers.drain(..).map(|worker| worker.name).collect();
    assert_eq!(names, ["127.0.0.1:8001", "gpu1"]);
    assert_eq!(config, Config::default());
}

#[test]
fn what_is_prefilled_apart_is_a_number_or_learned() {
    let of = |written: &str| {
        apply(&format!("workers: ['http://a:1']\ndisaggregation: {{tokens_min: {written}}}\n"))
    };
    assert_eq!(of("auto").unwrap().disaggregation, Disaggregation::default());
    assert_eq!(of("4096").unwrap().disaggregation.tokens_min, Some(4096));
    let error = of("5").unwrap_err().to_string();
    assert!(error.contains("disaggregation.tokens_min") && error.contains("128"), "{error}");
    let error = of("many").unwrap_err().to_string();
    assert!(error.contains("tokens_min") && error.contains("a number of tokens, or auto"), "{error}");
    let error = apply("workers: [{url: 'http://a:1', role: both-of-them}]").unwrap_err().to_string();
    assert!(error.contains("workers"), "{error}");
}
