//! `keys.defaults`: members that a tenant's requests have where they say nothing else.

use std::collections::BTreeMap;

use serde_json::Value;

use super::ConfigError;
use crate::limits;

/// One member of a request body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyDefault {
    /// Its name.
    pub name: Box<str>,
    /// Its value, as JSON.
    pub json: Box<str>,
}

/// Names of the bound on an answer's length, of which `max_tokens` is written here: each API has its own.
const OTHER_BOUNDS: [&str; 2] = ["max_completion_tokens", "max_output_tokens"];
/// What a request is about is not for an operator to say.
const PROMPTS: [&str; 3] = ["input", "messages", "prompt"];

/// The members as written under a key called `key_name`, checked.
pub(super) fn resolve(
    key_name: &str,
    written: BTreeMap<String, Value>,
) -> Result<Vec<BodyDefault>, ConfigError> {
    let wrong =
        |why: String| Err(ConfigError::Value { key: "keys.defaults", message: format!("{key_name}: {why}") });
    if let Some(name) = written.keys().find(|name| OTHER_BOUNDS.contains(&name.as_str())) {
        return wrong(format!(
            "write max_tokens for {name}: it is sent by the name that each API has for it"
        ));
    }
    if let Some(name) = written.keys().find(|name| PROMPTS.contains(&name.as_str())) {
        return wrong(format!("{name} is the client's to say"));
    }
    if written.get("model").is_some_and(|model| !model.is_string()) {
        return wrong("model must be a string".to_owned());
    }
    let member =
        |(name, value): (String, Value)| BodyDefault { name: name.into(), json: value.to_string().into() };
    let members: Vec<_> = written.into_iter().map(member).collect();
    let bytes: usize = members.iter().map(|member| member.name.len() + member.json.len()).sum();
    if bytes > limits::BODY_DEFAULTS_BYTES_MAX {
        return wrong(format!("{bytes} bytes, at most {} are possible", limits::BODY_DEFAULTS_BYTES_MAX));
    }
    Ok(members)
}
