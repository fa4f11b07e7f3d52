//! What came of it, as a section of a document.

use std::fmt;

use super::{Args, gateway::Vitals, load::Tally, trouble};
use crate::verdict::{mib, write_findings};

/// A run, and its accounts.
pub(super) struct Report<'a> {
    pub(super) args: &'a Args,
    pub(super) warm_up: Tally,
    pub(super) tally: Tally,
    pub(super) troubles: trouble::Log,
    pub(super) before: Vitals,
    pub(super) after: Vitals,
}

impl Report<'_> {
    /// What must not be, in words.
    pub(super) fn findings(&self) -> Vec<String> {
        let mut findings = self.tally.findings(self.args.soak.is_some());
        findings.extend(self.warm_up.findings(true).into_iter().map(|finding| format!("warm-up: {finding}")));
        findings.extend(self.after.against(&self.before));
        findings
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { args, tally, before, after, .. } = self;
        let Args { rate, workers, duration, soak, seed, .. } = args;
        match soak {
            Some(soak) => writeln!(
                f,
                "{rate} requests/s over {workers} workers for {soak:?}, no trouble, seed {seed}."
            )?,
            None => writeln!(
                f,
                "{rate} requests/s over {workers} workers for {duration:?}, seed {seed}: {}.",
                self.troubles.summary()
            )?,
        }
        writeln!(f, "\n| answers | |\n|---|---|")?;
        writeln!(f, "| requests | {} |", tally.requests())?;
        writeln!(f, "| exact, every byte | {} |", tally.exact)?;
        writeln!(f, "| honestly cut behind the first byte | {} |", tally.cut)?;
        writeln!(f, "| cut before the first byte | {} |", tally.cut_at_once)?;
        writeln!(f, "| the client hung up | {} |", tally.left)?;
        writeln!(f, "| refused | {} |", tally.refused.values().sum::<u64>())?;
        writeln!(f, "| wrong | {} |", tally.wrong)?;
        writeln!(f, "\n| the gateway | before | after |\n|---|---|---|")?;
        writeln!(f, "| RSS, MiB | {:.1} | {:.1} |", mib(before.rss_kib), mib(after.rss_kib))?;
        writeln!(f, "| file descriptors | {} | {} |", before.descriptors, after.descriptors)?;
        writeln!(f, "| threads | {} | {} |", before.threads, after.threads)?;
        for (name, value) in &after.open {
            writeln!(f, "| {name} | {} | {value} |", before.open.get(name).copied().unwrap_or_default())?;
        }
        write_findings(f, &self.findings())
    }
}
