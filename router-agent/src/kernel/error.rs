//! Errors of the kernel area. None of them ends the gateway: opening turns them into a
//! [`Capability`](super::Capability) with a reason, publishing into a log line and a metric.
//!
//! Each variant says which system call, program or map it was about; the errno is the last source in its chain,
//! which [`chain`] prints (aya's own messages leave it out).

use std::{fmt::Write as _, io, path::PathBuf};

use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError};

/// What can go wrong between this process and its BPF objects.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("loading the BPF object")]
    Load(#[source] EbpfError),
    #[error("the object has no {what} `{name}`: it was built from other sources")]
    Missing { what: &'static str, name: &'static str },
    #[error("program `{name}`")]
    Program { name: &'static str, source: ProgramError },
    #[error("map `{name}`")]
    Map { name: String, source: MapError },
    #[error("mapping `{name}` into memory (mmap)")]
    SharedMemory { name: &'static str, source: io::Error },
    #[error("pinning `{name}`")]
    Pin { name: &'static str, source: PinError },
    #[error("{}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("`{name}` has an entry that this version cannot read")]
    Entry { name: String },
    #[error("{threads} listeners for {expected} data threads")]
    Threads { threads: usize, expected: u32 },
    #[error("this kernel says nothing of its types (CONFIG_DEBUG_INFO_BTF), or has other ones than expected")]
    KernelTypes,
    #[error("{what}")]
    Socket { what: &'static str, source: io::Error },
    #[error("no cgroup2 file system is mounted")]
    NoCgroup,
    #[error("more than {max} rules of the guard")]
    TooManyRules { max: u32 },
    #[error("steering is attached already")]
    Attached,
}

impl KernelError {
    /// The file modes of a pin forbid it, or a security module does.
    pub fn is_permission_denied(&self) -> bool {
        matches!(errno(self), Some(libc::EACCES | libc::EPERM))
    }
}

/// The message of `error` and of everything below it, on one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = first_line(error);
    let mut next = error.source();
    while let Some(error) = next {
        let message = first_line(error);
        // thiserror's `transparent` and aya's `{0}` repeat what is below them.
        if !line.ends_with(&message) {
            let _ = write!(line, ": {message}");
        }
        next = error.source();
    }
    line
}

/// aya puts the verifier's log, hundreds of lines, into the message.
fn first_line(error: &dyn std::error::Error) -> String {
    let message = error.to_string();
    let message = message.split(". Verifier output").next().unwrap_or_default();
    message.lines().next().unwrap_or_default().trim_end_matches([' ', ':']).to_owned()
}

/// The errno at the bottom of `error`'s chain, if a system call failed.
pub(super) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_errno_is_found_and_the_chain_is_one_line() {
        let error = KernelError::Load(EbpfError::MapError(MapError::CreateError {
            name: "workers".into(),
            io_error: io::Error::from_raw_os_error(libc::EPERM),
        }));
        assert_eq!(errno(&error), Some(libc::EPERM));
        let line = chain(&error);
        assert!(line.contains("workers") && line.contains("Operation not permitted"), "{line}");
        assert!(!line.contains('\n'));
    }
}
