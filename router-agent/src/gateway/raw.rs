//! Bodies that reach the client as they stand on the worker's wire, framing and all: by the kernel where it can, by this
//! task where it cannot, and from one to the other in the middle of a stream.
//!
//! hyper has parsed the worker's head and has written ours; here is everything between that and the body's last byte.
//! The scanner says where that is. Afterwards hyper has both connections again: the worker's through
//! [`RawBody::put_back`], the client's because it is shown a stand-in for the body, which [`ClientSocket`] swallows.
//!
//! What has come with the head is moved here. Then the kernel is asked to take over at the exact position that has been
//! passed on (`router_common::relay` has the protocol); of an event stream that is the first byte, as a rule, and the
//! kernel says when it has come. It gives the stream back at the end, or when the client
//! is slow, or when something is not as it should be; what it has redirected until then is counted and checked
//! against what the client's socket was given, at each return.

use std::{
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use hyper::body::{Frame, SizeHint};
use router_common::{
    framing::{self, Framing},
    relay::ERROR_EVENT,
};

use super::{
    account::{Attempt, RequestAccount},
    client_io::ClientSocket,
    relay::error_event,
    thread::ThreadContext,
};
use crate::{
    config::RelayMode,
    kernel::{
        Bypass,
        bypass::{self, ClientEnd, Ends, LendError, Lent, Stop},
        flows::Flow,
    },
    limits,
    telemetry::RelayMetrics,
    upstream::{Lease, RawBody},
};

/// Why a raw body did not reach its end. The client's connection is closed unfinished.
#[derive(Debug, thiserror::Error)]
pub(super) enum RawError {
    #[error("the worker's response broke off: {0}")]
    Worker(io::Error),
    #[error("the worker's response is not framed as it says")]
    Framing,
    #[error("the client's connection broke: {0}")]
    Client(io::Error),
    #[error("the kernel redirected {redirected} bytes, and the client's socket took {taken}")]
    Mismatch { redirected: u64, taken: u64 },
}

/// Why there is one.
const BODY: &str = "it is put back when the relay is over";
/// How often the counts of a stream that the kernel has are compared. At each return they are compared anyway.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// How long the client's socket may take to show what was redirected into it: the worker is inside `sendmsg`.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
/// What hyper is given instead of a body with a length, again and again.
static STAND_IN: [u8; 16 * 1024] = [0; 16 * 1024];
/// Longest stretch of nothing that completes a chunk whose rest will never come.
const FILLER_BYTES_MAX: u64 = 64 * 1024;
/// hyper's framing of an empty chunked body.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A response whose body may go raw.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    framing: Framing,
    /// Of a Content-Length body.
    length: Option<u64>,
    /// Whether the worker keeps the connection.
    keep: bool,
}

impl Plan {
    /// Whether a response can go raw, and is worth it. `headers` are the worker's, before hop-by-hop ones are removed.
    pub(super) fn of(
        context: &ThreadContext,
        status: StatusCode,
        version: Version,
        headers: &HeaderMap,
        is_event_stream: bool,
    ) -> Option<Self> {
        let settings = &context.shared.config.relay;
        if version != Version::HTTP_11 || status != StatusCode::OK {
            return None;
        }
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
        let (framing, length) = match (codings.next(), codings.next(), lengths.next(), lengths.next()) {
            (Some(coding), None, None, None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
                (Framing::chunked(), None)
            }
            (None, None, Some(length), None) => {
                let length = length.to_str().ok()?.parse().ok()?;
                (Framing::length(length), Some(length))
            }
            _ => return None,
        };
        if framing.is_over() {
            return None; // a body of no bytes is never asked for
        }
        let is_long = length.is_none_or(|length| length >= settings.min_bytes);
        let is_worth_it = match settings.bypass {
            _ if settings.copy == RelayMode::Off => true,
            RelayMode::Off => false,
            // Measured: an event at a time, the kernel is far cheaper; in bulk, copying is as fast.
            RelayMode::Auto => is_event_stream,
            RelayMode::On => is_event_stream || is_long,
        };
        let keep = !headers.get_all(header::CONNECTION).iter().any(says_close);
        is_worth_it.then_some(Self { framing, length, keep })
    }
}

fn says_close(value: &HeaderValue) -> bool {
    value.to_str().is_ok_and(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case("close")))
}

/// The body that hyper polls: nothing until the relay is through, then the stand-in.
pub(super) struct RawRelay {
    client: Rc<ClientSocket>,
    length: Option<u64>,
    stage: Stage,
}

