//! `cargo xtask ebpf`: builds the kernel object from `router-ebpf` and writes it, with its record, to where the
//! agent embeds it. `--check` builds it elsewhere and fails unless every byte is the same.
//!
//! The object does not depend on where it is built: the compiler, the linker and the profile are fixed here (not in
//! `Cargo.toml`, whose profiles are for the gateway), and every path is replaced by a constant.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, bail};

use crate::{
    elf, linker,
    process::{output, shown},
    record,
    toolchain::{Toolchain, Unavailable},
    workspace,
};

const TARGET: &str = "bpfel-unknown-none";

/// The object's architecture where programs look at registers; ours do not, so one object serves all.
const ARCHITECTURE: &str = "--cfg=bpf_target_arch=\"x86_64\"";

/// Flags for rustc that hold no path. Debug information together with `--btf` is what makes BTF; what remains of it
/// is stripped afterwards.
const RUSTC_FLAGS: [&str; 3] = [ARCHITECTURE, "-Cdebuginfo=2", "-Clink-arg=--btf"];

const PROFILE: [&str; 6] = [
    "profile.ebpf.inherits=\"release\"",
    "profile.ebpf.codegen-units=1",
    "profile.ebpf.lto=\"off\"", // the linker sees all bitcode anyway
    "profile.ebpf.debug=2",
    "profile.ebpf.debug-assertions=false",
    "profile.ebpf.overflow-checks=false",
];

/// All flags that decide the object's bytes, for the record.
pub(crate) fn flags_of_record() -> Vec<&'static str> {
    RUSTC_FLAGS.iter().chain(&PROFILE).copied().collect()
}

/// Builds the object and replaces the committed one.
pub(crate) fn write() -> anyhow::Result<()> {
    let object = build()?;
    let bytes = fs::read(&object)?;
    fs::write(record::object(), &bytes).context("writing the object")?;
    fs::write(record::file(), record::of(&bytes)?).context("writing the record")?;
    println!("{} ({} bytes, sha256 {})", relative(&record::object()), bytes.len(), record::sha256(&bytes));
    Ok(())
}

/// Fails unless the committed object is, byte by byte, what the sources give.
pub(crate) fn check() -> anyhow::Result<()> {
    record::check()?;
    let built = match build() {
        Ok(object) => fs::read(object)?,
        // The record agrees; only the bytes remain unproven.
        Err(error) => match error.downcast_ref::<Unavailable>() {
            Some(why) if !workspace::is_ci() => {
                println!("skipped: rebuilding the kernel object: {why}");
                return Ok(());
            }
            _ => return Err(error),
        },
    };
    let committed = fs::read(record::object())?;
    if built == committed {
        println!("the committed kernel object is that of the sources ({} bytes)", built.len());
        return Ok(());
    }
    let sections = elf::differing(&built, &committed);
    bail!(
        "the sources give another kernel object ({} bytes, committed {}); sections that differ: {}; \
         `cargo xtask ebpf` rebuilds it",
        built.len(),
        committed.len(),
        if sections.is_empty() { "none, only the layout".to_owned() } else { sections.join(", ") }
    )
}

/// Builds and strips; returns the object's path below the target directory.
fn build() -> anyhow::Result<PathBuf> {
    let start = Instant::now();
    let toolchain = Toolchain::locate()?;
    let linker = linker::locate(&toolchain)?;
    let tools = start.elapsed();

    let target = workspace::target().join("ebpf");
    let cargo_home = workspace::cargo_home()?;
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let mut flags: Vec<String> = RUSTC_FLAGS.iter().map(ToString::to_string).collect();
    flags.push(format!("-Clinker={}", linker.display()));
    flags.push(remap(&workspace::root(), "/src"));
    flags.push(remap(&cargo_home.join("registry/src"), "/cargo"));
    flags.push(remap(&toolchain.sysroot.join("lib/rustlib/src/rust"), "/rust"));

    let mut cargo = toolchain.cargo();
    cargo
        // aya-ebpf uses `asm_experimental_arch`, and core is built from source: both are unstable.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["build", "--quiet", "--locked", "--package", "router-ebpf", "--bins", "--profile", "ebpf"])
        .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(&target);
    for setting in PROFILE {
        cargo.args(["--config", setting]);
    }
    output(&mut cargo).map_err(|error| unreachable_registry(error, &shown(&cargo)))?;

    let folder = target.join(TARGET).join("ebpf");
    let stripped = folder.join("warmpath.bpf.o");
    toolchain.strip(&folder.join("warmpath-ebpf"), &stripped)?;
    println!(
        "kernel object built by {} in {:.1} s ({:.1} s to have the tools)",
        toolchain.version,
        start.elapsed().as_secs_f32(),
        tools.as_secs_f32()
    );
    Ok(stripped)
}

/// Tells a machine without a network from sources that do not compile.
fn unreachable_registry(error: anyhow::Error, command: &str) -> anyhow::Error {
    let said = format!("{error:#}");
    let signs = [
        "Could not resolve host",
        "Could not connect",
        "failed to download",
        "--offline",
        "Timeout was reached",
    ];
    if signs.iter().any(|sign| said.contains(sign)) {
        return Unavailable(format!("`{command}` cannot reach the registry: {said}")).into();
    }
    error
}

fn relative(path: &Path) -> String {
    path.strip_prefix(workspace::root()).unwrap_or(path).display().to_string()
}
