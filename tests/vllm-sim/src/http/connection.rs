//! One client connection: exact control over what is written when, and prompt notice of the client's leaving.
//!
//! Every `write_*` method is one `send` (or, to a slow client, the first of several). While a response is being made,
//! [`Connection::until`] keeps reading: an end of stream, in either meaning (FIN, half-close, RST), ends the request at
//! once, because asyncio's transports do that under vLLM; pipelined bytes are kept for the next request.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::head::{self, BodyFraming, Head, Parsed};

/// Pipelined bytes read ahead; beyond it the socket's buffer fills up (uvicorn's high-water mark).
const READ_AHEAD_BYTES_MAX: usize = 64 << 10;
/// Room for one read.
const READ_BYTES: usize = 4 << 10;
const HEAD_BYTES_MAX: usize = 1 << 20;

/// The client has gone (or was reset): nothing more can be said to it.
#[derive(Debug)]
pub(crate) struct Gone;

impl From<io::Error> for Gone {
    fn from(_: io::Error) -> Self {
        Self
    }
}

/// What comes next on a connection.
pub(crate) enum Next {
    Request(Box<Head>),
    /// Not HTTP.
    Invalid,
    /// The client left, or was idle for too long.
    End,
}

/// See the module's documentation.
pub(crate) struct Connection {
    stream: TcpStream,
    input: BytesMut,
    output: Vec<u8>,
    /// Reset, instead of closing, when dropped.
    reset: bool,
    /// The whole worker was killed: every connection is reset.
    killed: Arc<AtomicBool>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, killed: Arc<AtomicBool>) -> Self {
        let _ = stream.set_nodelay(true); // fails only on a socket that is dead already
        Self { stream, input: BytesMut::new(), output: Vec::new(), reset: false, killed }
    }

    /// Makes the close a RST.
    pub(crate) fn reset_on_close(&mut self) {
        self.reset = true;
    }

    /// Waits for the next request head. `idle_max` bounds the wait for its first byte, if given.
    pub(crate) async fn next_request(&mut self, idle_max: Option<Duration>) -> Next {
        loop {
            // llhttp skips empty lines before a request line.
            while self.input.starts_with(b"\r\n") {
                self.input.advance(2);
            }
            if !self.input.is_empty() {
                match head::parse(&self.input) {
                    Parsed::Complete(head, len) => {
                        self.input.advance(len);
                        return Next::Request(head);
                    }
                    Parsed::Invalid => return Next::Invalid,
                    Parsed::Partial if self.input.len() > HEAD_BYTES_MAX => return Next::Invalid,
                    Parsed::Partial => {}
                }
            }
            let idle = self.input.is_empty();
            let read = self.read_some();
            let read = match idle_max.filter(|_| idle) {
                Some(idle_max) => match tokio::time::timeout(idle_max, read).await {
                    Ok(read) => read,
                    Err(_) => return Next::End,
                },
                None => read.await,
            };
            if !matches!(read, Ok(1..)) {
                return Next::End;
            }
        }
    }

    /// Reads the request body. `Ok(None)`: its framing is broken.
    pub(crate) async fn read_body(&mut self, framing: BodyFraming) -> Result<Option<Bytes>, Gone> {
        match framing {
            BodyFraming::None => Ok(Some(Bytes::new())),
            BodyFraming::Length(len) => {
                self.fill(len).await?;
                Ok(Some(self.input.split_to(len).freeze()))
            }
            BodyFraming::Chunked => self.read_chunked().await,
        }
    }

    async fn read_chunked(&mut self) -> Result<Option<Bytes>, Gone> {
        let mut body = BytesMut::new();
        loop {
            let (head_len, len) = loop {
                match httparse::parse_chunk_size(&self.input) {
                    Ok(httparse::Status::Complete((head_len, len))) => break (head_len, len as usize),
                    Ok(httparse::Status::Partial) => self.read_more().await?,
                    Err(_) => return Ok(None),
                }
            };
            self.input.advance(head_len);
            if len == 0 {
                // Trailers are read and dropped, up to their empty line.
                loop {
                    match self.input.windows(2).position(|pair| pair == b"\r\n") {
                        Some(0) => {
                            self.input.advance(2);
                            return Ok(Some(body.freeze()));
                        }
                        Some(end) => self.input.advance(end + 2),
                        None => self.read_more().await?,
                    }
                }
            }
            self.fill(len.saturating_add(2)).await?;
            body.extend_from_slice(&self.input[..len]);
            if &self.input[len..len + 2] != b"\r\n" {
                return Ok(None);
            }
            self.input.advance(len + 2);
        }
    }

    async fn fill(&mut self, len: usize) -> Result<(), Gone> {
        if self.input.len() < len {
            self.input.reserve(len.min(1 << 30) - self.input.len().min(1 << 30));
        }
        while self.input.len() < len {
            self.read_more().await?;
        }
        Ok(())
    }

    /// Cancel safe, as `read_buf` is.
    async fn read_some(&mut self) -> io::Result<usize> {
        self.input.reserve(READ_BYTES);
        self.stream.read_buf(&mut self.input).await
    }

    async fn read_more(&mut self) -> Result<(), Gone> {
        match self.read_some().await {
            Ok(1..) => Ok(()),
            _ => Err(Gone),
        }
    }

    /// Waits for `work`, or for the client to leave.
    pub(crate) async fn until<F: Future>(&mut self, work: F) -> Result<F::Output, Gone> {
        let mut work = pin!(work);
        loop {
            if self.input.len() >= READ_AHEAD_BYTES_MAX {
                return Ok(work.await);
            }
            tokio::select! {
                biased;
                output = &mut work => return Ok(output),
                read = self.read_some() => {
                    if !matches!(read, Ok(1..)) {
                        return Err(Gone);
                    }
                }
            }
        }
    }

    /// Waits for the client to leave.
    pub(crate) async fn gone(&mut self) {
        let _ = self.until(std::future::pending::<()>()).await; // ends by `Gone` only
    }

    /// Sends bytes, noticing the client's leaving while its window is closed.
    pub(crate) async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Gone> {
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }

    async fn writable(&mut self) -> Result<(), Gone> {
        let watch_input = self.input.len() < READ_AHEAD_BYTES_MAX;
        tokio::select! {
            writable = self.stream.writable() => writable.map_err(Gone::from),
            readable = self.stream.readable(), if watch_input => {
                readable?;
                self.input.reserve(READ_BYTES);
                match self.stream.try_read_buf(&mut self.input) {
                    Ok(1..) => Ok(()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                    _ => Err(Gone),
                }
            }
        }
    }

    /// Sends one chunk of a chunked body, as one write. Returns its size on the wire.
    pub(crate) async fn write_chunk(&mut self, data: &[u8]) -> Result<(), Gone> {
        let mut output = std::mem::take(&mut self.output);
        output.clear();
        frame_chunk(data, &mut output);
        let result = self.write(&output).await;
        self.output = output;
        result
    }

    /// Ends the connection as uvicorn does: FIN at once, whatever the client still has to say.
    pub(crate) async fn close(mut self) {
        let _ = self.stream.shutdown().await; // the client may have gone
    }
}

/// Appends `data` as one HTTP/1.1 chunk.
pub(crate) fn frame_chunk(data: &[u8], output: &mut Vec<u8>) {
    output.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
    output.extend_from_slice(data);
    output.extend_from_slice(b"\r\n");
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.reset || self.killed.load(Ordering::Acquire) {
            // A zero linger time turns the close into a RST.
            let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}
