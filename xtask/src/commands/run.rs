//! `cargo xtask run [-- ARGS]`: builds the kernel object if its sources changed, builds the agent for release with
//! the simulated workers in it, and becomes `warmpath serve`.

use std::os::unix::process::CommandExt as _;

use anyhow::Context as _;

use crate::{
    bpffs,
    commands::ebpf,
    process::{command, run},
    record,
    toolchain::Unavailable,
    workspace,
};

pub(crate) fn main(args: &[String]) -> anyhow::Result<()> {
    if let Err(changed) = record::check() {
        println!("{changed:#}: building it");
        if let Err(error) = ebpf::write() {
            let why = error.downcast::<Unavailable>()?;
            println!("going on with the committed object: {why}");
        }
    }
    let binary = workspace::target().join("release/warmpath");
    if !binary.exists() {
        println!("building for release; the first time takes some minutes");
    }
    run(command("cargo").args(["build", "--release", "--package", "router-agent", "--features", "sim"]))?;
    bpffs::ensure_mounted();
    // Becomes the gateway: signals and the exit status need no forwarding. `--sim-workers` counts only where no
    // worker is configured.
    let error = command(&binary.to_string_lossy()).args(["serve", "--sim-workers", "3"]).args(args).exec();
    Err(error).with_context(|| binary.display().to_string())
}
