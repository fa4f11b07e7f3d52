//! Endpoints that this gateway has bound because workers connect to them. Several workers may share one.
//!
//! Whose a connection is, is told by what is known of the workers that were promised the endpoint: there is only one; only
//! one has that IP address; or, once its first message is here, only one has that topic.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, lookup_host},
    sync::{Semaphore, mpsc},
    task::AbortHandle,
};

use super::{Live, pump};
use crate::{
    kv_events::zmtp::{Connection, Endpoint, Role},
    limits::KV_PUBLISHERS_MAX,
};

/// Connections that the system holds for us.
const BACKLOG: u32 = 128;

/// The bound endpoints of this gateway.
#[derive(Clone, Default)]
pub(in crate::kv_events) struct Publishers {
    bound: Arc<Mutex<HashMap<SocketAddr, Bound>>>,
}

struct Bound {
    expected: Vec<Expected>,
    accepting: AbortHandle,
}

/// A worker that was told to connect here.
#[derive(Clone)]
struct Expected {
    id: u64,
    topic: String,
    addresses: Vec<IpAddr>,
    to: mpsc::Sender<Live>,
}

/// A worker's claim on an endpoint; dropped, the endpoint is given up if it was the last one.
pub(in crate::kv_events) struct Registration {
    publishers: Publishers,
    address: SocketAddr,
    id: u64,
}

