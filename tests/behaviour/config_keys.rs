//! Every key of the configuration has its effect: what no other test shows is shown in `effects.rs`, and `ledger.rs` names
//! the test of each.

mod effects;
mod ledger;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The program's own list of its keys (tests/behaviour/schema.rs).
const PAGE: &str = include_str!("../../docs/configuration.md");

#[test]
fn every_key_has_a_test_of_its_effect() {
    let all: BTreeSet<_> = PAGE
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(key, _)| key)
        .collect();
    // What holds others has its effect by them.
    let holds = |key: &str| {
        all.iter().any(|other| other.strip_prefix(key).is_some_and(|rest| rest.starts_with(['.', '['])))
    };
    let expected: BTreeSet<_> = all.iter().copied().filter(|key| !holds(key)).collect();
    let listed: BTreeMap<_, _> = ledger::LEDGER.iter().copied().collect();
    assert_eq!(listed.len(), ledger::LEDGER.len(), "a key is listed twice");
    let missing: Vec<_> = expected.iter().filter(|key| !listed.contains_key(*key)).collect();
    let gone: Vec<_> = listed.keys().filter(|key| !expected.contains(*key)).collect();
    assert!(missing.is_empty() && gone.is_empty(), "not listed: {missing:?}\nno such key: {gone:?}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (key, place) in listed {
        let (module, test) = place.split_once("::").unwrap();
        let file = match module.strip_prefix("src/") {
            Some(module) => root.join(format!("router-agent/src/{module}.rs")),
            None => root.join(format!("tests/behaviour/{module}.rs")),
        };
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(text.contains(&format!("fn {test}(")), "{key}: no {test} in {}", file.display());
        // It is set there by its name, by its flag, or with a pair of files (`tests/src/certificates.rs`).
        let leaf = key.rsplit('.').next().unwrap();
        let is_set = text.contains(leaf) || text.contains(&leaf.replace('_', "-"));
        let is_field = module.starts_with("src/"); // named there as its type names it
        let is_in_pair = ["key", "certificate"].contains(&leaf) && text.contains("authority");
        assert!(is_set || is_in_pair || is_field, "{key} is not set in {}", file.display());
    }
}
