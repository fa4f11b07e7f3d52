//! The worker's end of a raw body, by whoever holds it, and the two ways in which the kernel may move what comes from it.
//!
//! The bypass works on the *worker's* socket: ours stays where it is, in tokio's hands. The splice works on *our* socket,
//! which it must have for itself: no epoll instance of tokio's may hold it meanwhile, or this process would wake for
//! every segment. So lending to the splice changes hands, and all reading goes through what was lent.

use std::io;

use bytes::BytesMut;
use router_common::{flows::FlowState, framing::Framing};

use crate::{
    kernel::{
        Bypass, Splice,
        bypass::{self, Ends, LendError},
        flows::Flow,
        relay::{ClientEnd, Stop},
        splice,
    },
    telemetry::RelayPath,
    upstream::{Place, RawBody},
};

/// Who may move the body.
#[derive(Clone)]
pub(super) enum Way {
    Bypass(Bypass),
    Splice(Splice),
}

impl Way {
    pub(super) fn is_on(&self) -> bool {
        match self {
            Self::Bypass(bypass) => bypass.is_on(),
            Self::Splice(splice) => splice.is_on(),
        }
    }

    /// For good.
    pub(super) fn switch_off(&self) {
        match self {
            Self::Bypass(bypass) => bypass.switch_off(),
            Self::Splice(splice) => splice.switch_off(),
        }
    }

    pub(super) fn path(&self) -> RelayPath {
        match self {
            Self::Bypass(_) => RelayPath::Bypass,
            Self::Splice(_) => RelayPath::Splice,
        }
    }

    /// As the `flows` map has it.
    pub(super) fn state(&self) -> FlowState {
        match self {
            Self::Bypass(_) => FlowState::Bypass,
            Self::Splice(_) => FlowState::Splice,
        }
    }
}

/// What is the same for all of a body.
pub(super) struct Terms {
    pub(super) flow: Flow,
    pub(super) ends: Ends,
    pub(super) client: ClientEnd,
    pub(super) is_event_stream: bool,
}

/// What came of an order to take over.
pub(super) enum Lending {
    /// The kernel takes over with the next byte, or has.
    Ordered,
    /// Bytes have come that are to be passed on first.
    ReadFirst,
    /// Not this way, on this connection.
    Refused,
}

/// The worker's end.
pub(super) enum Source {
    /// In tokio's hands. `lent`: from the first time that the bypass had the stream.
    Ours { body: RawBody, lent: Option<bypass::Lent>, position: u32 },
    /// The splice's.
    Spliced { lent: splice::Lent, place: Place },
    /// In between, or put back.
    Gone,
}

impl Source {
    pub(super) fn new(body: RawBody) -> Self {
        Self::Ours { body, lent: None, position: 0 }
    }

    pub(super) fn take_early(&mut self) -> BytesMut {
        match self {
            Self::Ours { body, .. } => std::mem::take(&mut body.early),
            _ => BytesMut::new(),
        }
    }

    /// Whether the kernel has had the stream.
    pub(super) fn was_lent(&self) -> bool {
        matches!(self, Self::Ours { lent: Some(_), .. } | Self::Spliced { .. })
    }

