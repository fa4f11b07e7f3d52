//! What the committed kernel object was built from: a text file beside it with the hashes of the object and of
//! everything that decides its bytes. It tells, without any tool-chain, whether the object is that of the sources,
//! and if not, which of them changed.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use crate::{linker, toolchain, workspace};

const HEADER: &str = "# Written by `cargo xtask ebpf`, compared by `cargo xtask ebpf --check`.\n";

/// The committed object, relative to the workspace.
pub(crate) fn object() -> PathBuf {
    workspace::root().join("router-agent/src/kernel/warmpath.bpf.o")
}

/// The record beside it.
pub(crate) fn file() -> PathBuf {
    object().with_extension("txt")
}

/// The record of an object with these bytes, built from the sources as they are now.
pub(crate) fn of(object: &[u8]) -> anyhow::Result<String> {
    let mut record = HEADER.to_owned();
    writeln!(record, "object {}", sha256(object))?;
    writeln!(record, "rustc {}", toolchain::RELEASE)?;
    writeln!(record, "bpf-linker {}", linker::VERSION)?;
    writeln!(record, "flags {}", super::commands::ebpf::flags_of_record().join(" "))?;
    let root = workspace::root();
    let lock = read(&root.join("Cargo.lock"))?;
    for package in kernel_packages(&String::from_utf8_lossy(&lock)) {
        writeln!(record, "package {package}")?;
    }
    let mut sources = Vec::new();
    for folder in ["router-ebpf", "router-common"] {
        collect(&root.join(folder), &mut sources)?;
    }
    sources.sort();
    for path in sources {
        let name = path.strip_prefix(&root).expect("found below it").display();
        writeln!(record, "source {name} {}", sha256(&read(&path)?))?;
    }
    Ok(record)
}

/// Fails, naming the lines that differ, unless the committed object and record are those of the present sources.
pub(crate) fn check() -> anyhow::Result<()> {
    let committed = String::from_utf8(read(&file())?).context("the record is no text")?;
    let present = of(&read(&object())?)?;
    let (only_committed, only_present) = (minus(&committed, &present), minus(&present, &committed));
    if only_committed.is_empty() && only_present.is_empty() {
        return Ok(());
    }
    let mut what: Vec<_> = only_committed.iter().chain(&only_present).map(|line| subject(line)).collect();
    what.sort_unstable();
    what.dedup();
    bail!("the committed kernel object is not that of the sources; changed since: {}", what.join(", "))
}

fn minus<'a>(of: &'a str, without: &str) -> Vec<&'a str> {
    of.lines().filter(|line| !without.lines().any(|other| other == *line)).collect()
}

/// A record line without its hash or version.
fn subject(line: &str) -> &str {
    let mut words = line.split(' ');
    match (words.next(), words.next()) {
        (Some("source" | "package"), Some(name)) => name,
        (Some(kind), _) => kind,
        (None, _) => line,
    }
}

/// The packages whose code ends in the object: name, version, checksum. (Those that only help to build it change
/// nothing without showing in its bytes.)
fn kernel_packages(lock: &str) -> Vec<String> {
    let packages = lock.split("[[package]]").filter_map(|block| {
        let field = |name: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
            Some(line.trim_matches('"').to_owned())
        };
        let name = field("name")?;
        let kernel = name.starts_with("aya-ebpf") || name.starts_with("aya-log-ebpf");
        kernel.then(|| {
            format!(
                "{name} {} {}",
                field("version").unwrap_or_default(),
                field("checksum").unwrap_or_default()
            )
        })
    });
    packages.collect()
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let source = path.extension().is_some_and(|extension| extension == "rs" || extension == "toml");
        if path.is_dir() {
            collect(&path, into)?;
        } else if source {
            into.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packages_of_the_object_are_recorded() {
        let lock = "[[package]]\nname = \"aya-ebpf\"\nversion = \"0.2.1\"\nchecksum = \"ab\"\n\n\
                    [[package]]\nname = \"serde\"\nversion = \"1.0.0\"\nchecksum = \"cd\"\n";
        assert_eq!(kernel_packages(lock), ["aya-ebpf 0.2.1 ab"]);
    }

    #[test]
    fn a_changed_line_is_named_by_its_subject() {
        let (old, new) =
            ("source a.rs 11\nsource b.rs 22\n", "source a.rs 11\nsource b.rs 33\nsource c.rs 44\n");
        assert_eq!(minus(old, new), ["source b.rs 22"]);
        assert_eq!(minus(new, old).into_iter().map(subject).collect::<Vec<_>>(), ["b.rs", "c.rs"]);
        assert_eq!(subject("flags -Cdebuginfo=2 -Clto"), "flags");
    }

    #[test]
    fn hashes_are_those_of_sha256sum() {
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
