//! The operators' port over TLS: connections are handed on when they have shaken hands, and a slow one holds up no other.

use std::{io, net::SocketAddr, sync::Arc};

use axum::serve::Listener;
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    limits,
    tls::{ClientTlsStream, ServerTls},
};

type Shaken = io::Result<(ClientTlsStream, SocketAddr)>;

/// What `axum::serve` accepts from.
pub(super) struct TlsListener {
    tcp: TcpListener,
    tls: Arc<ServerTls>,
    shaking: JoinSet<Shaken>,
}

impl TlsListener {
    pub(super) fn new(tcp: TcpListener, tls: Arc<ServerTls>) -> Self {
        Self { tcp, tls, shaking: JoinSet::new() }
    }
}

impl Listener for TlsListener {
    type Io = ClientTlsStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (ClientTlsStream, SocketAddr) {
        loop {
            tokio::select! {
                // The plain listener's own: errors are waited out there.
                (stream, address) = Listener::accept(&mut self.tcp), if self.shaking.len() < limits::HANDSHAKES_MAX => {
                    let tls = self.tls.clone();
                    self.shaking.spawn(async move {
                        let shake = tokio::time::timeout(limits::HEAD_TIMEOUT, tls.accept(stream));
                        Ok((shake.await??, address))
                    });
                }
                Some(shaken) = self.shaking.join_next() => match shaken {
                    Ok(Ok(shaken)) => return shaken,
                    Ok(Err(error)) => tracing::debug!(%error, "no TLS with an operator"),
                    Err(error) => tracing::error!(%error, "a handshake with an operator"),
                },
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}
