//! What was measured, exactly: commit, binaries, versions, machine. A figure without these is a rumour.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::processes::{output, sibling};

/// One program that took part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Program {
    /// As in the table.
    pub(super) name: String,
    pub(super) version: String,
    /// Of the file that was started, where that was built here; of others' programs the version says what they are.
    pub(super) sha256: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Provenance {
    /// Start of the run, UTC.
    pub(super) date: String,
    /// HEAD, with `+changes` where tracked files differ from it.
    pub(super) commit: String,
    pub(super) command: String,
    pub(super) machine: String,
    pub(super) programs: Vec<Program>,
}

impl Provenance {
    pub(super) fn new(contenders: Vec<Program>) -> Result<Self> {
        let mut programs = vec![
            Program {
                name: "vllm-sim".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                sha256: Some(sha256(&sibling("vllm-sim")?)?),
            },
            Program {
                name: "warmpath-bench".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                sha256: Some(sha256(&std::env::current_exe()?)?),
            },
        ];
        for program in contenders {
            if !programs.contains(&program) {
                programs.push(program);
            }
        }
        Ok(Self {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            commit: commit(),
            command: command(std::env::args().skip(1)),
            machine: machine(),
            programs,
        })
    }

    /// One line per program: name, version, the first half of its hash.
    pub(super) fn lines(&self) -> Vec<String> {
        let program = |program: &Program| {
            let hash =
                program.sha256.as_ref().map_or_else(String::new, |hash| format!(", sha256 {}", &hash[..16]));
            format!("{}: {}{hash}", program.name, program.version)
        };
        self.programs.iter().map(program).collect()
    }
}

pub(super) fn sha256(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(format!("{:x}", Sha256::digest(&bytes)))
}

fn commit() -> String {
    let git = |args: &[&str]| output(Path::new("git"), args);
    let Ok(head) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "not a git work tree".to_owned() };
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_ok_and(|files| !files.is_empty());
    if changed { format!("{head}+changes") } else { head }
}

/// As one would type it, without directories: they say where, not what.
fn command(args: impl Iterator<Item = String>) -> String {
    let base = |word: String| match word.rsplit_once('/') {
        Some((before, name)) if before.is_empty() || before.contains('/') || before.contains('=') => {
            let key = before.split_once('=').map_or_else(String::new, |(key, _)| format!("{key}="));
            format!("{key}{name}")
        }
        _ => word,
    };
    let words: Vec<String> = args.map(base).collect();
    format!("cargo xtask bench {}", words.join(" "))
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).map(str::to_owned);
        line.and_then(|line| line.split_once(':').map(|(_, value)| value.trim().to_owned()))
            .unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kib: u64 = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel = kernel.trim().split('-').next().unwrap_or_default();
    format!(
        "{cores} cores ({}), {:.0} GiB, Linux {kernel}",
        field(&read("/proc/cpuinfo"), "model name"),
        kib as f64 / 1_048_576.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_names_files_and_not_where_they_are() {
        let args = [
            "replay",
            "--file",
            "/a/b/trace.jsonl",
            "--json=/tmp/x/out.json",
            "--contenders",
            "warm/hold+100",
        ];
        let shown = command(args.into_iter().map(str::to_owned));
        assert_eq!(
            shown,
            "cargo xtask bench replay --file trace.jsonl --json=out.json --contenders warm/hold+100"
        );
    }

    #[test]
    fn a_hash_is_that_of_the_file() {
        let path = std::env::temp_dir().join(format!("warmpath-bench-sha-{}", std::process::id()));
        std::fs::write(&path, "abc").unwrap();
        let hash = sha256(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
