//! Clients that ask one thing after the other over connections that they keep.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet};

/// What came of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) seconds: f64,
    /// Answers other than 200.
    pub(super) failed: usize,
}

/// Sends `bodies` to `path` over so many connections.
pub(super) async fn send(
    gateway: SocketAddr,
    path: &'static str,
    connections: usize,
    bodies: impl Fn(usize) -> Bytes + Clone + Send + 'static,
    count: usize,
) -> Result<Load> {
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for client in 0..connections {
        let bodies = bodies.clone();
        clients.spawn(async move {
            let stream = TcpStream::connect(gateway).await?;
            stream.set_nodelay(true)?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let driver = tokio::spawn(connection);
            let mut failed = 0;
            for number in (client..count).step_by(connections) {
                let request = Request::post(path)
                    .header("host", "scale")
                    .header("content-type", "application/json")
                    .body(Full::new(bodies(number)))?;
                sender.ready().await?;
                let answer = sender.send_request(request).await?;
                failed += usize::from(answer.status() != 200);
                answer.into_body().collect().await?;
            }
            drop(sender);
            driver.await??;
            anyhow::Ok(failed)
        });
    }
    let mut failed = 0;
    while let Some(client) = clients.join_next().await {
        failed += client.context("a client ended")??;
    }
    Ok(Load { seconds: started.elapsed().as_secs_f64(), failed })
}
