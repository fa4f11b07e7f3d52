//! `cargo xtask test`: everything that must hold before a change is merged. All steps run, whatever fails on the
//! way, and the failed ones are named at the end.
//!
//! Installs what it misses (rustfmt, clippy, the kernel object's tool-chain, redis-server) and says so. The kernel tests need
//! root; without it they say what they skipped.

use std::time::Instant;

use anyhow::bail;

use crate::{
    bpffs,
    commands::{deny, ebpf},
    process::{command, output, run},
    workspace,
};

/// The last step.
const TESTS: &str = "tests";

type Step = (&'static str, fn() -> anyhow::Result<()>);

/// In this order; the tests last, so that the runner's own summary closes the output.
const STEPS: [Step; 7] = [
    ("format", || cargo(&["fmt", "--all", "--check"])),
    ("clippy", || cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])),
    ("clippy with `sim`", || {
        let package = ["--package", "router-agent", "--features", "sim", "--all-targets"];
        cargo(&[&["clippy", "--quiet"][..], &package, &["--", "-D", "warnings"]].concat())
    }),
    ("kernel object", || ebpf::check()),
    ("dependencies", deny::check),
    ("documentation tests", || cargo(&["test", "--quiet", "--workspace", "--doc"])),
    (TESTS, tests),
];

pub(crate) fn main() -> anyhow::Result<()> {
    ensure_components();
    ensure_redis();
    bpffs::ensure_mounted();
    let mut failed = Vec::new();
    for (name, step) in STEPS {
        println!("── {name}");
        let start = Instant::now();
        let result = step();
        let seconds = start.elapsed().as_secs_f32();
        match result {
            // The test runner has just said so itself, with its own figures.
            Ok(()) if name == TESTS => {}
            Ok(()) => println!("── {name}: ok, {seconds:.1} s"),
            Err(error) => {
                println!("── {name}: FAILED, {seconds:.1} s: {error:#}");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed: {}", failed.join(", "))
}

fn tests() -> anyhow::Result<()> {
    // The behaviour tests run the binary, which no test target would build.
    cargo(&["build", "--quiet", "--package", "router-agent"])?;
    let mut tests = command("cargo");
    tests.env("WARMPATH_BIN", workspace::target().join("debug/warmpath"));
    if output(command("cargo").args(["nextest", "--version"])).is_ok() {
        return run(tests.args(["nextest", "run", "--workspace", "--no-fail-fast"]));
    }
    run(tests.args(["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"]))
}

fn cargo(args: &[&str]) -> anyhow::Result<()> {
    run(command("cargo").args(args))
}

/// rustup's minimal profile has neither.
fn ensure_components() {
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if output(command("cargo").args([subcommand, "--version"])).is_ok() {
            continue;
        }
        println!("installing {component} (rustup component add)");
        if let Err(error) = output(command("rustup").args(["component", "add", component])) {
            println!("{error:#}");
        }
    }
}

/// For the tests of shared state, which say `skipped` without it.
fn ensure_redis() {
    if output(command("redis-server").arg("--version")).is_ok() {
        return;
    }
    println!("installing redis-server (apt-get install redis-server)");
    let install = ["install", "--yes", "--no-install-recommends", "redis-server"];
    if let Err(error) = output(command("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(install)) {
        println!("{error:#}");
    }
}
