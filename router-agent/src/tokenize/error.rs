//! Why a tokenizer cannot be used, and why one request's tokens are not known.
//!
//! The first is the operator's and ends the start with a message that names the file. The second is nobody's error: the
//! request is routed by its bytes, as if there were no tokenizer, and counted by its reason.

use std::{io, path::PathBuf};

/// A directory of `tokenizers:` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file that must be there cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `tokenizer.json` or `tokenizer_config.json` is not what it should be.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The chat template does not compile.
    #[error("chat template of {}: {message}", path.display())]
    Template {
        /// The directory.
        path: PathBuf,
        /// The template engine's word, with the line.
        message: String,
    },
    /// The system gives no threads.
    #[error("cannot start the threads that tokenise: {0}")]
    Threads(String),
}

/// Why the exact tokens of a request are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// The request holds what only the engine can count or see: media, a template of its own, truncation.
    #[error("not tokenised here: {0}")]
    Unsupported(&'static str),
    /// The template or the tokenizer refuses it; the worker will mostly refuse it, too.
    #[error("cannot be tokenised: {0}")]
    Refused(String),
    /// The queue is full.
    #[error("too many requests wait to be tokenised")]
    Busy,
    /// The tokens did not come in time.
    #[error("the tokens did not come in time")]
    Late,
    /// The worker that was asked gave no usable answer.
    #[error("no tokens from a worker: {0}")]
    Worker(String),
}

impl Unknown {
    /// Every label, for metrics.
    pub const LABELS: [&str; 5] = ["unsupported", "refused", "busy", "late", "worker_failed"];

    /// A bounded label for metrics.
    pub fn label(&self) -> &'static str {
        Self::LABELS[match self {
            Self::Unsupported(_) => 0,
            Self::Refused(_) => 1,
            Self::Busy => 2,
            Self::Late => 3,
            Self::Worker(_) => 4,
        }]
    }
}
