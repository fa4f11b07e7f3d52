//! Puts a report into a document, between two marks, so that published figures are those of a run.

use std::path::Path;

use anyhow::{Context, Result, ensure};

const BEGIN: &str = "<!-- replay: begin (written by `cargo xtask bench replay --markdown`) -->";
const END: &str = "<!-- replay: end -->";

/// Replaces what is between the marks of the file.
pub(super) fn write(path: &Path, section: &str) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let text = replace(&text, section).with_context(|| path.display().to_string())?;
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

fn replace(text: &str, section: &str) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("no line `{BEGIN}`"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("no line `{END}` after the first mark"))?;
    ensure!(!after.contains(BEGIN), "the first mark is there twice");
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", section.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let text = format!("# Title\n\n{BEGIN}\nold\n{END}\n\nnotes\n");
        let new = replace(&text, "| table |\n").unwrap();
        assert_eq!(new, format!("# Title\n\n{BEGIN}\n\n| table |\n\n{END}\n\nnotes\n"));
        assert_eq!(replace(&new, "| table |\n").unwrap(), new, "twice is once");
    }

    #[test]
    fn missing_or_doubled_marks_are_errors() {
        assert!(replace("text", "x").unwrap_err().to_string().contains("replay: begin"));
        assert!(replace(BEGIN, "x").unwrap_err().to_string().contains("replay: end"));
        let twice = format!("{BEGIN}{END}{BEGIN}{END}");
        assert!(replace(&twice, "x").unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn the_published_document_has_the_marks() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/benchmarks.md");
        replace(&std::fs::read_to_string(path).unwrap(), "x").unwrap();
    }
}
