//! Messages between two gateways: a line of JSON each, descriptors beside them.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::TcpListener,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Addresses, HandoverError};

/// Counts changes of this protocol that older gateways would not understand.
pub(super) const VERSION: u32 = 1;

/// Longest line.
const LINE_BYTES_MAX: usize = 4096;

/// Descriptors in one message; the kernel allows 253 (`SCM_MAX_FD`).
const DESCRIPTORS_MAX: usize = 64;

/// One side's word.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// From the successor: who it is, and what it is configured with.
    Hello { version: u32, pid: u32, addresses: Addresses },
    /// So many sockets follow, those for clients first and one for operators last.
    Offer { configured: Addresses, actual: Addresses, clients: usize },
    /// There is nothing to be had: why.
    Refused { why: String },
    /// From the successor: it serves.
    Ready,
    /// Steering, pins, guard and the name are free.
    Released,
}

pub(super) fn send(mut stream: &UnixStream, message: &Message) -> Result<(), HandoverError> {
    let mut line = serde_json::to_vec(message).map_err(io::Error::from)?;
    line.push(b'\n');
    Ok(stream.write_all(&line)?)
}

/// Reads one line, a byte at a time: what follows may come with descriptors.
pub(super) fn receive<T: DeserializeOwned>(mut stream: &UnixStream) -> Result<T, HandoverError> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
        if line.len() > LINE_BYTES_MAX {
            return Err(HandoverError::Protocol);
        }
    }
    serde_json::from_slice(&line).map_err(|_| HandoverError::Protocol)
}

/// Sends sockets, each batch beside one byte.
pub(super) fn send_sockets(stream: &UnixStream, sockets: &[TcpListener]) -> Result<(), HandoverError> {
    let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    for batch in descriptors.chunks(DESCRIPTORS_MAX) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(batch)) {
            return Err(HandoverError::Protocol);
        }
        let sent = sendmsg(stream, &[IoSlice::new(b".")], &mut control, SendFlags::NOSIGNAL);
        sent.map_err(io::Error::from)?;
    }
    Ok(())
}

/// Receives `count` sockets; each is checked to be a listening one.
pub(super) fn receive_sockets(stream: &UnixStream, count: usize) -> Result<Vec<TcpListener>, HandoverError> {
    let mut descriptors: Vec<OwnedFd> = Vec::with_capacity(count);
    while descriptors.len() < count {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let received =
            recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
                .map_err(io::Error::from)?;
        let before = descriptors.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                descriptors.extend(passed);
            }
        }
        if received.bytes == 0 || descriptors.len() == before {
            return Err(HandoverError::Protocol);
        }
    }
    descriptors.into_iter().map(listener).collect()
}

fn listener(descriptor: OwnedFd) -> Result<TcpListener, HandoverError> {
    let is_listening = rustix::net::sockopt::socket_acceptconn(&descriptor).unwrap_or(false);
    if is_listening { Ok(TcpListener::from(descriptor)) } else { Err(HandoverError::Protocol) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_arrive_in_order_and_are_the_same_ones() {
        let (near, far) = UnixStream::pair().expect("a pair");
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a listener");
        let sockets: Vec<TcpListener> = (0..DESCRIPTORS_MAX + 3).map(|_| listen()).collect();
        let count = sockets.len();
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let addresses = Addresses {
                    listen: sockets[0].local_addr().expect("bound"),
                    admin: sockets[1].local_addr().expect("bound"),
                };
                send(&near, &Message::Offer { configured: addresses, actual: addresses, clients: count })
                    .and_then(|()| send_sockets(&near, &sockets))
            });
            let message: Message = receive(&far).expect("a line");
            assert!(matches!(message, Message::Offer { clients, .. } if clients == count));
            let received = receive_sockets(&far, count).expect("sockets");
            for (one, other) in sockets.iter().zip(&received) {
                assert_eq!(one.local_addr().expect("bound"), other.local_addr().expect("bound"));
            }
            sender.join().expect("no panic")
        });
        sent.expect("they were sent");
    }

    #[test]
    fn what_is_no_message_or_no_listener_is_refused() {
        let (mut near, far) = UnixStream::pair().expect("a pair");
        near.write_all(b"GET / HTTP/1.1\n").expect("room");
        assert!(matches!(receive::<Message>(&far), Err(HandoverError::Protocol)));
        near.write_all(&[b'x'; LINE_BYTES_MAX + 1]).expect("room");
        assert!(matches!(receive::<Message>(&far), Err(HandoverError::Protocol)));
        let no_listener: OwnedFd = UnixStream::pair().expect("a pair").0.into();
        assert!(matches!(listener(no_listener), Err(HandoverError::Protocol)));
    }
}
