//! The server's side: one certificate for a port, read again when its files change.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{ServerConfig, crypto::ring::Ticketer, server::WebPkiClientVerifier, version};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::TlsAcceptor;

use super::{PROVIDER, TlsError, pem};
use crate::{
    config::{self, TlsVersion},
    limits,
};

/// A client's connection after its handshake.
pub type ClientTlsStream = tokio_rustls::server::TlsStream<TcpStream>;

/// A port's certificate, shared by all that accept connections there.
#[derive(Debug)]
pub struct ServerTls {
    config: config::ServerTls,
    protocols: &'static [&'static [u8]],
    current: ArcSwap<ServerConfig>,
    /// Of the files as they were last looked at.
    seen: Mutex<Vec<Stamp>>,
}

/// What changes with a file: a link that is turned elsewhere, a file that is moved over another, a file that is rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    identity: Option<(SystemTime, u64, u64)>,
}

impl Stamp {
    fn of(path: &Path) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let identity = |meta: fs::Metadata| Some((meta.modified().ok()?, meta.len(), meta.ino()));
        Self { path: path.to_owned(), identity: fs::metadata(path).ok().and_then(identity) }
    }
}

impl ServerTls {
    /// Reads the files. `protocols`: what is offered by ALPN, the best first.
    pub fn load(
        config: &config::ServerTls,
        protocols: &'static [&'static [u8]],
    ) -> Result<Arc<Self>, TlsError> {
        let seen = Mutex::new(stamps(config));
        let current = ArcSwap::new(build(config, protocols)?);
        Ok(Arc::new(Self { config: config.clone(), protocols, current, seen }))
    }

    /// Shakes hands. Takes as long as the client does.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<ClientTlsStream> {
        TlsAcceptor::from(self.current.load_full()).accept(stream).await
    }

    /// Reads the files again if they have changed since they were last looked at; whether a new certificate is in force.
    /// A pair that is wrong is an error once, and the old one stays.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        let now = stamps(&self.config);
        {
            let mut seen = self.seen.lock();
            if *seen == now {
                return Ok(false);
            }
            *seen = now;
        }
        self.current.store(build(&self.config, self.protocols)?);
        Ok(true)
    }

    /// Where the certificate comes from.
    pub fn certificate(&self) -> &Path {
        &self.config.certificate
    }
}

fn stamps(config: &config::ServerTls) -> Vec<Stamp> {
    let config::ServerTls { certificate, key, client_ca, .. } = config;
    [certificate, key].into_iter().chain(client_ca).map(|path| Stamp::of(path)).collect()
}

fn build(config: &config::ServerTls, protocols: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
    let config::ServerTls { certificate, key, client_ca, min_version } = config;
    let chain = pem::certificates(certificate, &pem::read(certificate)?)?;
    let private = pem::key(key, &pem::read(key)?)?;
    let versions: &[_] = match min_version {
        TlsVersion::V1_2 => &[&version::TLS13, &version::TLS12],
        TlsVersion::V1_3 => &[&version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(PROVIDER.clone()).with_protocol_versions(versions)?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let authorities = Arc::new(pem::authorities(path, &pem::read(path)?)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(authorities, PROVIDER.clone());
            builder.with_client_cert_verifier(
                verifier
                    .build()
                    .map_err(|error| TlsError::Content { path: path.clone(), what: error.to_string() })?,
            )
        }
    };
    let mut built = builder.with_single_cert(chain, private).map_err(|source| TlsError::Pair {
        certificate: certificate.clone(),
        key: key.clone(),
        source: Box::new(source),
    })?;
    built.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    // New with each certificate: no session goes on that was begun by another one, or under another client CA.
    built.ticketer = Ticketer::new()?;
    Ok(Arc::new(built))
}

/// Looks at the files again and again, and at once when something says `now`; says in the log, and by `tell`, what came of
/// it.
pub async fn watch(ports: Vec<Arc<ServerTls>>, mut now: watch::Receiver<()>, tell: impl Fn(bool)) {
    let mut looks = tokio::time::interval(limits::CERTIFICATE_CHECK_INTERVAL);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            Ok(()) = now.changed() => {}
        }
        for port in &ports {
            match port.refresh() {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(certificate = %port.certificate().display(), "certificate read again");
                    tell(true);
                }
                Err(error) => {
                    tracing::error!("certificate not read again, the old one stays: {error}");
                    tell(false);
                }
            }
        }
    }
}
