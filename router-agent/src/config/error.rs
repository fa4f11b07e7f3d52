//! What is wrong with a configuration: file, line and key where they are known, and what would be right.

use std::path::PathBuf;

use super::{CidrError, WorkerUrlError};
use crate::tls::TlsError;

/// What is wrong with a configuration, in one line that says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration file {}: {source}", path.display())]
    Read {
        /// The file as it was given.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not what the schema says; the parser's message has line, column and key.
    #[error("configuration file {}: {message}", path.display())]
    Parse {
        /// The file as it was given.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A value is wrong, and it stands in the file.
    #[error("configuration file {}, line {line}: {source}", path.display())]
    InFile {
        /// The file as it was given.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        source: Box<ConfigError>,
    },
    /// A value is out of its range.
    #[error("{key}: {message}")]
    Value {
        /// The configuration key.
        key: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A rule of the guard cannot be used.
    #[error("{key}: {source}")]
    Cidr {
        /// The configuration key.
        key: &'static str,
        /// What is wrong with it.
        source: CidrError,
    },
    /// A certificate or a key cannot be used.
    #[error("{key}: {source}")]
    Tls {
        /// The configuration key.
        key: &'static str,
        /// What is wrong, and in which file.
        source: TlsError,
    },
    /// A worker's URL cannot be used.
    #[error("worker {url:?}: {source}")]
    Worker {
        /// As it was given.
        url: String,
        /// Why not.
        source: WorkerUrlError,
    },
    /// There is nobody to send requests to.
    #[error(
        "no workers configured: give --worker http://HOST:PORT (repeatable), or workers: or discovery: in the configuration \
         file"
    )]
    NoWorkers,
}
