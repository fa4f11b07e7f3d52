//! The client's side: what is expected of a worker's certificate.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{PROVIDER, TlsError, pem};

/// A connection to a worker after its handshake.
pub type WorkerTlsStream = tokio_rustls::client::TlsStream<TcpStream>;

/// How a worker is known over TLS. Equal where certificates are judged alike.
#[derive(Clone)]
pub struct WorkerTls {
    connector: TlsConnector,
    name: ServerName<'static>,
    /// The authorities' file and what was in it; none: the system's.
    ca: Option<(PathBuf, Vec<u8>)>,
}

impl WorkerTls {
    /// `name`: for whom its certificate must be. `ca`: by whom; none: by one of the system's authorities.
    pub fn load(name: &str, ca: Option<&Path>) -> Result<Self, TlsError> {
        let server_name =
            ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName(name.to_owned()))?;
        let ca = ca.map(|path| pem::read(path).map(|bytes| (path.to_owned(), bytes))).transpose()?;
        let config = match &ca {
            Some((path, bytes)) => config(Arc::new(pem::authorities(path, bytes)?))?,
            None => by_the_system()?,
        };
        Ok(Self { connector: config.into(), name: server_name, ca })
    }

    /// For whom its certificate must be.
    pub fn name(&self) -> String {
        self.name.to_str().into_owned()
    }

    /// The file of the authorities that it may be of; none: the system's.
    pub fn ca(&self) -> Option<&Path> {
        self.ca.as_ref().map(|(path, _)| path.as_path())
    }

    /// Shakes hands.
    pub async fn connect(&self, stream: TcpStream) -> io::Result<WorkerTlsStream> {
        self.connector.connect(self.name.clone(), stream).await
    }
}

impl PartialEq for WorkerTls {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.ca == other.ca
    }
}

impl Eq for WorkerTls {}

impl fmt::Debug for WorkerTls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ca = self.ca.as_ref().map(|(path, _)| path);
        out.debug_struct("WorkerTls").field("name", &self.name).field("ca", &ca).finish_non_exhaustive()
    }
}

fn config(authorities: Arc<RootCertStore>) -> Result<Arc<ClientConfig>, TlsError> {
    let builder =
        ClientConfig::builder_with_provider(PROVIDER.clone()).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(authorities).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// By the system's authorities; read once.
fn by_the_system() -> Result<Arc<ClientConfig>, TlsError> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "root certificates of this system");
    }
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let config = config(Arc::new(store))?;
    Ok(CONFIG.get_or_init(|| config).clone())
}
