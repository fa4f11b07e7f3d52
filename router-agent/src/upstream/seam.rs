//! A worker's socket as hyper sees it, and the point at which somebody else can take the body over.
//!
//! hyper parses heads. For a response that the kernel may relay, it must not read past the head, because what it has
//! read is in its buffer and not in the socket any more. So the socket is in one of three states:
//!
//! * **open**: hyper reads what there is.
//! * **head only**: hyper reads up to the end of the response head (interim 1xx heads pass); what came behind it is
//!   kept here. Unless only event streams are wanted, and the head names none: then the socket is open again, and hyper
//!   has body and head in one read, which lets it write both at once.
//! * **held**: hyper reads nothing. Either [`Seam::open`] gives it the body after all, as if nothing had been, or
//!   [`Seam::take`] takes the socket away from it for good; hyper's connection is then dropped and, when the body
//!   has been relayed, a new one is made over the same socket.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::connect::WorkerStream;
use super::outgoing::Progress;
use crate::kernel::bypass::Ends;

/// Of a body that is held, as much as is read to see that it has begun.
const FIRST_READ_BYTES: usize = 4096;

/// The seam of one worker connection.
#[derive(Debug)]
pub(super) struct Seam {
    /// `None` once it was taken.
    socket: RefCell<Option<WorkerStream>>,
    state: Cell<State>,
    /// What was read behind the head.
    early: RefCell<BytesMut>,
    /// hyper's, while it may not read.
    reader: RefCell<Option<Waker>>,
    /// The request on its way out.
    progress: Rc<Progress>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Open,
    HeadOnly(HeadEnd, Hold),
    Held,
}

/// Which bodies are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    EventStreams,
    All,
}

/// A socket taken from hyper.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) socket: TcpStream,
    /// Read from the socket already: the body's first bytes.
    pub(super) early: BytesMut,
}

impl Seam {
    pub(super) fn new(socket: WorkerStream) -> Rc<Self> {
        Rc::new(Self {
            socket: RefCell::new(Some(socket)),
            state: Cell::new(State::Open),
            early: RefCell::default(),
            reader: RefCell::default(),
            progress: Rc::default(),
        })
    }

    /// The request on its way out.
    pub(super) fn progress(&self) -> &Rc<Progress> {
        &self.progress
    }

    /// What hyper is given.
    pub(super) fn io(self: &Rc<Self>) -> WorkerIo {
        WorkerIo(self.clone())
    }

    /// From here on, hyper reads one response head and no more. Call between responses.
    pub(super) fn hold_after_head(&self, hold: Hold) {
        self.state.set(State::HeadOnly(HeadEnd::default(), hold));
    }

    /// Ready when a byte behind the head is here, and kept for whoever gets the body; an error if the worker has closed
    /// instead. At once while hyper may read.
    pub(super) fn poll_first_byte(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !matches!(self.state.get(), State::Held) || !self.early.borrow().is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut bytes = [0; FIRST_READ_BYTES];
        let mut read = ReadBuf::new(&mut bytes);
        std::task::ready!(self.with_socket(|socket| socket.poll_read(cx, &mut read)))?;
        if read.filled().is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.early.borrow_mut().extend_from_slice(read.filled());
        Poll::Ready(Ok(()))
    }

