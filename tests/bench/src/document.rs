//! Puts a report into a document, between two marks, so that published figures are those of a run.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Two lines of a document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    pub(crate) begin: &'static str,
    pub(crate) end: &'static str,
}

/// Replaces what is between the marks of the file.
pub(crate) fn write(path: &Path, marks: Marks, section: &str) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let text = replace(&text, marks, section).with_context(|| path.display().to_string())?;
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

pub(crate) fn replace(text: &str, Marks { begin, end }: Marks, section: &str) -> Result<String> {
    let (before, rest) = text.split_once(begin).with_context(|| format!("no line `{begin}`"))?;
    let (_, after) = rest.split_once(end).with_context(|| format!("no line `{end}` after the first mark"))?;
    ensure!(!after.contains(begin), "the first mark is there twice");
    Ok(format!("{before}{begin}\n\n{}\n\n{end}{after}", section.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: Marks = Marks { begin: "<!-- one -->", end: "<!-- two -->" };
    const BEGIN: &str = MARKS.begin;
    const END: &str = MARKS.end;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let text = format!("# Title\n\n{BEGIN}\nold\n{END}\n\nnotes\n");
        let new = replace(&text, MARKS, "| table |\n").unwrap();
        assert_eq!(new, format!("# Title\n\n{BEGIN}\n\n| table |\n\n{END}\n\nnotes\n"));
        assert_eq!(replace(&new, MARKS, "| table |\n").unwrap(), new, "twice is once");
    }

    #[test]
    fn missing_or_doubled_marks_are_errors() {
        assert!(replace("text", MARKS, "x").unwrap_err().to_string().contains(BEGIN));
        assert!(replace(BEGIN, MARKS, "x").unwrap_err().to_string().contains(END));
        let twice = format!("{BEGIN}{END}{BEGIN}{END}");
        assert!(replace(&twice, MARKS, "x").unwrap_err().to_string().contains("twice"));
    }
}