impl Publishers {
    /// Binds the endpoint, unless it is bound already, for a publisher with this topic on one of these addresses.
    pub(in crate::kv_events) async fn expect(
        &self,
        endpoint: &Endpoint,
        topic: String,
        addresses: Vec<IpAddr>,
        to: mpsc::Sender<Live>,
    ) -> io::Result<Registration> {
        let Endpoint::Tcp { host, port } = endpoint else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "only tcp:// endpoints can be bound"));
        };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in lookup_host((host.as_str(), *port)).await? {
            let mut all = self.bound.lock();
            let bound = match all.entry(address) {
                Entry::Occupied(bound) => bound.into_mut(),
                Entry::Vacant(free) => match listen(address) {
                    Ok(listener) => {
                        let accepting = tokio::spawn(self.clone().accept(address, listener)).abort_handle();
                        free.insert(Bound { expected: Vec::new(), accepting })
                    }
                    Err(error) => {
                        last = error;
                        continue;
                    }
                },
            };
            let id = fastrand::u64(..);
            bound.expected.push(Expected { id, topic, addresses, to });
            return Ok(Registration { publishers: self.clone(), address, id });
        }
        Err(last)
    }

    async fn accept(self, address: SocketAddr, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(KV_PUBLISHERS_MAX));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let publishers = self.clone();
                    tokio::spawn(async move {
                        publishers.serve(address, stream, peer.ip()).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%address, %error, "cannot accept a publisher of KV events");
                    tokio::time::sleep(super::RECONNECT_LONGEST).await;
                }
            }
        }
    }

    async fn serve(&self, address: SocketAddr, stream: TcpStream, peer: IpAddr) {
        let mut connection = match Connection::accept(stream, Role::Sub).await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%address, %peer, %error, "a publisher of KV events was turned away");
                return;
            }
        };
        if let Some(to) = self.whose(address, peer, None) {
            pump(connection, None, &to).await;
            return;
        }
        let Ok(first) = connection.receive().await else { return };
        let topic = first.first().map_or(String::new(), |topic| String::from_utf8_lossy(topic).into_owned());
        if let Some(to) = self.whose(address, peer, Some(&topic)) {
            pump(connection, Some(first), &to).await;
        } else {
            tracing::warn!(
                %address, %peer, topic,
                "KV events of no known worker: give each worker that shares an endpoint a topic of its own"
            );
        }
    }

    fn whose(&self, address: SocketAddr, peer: IpAddr, topic: Option<&str>) -> Option<mpsc::Sender<Live>> {
        let bound = self.bound.lock();
        let expected = &bound.get(&address)?.expected;
        let only = |matches: &dyn Fn(&Expected) -> bool| {
            let mut found = expected.iter().filter(|expected| matches(expected));
            found.next().filter(|_| found.next().is_none()).map(|expected| expected.to.clone())
        };
        only(&|_| true)
            .or_else(|| only(&|expected| expected.addresses.contains(&peer)))
            .or_else(|| only(&|expected| topic == Some(&expected.topic)))
            .or_else(|| {
                only(&|expected| topic == Some(&expected.topic) && expected.addresses.contains(&peer))
            })
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut all = self.publishers.bound.lock();
        if let Some(bound) = all.get_mut(&self.address) {
            bound.expected.retain(|expected| expected.id != self.id);
            if bound.expected.is_empty() {
                bound.accepting.abort();
                all.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publishers(expected: &[(&str, &str)]) -> (Publishers, SocketAddr, Vec<mpsc::Receiver<Live>>) {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let accepting = tokio::spawn(async {}).abort_handle();
        let mut bound = Bound { expected: Vec::new(), accepting };
        let mut receivers = Vec::new();
        for (number, (topic, ip)) in expected.iter().enumerate() {
            let (to, receiver) = mpsc::channel(1);
            receivers.push(receiver);
            let addresses = vec![ip.parse().unwrap()];
            bound.expected.push(Expected { id: number as u64, topic: (*topic).to_owned(), addresses, to });
        }
        let publishers = Publishers::default();
        publishers.bound.lock().insert(address, bound);
        (publishers, address, receivers)
    }

    /// Which of the expected workers a publisher is taken for.
    fn whose(expected: &[(&str, &str)], ip: &str, topic: Option<&str>) -> Option<usize> {
        let (publishers, address, receivers) = publishers(expected);
        let to = publishers.whose(address, ip.parse().unwrap(), topic)?;
        to.try_send(Live::Connected(super::super::ConnectionId(0))).unwrap();
        receivers.into_iter().position(|mut receiver| receiver.try_recv().is_ok())
    }

    #[tokio::test]
    async fn a_publisher_is_known_by_being_the_only_one_by_address_or_by_topic() {
        let alone = [("a", "10.0.0.1")];
        assert_eq!(whose(&alone, "10.9.9.9", None), Some(0));
        let two_hosts = [("", "10.0.0.1"), ("", "10.0.0.2")];
        assert_eq!(whose(&two_hosts, "10.0.0.2", None), Some(1));
        let one_host = [("a", "10.0.0.1"), ("b", "10.0.0.1")];
        assert_eq!(whose(&one_host, "10.0.0.1", None), None);
        assert_eq!(whose(&one_host, "10.0.0.1", Some("b")), Some(1));
        assert_eq!(whose(&one_host, "10.0.0.1", Some("c")), None);
        let same_topics = [("a", "10.0.0.1"), ("a", "10.0.0.1"), ("a", "10.0.0.2"), ("b", "10.0.0.2")];
        assert_eq!(whose(&same_topics, "10.0.0.2", Some("a")), Some(2));
        assert_eq!(whose(&same_topics, "10.0.0.1", Some("a")), None);
    }

    #[tokio::test]
    async fn an_endpoint_is_given_up_with_its_last_worker() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        let endpoint: Endpoint = format!("tcp://{address}").parse().unwrap();
        let publishers = Publishers::default();
        let expect = |publishers: Publishers, endpoint: Endpoint| async move {
            publishers.expect(&endpoint, String::new(), Vec::new(), mpsc::channel(1).0).await
        };
        assert!(expect(publishers.clone(), endpoint.clone()).await.is_err(), "taken");
        drop(free);
        let first = expect(publishers.clone(), endpoint.clone()).await.unwrap();
        let second = expect(publishers.clone(), endpoint.clone()).await.unwrap();
        drop(first);
        assert!(std::net::TcpListener::bind(address).is_err(), "the second one still wants it");
        drop(second);
        assert!(publishers.bound.lock().is_empty());
        let ipc = expect(publishers, "ipc:///tmp/x".parse().unwrap()).await.err().unwrap();
        assert!(ipc.to_string().contains("tcp://"));
    }
}
