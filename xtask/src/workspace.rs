//! Where things are.

use std::{env, path::PathBuf};

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    // Of the running `cargo run`, not of the build: a copied target directory must not lead elsewhere.
    let manifest =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().expect("xtask lies in the workspace").to_owned()
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |target| root().join(target))
}

/// Tools that xtask builds for itself; not in version control.
pub(crate) fn tools() -> PathBuf {
    root().join("tools")
}

/// Cargo's home, where the registry's sources are unpacked.
pub(crate) fn cargo_home() -> anyhow::Result<PathBuf> {
    match env::var_os("CARGO_HOME") {
        Some(home) => Ok(PathBuf::from(home)),
        None => Ok(env::home_dir()
            .ok_or_else(|| anyhow::anyhow!("neither CARGO_HOME nor HOME is set"))?
            .join(".cargo")),
    }
}

/// Whether this is a CI run: there, what cannot be checked is a failure.
pub(crate) fn is_ci() -> bool {
    env::var("CI").is_ok_and(|ci| !ci.is_empty() && ci != "false" && ci != "0")
}
