//! The body of a response that several requests share, for one of them.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use hyper::body::{Frame, SizeHint};

use super::account::RequestAccount;
use crate::cache::{Head, Interrupted, Reader};

/// See the module. Dropped before its end, its client has left.
pub(super) struct SharedBody {
    reader: Reader,
    account: RequestAccount,
    status: StatusCode,
    /// Bytes that are still to come, where that is known.
    left: Option<u64>,
    ended: bool,
}

impl SharedBody {
    pub(super) fn new(reader: Reader, head: &Head, account: RequestAccount) -> Self {
        let mut body = Self { reader, account, status: head.status, left: head.length, ended: false };
        if body.left == Some(0) {
            body.end();
        }
        body
    }

    pub(super) fn poll_frame(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = ready!(self.reader.poll_piece(cx));
        if let (Some(Ok(data)), Some(left)) = (&piece, &mut self.left) {
            *left = left.saturating_sub(data.len() as u64);
        }
        if !matches!(piece, Some(Ok(_))) || self.left == Some(0) {
            self.end(); // hyper asks no further once the length is reached
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn end(&mut self) {
        self.ended = true;
        self.account.answered(self.status);
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.ended
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
