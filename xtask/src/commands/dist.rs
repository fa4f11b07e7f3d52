//! `cargo xtask dist`: what is handed to others, in `target/dist`: the release binary, a Debian package with manual pages,
//! completions and the systemd unit, and, where a builder is installed, a container image.
//!
//! The binary is linked to the C library and nothing else: certificates, tokenizers and the kernel object are inside. The
//! kernel object is the committed one, so neither a nightly compiler nor a BPF tool-chain is needed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::{process, workspace};

/// Makes the package; installed into target/tools where it is missing.
const CARGO_DEB: &str = "cargo-deb";
const CARGO_DEB_VERSION: &str = "3.8.0";
/// Parts of glibc, and gcc's unwinder: every Debian has them.
const ALLOWED_LIBRARIES: [&str; 4] = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];
/// Where the unit that is installed by hand expects the binary, and where the package puts it.
const BY_HAND: &str = "/usr/local/bin/warmpath";
const PACKAGED: &str = "/usr/bin/warmpath";

/// Builds everything.
pub(crate) fn main() -> anyhow::Result<()> {
    let dist = workspace::target().join("dist");
    fs::create_dir_all(&dist).with_context(|| dist.display().to_string())?;
    let cargo = ["build", "--release", "--locked", "--package", "router-agent"];
    process::run(process::command("cargo").args(cargo))?;
    let binary = workspace::target().join("release/warmpath");
    check_libraries(&binary)?;
    stripped(&binary, &dist.join("warmpath"))?;
    generate(&binary, &dist)?;
    let package = debian_package(&dist)?;
    check_package(&package)?;
    println!("binary:    {}", dist.join("warmpath").display());
    println!("package:   {}", package.display());
    container()
}

/// A copy without the tables that only a debugger reads.
fn stripped(binary: &Path, copy: &Path) -> anyhow::Result<()> {
    match Command::new("strip").arg("--strip-debug").arg("-o").arg(copy).arg(binary).status() {
        Ok(status) if status.success() => Ok(()),
        _ => {
            println!("skipped: stripping the binary (no strip; Debian: binutils)");
            fs::copy(binary, copy)?;
            Ok(())
        }
    }
}

/// What the package has beside the binary.
fn generate(binary: &Path, dist: &Path) -> anyhow::Result<()> {
    let said = |args: &[&str]| process::output(Command::new(binary).args(args));
    let man = dist.join("man");
    fs::create_dir_all(&man)?;
    said(&["man", "--directory", &man.display().to_string()])?;
    for (shell, file) in [("bash", "warmpath.bash"), ("zsh", "_warmpath"), ("fish", "warmpath.fish")] {
        fs::write(dist.join(file), said(&["completions", shell])?)?;
    }
    let unit = workspace::root().join("deploy/systemd/warmpath.service");
    let unit = fs::read_to_string(&unit).with_context(|| unit.display().to_string())?;
    ensure!(unit.contains(BY_HAND), "the unit does not start {BY_HAND}");
    let scripts = dist.join("scripts");
    fs::create_dir_all(&scripts)?;
    fs::write(scripts.join("warmpath.service"), unit.replace(BY_HAND, PACKAGED))?;
    Ok(())
}

/// Fails if the binary needs a library that a plain Debian does not have.
fn check_libraries(binary: &Path) -> anyhow::Result<()> {
    let said = process::output(Command::new("ldd").arg(binary))?;
    let names = said.lines().filter_map(|line| line.split_whitespace().next());
    for name in names.filter(|name| !name.starts_with("linux-vdso")) {
        let file = name.rsplit('/').next().unwrap_or(name);
        ensure!(
            ALLOWED_LIBRARIES.contains(&file),
            "the binary needs {name}, which is no part of the C library"
        );
    }
    Ok(())
}

fn debian_package(dist: &Path) -> anyhow::Result<PathBuf> {
    let tools = workspace::target().join("tools");
    let program = tools.join("bin").join(CARGO_DEB);
    if !program.exists() {
        println!("installing {CARGO_DEB} {CARGO_DEB_VERSION} into {}", tools.display());
        let version = format!("{CARGO_DEB}@{CARGO_DEB_VERSION}");
        let install = ["install", "--quiet", "--locked", &version, "--root"];
        process::run(process::command("cargo").args(install).arg(&tools))?;
    }
    let package = dist.join("warmpath.deb");
    let args = ["deb", "--no-build", "--quiet", "--package", "router-agent", "--output"];
    process::run(process::command(&program.display().to_string()).args(args).arg(&package))?;
    Ok(package)
}

/// Unpacks the package and asks its binary.
fn check_package(package: &Path) -> anyhow::Result<()> {
    let root = workspace::target().join("dist/unpacked");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let Ok(status) = Command::new("dpkg-deb").arg("-x").arg(package).arg(&root).status() else {
        println!("skipped: looking into the package (dpkg-deb is not installed)");
        return Ok(());
    };
    ensure!(status.success(), "dpkg-deb cannot unpack {}", package.display());
    for file in [
        "usr/lib/systemd/system/warmpath.service",
        "usr/lib/sysusers.d/warmpath.sysusers.conf",
        "usr/share/warmpath/warmpath.schema.json",
        "usr/share/man/man1/warmpath.1.gz",
        "etc/warmpath/warmpath.yaml",
    ] {
        ensure!(root.join(file).exists(), "the package has no /{file}");
    }
    let config = root.join("etc/warmpath/warmpath.yaml");
    let check = ["check", &config.display().to_string(), "--offline"].map(str::to_owned);
    process::output(Command::new(root.join("usr/bin/warmpath")).args(check))?;
    let unit = root.join("usr/lib/systemd/system/warmpath.service");
    ensure!(fs::read_to_string(&unit)?.contains(PACKAGED), "the unit does not start {PACKAGED}");
    Ok(())
}

/// Builds the image with whatever builder there is.
fn container() -> anyhow::Result<()> {
    for builder in ["podman", "docker", "buildah"] {
        // A client whose daemon does not run cannot build either.
        if Command::new(builder).arg("info").output().is_ok_and(|output| output.status.success()) {
            let args = ["build", "--file", "deploy/container/Containerfile", "--tag", "warmpath", "."];
            process::run(process::command(builder).args(args))?;
            println!("image:     warmpath ({builder})");
            return Ok(());
        }
    }
    println!("skipped: the container image (neither podman nor docker nor buildah is installed and running)");
    Ok(())
}
