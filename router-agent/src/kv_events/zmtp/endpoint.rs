//! ZeroMQ endpoints as vLLM's `--kv-events-config` writes them: `tcp://HOST:PORT`, `tcp://*:PORT`, `ipc://PATH`.

use std::{fmt, path::PathBuf, str::FromStr};

/// Where a socket is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A host, `*` for every address, and a port.
    Tcp {
        /// Name or address, IPv6 without brackets.
        host: String,
        /// Never 0.
        port: u16,
    },
    /// A socket in the file system: of this host.
    Ipc(PathBuf),
}

/// Why a text is no endpoint that can be used.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum EndpointError {
    /// It does not parse.
    #[error("{0:?} is no endpoint: expected tcp://HOST:PORT, tcp://*:PORT or ipc://PATH")]
    Malformed(String),
    /// `inproc://` stays inside the worker's process.
    #[error("{0:?} cannot be reached from another process: give the worker a tcp:// or ipc:// endpoint")]
    Inproc(String),
}

/// vLLM's rule for its publisher: whether it binds the endpoint (and we connect), or connects to it (and we bind). Its
/// replay socket always binds.
pub fn worker_binds(endpoint: &str) -> bool {
    endpoint.contains('*')
        || endpoint.contains("::")
        || endpoint.starts_with("ipc://")
        || endpoint.starts_with("inproc://")
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let malformed = || EndpointError::Malformed(text.to_owned());
        match text.split_once("://").ok_or_else(malformed)? {
            ("tcp", address) => {
                let (host, port) = address.rsplit_once(':').ok_or_else(malformed)?;
                let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(malformed)?;
                let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
                if host.is_empty() || host.contains(['/', ';', ' ']) {
                    return Err(malformed());
                }
                Ok(Self::Tcp { host: host.to_owned(), port })
            }
            ("ipc", path) if !path.is_empty() => Ok(Self::Ipc(path.into())),
            ("inproc", _) => Err(EndpointError::Inproc(text.to_owned())),
            _ => Err(malformed()),
        }
    }
}

impl Endpoint {
    /// Where to connect to what a worker on `worker_host` has bound here: a wildcard stands for all of its addresses.
    #[must_use]
    pub fn on_host(&self, worker_host: &str) -> Self {
        match self {
            Self::Tcp { host, port } if matches!(host.as_str(), "*" | "0.0.0.0" | "::") => {
                Self::Tcp { host: worker_host.to_owned(), port: *port }
            }
            other => other.clone(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Ipc(path) => write!(f, "ipc://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written_back() {
        for text in [
            "tcp://127.0.0.1:5557",
            "tcp://*:5557",
            "tcp://[::1]:5557",
            "tcp://gpu-1:1",
            "ipc:///tmp/kv.sock",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        let inproc = "inproc://x".parse::<Endpoint>().unwrap_err();
        assert!(inproc.to_string().contains("another process"), "{inproc}");
        for wrong in [
            "",
            "tcp://",
            "tcp://a",
            "tcp://a:0",
            "tcp://a:70000",
            "tcp://:1",
            "udp://a:1",
            "ipc://",
            "5557",
            "tcp://a/b:1",
        ] {
            let error = wrong.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains("tcp://HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn who_binds_follows_vllm() {
        for (endpoint, binds) in [
            ("tcp://*:5557", true),
            ("tcp://[::]:5557", true),
            ("ipc:///tmp/kv", true),
            ("tcp://127.0.0.1:5557", false),
            ("tcp://0.0.0.0:5557", false),
            ("tcp://router:5557", false),
        ] {
            assert_eq!(worker_binds(endpoint), binds, "{endpoint}");
        }
    }

    #[test]
    fn a_wildcard_is_the_workers_own_host() {
        let at = |text: &str| text.parse::<Endpoint>().unwrap().on_host("gpu1").to_string();
        assert_eq!(at("tcp://*:5557"), "tcp://gpu1:5557");
        assert_eq!(at("tcp://[::]:5557"), "tcp://gpu1:5557");
        assert_eq!(at("tcp://10.0.0.7:5557"), "tcp://10.0.0.7:5557");
        assert_eq!(at("ipc:///tmp/kv"), "ipc:///tmp/kv");
    }
}
