//! One connection: the greeting, the NULL handshake, then messages.

use std::{io, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::{
    codec::{Decoder, Frame, FrameError, put_command, put_message},
    endpoint::Endpoint,
};
use crate::limits;

const GREETING_BYTES: usize = 64;
const VERSION_MAJOR: u8 = 3;
/// Read at once.
const READ_BYTES: usize = 16 * 1024;

/// What this side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Hears a publisher.
    Sub,
    /// Asks a ROUTER.
    Dealer,
}

impl Role {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Sub => b"SUB",
            Self::Dealer => b"DEALER",
        }
    }

    fn fits(self, peer: &[u8]) -> bool {
        match self {
            Self::Sub => matches!(peer, b"PUB" | b"XPUB"),
            Self::Dealer => peer == b"ROUTER",
        }
    }
}

/// Why a connection ended or never came to be.
#[derive(Debug, thiserror::Error)]
pub enum ZmtpError {
    /// The system's word.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer closed.
    #[error("the peer closed the connection")]
    Closed,
    /// No answer within the time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// It speaks something else.
    #[error("the peer does not speak ZMTP 3")]
    NotZmtp,
    /// It wants PLAIN or CURVE.
    #[error("the peer asks for the security mechanism {0:?}: only NULL is supported")]
    Mechanism(String),
    /// It is not the socket that was expected.
    #[error("the peer is a {0:?} socket")]
    SocketType(String),
    /// Its ERROR command.
    #[error("the peer refused: {0:?}")]
    Refused(String),
    /// What it sent is no frame, or too long a one.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// One connection, past its handshake.
pub struct Connection {
    io: Box<dyn Io>,
    buffer: BytesMut,
    decoder: Decoder,
}

impl Connection {
    /// Connects and shakes hands, within [`limits::KV_EVENT_CONNECT_TIMEOUT`].
    pub async fn connect(endpoint: &Endpoint, role: Role) -> Result<Self, ZmtpError> {
        let patience = limits::KV_EVENT_CONNECT_TIMEOUT;
        let connect = async {
            match endpoint {
                Endpoint::Tcp { host, port } => {
                    Self::of_tcp(TcpStream::connect((host.as_str(), *port)).await?, role).await
                }
                Endpoint::Ipc(path) => Self::shake_hands(UnixStream::connect(path).await?, role).await,
            }
        };
        timeout(patience, connect).await.map_err(|_| ZmtpError::Timeout(patience))?
    }

    /// Shakes hands with a peer that has connected, within [`limits::KV_EVENT_CONNECT_TIMEOUT`].
    pub async fn accept(stream: TcpStream, role: Role) -> Result<Self, ZmtpError> {
        let patience = limits::KV_EVENT_CONNECT_TIMEOUT;
        timeout(patience, Self::of_tcp(stream, role)).await.map_err(|_| ZmtpError::Timeout(patience))?
    }

    async fn of_tcp(stream: TcpStream, role: Role) -> Result<Self, ZmtpError> {
        // A host that vanishes says nothing; without this its stream would look idle for ever.
        SockRef::from(&stream).set_tcp_keepalive(&limits::tcp_keepalive())?;
        stream.set_nodelay(true)?;
        Self::shake_hands(stream, role).await
    }

    async fn shake_hands(io: impl Io + 'static, role: Role) -> Result<Self, ZmtpError> {
        let mut this = Self { io: Box::new(io), buffer: BytesMut::new(), decoder: Decoder::default() };
        let mut hello = BytesMut::from(&greeting()[..]);
        put_command(&ready(role), &mut hello);
        this.io.write_all(&hello).await?;
        while this.buffer.len() < GREETING_BYTES {
            // Whoever does not speak ZMTP is told apart by the first byte, not by a timeout.
            if this.buffer.first().is_some_and(|byte| *byte != 0xff) {
                return Err(ZmtpError::NotZmtp);
            }
            this.fill().await?;
        }
        check_greeting(&this.buffer.split_to(GREETING_BYTES))?;
        match this.frame().await? {
            Frame::Command(command) => check_ready(&command, role)?,
            Frame::Message(_) => return Err(ZmtpError::NotZmtp),
        }
        if role == Role::Sub {
            this.send(&[&[1]]).await?; // subscribes to every topic
        }
        Ok(this)
    }

    /// Sends one message.
    pub async fn send(&mut self, frames: &[&[u8]]) -> Result<(), ZmtpError> {
        let mut wire = BytesMut::new();
        put_message(frames, &mut wire);
        Ok(self.io.write_all(&wire).await?)
    }

    /// The next message, all its frames. May be dropped and called again without losing anything.
    pub async fn receive(&mut self) -> Result<Vec<Bytes>, ZmtpError> {
        loop {
            match self.frame().await? {
                Frame::Message(frames) => return Ok(frames),
                Frame::Command(command) => self.answer(&command).await?,
            }
        }
    }

    /// A PING is answered with its context (ZMTP 3.1); other commands mean nothing here.
    async fn answer(&mut self, command: &[u8]) -> Result<(), ZmtpError> {
        if let Some(context) = command.strip_prefix(b"\x04PING").and_then(|body| body.get(2..)) {
            let mut pong = BytesMut::new();
            put_command(&[b"\x04PONG", context].concat(), &mut pong);
            self.io.write_all(&pong).await?;
        }
        Ok(())
    }

