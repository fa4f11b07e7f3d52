//! bpf-linker, built against the LLVM inside rustc's own distribution: no LLVM package, no headers, and always the
//! LLVM that wrote the bitcode.
//!
//! bpf-linker asks for nothing but `$LLVM_PREFIX/lib/libLLVM.so`; two symbolic links make rustc's library look like
//! that (the second carries the name by which the linker's run path finds it, so they must stay).

use std::{fs, io, os::unix::fs::symlink, path::PathBuf};

use anyhow::Context as _;

use crate::{
    process::{command, output},
    toolchain::{Toolchain, Unavailable},
    workspace,
};

pub(crate) const VERSION: &str = "0.13.0";

/// The linker for `toolchain`, built if it is not there: about 45 s, once.
pub(crate) fn locate(toolchain: &Toolchain) -> anyhow::Result<PathBuf> {
    let root = workspace::tools().join(format!("bpf-linker-{VERSION}-llvm-{}", toolchain.llvm));
    let linker = root.join("bin/bpf-linker");
    // It is run, not only looked for: its libraries may have moved.
    if output(command(&linker.to_string_lossy()).arg("--version")).is_ok() {
        return Ok(linker);
    }
    let library = toolchain.libllvm()?;
    let prefix = root.join("llvm");
    let lib = prefix.join("lib");
    fs::create_dir_all(&lib).with_context(|| lib.display().to_string())?;
    for link in [lib.join("libLLVM.so"), lib.join(library.file_name().expect("a file"))] {
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => symlink(&library, &link).with_context(|| link.display().to_string())?,
        }
    }
    println!("building bpf-linker {VERSION} against rustc's LLVM {} (once, about a minute)", toolchain.llvm);
    let major = toolchain.llvm.split('.').next().unwrap_or_default();
    let build = root.join("target");
    let mut install = toolchain.cargo();
    install
        .env("LLVM_PREFIX", &prefix)
        .args(["install", &format!("bpf-linker@{VERSION}"), "--locked", "--force", "--no-default-features"])
        .args(["--features", &format!("llvm-{major}"), "--root"])
        .arg(&root)
        .arg("--target-dir")
        .arg(&build);
    output(&mut install).map_err(|error| Unavailable(format!("bpf-linker cannot be built: {error:#}")))?;
    fs::remove_dir_all(&build).with_context(|| build.display().to_string())?;
    output(command(&linker.to_string_lossy()).arg("--version")).context("the linker that was just built")?;
    Ok(linker)
}
