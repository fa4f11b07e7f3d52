//! `http://HOST:PORT` or `https://HOST:PORT`: where a worker listens.

use std::{fmt, str::FromStr};

use http::Uri;

/// Where a worker listens: HTTP on a host and a port, plain or over TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkerUrl {
    /// A name or an address, IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Over TLS.
    pub is_tls: bool,
}

/// Why a worker's URL cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WorkerUrlError {
    /// It does not parse as a URL.
    #[error("not a URL: expected http://HOST:PORT, e.g. http://127.0.0.1:8000")]
    Malformed,
    /// Another scheme.
    #[error("scheme {0:?} is not supported: workers are reached over http:// or https://")]
    Scheme(String),
    /// Something behind the authority.
    #[error("a path ({0:?}) is not supported: give http://HOST:PORT only, requests keep their own path")]
    Path(String),
}

impl FromStr for WorkerUrl {
    type Err = WorkerUrlError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (scheme, _) = s.split_once("://").ok_or(WorkerUrlError::Malformed)?;
        let is_tls = match scheme {
            scheme if scheme.eq_ignore_ascii_case("http") => false,
            scheme if scheme.eq_ignore_ascii_case("https") => true,
            other => return Err(WorkerUrlError::Scheme(other.to_owned())),
        };
        let uri: Uri = s.parse().map_err(|_| WorkerUrlError::Malformed)?;
        let authority = uri.authority().ok_or(WorkerUrlError::Malformed)?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(WorkerUrlError::Malformed);
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(WorkerUrlError::Path(
                uri.path_and_query().map_or_else(String::new, ToString::to_string),
            ));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = match authority.port() {
            None if is_tls => 443,
            None => 80,
            Some(_) => authority.port_u16().filter(|p| *p != 0).ok_or(WorkerUrlError::Malformed)?,
        };
        Ok(Self { host, port, is_tls })
    }
}

impl WorkerUrl {
    /// `HOST:PORT`, as in a `Host` header.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for WorkerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}
