//! Patterns of model names: a name, or the beginning of one and `*`.

use std::fmt;

/// A model's name, or the beginning of many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelPattern {
    /// This one.
    Exact(String),
    /// Every one that begins so.
    Prefix(String),
}

impl ModelPattern {
    /// None if it is empty, or has a `*` anywhere but at its end.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (start, is_prefix) = text.strip_suffix('*').map_or((text, false), |start| (start, true));
        let is_wrong = text.is_empty() || start.contains('*');
        let start = start.to_owned();
        (!is_wrong).then_some(if is_prefix { Self::Prefix(start) } else { Self::Exact(start) })
    }

    /// Whether a model of this name is meant.
    pub fn matches(&self, model: &str) -> bool {
        match self {
            Self::Exact(name) => name == model,
            Self::Prefix(start) => model.starts_with(start),
        }
    }

    /// Whether every model is meant.
    pub fn is_any(&self) -> bool {
        matches!(self, Self::Prefix(start) if start.is_empty())
    }
}

impl fmt::Display for ModelPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Prefix(start) => write!(f, "{start}*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_at_the_end_or_nowhere() {
        let matches = |pattern: &str, model| ModelPattern::parse(pattern).map(|p| p.matches(model));
        assert_eq!(matches("qwen-*", "qwen-2"), Some(true));
        assert_eq!(matches("qwen-*", "qwen"), Some(false));
        assert_eq!(matches("qwen", "qwen"), Some(true));
        assert_eq!(matches("qwen", "qwen-2"), Some(false));
        assert_eq!(matches("*", ""), Some(true));
        for wrong in ["", "**", "a*b", "*a", "a**"] {
            assert_eq!(ModelPattern::parse(wrong), None, "{wrong}");
        }
    }
}