enum Stage {
    /// hyper has not looked at the body yet.
    New(Pin<Box<dyn Future<Output = Result<(), RawError>>>>),
    /// hyper is writing the head, then the body is relayed.
    Relay(Pin<Box<dyn Future<Output = Result<(), RawError>>>>),
    /// hyper is shown so many more bytes.
    StandIn(u64),
}

impl RawRelay {
    /// Takes the body from `lease`, if the kernel may get both ends of its way.
    #[expect(clippy::result_large_err, reason = "what is given back is no error, and on its way to be used")]
    pub(super) fn new(
        plan: Plan,
        lease: Lease,
        client: &Rc<ClientSocket>,
        bypass: &Bypass,
        ledger: Ledger,
    ) -> Result<Self, (Lease, Ledger)> {
        let Some(flow) = ledger.attempt.flow().cloned() else { return Err((lease, ledger)) };
        let Some(ends) = lease.ends().filter(Ends::are_local) else { return Err((lease, ledger)) };
        let Some(client_end) = client.known_to(bypass) else { return Err((lease, ledger)) };
        let body = match lease.take_body() {
            Ok(body) => body,
            Err(lease) => return Err((lease, ledger)),
        };
        let Plan { framing, length, keep } = plan;
        let task = Task {
            body: Some(body),
            bypass: Some(bypass.clone()),
            ends,
            client_end,
            flow,
            lent: None,
            stretch: None,
            position: 0,
            client: client.clone(),
            framing,
            keep,
            ledger,
            buffer: BytesMut::with_capacity(limits::RELAY_BUFFER_BYTES),
        };
        Ok(Self { client: client.clone(), length, stage: Stage::New(Box::pin(task.run())) })
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RawError>>> {
        if let Stage::New(_) = &self.stage {
            // The head is in hyper's buffer. It is flushed next, and then this is polled again.
            self.client.await_head();
            let Stage::New(task) = std::mem::replace(&mut self.stage, Stage::StandIn(0)) else {
                unreachable!("just looked")
            };
            self.stage = Stage::Relay(task);
            return Poll::Pending;
        }
        if let Stage::Relay(task) = &mut self.stage {
            if !self.client.is_relays() {
                return Poll::Pending;
            }
            if let Err(error) = std::task::ready!(task.as_mut().poll(cx)) {
                return Poll::Ready(Some(Err(error)));
            }
            self.client.swallow(self.length.unwrap_or(LAST_CHUNK.len() as u64));
            self.stage = Stage::StandIn(self.length.unwrap_or(0));
        }
        let Stage::StandIn(left) = &mut self.stage else { unreachable!("the other stages were before") };
        if *left == 0 {
            return Poll::Ready(None);
        }
        let count = (*left).min(STAND_IN.len() as u64);
        *left -= count;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&STAND_IN[..count as usize])))))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        matches!(self.stage, Stage::StandIn(0))
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match (&self.stage, self.length) {
            (Stage::StandIn(left), Some(_)) => SizeHint::with_exact(*left),
            (_, Some(length)) => SizeHint::with_exact(length),
            (_, None) => SizeHint::default(),
        }
    }
}

/// Who is told of the response's fate.
pub(super) struct Ledger {
    pub(super) attempt: Attempt,
    pub(super) account: RequestAccount,
    pub(super) status: StatusCode,
    pub(super) is_event_stream: bool,
}

/// One body on its way.
struct Task {
    /// Until it is put back.
    body: Option<RawBody>,
    /// `None` once it has refused.
    bypass: Option<Bypass>,
    ends: Ends,
    client_end: ClientEnd,
    flow: Flow,
    /// From the first time that the kernel had the stream.
    lent: Option<Lent>,
    /// While the kernel has it.
    stretch: Option<Stretch>,
    /// Bytes of the worker's since the stream was lent first, modulo 2^32.
    position: u32,
    client: Rc<ClientSocket>,
    /// Where the scanner stands after everything that was passed on.
    framing: Framing,
    keep: bool,
    ledger: Ledger,
    buffer: BytesMut,
}

/// How things were when the kernel was asked to take over.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    turn: u64,
    redirected: u64,
    /// Bytes that the client's socket had been given.
    written: u64,
}

/// What a stretch of the way ended with.
enum Step {
    /// There will be more.
    More,
    /// The last byte of the body was passed on; whether nothing came behind it.
    Over { clean: bool },
    /// The worker's side has closed.
    Closed(io::Error),
}

