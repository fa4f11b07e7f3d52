//! `cargo xtask fuzz [TARGET] [--seconds N]`: runs a fuzz target of `tests/fuzz` for a while, under the address sanitizer.
//! Needs a nightly toolchain, and installs `cargo-fuzz` into `tools/` once. Inputs that were interesting stay in
//! `target/fuzz/TARGET`, and the next run begins with them.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::{
    process::{command, output, run},
    workspace,
};

const CARGO_FUZZ: &str = "0.13.2";

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One of `tests/fuzz/fuzz_targets`
    #[arg(default_value = "framing")]
    target: String,
    /// How long
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let root = workspace::root();
    let targets = root.join("tests/fuzz/fuzz_targets");
    let known: Vec<String> = targets
        .read_dir()
        .with_context(|| format!("cannot read {}", targets.display()))?
        .filter_map(|entry| entry.ok()?.path().file_stem()?.to_str().map(str::to_owned))
        .collect();
    ensure!(known.contains(&args.target), "no fuzz target `{}`: there are {}", args.target, known.join(", "));
    ensure!(
        output(command("cargo").args(["+nightly", "--version"])).is_ok(),
        "fuzzing needs a nightly toolchain: rustup toolchain install nightly"
    );
    let fuzz = ensure_cargo_fuzz(&root)?;
    let corpus = workspace::target().join("fuzz").join(&args.target);
    std::fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let mut fuzzing = command("cargo");
    fuzzing
        .args(["+nightly", "fuzz", "run", "--fuzz-dir", "tests/fuzz", "--target-dir"])
        .arg(workspace::target().join("fuzz-build"))
        .arg(&args.target)
        .arg(&corpus)
        .args(["--", "-print_final_stats=1"])
        .arg(format!("-max_total_time={}", args.seconds))
        .env("PATH", with_first(&fuzz)?);
    run(&mut fuzzing)
}

/// The folder that has `cargo-fuzz`.
fn ensure_cargo_fuzz(root: &Path) -> Result<std::path::PathBuf> {
    let home = root.join("tools").join(format!("cargo-fuzz-{CARGO_FUZZ}"));
    if !home.join("bin/cargo-fuzz").exists() {
        println!("installing cargo-fuzz {CARGO_FUZZ} into tools/ (once)");
        let mut install = command("cargo");
        install.args(["install", "cargo-fuzz", "--locked", "--quiet", "--version", CARGO_FUZZ, "--root"]);
        run(install.arg(&home))?;
    }
    Ok(home.join("bin"))
}

fn with_first(folder: &Path) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
    std::env::join_paths(folders).context("PATH")
}