    /// What is there for this process to read. `Ok(0)`: the worker has closed its side.
    pub(super) fn try_read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Ours { body, .. } => body.socket.try_read_buf(buffer),
            Self::Spliced { lent, .. } => {
                buffer.resize(buffer.capacity(), 0);
                let result = lent.try_read(buffer);
                buffer.truncate(*result.as_ref().unwrap_or(&0));
                result
            }
            Self::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Completes when there may be something to read.
    pub(super) async fn readable(&mut self) -> io::Result<()> {
        match self {
            Self::Ours { body, .. } => body.socket.readable().await,
            Self::Spliced { lent, .. } => lent.readable().await,
            Self::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Bytes that were read were passed on.
    pub(super) fn passed(&mut self, count: usize) {
        // The splice counts what is read from it.
        if let Self::Ours { position, .. } = self {
            *position = position.wrapping_add(count as u32);
        }
    }

    /// Asks the kernel to take over with the byte that would be read next; `framing` stands there.
    pub(super) fn lend(&mut self, way: &Way, terms: &Terms, framing: Framing) -> io::Result<Lending> {
        let Terms { flow, ends, client, is_event_stream } = terms;
        match (&mut *self, way) {
            (Self::Ours { lent: Some(lent), position, .. }, _) => {
                lent.arm(*position, *client, framing, *is_event_stream);
                Ok(Lending::Ordered)
            }
            (Self::Spliced { lent, .. }, _) => {
                Ok(if lent.rearm(framing)? { Lending::Ordered } else { Lending::ReadFirst })
            }
            (Self::Ours { lent, position, .. }, Way::Bypass(bypass)) => {
                match bypass.lend(flow, *ends, *client, framing, *is_event_stream) {
                    Ok(now_lent) => {
                        (*lent, *position) = (Some(now_lent), 0);
                        Ok(Lending::Ordered)
                    }
                    Err(LendError::NoClient) => Err(io::ErrorKind::NotConnected.into()),
                    Err(error) => {
                        tracing::debug!(%error, "not lent");
                        Ok(Lending::Refused)
                    }
                }
            }
            (Self::Ours { .. }, Way::Splice(splice)) => self.lend_to_splice(splice, terms, framing),
            (Self::Gone, _) => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn lend_to_splice(&mut self, splice: &Splice, terms: &Terms, framing: Framing) -> io::Result<Lending> {
        let Self::Ours { body, .. } = std::mem::replace(self, Self::Gone) else {
            return Ok(Lending::Refused);
        };
        let (place, socket) = body.into_parts()?;
        let Terms { flow, client, is_event_stream, .. } = terms;
        let terms = splice::Terms { client: *client, framing, is_event_stream: *is_event_stream };
        match splice.lend(flow, socket, terms) {
            Ok(lent) => {
                *self = Self::Spliced { lent, place };
                Ok(Lending::Ordered)
            }
            Err(splice::Refused { socket, error }) => {
                tracing::debug!(%error, "not lent");
                *self = Self::new(place.body(socket)?);
                Ok(Lending::Refused)
            }
        }
    }

    /// The kernel keeps what it has, and takes nothing over any more.
    pub(super) fn disarm(&self) {
        match self {
            Self::Ours { lent: Some(lent), .. } => lent.disarm(),
            Self::Spliced { lent, .. } => lent.disarm(),
            _ => {}
        }
    }

    /// Even: the bytes are this process's to move. One more at each take-over and at each return.
    pub(super) fn turn(&self) -> u64 {
        match self {
            Self::Ours { lent: Some(lent), .. } => lent.turn(),
            Self::Spliced { lent, .. } => lent.turn(),
            _ => 0,
        }
    }

    /// Bytes redirected so far.
    pub(super) fn redirected(&self) -> u64 {
        match self {
            Self::Ours { lent: Some(lent), .. } => lent.redirected(),
            Self::Spliced { lent, .. } => lent.redirected(),
            _ => 0,
        }
    }

    /// Why the stream came back, and where the scanner stands. Only while the turn is even.
    pub(super) fn stopped(&self) -> (Stop, Framing) {
        match self {
            Self::Ours { lent: Some(lent), .. } => lent.stopped(),
            Self::Spliced { lent, .. } => lent.stopped(),
            _ => (Stop::Failed, Framing::chunked()),
        }
    }

    /// Completes when something has happened to a stream that the kernel has: its first bytes, its return, the worker's end;
    /// possibly sooner.
    pub(super) async fn event(&self) -> io::Result<()> {
        match self {
            Self::Ours { body, lent: Some(lent), .. } => tokio::select! {
                biased;
                () = lent.event() => Ok(()),
                ready = body.socket.readable() => ready,
            },
            Self::Spliced { lent, .. } => {
                lent.event().await;
                Ok(())
            }
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// The kernel has moved `count` bytes.
    pub(super) fn moved(&mut self, count: u64) {
        self.passed(count as usize);
    }

    /// The body has been read to its last byte: the connection may serve another request.
    pub(super) fn put_back(self) {
        match self {
            Self::Ours { body, .. } => body.put_back(),
            Self::Spliced { lent, place } => {
                if let Some(body) = lent.end().and_then(|socket| place.body(socket).ok()) {
                    body.put_back();
                }
            }
            Self::Gone => {}
        }
    }
}