    /// What came behind the head so far, while it is held.
    pub(super) fn early<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&self.early.borrow())
    }

    /// hyper reads whatever there is.
    pub(super) fn open(&self) {
        self.state.set(State::Open);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Takes the socket, if it is held after a head, and the worker has all of the request.
    pub(super) fn take(&self) -> Option<Taken> {
        if !(matches!(self.state.get(), State::Held) && self.progress.is_whole()) {
            return None;
        }
        let mut place = self.socket.borrow_mut();
        let WorkerStream::Plain(socket) = place.take()? else { return None };
        drop(place);
        self.open(); // whoever reads from here on learns that there is nothing to be had
        Some(Taken { socket, early: self.early.take() })
    }

    /// The addresses of both ends; none over TLS.
    pub(super) fn ends(&self) -> Option<Ends> {
        self.plain(|socket| {
            Some(Ends { worker: socket.peer_addr().ok()?, gateway: socket.local_addr().ok()? })
        })?
    }

    fn plain<T>(&self, look: impl FnOnce(&TcpStream) -> T) -> Option<T> {
        self.socket.borrow().as_ref().and_then(WorkerStream::plain).map(look)
    }

    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if matches!(self.state.get(), State::Held) {
            *self.reader.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        {
            let mut early = self.early.borrow_mut();
            if !early.is_empty() {
                let count = early.len().min(buf.remaining());
                buf.put_slice(&early[..count]);
                early.advance(count);
                return Poll::Ready(Ok(()));
            }
        }
        let before = buf.filled().len();
        std::task::ready!(self.with_socket(|socket| socket.poll_read(cx, buf)))?;
        let read = &buf.filled()[before..];
        if let State::HeadOnly(mut head, hold) = self.state.get() {
            let is_fresh = !head.begun;
            if let Some(end) = end_at_once(read).filter(|_| is_fresh).or_else(|| head.find(read)) {
                // A head in pieces is not looked through: its body is held.
                if hold == Hold::EventStreams && is_fresh && !names_event_stream(&read[..end]) {
                    self.state.set(State::Open);
                    return Poll::Ready(Ok(()));
                }
                self.early.borrow_mut().extend_from_slice(&read[end + 1..]);
                self.state.set(State::Held);
                buf.set_filled(before + end + 1);
            } else {
                self.state.set(State::HeadOnly(head, hold));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn with_socket<T>(
        &self,
        call: impl FnOnce(Pin<&mut WorkerStream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match self.socket.borrow_mut().as_mut() {
            Some(socket) => call(Pin::new(socket)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

/// hyper's handle on a worker's socket.
#[derive(Debug)]
pub(super) struct WorkerIo(Rc<Seam>);

impl AsyncRead for WorkerIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buf)
    }
}

impl AsyncWrite for WorkerIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = self.0.with_socket(|socket| socket.poll_write(cx, buf));
        self.0.progress.written(wrote, buf.len())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.progress.flushed();
        self.0.with_socket(|socket| socket.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.with_socket(|socket| socket.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = self.0.with_socket(|socket| socket.poll_write_vectored(cx, bufs));
        self.0.progress.written(wrote, bufs.iter().map(|buf| buf.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// The last byte of a head that is not an interim one and lies in `bytes` as a whole; `None` where that takes a closer
/// look. As [`HeadEnd`], line by line.
fn end_at_once(bytes: &[u8]) -> Option<usize> {
    if !bytes.starts_with(b"HTTP/1.1 ") || bytes.get(HeadEnd::CLASS_AT as usize) == Some(&b'1') {
        return None;
    }
    memchr::memchr_iter(b'\n', bytes).find_map(|line_end| match &bytes[line_end + 1..] {
        [b'\n', ..] => Some(line_end + 1),
        [b'\r', b'\n', ..] => Some(line_end + 2),
        _ => None,
    })
}

/// Whether the words stand anywhere in a head: a field's value is looked at by those who decide.
fn names_event_stream(head: &[u8]) -> bool {
    const WORDS: &[u8] = b"event-stream";
    memchr::memchr2_iter(b'e', b'E', head)
        .any(|at| head.get(at..at + WORDS.len()).is_some_and(|words| words.eq_ignore_ascii_case(WORDS)))
}

/// Finds the end of a response head as hyper does: the first empty line after a line that is not; a bare LF ends a
/// line, and empty lines before the status line are passed over.
#[derive(Debug, Clone, Copy, Default)]
struct HeadEnd {
    /// A line with something in it was seen.
    begun: bool,
    /// The status line is complete.
    has_status: bool,
    /// Bytes of this line, without its end.
    line_bytes: u32,
    /// The first digit of the status.
    class: u8,
}

impl HeadEnd {
    /// Where the first digit of the status stands: after "HTTP/1.1 ".
    const CLASS_AT: u32 = 9;

    /// Where the last byte of a head that is not an interim one is.
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        bytes.iter().position(|byte| self.feed(*byte))
    }

    /// True at the last byte of a head that is not an interim one.
    fn feed(&mut self, byte: u8) -> bool {
        match byte {
            b'\n' if self.line_bytes == 0 && self.begun => {
                let interim = self.class == b'1';
                *self = Self::default();
                return !interim;
            }
            b'\n' => {
                self.has_status = self.begun;
                self.line_bytes = 0;
            }
            b'\r' => {}
            _ => {
                if !self.has_status && self.line_bytes == Self::CLASS_AT {
                    self.class = byte;
                }
                self.begun = true;
                self.line_bytes = self.line_bytes.saturating_add(1);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(bytes: &[u8]) -> Option<usize> {
        let end = HeadEnd::default().find(bytes);
        if let Some(at_once) = end_at_once(bytes) {
            assert_eq!(Some(at_once), end, "{:?}", String::from_utf8_lossy(bytes));
        }
        end.map(|at| at + 1)
    }

    #[test]
    fn a_head_that_is_there_as_a_whole_is_found_at_once() {
        let head = b"HTTP/1.1 200 OK\r\na: b\r\n\r\nbody\r\n\r\n";
        assert_eq!(end_at_once(head), Some(24));
        assert_eq!(end_at_once(&head[..24]), None, "one byte is missing");
        assert_eq!(end_at_once(b"HTTP/1.1 103 Early Hints\r\n\r\n"), None);
        assert_eq!(end_at_once(b"HTTP/1.1 200 OK\na: b\n\nbody\r\n\r\n"), Some(21));
    }

    #[test]
    fn an_event_stream_is_seen_in_any_case() {
        assert!(names_event_stream(b"HTTP/1.1 200 OK\r\nContent-Type: text/Event-Stream; charset=utf-8"));
        assert!(!names_event_stream(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx: event-strea"));
    }

    async fn send_request(seam: &Seam, io: &mut WorkerIo) {
        use tokio::io::AsyncWriteExt as _;
        let _body = seam.progress().begin(bytes::Bytes::new());
        io.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        io.flush().await.unwrap();
    }

    #[tokio::test]
    async fn a_body_that_is_no_event_stream_comes_with_its_head_where_only_those_are_held() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut worker, _) = listener.accept().await.unwrap();
        let seam = Seam::new(WorkerStream::Plain(socket));
        let mut io = seam.io();
        for (kind, is_held) in [("application/json", false), ("text/event-stream", true)] {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: 4\r\n\r\n");
            send_request(&seam, &mut io).await;
            seam.hold_after_head(Hold::EventStreams);
            worker.write_all(format!("{head}body").as_bytes()).await.unwrap();
            let mut read = [0; 1024];
            let count = io.read(&mut read).await.unwrap();
            assert_eq!(count, head.len() + if is_held { 0 } else { 4 }, "{kind}");
        }
        assert_eq!(&seam.take().unwrap().early[..], b"body");
    }

    #[test]
    fn the_end_of_a_head_is_an_empty_line() {
        let head = b"HTTP/1.1 200 OK\r\na: b\r\n\r\n";
        assert_eq!(end(&[head, &b"body\r\n\r\n"[..]].concat()), Some(head.len()));
        assert_eq!(end(&head[..head.len() - 1]), None);
        assert_eq!(end(b"HTTP/1.1 200 OK\na: b\n\nbody"), Some(22));
        assert_eq!(end(b"\r\n\nHTTP/1.1 204 \r\n\r\n"), Some(20), "empty lines before the head are no head");
    }

    #[test]
    fn interim_heads_are_passed_over() {
        let interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
        let bytes = [interim, &b"HTTP/1.1 200 OK\r\n\r\nx"[..]].concat();
        assert_eq!(end(&bytes), Some(bytes.len() - 1));
        assert_eq!(end(interim), None);
        assert_eq!(
            end(b"HTTP/1.1 200 OK\r\nx-code: 1234567891\r\n\r\n"),
            Some(39),
            "digits elsewhere say nothing"
        );
    }

    #[tokio::test]
    async fn a_held_body_is_there_when_the_seam_opens_and_there_when_it_is_taken() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n";
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut worker, _) = listener.accept().await.unwrap();
        let seam = Seam::new(WorkerStream::Plain(socket));
        let mut io = seam.io();
        for take in [false, true] {
            send_request(&seam, &mut io).await;
            seam.hold_after_head(Hold::All);
            worker.write_all(&[HEAD, b"bo"].concat()).await.unwrap();
            let mut read = [0; 1024];
            let count = io.read(&mut read).await.unwrap();
            assert_eq!(&read[..count], HEAD);
            worker.write_all(b"dy 123").await.unwrap();
            let mut more = [0; 8];
            assert!(
                tokio::time::timeout(std::time::Duration::from_millis(20), io.read(&mut more)).await.is_err(),
                "nothing behind the head is read"
            );
            if take {
                let mut taken = seam.take().unwrap();
                assert_eq!(&taken.early[..], b"bo");
                taken.socket.read_exact(&mut more[..6]).await.unwrap();
                assert_eq!(&more[..6], b"dy 123");
                assert!(io.read(&mut more).await.is_err(), "hyper has lost it");
            } else {
                seam.open();
                io.read_exact(&mut more).await.unwrap();
                assert_eq!(&more, b"body 123");
                assert!(seam.take().is_none(), "an open seam is hyper's");
            }
        }
    }
}
