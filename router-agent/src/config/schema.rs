//! The file's JSON Schema, made of the types that read it, so that an editor completes and checks `warmpath.yaml`; and the
//! same as a page (docs/configuration.md).
//!
//! Descriptions are the fields' own; defaults are those of deploy/warmpath.yaml, which a test holds against the code.

use std::{borrow::Cow, fmt::Write as _};

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Map, Value};

use super::File;

/// Every key with its default.
const DEFAULTS: &str = include_str!("../../../deploy/warmpath.yaml");

/// A time such as `30s`, `1m 30s` or `250ms`.
pub(super) struct DurationText;

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "duration, e.g. 250ms, 30s, 1m 30s",
            "pattern": r"^\s*([0-9]+(\.[0-9]+)?\s*[a-zA-Zµ]+\s*)+$",
        })
    }
}

/// An amount of memory such as `64MiB`, or a number of bytes.
pub(super) struct BytesText;

impl JsonSchema for BytesText {
    fn schema_name() -> Cow<'static, str> {
        "bytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "format": "bytes, e.g. 65536, 64KiB, 256MiB",
            "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([kKMGTP]i?)?[bB]?\s*$",
            "minimum": 0,
        })
    }
}

/// The schema (JSON Schema, draft 2020-12).
pub fn json() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<File>().to_value();
    schema["title"] = "warmpath.yaml".into();
    // A bare `off` is a word to those who are told what to expect, and to YAML 1.2.
    let options = serde_saphyr::options! { strict_booleans: true };
    let defaults: Value =
        serde_saphyr::from_str_with_options(DEFAULTS, options).expect("the shipped file is read by a test");
    set_defaults(&mut schema, &defaults);
    schema
}

/// Puts each default into the schema of its key.
fn set_defaults(schema: &mut Value, defaults: &Value) {
    let (Some(properties), Some(defaults)) =
        (schema.get_mut("properties").and_then(Value::as_object_mut), defaults.as_object())
    else {
        return;
    };
    for (key, property) in properties {
        let Some(default) = defaults.get(key) else { continue };
        if property.get("properties").is_some() {
            if let Some(property) = property.as_object_mut() {
                property.remove("default"); // that of a section is its keys'
            }
            set_defaults(property, default);
        } else if key != "workers" {
            property["default"] = default.clone();
        }
    }
}

/// The page about every key.
pub fn markdown() -> String {
    let schema = json();
    let mut page = String::from(PREFACE);
    let properties = schema["properties"].as_object().expect("the root is an object");
    let (sections, plain): (Vec<_>, Vec<_>) = properties.iter().partition(|(_, of)| keys_of(of).is_some());
    page.push_str("\n## Top level\n\n");
    table(&mut page, "", plain.into_iter());
    for (name, section) in sections {
        let (suffix, keys) = keys_of(section).expect("it is a section");
        let _ = writeln!(page, "\n## {name}\n\n{}\n", description(section));
        table(&mut page, &format!("{name}{suffix}."), keys.iter());
    }
    page
}

const PREFACE: &str = "# Configuration

`warmpath serve --config FILE` reads one YAML file. A value comes from the flag, else from the environment (`WARMPATH_…`; \
`warmpath serve --help` lists both), else from this file, else from its default. An unknown key is an error, with its line. \
`warmpath check FILE` tells whether a file is right before a gateway has to; [deploy/warmpath.yaml](../deploy/warmpath.yaml) \
is a file with every default. Which keys a reload can change is in [operations.md](operations.md).

Editors complete and check the file by its JSON Schema, [deploy/warmpath.schema.json](../deploy/warmpath.schema.json) \
(`warmpath schema` prints it): begin the file with

```yaml
# yaml-language-server: $schema=/usr/share/warmpath/warmpath.schema.json
```

This page is made of the same schema (`warmpath schema --markdown`).
";

/// The keys of a section, or of the entries of a list.
fn keys_of(schema: &Value) -> Option<(&'static str, &Map<String, Value>)> {
    if let Some(keys) = schema.get("properties").and_then(Value::as_object) {
        return Some(("", keys));
    }
    if let Some(found) = alternatives(schema).find_map(keys_of) {
        return Some(found);
    }
    let items = schema.get("items")?;
    std::iter::once(items).chain(alternatives(items)).find_map(|of| {
        let keys = of.get("properties")?.as_object()?;
        Some(("[]", keys))
    })
}

fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> {
    ["anyOf", "oneOf"].iter().filter_map(|way| schema.get(way)?.as_array()).flatten()
}

fn table<'a>(page: &mut String, prefix: &str, keys: impl Iterator<Item = (&'a String, &'a Value)>) {
    page.push_str("| key | is | default | |\n|---|---|---|---|\n");
    rows(page, prefix, keys);
}

fn rows<'a>(page: &mut String, prefix: &str, keys: impl Iterator<Item = (&'a String, &'a Value)>) {
    for (key, schema) in keys {
        let path = format!("{prefix}{key}");
        if let Some((suffix, inner)) = keys_of(schema) {
            let _ = writeln!(page, "| `{path}` | {} | | {} |", kind(schema), description(schema));
            rows(page, &format!("{path}{suffix}."), inner.iter());
            continue;
        }
        let default = match schema.get("default") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => format!("`{text}`"),
            Some(default) => format!("`{default}`"),
        };
        let _ = writeln!(page, "| `{path}` | {} | {default} | {} |", kind(schema), description(schema));
    }
}

fn description(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    text.replace('\n', " ").replace('|', "\\|")
}

/// What a value is, in a word or two.
fn kind(schema: &Value) -> String {
    if let Some(names) = names(schema) {
        return names;
    }
    if let Some(format) = schema.get("format").and_then(Value::as_str)
        && let Some((word, _)) = format.split_once(',')
    {
        return word.to_owned();
    }
    let types: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).filter(|of| *of != "null").collect(),
        _ => {
            let mut kinds: Vec<_> = alternatives(schema)
                .filter(|of| of.get("type") != Some(&Value::from("null")))
                .map(kind)
                .collect();
            kinds.dedup();
            return kinds.join(" or ");
        }
    };
    types.into_iter().map(word).collect::<Vec<_>>().join(" or ")
}

/// JSON Schema's name of a type, in words.
fn word(of: &str) -> &str {
    match of {
        "array" => "list",
        "object" => "mapping",
        "string" => "text",
        "integer" => "whole number",
        "boolean" => "`true` or `false`",
        other => other,
    }
}

/// The names of a choice.
fn names(schema: &Value) -> Option<String> {
    let quoted = |value: &Value| value.as_str().map(|name| format!("`{name}`"));
    let of = |schema: &Value| -> Option<Vec<String>> {
        match (schema.get("enum"), schema.get("const")) {
            (Some(Value::Array(all)), _) => Some(all.iter().filter_map(quoted).collect()),
            (_, Some(one)) => Some(quoted(one).into_iter().collect()),
            _ => None,
        }
    };
    let direct = of(schema).unwrap_or_default();
    let all: Vec<_> = if direct.is_empty() {
        let choices: Vec<_> =
            alternatives(schema).filter(|of| of.get("type") != Some(&Value::from("null"))).collect();
        if choices.is_empty() || !choices.iter().all(|choice| of(choice).is_some() || names(choice).is_some())
        {
            return None;
        }
        choices
            .into_iter()
            .map(|choice| of(choice).map_or_else(|| names(choice).unwrap_or_default(), |n| n.join(", ")))
            .collect()
    } else {
        direct
    };
    Some(all.join(", "))
}
