//! The ZMQ side: PUB for the stream, ROUTER for replay, a ring of past batches for both.
//!
//! - PUB binds or connects by vLLM's rule ([`binds`]); connecting, it keeps trying for as long as the worker lives, and
//!   what nobody is there to hear is lost but for the ring.
//! - A message is `[topic, sequence number, payload]`, the number eight bytes, big endian, from 0 with the process.
//! - A replay request is `[b"", first number]` from a DEALER; the answer is one `[b"", topic, number, payload]` per
//!   batch still in the ring, then `[b"", b"", -1, b""]`. Anything else is not answered. Up to vLLM 0.25 (here: with
//!   the array format) the topic was left out of both.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::StreamExt as _;
use thiserror::Error;
use tokio::sync::mpsc;
use zeromq::{
    PubSocket, RouterSocket, Socket as _, SocketEvent, SocketOptions, SocketRecv as _, SocketSend as _,
    ZmqMessage,
};

use super::wire::Wire;
use super::{EventSink, KvEvent};
use crate::config::{EventFormat, KvEventsConfig};

/// One attempt to connect; libzmq tries every 100 ms, this crate with a growing delay, so attempts are kept short.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const RECONNECT_DELAY: Duration = Duration::from_millis(100);
/// A replay's last "sequence number".
const END_OF_REPLAY: [u8; 8] = (-1_i64).to_be_bytes();

/// Why the KV events cannot be published.
#[derive(Debug, Error)]
pub enum PublishError {
    #[error("{endpoint}: inproc endpoints reach nobody outside the process")]
    Inproc { endpoint: String },
    #[error("cannot bind {endpoint}: {source}")]
    Bind { endpoint: String, source: zeromq::ZmqError },
}

/// vLLM's rule for the PUB socket: it binds wildcard and local endpoints, and connects to all others.
pub fn binds(endpoint: &str) -> bool {
    endpoint.contains('*')
        || endpoint.contains("::")
        || endpoint.starts_with("ipc://")
        || endpoint.starts_with("inproc://")
}

/// Binds the sockets, then publishes in the background until the sink is dropped. Port 0 in a bound endpoint is
/// replaced in `config` by the port it got.
pub(crate) async fn start(
    config: &mut KvEventsConfig,
    loras: Vec<String>,
    published: Arc<AtomicU64>,
) -> Result<EventSink, PublishError> {
    let mut options = SocketOptions::default();
    options.connect_timeout(CONNECT_TIMEOUT);
    let mut socket = PubSocket::with_options(options);
    let connect_to = if binds(&config.endpoint) {
        config.endpoint = bind(&mut socket, &config.endpoint).await?;
        None
    } else {
        Some(config.endpoint.clone())
    };
    let ring =
        Arc::new(parking_lot::Mutex::new(Ring { batches: VecDeque::new(), max: config.buffer_steps.max(1) }));
    let with_topic = config.format == EventFormat::Map;
    let topic = Bytes::from(config.topic.clone());
    let mut replay = None;
    if let Some(endpoint) = &mut config.replay_endpoint {
        let mut socket = RouterSocket::new();
        *endpoint = bind(&mut socket, endpoint).await?;
        let topic = with_topic.then(|| topic.clone());
        replay = Some(AbortOnDrop(tokio::spawn(Replay { ring: ring.clone(), topic }.run(socket))));
    }
    let (sender, batches) = mpsc::unbounded_channel();
    let wire = Wire { format: config.format, hash_form: config.hash_form, loras };
    let publisher = Publisher { batches, ring, wire, topic, next: 0, published, _replay: replay };
    tokio::spawn(publisher.run(socket, connect_to));
    Ok(EventSink::new(sender))
}

/// Binds, and returns the endpoint with its real port.
async fn bind<S: zeromq::Socket>(socket: &mut S, endpoint: &str) -> Result<String, PublishError> {
    if endpoint.starts_with("inproc://") {
        return Err(PublishError::Inproc { endpoint: endpoint.to_owned() });
    }
    if let Some(path) = endpoint.strip_prefix("ipc://") {
        let _ = std::fs::remove_file(Path::new(path)); // libzmq takes over a stale socket file as well
    }
    let bound = socket
        .bind(&endpoint.replace('*', "0.0.0.0"))
        .await
        .map_err(|source| PublishError::Bind { endpoint: endpoint.to_owned(), source })?;
    Ok(match (endpoint.strip_suffix(":0"), bound) {
        (Some(host), zeromq::Endpoint::Tcp(_, port)) => format!("{host}:{port}"),
        _ => endpoint.to_owned(),
    })
}

