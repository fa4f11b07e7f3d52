//! The configuration's schema: what editors are told is what the program reads.

use std::process::Command;

use serde_json::Value;
use warmpath_tests::binary;

const EXAMPLE: &str = include_str!("../../deploy/warmpath.yaml");
const SCHEMA: &str = include_str!("../../deploy/warmpath.schema.json");
const PAGE: &str = include_str!("../../docs/configuration.md");

fn printed(args: &[&str]) -> String {
    let output = Command::new(binary()).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the program takes the file.
fn is_taken(yaml: &str) -> Result<(), String> {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), yaml).unwrap();
    let output = Command::new(binary()).arg("check").arg(file.path()).arg("--offline").output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
}

fn validator() -> jsonschema::Validator {
    jsonschema::validator_for(&serde_json::from_str(SCHEMA).unwrap()).unwrap()
}

fn read(yaml: &str) -> Value {
    // As YAML 1.2 and editors have it: a bare `off` is a word.
    serde_saphyr::from_str_with_options(yaml, serde_saphyr::options! { strict_booleans: true }).unwrap()
}

#[test]
fn the_committed_schema_and_page_are_those_of_the_program() {
    assert_eq!(printed(&["schema"]), SCHEMA, "warmpath schema > deploy/warmpath.schema.json");
    let page = printed(&["schema", "--markdown"]);
    assert_eq!(page, PAGE, "warmpath schema --markdown > docs/configuration.md");
}

#[test]
fn every_key_is_described() {
    fn walk(path: &str, schema: &Value, count: &mut usize) {
        for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
            *count += 1;
            let path = format!("{path}.{key}");
            // The one key of a choice has its description one step up.
            let described = [inner, schema]
                .iter()
                .any(|of| of["description"].as_str().is_some_and(|text| text.len() > 8));
            assert!(described, "{path} has no description: {inner}");
            walk(&path, inner, count);
        }
        for inner in ["anyOf", "oneOf"].iter().filter_map(|way| schema[way].as_array()).flatten() {
            walk(path, inner, count);
        }
        if schema["items"].is_object() {
            walk(&format!("{path}[]"), &schema["items"], count);
        }
    }
    let mut count = 0;
    walk("", &serde_json::from_str(SCHEMA).unwrap(), &mut count);
    assert!(count > 100, "{count} keys");
}

#[test]
fn the_schema_takes_what_the_program_takes() {
    let validator = validator();
    let workers = "workers: [\"http://127.0.0.1:1\"]\n";
    let full = "workers:\n  - {url: \"http://127.0.0.1:1\", name: a, kv_events: off, api_key: x}\n";
    for yaml in [
        EXAMPLE,
        workers,
        full,
        &format!(
            "{workers}timeouts: {{head: 1m 30s, queue: 250ms}}\nlimits: {{body_bytes: 1MiB, bodies_bytes: 123456789}}\n"
        ),
        &format!("{workers}tokenizers: {{default: worker, models: {{}}}}\n"),
        &format!("{workers}keys: [{{name: a, sha256: \"{}\", paths: all}}]\n", "ab".repeat(32)),
    ] {
        is_taken(yaml).unwrap();
        let document = read(yaml);
        let errors: Vec<_> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{yaml}: {errors:?}");
    }
}

#[test]
fn the_schema_refuses_what_the_program_refuses() {
    let validator = validator();
    let workers = "workers: [\"http://127.0.0.1:1\"]\n";
    for wrong in [
        "listen_on: 127.0.0.1:80\n",
        "timeouts: {heads: 1s}\n",
        "timeouts: {head: soon}\n",
        "limits: {body_bytes: much}\n",
        "limits: {tries: -1}\n",
        "log_format: xml\n",
        "relay: {bypass: sometimes}\n",
        "keys: [{name: a}]\n",
        "workers: [{name: a}]\n",
        "tls: {certificate: a}\n",
    ] {
        let yaml = if wrong.starts_with("workers") { wrong.to_owned() } else { format!("{workers}{wrong}") };
        let said = is_taken(&yaml).expect_err(wrong);
        assert!(said.contains("yaml"), "{said}");
        assert!(!validator.is_valid(&read(&yaml)), "{wrong}");
    }
}
