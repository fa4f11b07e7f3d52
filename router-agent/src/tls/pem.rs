//! Certificates and keys in PEM files.

use std::path::Path;

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
};

use super::TlsError;

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn content(path: &Path, what: impl Into<String>) -> TlsError {
    TlsError::Content { path: path.to_owned(), what: what.into() }
}

/// All certificates of a file, at least one.
pub(super) fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| content(path, format!("broken PEM: {error}")))?;
    if found.is_empty() {
        return Err(content(path, "no certificate in it (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(found)
}

/// The first private key of a file.
pub(super) fn key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound if memchr::memmem::find(pem, b"ENCRYPTED").is_some() => {
            content(path, "the key is encrypted: it must be in clear text, readable by this process only")
        }
        pem::Error::NoItemsFound => content(path, "no private key in it (-----BEGIN PRIVATE KEY-----)"),
        error => content(path, format!("broken PEM: {error}")),
    })
}

/// The authorities of a file.
pub(super) fn authorities(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        store
            .add(certificate)
            .map_err(|error| content(path, format!("no certificate authority: {error}")))?;
    }
    Ok(store)
}