    async fn frame(&mut self) -> Result<Frame, ZmtpError> {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.buffer)? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), ZmtpError> {
        self.buffer.reserve(READ_BYTES);
        if self.io.read_buf(&mut self.buffer).await? == 0 { Err(ZmtpError::Closed) } else { Ok(()) }
    }
}

fn greeting() -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = VERSION_MAJOR;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

fn check_greeting(greeting: &[u8]) -> Result<(), ZmtpError> {
    if greeting[0] != 0xff || greeting[9] != 0x7f || greeting[10] < VERSION_MAJOR {
        return Err(ZmtpError::NotZmtp);
    }
    let mechanism = greeting[12..32].split(|byte| *byte == 0).next().unwrap_or_default();
    if mechanism == b"NULL" { Ok(()) } else { Err(ZmtpError::Mechanism(text(mechanism))) }
}

fn ready(role: Role) -> Vec<u8> {
    let property = |name: &[u8], value: &[u8]| {
        [&[name.len() as u8], name, &(value.len() as u32).to_be_bytes(), value].concat()
    };
    [b"\x05READY".to_vec(), property(b"Socket-Type", role.name()), property(b"Identity", b"")].concat()
}

fn check_ready(command: &[u8], role: Role) -> Result<(), ZmtpError> {
    if let Some(reason) = command.strip_prefix(b"\x05ERROR") {
        return Err(ZmtpError::Refused(text(reason.get(1..).unwrap_or_default())));
    }
    let mut rest = command.strip_prefix(b"\x05READY").ok_or(ZmtpError::NotZmtp)?;
    while rest.has_remaining() {
        let (name, value) = property(&mut rest).ok_or(ZmtpError::NotZmtp)?;
        if name.eq_ignore_ascii_case(b"socket-type") {
            return if role.fits(value) { Ok(()) } else { Err(ZmtpError::SocketType(text(value))) };
        }
    }
    Err(ZmtpError::NotZmtp)
}

/// The name and the value of the metadata property at the start of `rest`, which is moved behind it.
fn property<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (length, tail) = rest.split_first()?;
    let (name, tail) = tail.split_at_checked(usize::from(*length))?;
    let (length, tail) = tail.split_first_chunk::<4>()?;
    let (value, tail) = tail.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *rest = tail;
    Some((name, value))
}

/// A peer's words, for an error.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).into_owned()
}

#[cfg(test)]
mod tests {
    use tokio::{io::duplex, net::TcpListener};

    use super::*;

    /// What comes of a peer that sends these bytes.
    async fn against(wire: &[u8], role: Role) -> Result<Connection, ZmtpError> {
        let (mut peer, own) = duplex(1 << 16);
        peer.write_all(wire).await.unwrap();
        peer.shutdown().await.unwrap();
        Connection::shake_hands(own, role).await
    }

    fn peer(socket_type: &[u8], mechanism: &[u8]) -> Vec<u8> {
        let mut wire = BytesMut::from(&greeting()[..]);
        wire[12..32].fill(0);
        wire[12..12 + mechanism.len()].copy_from_slice(mechanism);
        let command =
            [b"\x05READY\x0bSocket-Type", &(socket_type.len() as u32).to_be_bytes()[..], socket_type];
        put_command(&command.concat(), &mut wire);
        wire.to_vec()
    }

    #[tokio::test]
    async fn a_message_comes_through_and_a_ping_is_answered() {
        let (mut peer_io, own) = duplex(1 << 16);
        let mut wire = BytesMut::from(&peer(b"PUB", b"NULL")[..]);
        put_command(b"\x04PING\0\x0acontext", &mut wire);
        put_message(&[b"topic", b"1"], &mut wire);
        peer_io.write_all(&wire).await.unwrap();
        let mut connection = Connection::shake_hands(own, Role::Sub).await.unwrap();
        assert_eq!(connection.receive().await.unwrap(), [&b"topic"[..], b"1"]);
        drop(connection);
        let mut sent = Vec::new();
        peer_io.read_to_end(&mut sent).await.unwrap();
        assert!(sent.ends_with(b"\0\x01\x01\x04\x0c\x04PONGcontext"), "{sent:x?}");
    }

    #[tokio::test]
    async fn wrong_peers_are_told_apart() {
        let error = |result: Result<Connection, ZmtpError>| result.err().expect("an error").to_string();
        assert!(error(against(b"HTTP/1.1 400 Bad Request\r\n", Role::Sub).await).contains("ZMTP 3"));
        assert!(error(against(&peer(b"PUB", b"CURVE"), Role::Sub).await).contains("CURVE"));
        assert!(error(against(&peer(b"ROUTER", b"NULL"), Role::Sub).await).contains("ROUTER"));
        assert!(error(against(&peer(b"PUB", b"NULL"), Role::Dealer).await).contains("PUB"));
        assert!(error(against(&peer(b"PUB", b"NULL")[..70], Role::Sub).await).contains("closed"));
        let mut refused = BytesMut::from(&greeting()[..]);
        put_command(b"\x05ERROR\x03why", &mut refused);
        assert!(error(against(&refused, Role::Sub).await).contains("why"));
    }

    #[tokio::test]
    async fn a_peer_that_says_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::time::pause(); // time goes on as soon as nobody has anything to do
        let error = Connection::connect(&endpoint, Role::Sub).await.err().expect("an error");
        assert!(matches!(error, ZmtpError::Timeout(_)), "{error}");
    }
}
