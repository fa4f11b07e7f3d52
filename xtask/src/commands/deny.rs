//! Dependencies: their licences, sources and bans, and what is known against them (RustSec's advisories).
//!
//! By cargo-deny, where it is installed. The advisories are fetched; where that cannot be, the step says so and the rest
//! counts all the same.

use crate::process::{command, output, run};

const CONFIG: &str = ".cargo/deny.toml";

/// Everything that can be checked here; what cannot is named.
pub(crate) fn check() -> anyhow::Result<()> {
    if output(command("cargo").args(["deny", "--version"])).is_err() {
        println!("skipped: cargo-deny is not installed (cargo install --locked cargo-deny)");
        return Ok(());
    }
    deny(&["check", "--hide-inclusion-graph", "bans", "licenses", "sources"])?;
    match output(command("cargo").args(["deny", "--config", CONFIG, "fetch", "db"])) {
        Ok(_) => deny(&["--offline", "check", "--hide-inclusion-graph", "advisories"]),
        Err(error) => {
            println!("skipped: advisories: the database cannot be fetched: {error:#}");
            Ok(())
        }
    }
}

fn deny(arguments: &[&str]) -> anyhow::Result<()> {
    run(command("cargo").args(["deny", "--config", CONFIG]).args(arguments))
}
