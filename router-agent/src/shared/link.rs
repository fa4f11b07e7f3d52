//! The connection to Redis or Valkey: one server or a cluster, plain, over TLS or a socket of this host.
//!
//! Commands of many tasks share one connection and are answered in order; the crate connects again when it breaks. A
//! connection to a host that is gone without a word breaks only after minutes: [`super::heartbeat`] makes a new one when
//! nothing was answered for a while.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::try_join_all;
use redis::{
    Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, RedisError,
    TlsCertificates, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig},
    cluster::{ClusterClient, ClusterConfig},
    cluster_async::ClusterConnection,
};

use crate::{
    config::{RedisUrl, SharedState as Settings},
    telemetry::SharedOutcome,
};

/// Commands that may wait for the connection's writer.
const WAITING: usize = 4_096;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// `maxmemory` is reached, and nothing may be evicted.
    #[error("it has no memory left (maxmemory): {0}")]
    Full(RedisError),
    /// No connection, or an error of the server.
    #[error(transparent)]
    Failed(RedisError),
    /// The certificate of `shared.ca` cannot be read.
    #[error("shared.ca: cannot read {}: {error}", path.display())]
    Ca {
        /// As configured.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
}

impl From<RedisError> for Fault {
    fn from(error: RedisError) -> Self {
        // Of several commands sent together, each may have failed.
        let codes = error.clone().into_server_errors();
        let is_full = codes.is_some_and(|errors| errors.iter().any(|(_, error)| error.code() == "OOM"));
        if is_full {
            Self::Full(error)
        } else if error.is_timeout() {
            Self::Late(Duration::ZERO)
        } else {
            Self::Failed(error)
        }
    }
}

impl Fault {
    /// As metrics count it.
    pub(super) fn outcome(&self) -> SharedOutcome {
        match self {
            Self::Late(_) => SharedOutcome::Late,
            Self::Full(_) => SharedOutcome::Full,
            Self::Failed(_) | Self::Ca { .. } => SharedOutcome::Failed,
        }
    }
}

/// Where the servers are and how this gateway presents itself, ready to be connected to.
#[derive(Debug, Clone)]
pub(super) struct Dialer {
    nodes: Vec<ConnectionInfo>,
    certificates: Option<Vec<u8>>,
    is_cluster: bool,
    timeout: Duration,
}

impl Dialer {
    /// Reads the certificate that is configured.
    pub(super) fn new(settings: &Settings) -> Result<Self, Fault> {
        let read =
            |path: &PathBuf| std::fs::read(path).map_err(|error| Fault::Ca { path: path.clone(), error });
        let certificates = settings.ca.as_ref().map(read).transpose()?;
        let node = |url: &RedisUrl| node(url, settings);
        let nodes = settings.urls.iter().map(node).collect::<Result<_, _>>()?;
        Ok(Self { nodes, certificates, is_cluster: settings.is_cluster, timeout: settings.timeout })
    }

    fn tls(&self) -> TlsCertificates {
        TlsCertificates { client_tls: None, root_cert: self.certificates.clone() }
    }

    /// One server's, without the cluster around it.
    pub(super) fn client(&self, node: usize) -> Result<Client, Fault> {
        let node = self.nodes[node % self.nodes.len()].clone();
        Ok(match node.addr() {
            ConnectionAddr::TcpTls { .. } => Client::build_with_tls(node, self.tls())?,
            _ => Client::open(node)?,
        })
    }

    /// Connects with the first command, and again whenever the connection has broken.
    pub(super) fn dial(&self) -> Result<Link, Fault> {
        let connection = if self.is_cluster {
            let mut builder = ClusterClient::builder(self.nodes.clone()).retries(1);
            if self.certificates.is_some() {
                builder = builder.certs(self.tls());
            }
            let timeouts =
                ClusterConfig::new().set_connection_timeout(self.timeout).set_response_timeout(self.timeout);
            Connection::Cluster(builder.build()?.get_pending_async_connection_with_config(timeouts))
        } else {
            let config = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(self.timeout))
                .set_response_timeout(Some(self.timeout))
                .set_number_of_retries(0) // the heartbeat tries again
                .set_pipeline_buffer_size(WAITING);
            Connection::One(ConnectionManager::new_lazy_with_config(self.client(0)?, config)?)
        };
        Ok(Link { connection, timeout: self.timeout })
    }
}

fn node(url: &RedisUrl, settings: &Settings) -> Result<ConnectionInfo, RedisError> {
    let (address, db) = match url {
        RedisUrl::Unix(path) => (ConnectionAddr::Unix(path.clone()), 0),
        RedisUrl::Tcp { host, port, is_tls: false, db } => (ConnectionAddr::Tcp(host.clone(), *port), *db),
        RedisUrl::Tcp { host, port, is_tls: true, db } => {
            let (host, port) = (host.clone(), *port);
            (ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }, *db)
        }
    };
    let mut us =
        RedisConnectionInfo::default().set_db(db.into()).set_lib_name("warmpath", env!("CARGO_PKG_VERSION"));
    if let Some(username) = &settings.username {
        us = us.set_username(username);
    }
    if let Some(password) = &settings.password {
        us = us.set_password(password.reveal());
    }
    Ok(address.into_connection_info()?.set_redis_settings(us))
}

/// A connection, and the time that a command may take. Cheap to clone.
#[derive(Clone)]
pub(super) struct Link {
    connection: Connection,
    timeout: Duration,
}

#[derive(Clone)]
enum Connection {
    One(ConnectionManager),
    Cluster(ClusterConnection),
}

impl Link {
    /// Sends them together and waits for all answers, in their order, as long as a command may take.
    pub(super) async fn run(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, Fault> {
        self.run_within(commands, self.timeout).await
    }

    /// As [`Link::run`], no longer than so.
    pub(super) async fn run_within(&self, commands: Vec<Cmd>, limit: Duration) -> Result<Vec<Value>, Fault> {
        let answers = async {
            match &self.connection {
                Connection::One(connection) => {
                    let mut together = redis::Pipeline::with_capacity(commands.len());
                    for command in commands {
                        together.add_command(command);
                    }
                    together.query_async(&mut connection.clone()).await
                }
                // Each goes to the node that has its key.
                Connection::Cluster(connection) => {
                    let one = async |command: Cmd| connection.clone().req_packed_command(&command).await;
                    try_join_all(commands.into_iter().map(one)).await
                }
            }
        };
        match tokio::time::timeout(limit, answers).await {
            Ok(Ok(answers)) => Ok(answers),
            Ok(Err(error)) => Err(match Fault::from(error) {
                Fault::Late(_) => Fault::Late(limit),
                fault => fault,
            }),
            Err(_) => Err(Fault::Late(limit)),
        }
    }
}

/// What all tasks send by; another one takes its place when it is of no use any more.
pub(super) type CurrentLink = Arc<arc_swap::ArcSwap<Link>>;
