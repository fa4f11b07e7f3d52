//! `aliases:`: models that clients may name, and what is served for them.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{ConfigError, pattern::ModelPattern};
use crate::limits;

/// All of them, as they are looked up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aliases {
    /// By name.
    exact: Vec<Alias>,
    /// The longest beginning first.
    prefixes: Vec<Alias>,
}

/// What is served for a model that clients name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// What clients name.
    pub pattern: ModelPattern,
    /// Models with their weights; of several each gets its share. Empty: the model that was named.
    pub to: Vec<Target>,
    /// Models for while no worker is routable for the one of `to`, in this order.
    pub fallback: Vec<String>,
}

/// One model of [`Alias::to`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// As workers know it.
    pub model: String,
    /// Its share is this over the sum of all.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

impl Aliases {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty()
    }

    /// The one for a model that a client names: the exact one, else the one with the longest beginning.
    pub fn find(&self, model: &str) -> Option<&Alias> {
        if let Ok(at) = self.exact.binary_search_by(|alias| alias.name().cmp(model)) {
            return self.exact.get(at);
        }
        self.prefixes.iter().find(|alias| alias.pattern.matches(model))
    }

    /// Those that have a name of their own, by name.
    pub fn named(&self) -> &[Alias] {
        &self.exact
    }

    /// All of them, those with a name of their own first.
    pub fn all(&self) -> impl Iterator<Item = &Alias> {
        self.exact.iter().chain(&self.prefixes)
    }

    fn new(aliases: Vec<Alias>) -> Self {
        let is_exact = |alias: &Alias| matches!(alias.pattern, ModelPattern::Exact(_));
        let (mut exact, mut prefixes): (Vec<_>, Vec<_>) = aliases.into_iter().partition(is_exact);
        exact.sort_by(|a, b| a.name().cmp(b.name()));
        prefixes.sort_by_key(|alias| std::cmp::Reverse(alias.name().len()));
        Self { exact, prefixes }
    }
}

impl Alias {
    /// The name, or the beginning that is meant.
    pub fn name(&self) -> &str {
        match &self.pattern {
            ModelPattern::Exact(name) | ModelPattern::Prefix(name) => name,
        }
    }
}

/// An entry as written.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    /// What clients name: a model, or the beginning of one and `*`. The exact name counts, else the longest beginning.
    r#match: String,
    /// The model that is served for it, or several with weights. Left out: the one that was named.
    to: Option<To>,
    /// Models for while no worker is routable for that one, in their order.
    fallback: Option<Vec<String>>,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(
    untagged,
    expecting = "a model's name, or a list such as [{model: a, weight: 95}, {model: b, weight: 5}]"
)]
enum To {
    One(String),
    Weighted(Vec<Target>),
}

/// The section, checked.
pub(super) fn resolve(written: Vec<Written>) -> Result<Aliases, ConfigError> {
    if written.len() > limits::ALIASES_MAX {
        let count = written.len();
        return wrong("aliases", format!("{count} entries, at most {} are possible", limits::ALIASES_MAX));
    }
    let mut seen = HashSet::new();
    for Written { r#match: pattern, .. } in &written {
        if !seen.insert(pattern.clone()) {
            return wrong("aliases.match", format!("{pattern} is listed twice"));
        }
    }
    written.into_iter().map(Written::resolve).collect::<Result<Vec<_>, _>>().map(Aliases::new)
}

impl Written {
    fn resolve(self) -> Result<Alias, ConfigError> {
        let name = self.r#match;
        let Some(pattern) = ModelPattern::parse(&name) else {
            let why = format!("{name:?} is no pattern: a model's name, or its beginning and `*`");
            return wrong("aliases.match", why);
        };
        if self.to.is_none() && self.fallback.is_none() {
            return wrong("aliases.to", format!("{name}: give `to`, or `fallback`, or both"));
        }
        let is_empty = |list: &Option<Vec<String>>| list.as_ref().is_some_and(Vec::is_empty);
        if is_empty(&self.fallback) {
            return wrong("aliases.fallback", format!("{name}: an empty list; leave it out for none"));
        }
        let to = match self.to {
            None => Vec::new(),
            Some(To::One(model)) => vec![Target { model, weight: 1 }],
            Some(To::Weighted(targets)) if targets.iter().all(|target| target.weight == 0) => {
                return wrong("aliases.to", format!("{name}: no model has a weight above 0"));
            }
            Some(To::Weighted(targets)) => targets,
        };
        let fallback = self.fallback.unwrap_or_default();
        for model in to.iter().map(|target| &target.model).chain(&fallback) {
            // It goes into a response header.
            if model.is_empty() || model.len() > limits::MODEL_NAME_BYTES_MAX || !is_printable(model) {
                let why = format!(
                    "{name}: {model:?} is no model's name: 1 to {} printable ASCII characters",
                    limits::MODEL_NAME_BYTES_MAX
                );
                return wrong("aliases.to", why);
            }
        }
        Ok(Alias { pattern, to, fallback })
    }
}

fn is_printable(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_graphic())
}

fn wrong<T>(key: &'static str, message: String) -> Result<T, ConfigError> {
    Err(ConfigError::Value { key, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(patterns: &[&str]) -> Aliases {
        let written = patterns.iter().map(|pattern| Written {
            r#match: (*pattern).to_owned(),
            to: Some(To::One("m".to_owned())),
            fallback: None,
        });
        resolve(written.collect()).expect("right")
    }

    #[test]
    fn an_exact_name_comes_before_a_beginning_and_a_longer_one_before_a_shorter_one() {
        let aliases = of(&["gpt-*", "*", "gpt-4", "gpt-4o-*", "a"]);
        let find = |model| aliases.find(model).map(Alias::name);
        for (model, found) in
            [("gpt-4", "gpt-4"), ("gpt-4o-mini", "gpt-4o-"), ("gpt-4o", "gpt-"), ("a", "a"), ("other", "")]
        {
            assert_eq!(find(model), Some(found), "{model}");
        }
        assert_eq!(of(&["a", "b*"]).find("c"), None);
    }
}
