//! `tls:`, `admin_tls:` and a worker's `tls:`.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, WorkerUrl};
use crate::tls::WorkerTls;

/// A port's certificate, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// The chain, the server's own certificate first (PEM).
    pub certificate: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
    /// Who issues clients' certificates; then a client without one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// The oldest version of the protocol that is spoken.
    #[serde(default)]
    pub min_version: TlsVersion,
}

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, serde::Serialize, schemars::JsonSchema)]
pub enum TlsVersion {
    /// RFC 5246.
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// RFC 8446.
    #[serde(rename = "1.3")]
    V1_3,
}

/// A worker's, as written.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WorkerWritten {
    /// Who issues its certificate (PEM); the system's where not set.
    ca: Option<PathBuf>,
    /// The name in its certificate; the URL's host where not set.
    server_name: Option<String>,
}

impl WorkerWritten {
    /// How the worker at `url` is known; none over plain HTTP.
    pub(super) fn resolve(written: Option<Self>, url: &WorkerUrl) -> Result<Option<WorkerTls>, ConfigError> {
        if !url.is_tls {
            return match written {
                None => Ok(None),
                Some(_) => Err(ConfigError::Value {
                    key: "workers.tls",
                    message: format!("{url} is reached without TLS: write https://, or leave `tls` out"),
                }),
            };
        }
        let Self { ca, server_name } = written.unwrap_or_default();
        let name = server_name.as_deref().unwrap_or(&url.host);
        WorkerTls::load(name, ca.as_deref())
            .map(Some)
            .map_err(|source| ConfigError::Tls { key: "workers.tls", source })
    }

    /// How workers are known whose addresses are not known yet: all of them by one name.
    pub(super) fn resolve_for_all(
        written: Option<Self>,
        is_tls: bool,
        key: &'static str,
    ) -> Result<Option<WorkerTls>, ConfigError> {
        let wrong = |message: &str| Err(ConfigError::Value { key, message: message.to_owned() });
        match (written, is_tls) {
            (None, false) => Ok(None),
            (Some(_), false) => {
                wrong("workers are reached without TLS: write `scheme: https`, or leave `tls` out")
            }
            (Some(Self { ca, server_name: Some(name) }), true) => WorkerTls::load(&name, ca.as_deref())
                .map(Some)
                .map_err(|source| ConfigError::Tls { key, source }),
            (_, true) => {
                wrong("with https, `tls` needs the `server_name` that is in the workers' certificates")
            }
        }
    }
}
