//! Where a Redis or Valkey server is. No password is ever part of it: what is configured is shown to operators.

use std::{fmt, path::PathBuf, str::FromStr};

use http::Uri;

use super::ConfigError;

/// `redis://HOST:PORT`, `rediss://HOST:PORT` or `unix:///PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisUrl {
    /// Over TCP.
    Tcp {
        /// A name or an address, IPv6 without brackets.
        host: String,
        /// 6379 where not said.
        port: u16,
        /// Whether over TLS.
        is_tls: bool,
        /// The number of the database.
        db: u16,
    },
    /// A socket on this host.
    Unix(PathBuf),
}

/// What is right.
const FORMS: &str = "expected redis://HOST:PORT, rediss://HOST:PORT (with /DB behind it) or unix:///PATH";

impl RedisUrl {
    /// Over TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tcp { is_tls: true, .. })
    }

    /// Whether a cluster's node can be there: they name each other by host and port, and have one database.
    pub fn may_be_of_a_cluster(&self) -> bool {
        matches!(self, Self::Tcp { db: 0, .. })
    }
}

impl FromStr for RedisUrl {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = |message: &str| ConfigError::Value {
            key: "shared.urls",
            // What is in front of the host may be a password.
            message: format!("{:?}: {message}", text.rsplit('@').next().unwrap_or_default()),
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong(FORMS))?;
        let is_tls = match scheme {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            "unix" | "redis+unix" if rest.starts_with('/') => return Ok(Self::Unix(rest.into())),
            _ => return Err(wrong(FORMS)),
        };
        if rest.contains('@') {
            return Err(wrong(
                "a user and a password do not belong here: username, and password or password_file",
            ));
        }
        let uri: Uri = format!("http://{rest}").parse().map_err(|_| wrong(FORMS))?;
        let authority = uri.authority().ok_or_else(|| wrong(FORMS))?;
        let db = uri.path().trim_start_matches('/');
        let db = if db.is_empty() { Ok(0) } else { db.parse() };
        let db = db.map_err(|_| wrong("behind the port stands the number of a database or nothing"))?;
        if uri.query().is_some() || authority.host().is_empty() {
            return Err(wrong(FORMS));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = match authority.port() {
            None => 6379,
            Some(_) => authority.port_u16().filter(|port| *port != 0).ok_or_else(|| wrong(FORMS))?,
        };
        Ok(Self::Tcp { host, port, is_tls, db })
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(out, "unix://{}", path.display()),
            Self::Tcp { host, port, is_tls, db } => {
                let scheme = if *is_tls { "rediss" } else { "redis" };
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(out, "{scheme}://{open}{host}{close}:{port}")?;
                if *db > 0 { write!(out, "/{db}") } else { Ok(()) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_shown_as_it_was_meant() {
        for (text, shown) in [
            ("redis://cache", "redis://cache:6379"),
            ("rediss://[::1]:7000/3", "rediss://[::1]:7000/3"),
            ("valkey://10.0.0.1:1", "redis://10.0.0.1:1"),
            ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ] {
            assert_eq!(text.parse::<RedisUrl>().expect(text).to_string(), shown);
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_no_password_is_repeated() {
        for (text, expected) in [
            ("cache:6379", "expected redis://HOST:PORT"),
            ("http://cache", "expected redis://HOST:PORT"),
            ("unix://relative", "expected redis://HOST:PORT"),
            ("redis://cache:0", "expected redis://HOST:PORT"),
            ("redis://cache/first", "number of a database"),
            ("redis://me:S3CRET@cache", "password_file"),
        ] {
            let error = text.parse::<RedisUrl>().unwrap_err().to_string();
            assert!(error.starts_with("shared.urls: ") && error.contains(expected), "{text}: {error}");
            assert!(!error.contains("S3CRET"), "{error}");
        }
    }
}
