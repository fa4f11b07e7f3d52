//! What reports have in common: amounts of memory, and what was found that must not be.

use std::fmt;

pub(crate) fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// The end of a report.
pub(crate) fn write_findings(f: &mut fmt::Formatter<'_>, findings: &[String]) -> fmt::Result {
    if findings.is_empty() {
        return writeln!(f, "\nNothing found that must not be.");
    }
    writeln!(f, "\nFound, and must not be:\n")?;
    findings.iter().try_for_each(|finding| writeln!(f, "- {finding}"))
}
