//! Who is let in, how much they may, and what a reload changes of that.

use std::time::Duration;

use super::*;
use crate::config::{AllowedModels, ModelPattern};

const KEY: &str = "sk-test";

fn key(name: &str, secret: &str) -> KeyConfig {
    KeyConfig {
        name: name.into(),
        digests: vec![SecretDigest::of(secret.as_bytes())],
        models: AllowedModels::All,
        requests_per_second: None,
        burst: 1,
        concurrent: None,
        tokens_per_minute: None,
        weight: 1,
        priority: 0,
        all_paths: false,
        policy: None,
        defaults: Vec::new(),
        overrides: None,
        cache: None,
    }
}

fn tenants(keys: &[KeyConfig]) -> Tenants {
    Tenants::new(keys, Metrics::new().expect("fresh registry"))
}

fn head(name: &'static str, value: &str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
}

/// The tenant of [`KEY`], with these limits.
fn tenant(limit: impl FnOnce(&mut KeyConfig)) -> (Tenants, Arc<Tenant>) {
    let mut config = key("a", KEY);
    limit(&mut config);
    let tenants = tenants(&[config]);
    let tenant = tenants.identify(&head("x-api-key", KEY)).unwrap();
    (tenants, tenant)
}

fn level(tenant: &Tenant, now: Instant) -> u64 {
    tenant.standings(now).tokens.unwrap().remaining
}

#[test]
fn without_keys_everyone_is_the_same_tenant_without_limits() {
    let tenants = tenants(&[]);
    for head in [HeaderMap::new(), head("authorization", "Bearer whatever")] {
        let tenant = tenants.identify(&head).unwrap();
        assert_eq!(&*tenant.name, DEFAULT);
        assert!(tenant.allows(None) && tenant.all_paths && !tenant.has_key);
        assert_eq!(tenant.standings(Instant::now()), Standings::default());
    }
}

#[test]
fn a_key_is_taken_from_either_field_and_nothing_else_is_let_in() {
    let tenants = tenants(&[key("a", KEY), key("b", "sk-other")]);
    for (name, value, tenant) in [
        ("authorization", "Bearer sk-test", Ok("a")),
        ("authorization", "bearer  sk-test ", Ok("a")),
        ("authorization", "Bearer sk-other", Ok("b")),
        ("x-api-key", "sk-other", Ok("b")),
        ("authorization", "sk-test", Err(Unauthorized::Missing)),
        ("authorization", "Basic sk-test", Err(Unauthorized::Missing)),
        ("authorization", "Bearer ", Err(Unauthorized::Missing)),
        ("authorization", "Bearer sk-tes", Err(Unauthorized::Unknown)),
        ("authorization", "Bearer sk-test, Bearer sk-other", Err(Unauthorized::Unknown)),
        ("x-api-key", "", Err(Unauthorized::Missing)),
        ("x-other", "sk-test", Err(Unauthorized::Missing)),
    ] {
        let found = tenants.identify(&head(name, value)).map(|tenant| tenant.name.to_string());
        assert_eq!(found, tenant.map(str::to_owned), "{name}: {value}");
    }
}

#[test]
fn models_are_allowed_by_name_and_by_their_beginning() {
    let (_tenants, tenant) = tenant(|key| {
        key.models = AllowedModels::Only(vec![
            ModelPattern::Exact("llama".into()),
            ModelPattern::Prefix("qwen-".into()),
        ]);
    });
    for (model, allowed) in
        [("llama", true), ("llama-2", false), ("qwen-7b", true), ("qwen", false), ("Llama", false)]
    {
        assert_eq!(tenant.allows(Some(model)), allowed, "{model}");
    }
    assert!(!tenant.allows(None), "the worker's own choice could be any model");
}

#[test]
fn no_more_requests_at_once_than_allowed_and_each_gives_its_place_back() {
    let (_tenants, tenant) = tenant(|key| key.concurrent = Some(2));
    let now = Instant::now();
    let first = tenant.admit(Source::ALONE, now).unwrap();
    let _second = tenant.admit(Source::ALONE, now).unwrap();
    let over = tenant.admit(Source::ALONE, now).unwrap_err();
    assert_eq!((over.kind, over.retry_after), (Limit::Concurrent, Some(Duration::from_secs(1))));
    drop(first);
    assert!(tenant.admit(Source::ALONE, now).is_ok());
}