impl Task {
    async fn run(mut self) -> Result<(), RawError> {
        match self.relay().await {
            Ok(clean) => {
                self.complete(clean);
                Ok(())
            }
            // No fault of the worker; dropping the account says that the client has not got its answer.
            Err(error @ (RawError::Client(_) | RawError::Mismatch { .. })) => Err(error),
            Err(error) => self.broke_off(error).await,
        }
    }

    /// The last byte of the body is on its way.
    fn complete(&mut self, clean: bool) {
        let Ledger { attempt, account, status, .. } = &mut self.ledger;
        attempt.complete(*status);
        account.answered(*status);
        if let Some(body) = self.body.take()
            && clean
            && self.keep
        {
            body.put_back();
        }
    }

    /// To the last byte; whether the worker's connection may be used again.
    async fn relay(&mut self) -> Result<bool, RawError> {
        let early = std::mem::take(&mut self.body.as_mut().expect(BODY).early);
        // The kernel may have an event stream from its first byte on. Of another body, what comes with the head is moved
        // here: it may be all.
        let mut may_lend = self.ledger.is_event_stream || !early.is_empty();
        let mut step = self.pass(&early).await?;
        loop {
            match step {
                Step::Over { clean } => return Ok(clean),
                Step::Closed(error) => return Err(RawError::Worker(error)),
                Step::More => {}
            }
            self.buffer.clear();
            let socket = &self.body.as_ref().expect(BODY).socket;
            step = match socket.try_read_buf(&mut self.buffer) {
                Ok(0) => Step::Closed(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {
                    may_lend = true;
                    self.pass_buffer().await?
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => Step::Closed(error),
                Err(_) if may_lend && self.kernel_may() => self.lend().await?,
                Err(_) => {
                    socket.readable().await.map_err(RawError::Worker)?;
                    Step::More
                }
            };
        }
    }

    /// Not to a client that is behind: the stream would come straight back.
    fn kernel_may(&self) -> bool {
        self.bypass.as_ref().is_some_and(Bypass::is_on)
            && bypass::outstanding(&self.client.stream).is_ok_and(|bytes| bytes <= limits::RELAY_RESUME_BYTES)
    }

    async fn pass_buffer(&mut self) -> Result<Step, RawError> {
        let buffer = std::mem::take(&mut self.buffer);
        let step = self.pass(&buffer).await;
        self.buffer = buffer;
        step
    }

    /// Passes bytes on, up to the end of the body.
    async fn pass(&mut self, bytes: &[u8]) -> Result<Step, RawError> {
        let Ledger { attempt, is_event_stream, .. } = &mut self.ledger;
        let count = self.framing.advance_with(bytes, |data| {
            attempt.body_data(data);
            if *is_event_stream && data.starts_with(ERROR_EVENT) {
                attempt.fail("error_event"); // the engine died; vLLM says so in the stream
            }
        });
        self.client.write_all(&bytes[..count]).await.map_err(RawError::Client)?;
        self.position = self.position.wrapping_add(count as u32);
        if self.framing.is_broken() {
            return Err(RawError::Framing);
        }
        if self.framing.is_done() { Ok(Step::Over { clean: count == bytes.len() }) } else { Ok(Step::More) }
    }

    /// Lends the stream to the kernel until it gives it back, or bytes come that it did not take.
    async fn lend(&mut self) -> Result<Step, RawError> {
        let written = bypass::written(&self.client.stream).map_err(RawError::Client)?;
        let (turn, redirected) = self.lent.as_ref().map_or((0, 0), |lent| (lent.turn(), lent.redirected()));
        if !self.order()? {
            return Ok(Step::More);
        }
        self.stretch = Some(Stretch { turn, redirected, written });
        let metrics = self.ledger.attempt.metrics().clone();
        let metrics = &metrics.relay;
        metrics.lent.inc();
        let body = self.body.as_mut().expect(BODY);
        let lent = self.lent.as_ref().expect("just lent");
        let (read, taken) = loop {
            tokio::select! {
                biased;
                () = lent.event() => {}
                ready = body.socket.readable() => ready.map_err(RawError::Worker)?,
                () = tokio::time::sleep(WATCH_EVERY) => {
                    if let Err(error) = watch(&self.client, lent, written, redirected).await {
                        distrust(self.bypass.as_ref(), metrics, &error);
                        return Err(error);
                    }
                }
            }
            if self.flow.first_byte_ns().is_some() {
                self.ledger.attempt.first_byte();
            }
            // In this order: bytes that can be read were passed before the turn that is looked at after them.
            self.buffer.clear();
            let read = body.socket.try_read_buf(&mut self.buffer);
            let turns = lent.turn() - turn;
            let nothing = read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
            if turns != 2 && nothing {
                continue;
            }
            break (read, turns);
        };
        self.stretch = None;
        lent.disarm();
        let (stop, framing) = lent.stopped();
        let moved = lent.redirected() - redirected;
        self.position = self.position.wrapping_add(moved as u32);
        metrics.bypassed_bytes.inc_by(moved);
        settle(&self.client, written, moved).await.inspect_err(|error| {
            if let RawError::Mismatch { .. } = error {
                distrust(self.bypass.as_ref(), metrics, error);
            }
        })?;
        if taken > 0 {
            self.framing = framing;
        }
        match (taken, stop) {
            // Bytes passed us by before the order was seen: they are the next ones, and the order is given again.
            (0, _) => {}
            // The kernel has it still, so nothing may come our way but the worker's end.
            (1, _) => {
                if read.as_ref().is_ok_and(|count| *count > 0) {
                    let error = RawError::Mismatch { redirected: moved, taken: moved };
                    distrust(self.bypass.as_ref(), metrics, &error);
                    return Err(error);
                }
            }
            (_, stop) => {
                metrics.returned(stop).inc();
                match stop {
                    Stop::End => {
                        let clean = read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
                        return Ok(Step::Over { clean });
                    }
                    Stop::Failed => return Err(RawError::Client(io::ErrorKind::BrokenPipe.into())),
                    Stop::Room | Stop::Framing | Stop::ErrorEvent => {}
                }
            }
        }
        match read {
            Ok(0) => Ok(Step::Closed(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => self.pass_buffer().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Step::More),
            Err(error) => Ok(Step::Closed(error)),
        }
    }

    /// Asks the kernel to take over from here; whether it may.
    fn order(&mut self) -> Result<bool, RawError> {
        let is_event_stream = self.ledger.is_event_stream;
        if let Some(lent) = &self.lent {
            lent.arm(self.position, self.client_end, self.framing, is_event_stream);
            return Ok(true);
        }
        let Some(bypass) = &self.bypass else { return Ok(false) };
        match bypass.lend(&self.flow, self.ends, self.client_end, self.framing, is_event_stream) {
            Ok(lent) => {
                self.position = 0;
                self.lent = Some(lent);
                self.ledger.attempt.metrics().relay.bypass.inc();
                Ok(true)
            }
            Err(LendError::NoClient) => Err(RawError::Client(io::ErrorKind::NotConnected.into())),
            Err(error @ (LendError::NoWorker | LendError::Refused)) => {
                tracing::debug!(worker = %self.ledger.attempt.worker().name, %error, "copying");
                self.bypass = None;
                Ok(false)
            }
        }
    }

    /// The worker broke off. In an event stream that can be told, once the chunk that is open is filled up; else the
    /// connection ends unfinished.
    async fn broke_off(&mut self, error: RawError) -> Result<(), RawError> {
        let Ledger { attempt, account, status, is_event_stream } = &mut self.ledger;
        attempt.fail("broken_stream");
        account.answered(*status);
        tracing::warn!(worker = %attempt.worker().name, %error, "response broke off");
        let filler =
            filler(self.framing).filter(|_| *is_event_stream && matches!(error, RawError::Worker(_)));
        let Some(filler) = filler else { return Err(error) };
        // What the kernel moved was not looked at: an event may be open.
        let event = error_event(false);
        let size = format!("{:x}\r\n", event.len());
        let rest = [&filler, size.as_bytes(), &event, b"\r\n", LAST_CHUNK].concat();
        self.client.write_all(&rest).await.map_err(RawError::Client)
    }
}

/// What completes the chunk that is open: spaces, which are neither a new line nor, in JSON, anything. `None` where no
/// chunk can follow, or where it would be long.
fn filler(framing: Framing) -> Option<Vec<u8>> {
    match framing.state {
        framing::SIZE_START => Some(Vec::new()),
        framing::DATA if framing.remaining <= FILLER_BYTES_MAX => {
            Some([&vec![b' '; framing.remaining as usize][..], b"\r\n"].concat())
        }
        framing::DATA_CR => Some(b"\r\n".to_vec()),
        framing::DATA_LF => Some(b"\n".to_vec()),
        _ => None,
    }
}

impl Drop for Task {
    /// A client may have read the last byte, and be gone with it, before this task has heard of the end: that is an
    /// answered request, not a hang-up. The worker's connection is in good order if the client's socket took everything;
    /// if not, its last `sendmsg` may have failed, and it will close.
    fn drop(&mut self) {
        if self.lent.is_none() {
            self.ledger.attempt.metrics().relay.copy.inc();
        }
        let (Some(stretch), Some(lent)) = (self.stretch.take(), &self.lent) else { return };
        lent.disarm();
        if lent.turn() != stretch.turn + 2 || lent.stopped().0 != Stop::End {
            return;
        }
        let moved = lent.redirected() - stretch.redirected;
        let metrics = &self.ledger.attempt.metrics().relay;
        metrics.bypassed_bytes.inc_by(moved);
        metrics.returned(Stop::End).inc();
        let all = bypass::written(&self.client.stream).is_ok_and(|now| now - stretch.written == moved);
        self.complete(all);
    }
}

/// Waits until the client's socket has every redirected byte: the worker's `sendmsg` is about to hand the last of them
/// over. Nothing may be written to the client before.
async fn settle(client: &ClientSocket, written: u64, redirected: u64) -> Result<(), RawError> {
    let started = Instant::now();
    let mut tries = 0_u32;
    loop {
        let taken = bypass::written(&client.stream).map_err(RawError::Client)? - written;
        if taken == redirected {
            return Ok(());
        }
        if !bypass::is_established(&client.stream) {
            return Err(RawError::Client(io::ErrorKind::ConnectionReset.into()));
        }
        if taken > redirected || started.elapsed() > SETTLE_TIMEOUT {
            return Err(RawError::Mismatch { redirected, taken });
        }
        tries += 1;
        if tries < 20 {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// What two readings of the redirected bytes, before and after one of those that the client's socket took, say.
#[derive(Debug, PartialEq, Eq)]
enum Count {
    Right,
    /// The worker is inside `sendmsg`: look again.
    Moving,
    Wrong,
}

fn compare(before: u64, taken: u64, after: u64) -> Count {
    match () {
        () if taken > after => Count::Wrong,
        () if before == taken && taken == after => Count::Right,
        () => Count::Moving,
    }
}

/// Compares what the kernel counted with what the client's socket took, while the kernel has the stream.
async fn watch(client: &ClientSocket, lent: &Lent, written: u64, redirected: u64) -> Result<(), RawError> {
    let started = Instant::now();
    let moved = || lent.redirected() - redirected;
    let first = moved();
    loop {
        let before = moved();
        let taken = bypass::written(&client.stream).map_err(RawError::Client)? - written;
        let after = moved();
        let wrong = match compare(before, taken, after) {
            Count::Right => return Ok(()),
            Count::Wrong => true,
            // Bytes that were counted, and nobody has them; unless more came, and they may have been those.
            Count::Moving if started.elapsed() > SETTLE_TIMEOUT && after != first => return Ok(()),
            Count::Moving => started.elapsed() > SETTLE_TIMEOUT && bypass::is_established(&client.stream),
        };
        if wrong {
            return Err(RawError::Mismatch { redirected: after, taken });
        }
        if !bypass::is_established(&client.stream) {
            return Ok(()); // its end is seen elsewhere
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn distrust(bypass: Option<&Bypass>, metrics: &RelayMetrics, error: &RawError) {
    metrics.mismatches.inc();
    metrics.available("bypass", false);
    if let Some(bypass) = bypass {
        bypass.switch_off();
    }
    tracing::error!(%error, "the kernel relay is switched off: every body is copied from here on");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_compared_between_two_readings() {
        assert_eq!(compare(10, 10, 10), Count::Right);
        assert_eq!(compare(10, 20, 20), Count::Moving, "the second reading may be of bytes that came since");
        assert_eq!(compare(10, 5, 10), Count::Moving, "the last message is counted before it is handed over");
        assert_eq!(compare(10, 21, 20), Count::Wrong);
    }

    #[test]
    fn an_open_chunk_is_filled_up_and_a_length_cannot_be() {
        let mut framing = Framing::chunked();
        assert_eq!(filler(framing).as_deref(), Some(&b""[..]));
        framing.advance(b"4\r\nab");
        assert_eq!(filler(framing).as_deref(), Some(&b"  \r\n"[..]));
        let mut whole = Framing::chunked();
        whole.advance(&[&b"4\r\nab"[..], &filler(framing).expect("it can be"), b"0\r\n\r\n"].concat());
        assert!(whole.is_done());
        framing.advance(b"cd\r");
        assert_eq!(filler(framing).as_deref(), Some(&b"\n"[..]));
        assert_eq!(filler(Framing::length(9)), None);
        let mut size = Framing::chunked();
        size.advance(b"4");
        assert_eq!(filler(size), None, "in the middle of a size");
    }
}
