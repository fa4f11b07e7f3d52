//! Where in the file a key stands, for errors that the parser has no say in.

use std::path::Path;

use super::{ConfigError, file::is_blank};

impl ConfigError {
    /// The key that it is about.
    fn key(&self) -> Option<&str> {
        match self {
            Self::Value { key, .. } | Self::Cidr { key, .. } | Self::Tls { key, .. } => Some(key),
            Self::Worker { .. } | Self::NoWorkers => Some("workers"),
            Self::Read { .. } | Self::Parse { .. } | Self::InFile { .. } => None,
        }
    }

    /// The same with file and line, if the file has the key that it is about.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        let line = self.key().and_then(|key| line_of(&std::fs::read_to_string(path).ok()?, key));
        match line {
            Some(line) => Self::InFile { path: path.to_owned(), line, source: Box::new(self) },
            None => self,
        }
    }
}

/// The line, from 1, of a dotted key in block YAML; of what is in braces or in a list, the line of the key before that.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let mut open: Vec<(usize, &str)> = Vec::new();
    let mut list_at = None;
    let mut best: Option<(usize, usize)> = None;
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !is_blank(line)) {
        let indent = line.len() - line.trim_start().len();
        if list_at.is_some_and(|at| indent > at) {
            continue;
        }
        list_at = line.trim_start().starts_with('-').then_some(indent);
        let Some((name, _)) = line.trim().split_once(':').filter(|_| list_at.is_none()) else { continue };
        open.retain(|(outer, _)| *outer < indent);
        open.push((indent, name));
        let path = open.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(".");
        let is_on_the_way =
            key.strip_prefix(&path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        if is_on_the_way && best.is_none_or(|(length, _)| path.len() > length) {
            best = Some((path.len(), number + 1));
        }
    }
    best.map(|(_, line)| line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# limits: of nobody\nlimits:\n  tries: 0\n\nworkers:\n  - url: http://a:1\n    name: x\n  - http://b:1\n\
                        routing: {policy: fastest}\nindex:\n    block_bytes: 1 # too few\ntimeouts:\n  head: 1s\n";

    #[test]
    fn keys_are_found_where_they_stand() {
        for (key, line) in [
            ("limits.tries", Some(3)),
            ("workers.name", Some(5)),
            ("routing.policy", Some(9)),
            ("index.block_bytes", Some(11)),
            ("timeouts.head", Some(13)),
            ("timeouts.connect", Some(12)),
            ("threads", None),
        ] {
            assert_eq!(line_of(TEXT, key), line, "{key}");
        }
    }
}