#[test]
fn requests_per_second_with_a_burst() {
    let (_tenants, tenant) = tenant(|key| {
        key.requests_per_second = Some(2.0);
        key.burst = 3;
        key.concurrent = Some(1);
    });
    let now = Instant::now();
    for _ in 0..3 {
        tenant.admit(Source::ALONE, now).unwrap();
    }
    let over = tenant.admit(Source::ALONE, now).unwrap_err();
    assert_eq!((over.kind, over.retry_after), (Limit::Requests, Some(Duration::from_millis(500))));
    assert!(over.to_string().contains("requests_per_second: limit 2. Please try again in 0.500s"), "{over}");
    let standing = over.tenant.standings(now).requests.unwrap();
    assert_eq!((standing.limit, standing.remaining), (3, 0));
    assert!(
        tenant.admit(Source::ALONE, now + Duration::from_millis(500)).is_ok(),
        "who was refused holds no place"
    );
}

#[test]
fn the_prompt_is_charged_at_once_and_the_answer_at_its_end() {
    let (_tenants, tenant) = tenant(|key| key.tokens_per_minute = Some(600));
    let now = Instant::now();
    let mut admission = tenant.admit(Source::ALONE, now).unwrap();
    admission.charge_prompt(100, Source::ALONE, now).unwrap();
    assert_eq!(level(&tenant, now), 500);
    admission.generated(50);
    drop(admission);
    assert_eq!(level(&tenant, now), 450);

    // The worker's own word, where there is one; it may be less than what was estimated.
    let mut admission = tenant.admit(Source::ALONE, now).unwrap();
    admission.charge_prompt(400, Source::ALONE, now).unwrap();
    admission.used(150);
    drop(admission);
    assert_eq!(level(&tenant, now), 300);

    // An answer may be longer than what is left: then others wait.
    let mut admission = tenant.admit(Source::ALONE, now).unwrap();
    admission.charge_prompt(200, Source::ALONE, now).unwrap();
    admission.generated(200);
    drop(admission);
    let over = tenant.admit(Source::ALONE, now).unwrap().charge_prompt(0, Source::ALONE, now).unwrap_err();
    assert_eq!((over.kind, level(&tenant, now)), (Limit::Tokens, 0));
    assert!(over.retry_after.unwrap() > Duration::from_secs(9), "100 tokens of debt at 10 a second");
}

#[test]
fn a_request_that_nobody_answered_costs_no_tokens_and_one_that_its_client_left_does() {
    let (_tenants, tenant) = tenant(|key| key.tokens_per_minute = Some(600));
    let now = Instant::now();
    let mut admission = tenant.admit(Source::ALONE, now).unwrap();
    admission.charge_prompt(600, Source::ALONE, now).unwrap();
    assert_eq!(level(&tenant, now), 0);
    admission.unserved();
    drop(admission);
    assert_eq!(level(&tenant, now), 600);
    let mut admission = tenant.admit(Source::ALONE, now).unwrap();
    admission.charge_prompt(50, Source::ALONE, now).unwrap();
    drop(admission);
    assert_eq!(level(&tenant, now), 550);
    let over = tenant.admit(Source::ALONE, now).unwrap().charge_prompt(601, Source::ALONE, now).unwrap_err();
    assert_eq!(over.retry_after, None, "a minute has not that many");
    assert!(over.to_string().contains("requested 601") && over.to_string().contains("too large"), "{over}");
}

#[test]
fn a_reload_keeps_what_was_used_and_lets_in_who_is_listed_now() {
    let limited = |limit| KeyConfig { concurrent: Some(limit), ..key("a", KEY) };
    let tenants = tenants(&[limited(1), key("b", "sk-other")]);
    let head = head("x-api-key", KEY);
    let now = Instant::now();
    let held = tenants.identify(&head).unwrap().admit(Source::ALONE, now).unwrap();
    tenants.replace(&[limited(2)]);
    let tenant = tenants.identify(&head).unwrap();
    let second = tenant.admit(Source::ALONE, now).unwrap();
    assert!(tenant.admit(Source::ALONE, now).is_err(), "the request from before the reload counts");
    drop((held, second));
    assert!(tenant.admit(Source::ALONE, now).is_ok());
    assert!(tenants.identify(&self::head("x-api-key", "sk-other")).is_err());

    // A second key of the same tenant, as while a key is replaced.
    let mut rotating = limited(2);
    rotating.digests.push(SecretDigest::of(b"sk-new"));
    tenants.replace(&[rotating]);
    assert_eq!(tenants.identify(&self::head("x-api-key", "sk-new")).unwrap().name, tenant.name);
    assert!(tenants.identify(&head).is_ok());
}

#[test]
fn a_tenant_that_is_gone_has_no_series_left() {
    let metrics = Metrics::new().expect("fresh registry");
    let tenants = Tenants::new(&[key("gone-soon", KEY)], metrics.clone());
    assert!(metrics.encode().unwrap().contains("gone-soon"));
    tenants.replace(&[]);
    assert!(!metrics.encode().unwrap().contains("gone-soon"));
    assert_eq!(&*tenants.identify(&HeaderMap::new()).unwrap().name, DEFAULT);
}
