//! The successor's side.

use std::{io, net::TcpListener, os::unix::net::UnixStream, time::Duration};

use super::{
    Addresses, HandoverError, check_peer, name,
    wire::{self, Message, VERSION},
};

/// How long the gateway that runs may take for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The sockets of the gateway that runs, and the connection over which it waits for its successor.
#[derive(Debug)]
pub struct Offer {
    /// Where they listen.
    pub actual: Addresses,
    /// For clients: one per data thread of the gateway that runs.
    pub clients: Vec<TcpListener>,
    /// For operators; none if this gateway is to have another address for them.
    pub admin: Option<TcpListener>,
    stream: UnixStream,
}

/// Asks the gateway of this instance for its sockets. None where there is no such gateway, or it has another address for
/// clients.
pub fn take(instance: &str, configured: Addresses) -> Result<Option<Offer>, HandoverError> {
    let stream = match UnixStream::connect_addr(&name(instance)?) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    check_peer(&stream)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    wire::send(
        &stream,
        &Message::Hello { version: VERSION, pid: std::process::id(), addresses: configured },
    )?;
    let (theirs, actual, count) = match wire::receive(&stream)? {
        Message::Offer { configured, actual, clients } => (configured, actual, clients),
        Message::Refused { why } => {
            tracing::info!("the gateway that runs hands nothing over: {why}");
            return Ok(None);
        }
        _ => return Err(HandoverError::Protocol),
    };
    let mut clients = wire::receive_sockets(&stream, count + 1)?;
    let admin =
        clients.pop().filter(|_| configured.admin == theirs.admin || configured.admin == actual.admin);
    Ok(Some(Offer { actual, clients, admin, stream }))
}

impl Offer {
    /// This process serves: the one before releases everything else. Blocks until it has, for seconds at most.
    pub fn ready(self) -> Result<(), HandoverError> {
        wire::send(&self.stream, &Message::Ready)?;
        match wire::receive(&self.stream)? {
            Message::Released => Ok(()),
            _ => Err(HandoverError::Protocol),
        }
    }
}
