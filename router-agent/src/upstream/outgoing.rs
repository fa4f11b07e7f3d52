//! How far a request has got on its way to the worker, where the worker need not wait for its end.
//!
//! A worker may answer before it has read the whole request (a 413, say), and close its end. Then
//!
//! * its answer counts: what is left of the request is thrown away instead of failing, so that hyper reads on
//!   ([`Progress::written`]);
//! * its connection does not: what the worker would take for the next request's first byte is this one's body
//!   ([`Progress::is_whole`]).

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

/// The request that a connection is sending or has sent last.
#[derive(Debug, Default)]
pub(super) struct Progress {
    stage: Cell<Stage>,
    /// hyper has taken the body to its end, so that a flush is one of the whole request.
    is_taken: Cell<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Nothing,
    Part,
    /// All of it is in the socket.
    Whole,
    /// The worker has closed its end.
    Cut,
}

impl Progress {
    /// From here on, it is about another request, with this body.
    pub(super) fn begin(self: &Rc<Self>, body: Bytes) -> OutgoingBody {
        self.stage.set(Stage::Nothing);
        self.is_taken.set(body.is_empty());
        OutgoingBody { bytes: Some(body).filter(|bytes| !bytes.is_empty()), progress: self.clone() }
    }

    /// Whether all of the request is in the socket.
    pub(super) fn is_whole(&self) -> bool {
        self.stage.get() == Stage::Whole
    }

    /// What hyper is told of a write of `len` bytes: where the worker has closed its end in the middle of the request, that
    /// they are gone. Whether there is an answer, reading tells.
    pub(super) fn written(&self, wrote: Poll<io::Result<usize>>, len: usize) -> Poll<io::Result<usize>> {
        match wrote {
            Poll::Ready(Ok(count)) => {
                self.stage.set(Stage::Part);
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) if is_closed(&error) && self.stage.get() != Stage::Nothing => {
                self.stage.set(Stage::Cut);
                Poll::Ready(Ok(len))
            }
            other => other,
        }
    }

    /// hyper has nothing left in its own buffer.
    pub(super) fn flushed(&self) {
        if self.is_taken.get() && self.stage.get() == Stage::Part {
            self.stage.set(Stage::Whole);
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// A request body that tells when hyper has taken it.
#[derive(Debug)]
pub(super) struct OutgoingBody {
    bytes: Option<Bytes>,
    progress: Rc<Progress>,
}

impl Body for OutgoingBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.progress.is_taken.set(true);
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed() -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    #[test]
    fn a_request_is_whole_when_hyper_has_taken_its_body_and_flushed() {
        let progress = Rc::new(Progress::default());
        let mut body = progress.begin(Bytes::from_static(b"body"));
        progress.flushed();
        assert!(progress.written(Poll::Ready(Ok(20)), 20).is_ready());
        progress.flushed();
        assert!(!progress.is_whole(), "its head only");
        let _ = Pin::new(&mut body).poll_frame(&mut Context::from_waker(std::task::Waker::noop()));
        assert!(!progress.is_whole(), "in hyper's hands");
        assert!(progress.written(Poll::Ready(Ok(4)), 4).is_ready());
        progress.flushed();
        assert!(progress.is_whole());
    }

    #[test]
    fn only_a_request_that_was_begun_can_be_cut() {
        let progress = Rc::new(Progress::default());
        let _body = progress.begin(Bytes::new());
        assert!(
            matches!(progress.written(closed(), 20), Poll::Ready(Err(_))),
            "it may go over another connection"
        );
        assert!(progress.written(Poll::Ready(Ok(20)), 20).is_ready());
        assert!(matches!(progress.written(closed(), 7), Poll::Ready(Ok(7))));
        progress.flushed();
        assert!(!progress.is_whole());
    }
}
