//! Tools and tool calls as vLLM's request model writes them for the chat template: known members in the model's order.

use minijinja::{Value, value::ValueKind};
use serde::Deserialize;

use super::Unknown;

/// A tool that the model may call.
#[derive(Debug, Deserialize)]
pub(super) struct Tool {
    function: Function,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    description: Option<Value>,
    parameters: Option<Value>,
    strict: Option<Value>,
}

impl Tool {
    /// What is absent is written as null, but for `strict`; other members are left out.
    pub(super) fn into_value(self) -> Value {
        let none = || Value::from(());
        let Function { name, description, parameters, strict } = self.function;
        let mut function = vec![
            ("name", name.into()),
            ("description", description.unwrap_or_else(none)),
            ("parameters", parameters.unwrap_or_else(none)),
        ];
        function.extend(strict.map(|strict| ("strict", strict)));
        Value::from_pairs([("type", Value::from("function")), ("function", Value::from_pairs(function))])
    }
}

/// A call that an assistant's message holds, as the client wrote it.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct Call(Value);

impl Call {
    /// `id`, `function` (`arguments`, `name`), `type`, then the others. Arguments are parsed; what is no JSON object
    /// becomes an empty one.
    pub(super) fn into_value(self) -> Result<Value, Unknown> {
        let function = self.0.get_attr("function").unwrap_or_default();
        if function.kind() != ValueKind::Map {
            return Err(Unknown::Refused("a tool call has no function".to_owned()));
        }
        let arguments = function.get_attr("arguments").unwrap_or_default();
        let parsed = match arguments.as_str() {
            Some(text) => serde_json::from_str::<Value>(text).unwrap_or_default(),
            None => arguments,
        };
        let parsed = if parsed.kind() == ValueKind::Map { parsed } else { Value::from_pairs([("", 0); 0]) };
        let function = ordered(&function, &["arguments", "name"], ("arguments", parsed));
        Ok(ordered(&self.0, &["id", "function", "type"], ("function", function)))
    }
}

/// The members of `object`: those of `first` in that order, then the others in their own, with one of them replaced.
fn ordered(object: &Value, first: &[&str], (replaced, by): (&str, Value)) -> Value {
    let keys = || object.try_iter().into_iter().flatten().filter_map(|key| key.as_str().map(str::to_owned));
    let known = first
        .iter()
        .map(|name| (*name).to_owned())
        .filter(|name| name == replaced || keys().any(|key| key == *name));
    let others = keys().filter(|key| !first.contains(&key.as_str()));
    let names: Vec<String> = known.chain(others).collect();
    Value::from_pairs(names.into_iter().map(|name| {
        let value = if name == replaced { by.clone() } else { object.get_attr(&name).unwrap_or_default() };
        (name, value)
    }))
}
