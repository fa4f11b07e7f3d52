//! A client's socket as hyper sees it, and what it tells of the connection's phase.
//!
//! hyper has one timer for "waiting for a request" and "reading its head". They are different things: a connection may be
//! idle for long, a head may not trickle in for long. [`Phases`] tells them apart by the first byte after idleness.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

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
    phase: Cell<Phase>,
    since: Cell<Instant>,
}

/// What the watchdog should do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look again then.
    Fine(Instant),
    /// Idle for too long: close after what is under way (nothing).
    Idle,
    /// The head takes too long: close now.
    SlowHead,
}

impl Phases {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self { phase: Cell::new(Phase::Idle), since: Cell::new(Instant::now()) })
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(Instant::now());
    }

    /// A request's head is complete; it is served until the returned guard is dropped.
    pub(super) fn serve(self: &Rc<Self>) -> Serving {
        self.enter(Phase::Busy);
        Serving(self.clone())
    }

    pub(super) fn judge(&self, now: Instant, head: Duration, keep_alive: Duration) -> Verdict {
        match self.phase.get() {
            // Whatever comes next starts its own clock; look again before its shortest limit is over.
            Phase::Busy => Verdict::Fine(now + head),
            Phase::Idle if now >= self.since.get() + keep_alive => Verdict::Idle,
            Phase::Idle => Verdict::Fine((self.since.get() + keep_alive).min(now + head)),
            Phase::Head if now >= self.since.get() + head => Verdict::SlowHead,
            Phase::Head => Verdict::Fine(self.since.get() + head),
        }
    }
}

/// Held while a request is served.
#[derive(Debug)]
pub(super) struct Serving(Rc<Phases>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.enter(Phase::Idle);
    }
}

/// A client's socket.
#[derive(Debug)]
pub(super) struct ClientIo {
    stream: TcpStream,
    phases: Rc<Phases>,
}

impl ClientIo {
    pub(super) fn new(stream: TcpStream, phases: Rc<Phases>) -> Self {
        Self { stream, phases }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before && self.phases.phase.get() == Phase::Idle {
            self.phases.enter(Phase::Head);
        }
        result
    }
}

impl AsyncWrite for ClientIo {
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
        let phases = Phases::new();
        assert!(matches!(after(&phases, 74), Verdict::Fine(_)));
        assert_eq!(after(&phases, 75), Verdict::Idle);
    }

    #[test]
    fn a_head_may_not_trickle() {
        let phases = Phases::new();
        phases.enter(Phase::Head);
        assert!(matches!(after(&phases, 9), Verdict::Fine(_)));
        assert_eq!(after(&phases, 10), Verdict::SlowHead);
    }

    #[test]
    fn a_request_may_take_as_long_as_it_takes_and_idleness_starts_at_its_end() {
        let phases = Phases::new();
        let serving = phases.serve();
        assert!(matches!(after(&phases, 3600), Verdict::Fine(_)));
        drop(serving);
        assert_eq!(phases.phase.get(), Phase::Idle);
    }
}