/// The batches that a replay can still give.
struct Ring {
    batches: VecDeque<(u64, Bytes)>,
    max: usize,
}

struct Publisher {
    batches: mpsc::UnboundedReceiver<Vec<KvEvent>>,
    ring: Arc<parking_lot::Mutex<Ring>>,
    wire: Wire,
    topic: Bytes,
    next: u64,
    published: Arc<AtomicU64>,
    _replay: Option<AbortOnDrop>,
}

/// A task that ends with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Publisher {
    async fn run(mut self, mut socket: PubSocket, connect_to: Option<String>) {
        let Some(endpoint) = connect_to else {
            while let Some(events) = self.batches.recv().await {
                let message = self.record(&events);
                let _ = socket.send(message).await; // PUB drops what it cannot send
            }
            return;
        };
        loop {
            let mut monitor = socket.monitor();
            // While nobody is connected, batches go to the ring alone.
            let connected = {
                let mut connect = std::pin::pin!(socket.connect(&endpoint));
                loop {
                    tokio::select! {
                        connected = &mut connect => break connected.is_ok(),
                        events = self.batches.recv() => match events {
                            Some(events) => drop(self.record(&events)),
                            None => return,
                        },
                    }
                }
            };
            if !connected {
                tokio::time::sleep(RECONNECT_DELAY).await;
                continue;
            }
            loop {
                tokio::select! {
                    events = self.batches.recv() => match events {
                        Some(events) => {
                            let message = self.record(&events);
                            let _ = socket.send(message).await; // PUB drops what it cannot send
                        }
                        None => return,
                    },
                    event = monitor.next() => match event {
                        Some(SocketEvent::Disconnected(_)) | None => break,
                        Some(_) => {}
                    },
                }
            }
        }
    }

    /// Numbers a batch and keeps it; returns it as a message.
    fn record(&mut self, events: &[KvEvent]) -> ZmqMessage {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |age| age.as_secs_f64());
        let payload = Bytes::from(self.wire.encode(now_s, events));
        let number = self.next;
        self.next += 1;
        {
            let mut ring = self.ring.lock();
            if ring.batches.len() == ring.max {
                ring.batches.pop_front();
            }
            ring.batches.push_back((number, payload.clone()));
        }
        self.published.store(self.next, Ordering::Relaxed);
        message([self.topic.clone(), number_frame(number), payload])
    }
}

struct Replay {
    ring: Arc<parking_lot::Mutex<Ring>>,
    /// `None`: this version's answers carry none.
    topic: Option<Bytes>,
}

impl Replay {
    async fn run(self, mut socket: RouterSocket) {
        while let Ok(request) = socket.recv().await {
            let frames = request.into_vec();
            let [client, delimiter, start] = frames.as_slice() else { continue };
            let Some(start) = <[u8; 8]>::try_from(start.as_ref()).ok().filter(|_| delimiter.is_empty())
            else {
                continue;
            };
            let start = u64::from_be_bytes(start);
            let batches: Vec<_> =
                self.ring.lock().batches.iter().filter(|(number, _)| *number >= start).cloned().collect();
            let last = [(Bytes::new(), Bytes::copy_from_slice(&END_OF_REPLAY), Bytes::new())];
            let answers = batches
                .into_iter()
                .map(|(number, payload)| {
                    (self.topic.clone().unwrap_or_default(), number_frame(number), payload)
                })
                .chain(last);
            for (topic, number, payload) in answers {
                let topic = self.topic.is_some().then_some(topic);
                let frames = [client.clone(), Bytes::new()].into_iter().chain(topic).chain([number, payload]);
                if socket.send(message(frames)).await.is_err() {
                    break; // the client has gone
                }
            }
        }
    }
}

fn number_frame(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn message(frames: impl IntoIterator<Item = Bytes>) -> ZmqMessage {
    let frames: VecDeque<_> = frames.into_iter().collect();
    ZmqMessage::try_from(frames).expect("a message has frames")
}
