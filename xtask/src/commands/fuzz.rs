//! `cargo xtask fuzz [TARGET…] [--seconds N]`: runs fuzz targets of `tests/fuzz`, one after the other, under the address
//! sanitizer. Needs a nightly toolchain, and installs `cargo-fuzz` into `tools/` once. Each begins with the inputs of
//! `tests/fuzz/corpus/TARGET`; what it finds worth keeping stays in `target/fuzz/TARGET`, and the next run begins with that,
//! too. `--keep` takes some of the smallest set that covers as much into the committed corpus.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{
    process::{command, output, run},
    workspace,
};

const CARGO_FUZZ: &str = "0.13.2";
/// An input of the committed corpus is no longer than this, in bytes.
const KEPT_BYTES_MAX: usize = 512;
/// Committed inputs of a target: a beginning; what is not among them is found again soon.
const KEPT_MAX: usize = 200;

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Some of `tests/fuzz/fuzz_targets` [default: all]
    targets: Vec<String>,
    /// How long, each
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Renew the committed corpus from what was found so far, instead of fuzzing
    #[arg(long)]
    keep: bool,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let root = workspace::root();
    let known = known_targets(&root.join("tests/fuzz/fuzz_targets"))?;
    for target in &args.targets {
        ensure!(known.contains(target), "no fuzz target `{target}`: there are {}", known.join(", "));
    }
    ensure!(
        output(command("cargo").args(["+nightly", "--version"])).is_ok(),
        "fuzzing needs a nightly toolchain: rustup toolchain install nightly"
    );
    let fuzz = ensure_cargo_fuzz(&root)?;
    let targets = if args.targets.is_empty() { known } else { args.targets.clone() };
    for target in &targets {
        let corpus = Corpus::of(&root, target)?;
        let mut command = cargo_fuzz(&fuzz)?;
        if args.keep {
            corpus.clear_kept()?;
            command.arg(target).args([&corpus.kept, &corpus.found]).args(["--", "-merge=1"]);
            command.arg(format!("-max_len={KEPT_BYTES_MAX}"));
        } else {
            println!("fuzzing {target} for {} s", args.seconds);
            command.arg(target).args([&corpus.found, &corpus.kept]).args(["--", "-print_final_stats=1"]);
            command.arg(format!("-max_total_time={}", args.seconds));
        }
        run(&mut command)?;
        if args.keep {
            corpus.thin_out()?;
        }
    }
    Ok(())
}

fn known_targets(folder: &Path) -> Result<Vec<String>> {
    let files = folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))?;
    let name = |file: PathBuf| Some(file.file_stem()?.to_str()?.to_owned());
    let mut targets: Vec<String> = files.filter_map(|file| name(file.ok()?.path())).collect();
    targets.sort();
    Ok(targets)
}

/// Where a target's inputs are.
struct Corpus {
    /// Committed.
    kept: PathBuf,
    /// Of earlier runs on this machine.
    found: PathBuf,
}

impl Corpus {
    fn of(root: &Path, target: &str) -> Result<Self> {
        let corpus = Self {
            kept: root.join("tests/fuzz/corpus").join(target),
            found: workspace::target().join("fuzz").join(target),
        };
        for folder in [&corpus.kept, &corpus.found] {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(corpus)
    }

    /// Moves what is committed to what was found, so that the merge chooses among all.
    fn clear_kept(&self) -> Result<()> {
        for input in self.kept.read_dir()? {
            let input = input?;
            std::fs::rename(input.path(), self.found.join(input.file_name()))
                .with_context(|| format!("cannot move {}", input.path().display()))?;
        }
        Ok(())
    }
}

impl Corpus {
    /// Leaves [`KEPT_MAX`] of what is committed, of all lengths.
    fn thin_out(&self) -> Result<()> {
        let inputs = self.kept.read_dir()?.collect::<std::io::Result<Vec<_>>>()?;
        let mut inputs = inputs
            .into_iter()
            .map(|input| Ok((input.metadata()?.len(), input.path())))
            .collect::<std::io::Result<Vec<_>>>()?;
        inputs.sort();
        let count = inputs.len();
        let stays =
            |place: usize| count <= KEPT_MAX || place * KEPT_MAX / count != (place + 1) * KEPT_MAX / count;
        for (_, path) in inputs.iter().enumerate().filter(|(place, _)| !stays(*place)).map(|(_, input)| input)
        {
            std::fs::rename(path, self.found.join(path.file_name().context("a file has a name")?))
                .with_context(|| format!("cannot move {}", path.display()))?;
        }
        Ok(())
    }
}

fn cargo_fuzz(folder: &Path) -> Result<std::process::Command> {
    let mut fuzzing = command("cargo");
    fuzzing
        .args(["+nightly", "fuzz", "run", "--fuzz-dir", "tests/fuzz", "--target-dir"])
        .arg(workspace::target().join("fuzz-build"))
        .env("PATH", with_first(folder)?);
    Ok(fuzzing)
}

/// The folder that has `cargo-fuzz`.
fn ensure_cargo_fuzz(root: &Path) -> Result<PathBuf> {
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
