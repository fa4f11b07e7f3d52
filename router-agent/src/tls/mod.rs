//! TLS by rustls: certificates and keys from files, for the data port, the admin port and connections to workers.
//!
//! TLS 1.2 and 1.3 by ring, no renegotiation, no early data. Certificates are read again when their files change
//! ([`ServerTls::refresh`]); connections that are there go on, and a pair that is wrong leaves the old one in place.

mod client;
mod error;
mod pem;
mod server;
#[cfg(test)]
mod tests;

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;

pub use self::{
    client::{WorkerTls, WorkerTlsStream},
    error::TlsError,
    server::{ClientTlsStream, ServerTls, watch},
};

/// One for all configurations.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
