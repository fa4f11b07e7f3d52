//! The side of the gateway that runs: a thread that waits for a successor.

use std::{
    io,
    net::TcpListener,
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::{
    Addresses, HandoverError, check_peer, name,
    wire::{self, Message, VERSION},
};

/// How long a successor may take for a word that costs it nothing.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long it may take from its hello until it serves: it may read tokenizers, and check slow workers.
const START_MAX: Duration = Duration::from_mins(5);

/// Second handles on the listening sockets.
#[derive(Debug)]
pub struct Sockets {
    /// As in the configuration.
    pub configured: Addresses,
    /// Where they listen.
    pub actual: Addresses,
    /// For clients.
    pub clients: Vec<TcpListener>,
    /// For operators.
    pub admin: TcpListener,
}

/// A successor serves: what only one can have is to be released, and then said so.
#[derive(Debug)]
pub struct Release {
    /// Its process.
    pub pid: u32,
    /// To be sent when all is released.
    pub released: oneshot::Sender<()>,
}

/// Waits for a successor. Dropped, it hands nothing over any more, and the sockets are this process's alone.
#[derive(Debug)]
pub struct Giver {
    sockets: Arc<Mutex<Option<Sockets>>>,
}

impl Giver {
    /// Starts to wait. A successor that serves comes out of the receiver, once. Fails where another gateway of this
    /// instance waits.
    pub fn start(instance: &str, sockets: Sockets) -> io::Result<(Self, mpsc::Receiver<Release>)> {
        let listener = UnixListener::bind_addr(&name(instance)?)?;
        let sockets = Arc::new(Mutex::new(Some(sockets)));
        let (to, successors) = mpsc::channel(1);
        let giving = sockets.clone();
        thread::Builder::new().name("handover".into()).spawn(move || wait(listener, &giving, &to))?;
        Ok((Self { sockets }, successors))
    }
}

impl Drop for Giver {
    fn drop(&mut self) {
        self.sockets.lock().take();
    }
}

fn wait(listener: UnixListener, sockets: &Mutex<Option<Sockets>>, to: &mpsc::Sender<Release>) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "handover: cannot accept");
                thread::sleep(Duration::from_secs(1));
                continue;
            }
        };
        match offer(&stream, sockets) {
            Ok(None) => {}
            Ok(Some(pid)) => {
                let (released, done) = oneshot::channel();
                if to.blocking_send(Release { pid, released }).is_err() {
                    return; // this gateway is ending
                }
                let is_done = done.blocking_recv().is_ok();
                drop(listener); // the name is the successor's from here on
                if is_done && let Err(error) = wire::send(&stream, &Message::Released) {
                    tracing::warn!(%error, "handover: the successor is gone");
                }
                return;
            }
            Err(error) => tracing::warn!(%error, "handover: it came to nothing, this gateway goes on"),
        }
    }
}

/// Offers the sockets to who has come, and waits until it serves; its process, if it does.
fn offer(stream: &UnixStream, sockets: &Mutex<Option<Sockets>>) -> Result<Option<u32>, HandoverError> {
    check_peer(stream)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    let Message::Hello { version, pid, addresses } = wire::receive(stream)? else {
        return Err(HandoverError::Protocol);
    };
    {
        let sockets = sockets.lock();
        let refuse = |why: &str| wire::send(stream, &Message::Refused { why: why.to_owned() }).map(|()| None);
        let Some(Sockets { configured, actual, clients, admin }) = &*sockets else {
            return refuse("it is ending");
        };
        if version != VERSION {
            return refuse("it speaks another version of the protocol");
        }
        if addresses.listen != configured.listen && addresses.listen != actual.listen {
            return refuse("it has another address for clients");
        }
        tracing::info!(pid, "handover: a successor starts");
        let (configured, actual) = (*configured, *actual);
        wire::send(stream, &Message::Offer { configured, actual, clients: clients.len() })?;
        wire::send_sockets(stream, clients)?;
        wire::send_sockets(stream, std::slice::from_ref(admin))?;
    }
    stream.set_read_timeout(Some(START_MAX))?;
    match wire::receive(stream)? {
        Message::Ready => Ok(Some(pid)),
        _ => Err(HandoverError::Protocol),
    }
}
