//! The live side of a stream: connections to a publisher, made or accepted, and what comes over them.

mod publishers;

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::mpsc, time::sleep};

pub(in crate::kv_events) use self::publishers::{Publishers, Registration};
use super::zmtp::{Connection, Endpoint, Role};

/// libzmq's own pause before it connects again, and the longest one here.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_LONGEST: Duration = Duration::from_secs(1);

/// What happens on a stream. Connections are told apart: the end of an old one may be noticed after the start of the next.
#[derive(Debug)]
pub(in crate::kv_events) enum Live {
    /// Subscribed.
    Connected(ConnectionId),
    /// A message's frames.
    Message(ConnectionId, Vec<Bytes>),
    /// Over.
    Disconnected(ConnectionId),
}

/// A connection of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::kv_events) struct ConnectionId(u64);

impl ConnectionId {
    fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Relaxed))
    }
}

/// Connects to what a worker has bound, again and again, until nobody listens.
pub(in crate::kv_events) async fn connect(endpoint: Endpoint, worker: String, to: mpsc::Sender<Live>) {
    let mut pause = RECONNECT_FIRST;
    let mut said = false;
    while !to.is_closed() {
        match Connection::connect(&endpoint, Role::Sub).await {
            Ok(connection) => {
                pump(connection, None, &to).await;
                (pause, said) = (RECONNECT_FIRST, false);
            }
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(worker, %endpoint, %error, "cannot subscribe to KV events; trying on");
                }
                pause = (pause * 2).min(RECONNECT_LONGEST);
            }
        }
        sleep(pause).await;
    }
}

/// Hands on what comes over a connection, until its end or until nobody listens.
async fn pump(mut connection: Connection, first: Option<Vec<Bytes>>, to: &mpsc::Sender<Live>) {
    let id = ConnectionId::next();
    if to.send(Live::Connected(id)).await.is_err() {
        return;
    }
    if let Some(frames) = first
        && to.send(Live::Message(id, frames)).await.is_err()
    {
        return;
    }
    loop {
        tokio::select! {
            received = connection.receive() => match received {
                Ok(frames) => {
                    if to.send(Live::Message(id, frames)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection to a publisher of KV events ended");
                    let _ = to.send(Live::Disconnected(id)).await; // nobody may listen any longer
                    return;
                }
            },
            () = to.closed() => return,
        }
    }
}
