//! Certificates of an authority that exists for one test, as files, and clients that trust it.

use std::{fs, path::PathBuf, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// See the module.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

/// A certificate and its key.
#[derive(Debug)]
pub struct Pair {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub key: String,
    der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

impl Default for Authority {
    fn default() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("random bytes");
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).expect("its own certificate"),
            directory: tempfile::tempdir().expect("a directory"),
        }
    }
}

impl Authority {
    /// A certificate for `names`, of a server and of a client at once.
    pub fn issue(&self, names: &[&str]) -> Pair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names and addresses");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("random bytes");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().clone(),
            key_der: key.serialize_der(),
        }
    }

    /// Where a file of this name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file, in one step.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let (path, new) = (self.path(name), self.path("new"));
        fs::write(&new, text).expect("writes");
        fs::rename(new, &path).expect("renames");
        path
    }

    /// Writes `ca.pem`, and `NAME.pem` with `NAME.key` for this host; the lines of a configuration that name the two.
    pub fn server(&self, name: &str) -> String {
        self.write("ca.pem", &self.issuer.pem());
        self.put(name, &self.issue(&["127.0.0.1", "localhost"]));
        let path = |file: String| self.path(&file).display().to_string();
        format!("certificate: {}, key: {}", path(format!("{name}.pem")), path(format!("{name}.key")))
    }

    /// Writes a pair.
    pub fn put(&self, name: &str, pair: &Pair) {
        self.write(&format!("{name}.key"), &pair.key);
        self.write(&format!("{name}.pem"), &pair.certificate);
    }

    /// A client that trusts this authority, offers `protocols`, and shows `pair`.
    pub fn client(&self, protocols: &[&str], pair: Option<&Pair>) -> TlsClient {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("an authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_root_certificates(roots);
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let key = PrivateKeyDer::try_from(pair.key_der.clone()).expect("a key");
                builder.with_client_auth_cert(vec![pair.der.clone()], key).expect("a pair")
            }
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        TlsClient(Arc::new(config).into())
    }
}

impl Pair {
    /// Whether a server has shown this certificate.
    pub fn is(&self, shown: &CertificateDer<'_>) -> bool {
        self.der == *shown
    }
}

/// Connects over TLS.
#[derive(Clone)]
pub struct TlsClient(TlsConnector);

impl TlsClient {
    /// To a server that has to be `localhost`.
    pub async fn connect(&self, address: std::net::SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("localhost").expect("a name");
        self.0.connect(name, TcpStream::connect(address).await?).await
    }
}
