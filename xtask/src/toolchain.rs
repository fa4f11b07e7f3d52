//! The compiler that builds the kernel object: pinned, so that the object can be compared byte by byte, whatever
//! compiler builds the rest.
//!
//! rustc 1.95.0 comes from the rustup toolchain of that name, from `stable` where that is 1.95.0, or from whatever
//! `rustc` is where there is no rustup. Its sources (`rust-src`, for `-Z build-std=core`) and, if need be, the
//! toolchain itself are installed through rustup.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::process::{command, output};

/// The compiler of the committed object.
pub(crate) const RELEASE: &str = "1.95.0";

/// The tool-chain cannot be had on this machine: no failure of the sources.
#[derive(Debug)]
pub(crate) struct Unavailable(pub(crate) String);

impl fmt::Display for Unavailable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// A located compiler.
pub(crate) struct Toolchain {
    /// rustup's name for it; `None` without rustup.
    name: Option<String>,
    pub(crate) sysroot: PathBuf,
    /// `rustc 1.95.0 (59807616e 2026-04-14)`
    pub(crate) version: String,
    /// `22.1.2`
    pub(crate) llvm: String,
    host: String,
}

impl Toolchain {
    /// Finds, or installs, the pinned compiler and its sources.
    pub(crate) fn locate() -> anyhow::Result<Self> {
        let toolchain = Self::find()?;
        let library = toolchain.sysroot.join("lib/rustlib/src/rust/library/Cargo.lock");
        if !library.exists() {
            let Some(name) = &toolchain.name else {
                return Err(Unavailable(format!(
                    "rustc's sources are missing ({}): install them, or rustup",
                    library.display()
                ))
                .into());
            };
            println!("installing rust-src for {name} (rustup component add)");
            rustup(&["component", "add", "rust-src", "--toolchain", name])?;
        }
        Ok(toolchain)
    }

    fn find() -> anyhow::Result<Self> {
        let Ok(list) = output(command("rustup").args(["toolchain", "list"])) else {
            return Self::probe(None)?
                .filter(Self::is_pinned)
                .ok_or_else(|| Unavailable(format!("needs rustup, or a rustc {RELEASE}")).into());
        };
        let installed: Vec<_> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
        // A toolchain that is not there must not be asked: some rustups would install it, unasked.
        for channel in [RELEASE, "stable"] {
            let name =
                installed.iter().find(|name| **name == channel || name.starts_with(&format!("{channel}-")));
            if let Some(name) = name
                && let Some(toolchain) = Self::probe(Some(name))?
                && toolchain.is_pinned()
            {
                return Ok(toolchain);
            }
        }
        println!("installing rustc {RELEASE}, the compiler of the kernel object (rustup toolchain install)");
        rustup(&[
            "toolchain",
            "install",
            RELEASE,
            "--profile",
            "minimal",
            "--component",
            "rust-src",
            "--no-self-update",
        ])?;
        Self::probe(Some(RELEASE))?.context("the toolchain that was just installed does not run")
    }

    /// `None` if it does not run.
    fn probe(name: Option<&str>) -> anyhow::Result<Option<Self>> {
        let with = |program: &str| {
            let mut command = command(program);
            if let Some(name) = name {
                command.env("RUSTUP_TOOLCHAIN", name);
            }
            command
        };
        let Ok(verbose) = output(with("rustc").arg("-vV")) else { return Ok(None) };
        let field = |name: &str| {
            let value = verbose.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            value.map(str::to_owned).with_context(|| format!("`rustc -vV` says no {name}"))
        };
        Ok(Some(Self {
            name: name.map(str::to_owned),
            sysroot: output(with("rustc").args(["--print", "sysroot"]))?.trim().into(),
            version: verbose.lines().next().unwrap_or_default().to_owned(),
            llvm: field("LLVM version")?,
            host: field("host")?,
        }))
    }

    fn is_pinned(&self) -> bool {
        self.version.split(' ').nth(1) == Some(RELEASE)
    }

    /// A `cargo` of this toolchain, free of the caller's flags and wrappers.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = command("cargo");
        if let Some(name) = &self.name {
            command.env("RUSTUP_TOOLCHAIN", name);
        }
        for (name, _) in std::env::vars_os() {
            let Some(name) = name.to_str() else { continue };
            if name.starts_with("CARGO_PROFILE_") || name.starts_with("CARGO_TARGET_BPF") {
                command.env_remove(name);
            }
        }
        for name in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_TARGET_DIR",
            // cargo run's: the wrong compiler's libraries, if that is another one.
            "LD_LIBRARY_PATH",
        ] {
            command.env_remove(name);
        }
        command
    }

    /// The shared LLVM that rustc itself uses; it has the BPF back end.
    pub(crate) fn libllvm(&self) -> anyhow::Result<PathBuf> {
        let lib = self.sysroot.join("lib");
        let found = fs::read_dir(&lib).with_context(|| lib.display().to_string())?.find_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.starts_with("libLLVM.so.").then(|| lib.join(name))
        });
        found.ok_or_else(|| {
            Unavailable(format!("this rustc has no shared libLLVM in {}", lib.display())).into()
        })
    }

    /// Copies an object without its debug information (BTF stays), with the tool in rustc's own distribution.
    pub(crate) fn strip(&self, object: &Path, out: &Path) -> anyhow::Result<()> {
        let tool = self.sysroot.join("lib/rustlib").join(&self.host).join("bin/rust-objcopy");
        if !tool.exists() {
            return Err(
                Unavailable(format!("this rustc comes without rust-objcopy ({})", tool.display())).into()
            );
        }
        let mut strip = command(&tool.to_string_lossy());
        strip.env("LD_LIBRARY_PATH", self.sysroot.join("lib")).arg("--strip-debug").arg(object).arg(out);
        output(&mut strip).map(drop)
    }
}

fn rustup(args: &[&str]) -> anyhow::Result<()> {
    output(command("rustup").args(args)).map(drop).map_err(|error| Unavailable(format!("{error:#}")).into())
}
