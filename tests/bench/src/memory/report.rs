//! The figures as a table.

use std::fmt;

use crate::verdict::{mib, write_findings};

/// One scenario's.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) title: String,
    /// Of a fresh gateway.
    pub(super) before_kib: u64,
    /// With all clients there.
    pub(super) held_kib: u64,
    /// The highest ever.
    pub(super) peak_kib: u64,
    /// When they had left.
    pub(super) after_kib: u64,
    /// What became of them.
    pub(super) outcome: String,
    /// What must not be.
    pub(super) findings: Vec<String>,
}

/// All of them.
pub(super) struct Report<'a> {
    pub(super) rows: &'a [Row],
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "RSS of the gateway in MiB; a fresh one for each row.\n")?;
        writeln!(f, "| clients | before | with them | highest | after | what became of them |")?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for Row { title, before_kib, held_kib, peak_kib, after_kib, outcome, .. } in self.rows {
            let [before, held, peak, after] =
                [before_kib, held_kib, peak_kib, after_kib].map(|kib| mib(*kib));
            writeln!(f, "| {title} | {before:.1} | {held:.1} | {peak:.1} | {after:.1} | {outcome} |")?;
        }
        let findings: Vec<_> = self
            .rows
            .iter()
            .flat_map(|row| row.findings.iter().map(move |finding| format!("{}: {finding}", row.title)))
            .collect();
        write_findings(f, &findings)
    }
}
