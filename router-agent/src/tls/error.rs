//! What can be wrong with certificates and keys: the file, and what was expected in it.

use std::{io, path::PathBuf};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file as configured.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A file has not what it should have.
    #[error("{}: {what}", path.display())]
    Content {
        /// The file as configured.
        path: PathBuf,
        /// What was found, and what would be right.
        what: String,
    },
    /// Certificate and key are each right, and not for each other.
    #[error("{} is not the key of the first certificate in {}: {source}", key.display(), certificate.display())]
    Pair {
        /// The chain's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// rustls's word.
        source: Box<rustls::Error>,
    },
    /// A worker cannot be asked for by this name.
    #[error("{0:?} is no host name or address that a certificate could be for")]
    ServerName(String),
    /// Nothing to check a worker's certificate by.
    #[error("this system has no root certificates: install them (ca-certificates), or give tls.ca")]
    NoRoots,
    /// A defect of this program, or of its cryptography.
    #[error("TLS: {0}")]
    Other(Box<rustls::Error>),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self::Other(Box::new(error))
    }
}
