//! What a client connection is doing, and for how long it may.
//!
//! hyper has one timer for "waiting for a request" and "reading its head". They are different things: a connection may be
//! idle for long, a head may not trickle in for long. [`Phases`] tells them apart by the first byte after idleness. Bytes of
//! HTTP/2 may be anything (an answer to a ping, room for a response), so there a connection is idle or busy, and no more.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{idlers::Idlers, protocol::Protocol};

/// Idle for longer, a connection rests; it is looked at less often than that.
const REST_AFTER: Duration = Duration::from_secs(1);

/// What a client connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Between requests, or before the first.
    Idle,
    /// Part of a head is here.
    Head,
    /// A request is being served.
    Busy,
}

/// The phase of one connection, and since when. Shared by its socket, its service and its watchdog, all on one thread.
#[derive(Debug)]
pub(super) struct Phases {
    protocol: Protocol,
    phase: Cell<Phase>,
    since: Cell<Instant>,
    /// Requests being served.
    serving: Cell<usize>,
    /// Whether the last request was read to its end, so that what comes next is another one.
    is_read: Cell<bool>,
    /// Whether all that was written since idleness began is with the socket.
    is_flushed: Cell<bool>,
    /// Of the thread.
    idlers: Rc<Idlers>,
    is_told_to_rest: Cell<bool>,
    /// Who is to know of that.
    waker: RefCell<Option<Waker>>,
}

/// What the watchdog should do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look again then.
    Fine(Instant),
    /// Idle for too long: close after what is under way (nothing).
    Idle,
    /// Idle for a while: nothing has to be kept for it but the socket.
    Rest,
    /// The head takes too long: close now.
    SlowHead,
}

impl Phases {
    pub(super) fn new(protocol: Protocol, idlers: Rc<Idlers>) -> Rc<Self> {
        Rc::new(Self {
            protocol,
            phase: Cell::new(Phase::Idle),
            since: Cell::new(Instant::now()),
            serving: Cell::new(0),
            is_read: Cell::new(false),
            is_flushed: Cell::new(false),
            idlers,
            is_told_to_rest: Cell::new(false),
            waker: RefCell::new(None),
        })
    }

    /// What is spoken on the connection.
    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(Instant::now());
    }

    /// Bytes have come from the client.
    pub(super) fn bytes_came(&self) {
        if self.phase.get() == Phase::Idle && self.protocol == Protocol::Http1 {
            self.enter(Phase::Head);
        }
    }

    /// A request's head is complete; it is served until the returned guard is dropped.
    pub(super) fn serve(self: &Rc<Self>) -> Serving {
        self.serving.set(self.serving.get() + 1);
        self.is_read.set(false);
        self.enter(Phase::Busy);
        Serving(self.clone())
    }

    /// The socket has all that was to be written.
    pub(super) fn flushed(&self) {
        self.is_flushed.set(self.phase.get() == Phase::Idle);
    }

    /// When an idle connection may be closed.
    pub(super) fn idle_until(&self, keep_alive: Duration) -> Instant {
        self.since.get() + keep_alive
    }

    /// Whether nothing has to be kept but the socket.
    fn is_whole(&self) -> bool {
        let is_idle = self.phase.get() == Phase::Idle && self.protocol == Protocol::Http1;
        is_idle && self.is_read.get() && self.is_flushed.get()
    }

    fn may_rest(&self, now: Instant) -> bool {
        self.is_whole() && now >= self.since.get() + REST_AFTER
    }

    /// There are too many like it, if it has been idle since then.
    pub(super) fn tell_to_rest(&self, since: Instant) {
        if self.is_whole() && self.since.get() == since {
            self.is_told_to_rest.set(true);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }

    /// Ready when the connection is to rest now.
    pub(super) fn told_to_rest(&self) -> impl Future<Output = ()> + use<'_> {
        poll_fn(|cx| {
            // It may have got something to do since.
            if self.is_told_to_rest.take() && self.is_whole() {
                return Poll::Ready(());
            }
            let mut waker = self.waker.borrow_mut();
            if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
    }

    pub(super) fn judge(&self, now: Instant, head: Duration, keep_alive: Duration) -> Verdict {
        match self.phase.get() {
            // Whatever comes next starts its own clock; look again before its shortest limit is over.
            Phase::Busy => Verdict::Fine(now + head),
            Phase::Idle if now >= self.since.get() + keep_alive => Verdict::Idle,
            Phase::Idle if self.may_rest(now) => Verdict::Rest,
            Phase::Idle => Verdict::Fine((self.since.get() + keep_alive).min(now + head)),
            Phase::Head if now >= self.since.get() + head => Verdict::SlowHead,
            Phase::Head => Verdict::Fine(self.since.get() + head),
        }
    }
}

/// Held while a request is served.
#[derive(Debug)]
pub(super) struct Serving(Rc<Phases>);

impl Serving {
    /// The request has been read to its end.
    pub(super) fn read_to_its_end(&self) {
        self.0.is_read.set(true);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let left = self.0.serving.get() - 1;
        self.0.serving.set(left);
        if left == 0 {
            self.0.is_flushed.set(false);
            self.0.enter(Phase::Idle);
            self.0.idlers.push(self.0.since.get(), self.0.clone());
        }
    }
}

/// A connection whose bytes are not the kernel's to relay, watched.
#[derive(Debug)]
pub(super) struct Watched<T> {
    stream: T,
    phases: Rc<Phases>,
}

impl<T> Watched<T> {
    pub(super) fn new(stream: T, phases: Rc<Phases>) -> Self {
        Self { stream, phases }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.phases.bytes_came();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Duration = Duration::from_secs(10);
    const KEEP_ALIVE: Duration = Duration::from_secs(75);

    fn after(phases: &Phases, seconds: u64) -> Verdict {
        phases.judge(phases.since.get() + Duration::from_secs(seconds), HEAD, KEEP_ALIVE)
    }

    #[test]
    fn an_idle_connection_may_stay_for_the_keep_alive_time() {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let phases = Phases::new(protocol, Rc::default());
            assert!(matches!(after(&phases, 74), Verdict::Fine(_)));
            assert_eq!(after(&phases, 75), Verdict::Idle);
        }
    }

    #[test]
    fn a_head_may_not_trickle() {
        let phases = Phases::new(Protocol::Http1, Rc::default());
        phases.bytes_came();
        assert!(matches!(after(&phases, 9), Verdict::Fine(_)));
        assert_eq!(after(&phases, 10), Verdict::SlowHead);
        let phases = Phases::new(Protocol::Http2, Rc::default());
        phases.bytes_came();
        assert!(matches!(after(&phases, 10), Verdict::Fine(_)), "it may be the answer to a ping");
    }

    #[test]
    fn a_request_may_take_as_long_as_it_takes_and_idleness_starts_at_the_end_of_the_last() {
        let phases = Phases::new(Protocol::Http2, Rc::default());
        let (first, second) = (phases.serve(), phases.serve());
        assert!(matches!(after(&phases, 3600), Verdict::Fine(_)));
        drop(first);
        assert_eq!(phases.phase.get(), Phase::Busy);
        drop(second);
        assert_eq!(phases.phase.get(), Phase::Idle);
    }
}
