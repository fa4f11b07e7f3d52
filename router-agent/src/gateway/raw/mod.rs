//! Bodies that reach the client as they stand on the worker's wire, framing and all: by the kernel where it can, by this
//! task where it cannot, and from one to the other in the middle of a stream.
//!
//! hyper has parsed the worker's head and has written ours; here is everything between that and the body's last byte.
//! The scanner says where that is. Afterwards hyper has both connections again: the worker's through
//! [`RawBody::put_back`], the client's because it is shown a stand-in for the body, which [`ClientSocket`] swallows.
//!
//! What has come with the head is moved here. Then the kernel is asked to take over at the exact position that has been
//! passed on (`router_common::relay` has the protocol); of an event stream that is the first byte, as a rule, and the
//! kernel says when it has come. It gives the stream back at the end, or when the client is slow, or when something is not
//! as it should be; what it has redirected until then is checked against what the client's socket was given
//! ([`counts`]).

mod counts;
mod source;

use std::{
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use hyper::body::{Frame, SizeHint};
use router_common::{
    flows::FlowState,
    framing::{self, Framing},
};

use self::source::{Lending, Source, Terms, Way};
use super::{
    account::{Attempt, RequestAccount},
    client_io::ClientSocket,
    cut::CutOff,
    ending::Ending,
    relay::error_event,
};
use crate::{
    config::{Relay as Settings, RelayMode},
    kernel::{
        Relays,
        bypass::Ends,
        relay::{self, Stop},
    },
    limits,
    telemetry::RelayMetrics,
    upstream::{Hold, Lease},
};

/// Why a raw body did not reach its end. The client's connection is closed unfinished.
#[derive(Debug, thiserror::Error)]
pub(super) enum RawError {
    #[error("the worker's response broke off: {0}")]
    Worker(io::Error),
    #[error("the worker's response is not framed as it says")]
    Framing,
    #[error("the worker was removed while it was answering")]
    Removed,
    #[error("the client's connection broke: {0}")]
    Client(io::Error),
    #[error("the kernel redirected {redirected} bytes, and the client's socket took {taken}")]
    Mismatch { redirected: u64, taken: u64 },
}

/// How often the counts of a stream that the kernel has are compared. At each return they are compared anyway.
const WATCH_EVERY: Duration = Duration::from_secs(5);
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
    is_event_stream: bool,
    /// Whether the worker keeps the connection.
    keep: bool,
}

impl Plan {
    /// Whether a response can go raw. `headers` are the worker's, before hop-by-hop ones are removed.
    pub(super) fn of(
        status: StatusCode,
        version: Version,
        headers: &HeaderMap,
        is_event_stream: bool,
    ) -> Option<Self> {
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
        let keep = !headers.get_all(header::CONNECTION).iter().any(says_close);
        Some(Self { framing, length, is_event_stream, keep })
    }

    /// Who of the kernel's may move it, in this order; empty if copying is as good.
    fn ways(&self, settings: &Settings, relays: &Relays, ends: Ends) -> Vec<Way> {
        let is_long = self.length.is_none_or(|length| length >= settings.min_bytes);
        let wanted = |mode, auto: bool| match mode {
            _ if settings.copy == RelayMode::On => false,
            RelayMode::Off => false,
            _ if settings.copy == RelayMode::Off => true,
            RelayMode::Auto => auto,
            RelayMode::On => self.is_event_stream || is_long,
        };
        // Measured (docs/relay.md): an event at a time, the bypass is far cheaper than copying and the splice a little; in
        // bulk neither is.
        let bypass = relays
            .bypass
            .iter()
            .filter(|_| ends.are_local() && wanted(settings.bypass, self.is_event_stream));
        let splice = relays.splice.iter().filter(|_| wanted(settings.splice, self.is_event_stream));
        let ways = bypass.cloned().map(Way::Bypass).chain(splice.cloned().map(Way::Splice));
        ways.filter(Way::is_on).collect()
    }
}

/// Which bodies may go raw, as far as their heads' first look tells.
pub(super) fn hold(settings: &Settings) -> Hold {
    let only_streams = |mode| matches!(mode, RelayMode::Auto | RelayMode::Off);
    let all =
        settings.copy == RelayMode::Off || !only_streams(settings.bypass) || !only_streams(settings.splice);
    if all { Hold::All } else { Hold::EventStreams }
}

fn says_close(value: &HeaderValue) -> bool {
    value.to_str().is_ok_and(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case("close")))
}

/// The body that hyper polls: nothing until the relay is through, then the stand-in.
pub(super) struct RawRelay {
    client: Rc<ClientSocket>,
    length: Option<u64>,
    stage: Stage,
    cut_off: CutOff,
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
    /// Takes the body from `lease`, if the kernel may move it and that is worth it.
    #[expect(clippy::result_large_err, reason = "what is given back is no error, and on its way to be used")]
    pub(super) fn new(
        plan: Plan,
        settings: &Settings,
        relays: &Relays,
        client: &Rc<ClientSocket>,
        lease: Lease,
        ledger: Ledger,
    ) -> Result<Self, (Lease, Ledger)> {
        let Some(flow) = ledger.attempt.flow().cloned() else { return Err((lease, ledger)) };
        let Some(ends) = lease.ends() else { return Err((lease, ledger)) };
        let mut ways = plan.ways(settings, relays, ends);
        ways.reverse();
        if ways.is_empty() {
            return Err((lease, ledger));
        }
        let Some(client_end) = client.known_to(relays) else { return Err((lease, ledger)) };
        let body = match lease.take_body() {
            Ok(body) => body,
            Err(lease) => return Err((lease, ledger)),
        };
        let Plan { framing, length, is_event_stream, keep } = plan;
        let cut_off = CutOff::clone(ledger.attempt.cut());
        let task = Task {
            source: Source::new(body),
            ways,
            terms: Terms { flow, ends, client: client_end, is_event_stream },
            stretch: None,
            client: client.clone(),
            framing,
            keep,
            is_chunked: length.is_none(),
            ledger,
            buffer: BytesMut::with_capacity(limits::RELAY_BUFFER_BYTES),
        };
        Ok(Self { client: client.clone(), length, stage: Stage::New(Box::pin(task.run())), cut_off })
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
            // As if the client had left: the stream may be the kernel's, so nothing can be told in it.
            if self.cut_off.poll(cx).is_ready() {
                return Poll::Ready(Some(Err(RawError::Removed)));
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
    /// Of an event stream whose last word is known.
    pub(super) ending: Option<Ending>,
}

/// One body on its way.
struct Task {
    source: Source,
    /// The best last; without those that have refused.
    ways: Vec<Way>,
    terms: Terms,
    /// While the kernel has the stream.
    stretch: Option<Stretch>,
    client: Rc<ClientSocket>,
    /// Where the scanner stands after everything that was passed on.
    framing: Framing,
    keep: bool,
    is_chunked: bool,
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
        attempt.used(account.usage());
        account.answered(*status);
        if !self.source.was_lent() {
            attempt.metrics().relay.copy.inc();
        }
        let source = std::mem::replace(&mut self.source, Source::Gone);
        if clean && self.keep {
            source.put_back();
        }
    }

    /// To the last byte; whether the worker's connection may be used again.
    async fn relay(&mut self) -> Result<bool, RawError> {
        let early = self.source.take_early();
        // The kernel may have an event stream from its first byte on. Of another body, what comes with the head is moved
        // here: it may be all.
        let mut may_lend = self.terms.is_event_stream || !early.is_empty();
        let mut step = self.pass(&early).await?;
        loop {
            match step {
                Step::Over { clean } => return Ok(clean),
                Step::Closed(error) => return Err(RawError::Worker(error)),
                Step::More => {}
            }
            self.buffer.clear();
            step = match self.source.try_read(&mut self.buffer) {
                Ok(0) => Step::Closed(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {
                    may_lend = true;
                    self.pass_buffer().await?
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => Step::Closed(error),
                Err(_) if may_lend && self.kernel_may() => self.lend().await?,
                Err(_) => {
                    self.source.readable().await.map_err(RawError::Worker)?;
                    Step::More
                }
            };
        }
    }

    /// Not to a client that is behind: the stream would come straight back.
    fn kernel_may(&self) -> bool {
        self.ways.last().is_some_and(Way::is_on)
            && relay::outstanding(&self.client.stream).is_ok_and(|bytes| bytes <= limits::RELAY_RESUME_BYTES)
    }

    async fn pass_buffer(&mut self) -> Result<Step, RawError> {
        let buffer = std::mem::take(&mut self.buffer);
        let step = self.pass(&buffer).await;
        self.buffer = buffer;
        step
    }

    /// Passes bytes on, up to the end of the body.
    async fn pass(&mut self, bytes: &[u8]) -> Result<Step, RawError> {
        let Ledger { attempt, account, ending, .. } = &mut self.ledger;
        let count = self.framing.advance_with(bytes, |data| {
            attempt.body_data(data);
            account.body_data(data);
            if let Some(ending) = ending {
                ending.push(data);
                if ending.has_failed() {
                    attempt.fail("error_event"); // the engine died; vLLM says so in the stream
                }
            }
        });
        let is_unfinished = self.framing.is_done() && self.is_unfinished();
        if is_unfinished {
            self.ledger.attempt.fail("unfinished_stream");
        }
        match bytes[..count].strip_suffix(LAST_CHUNK).filter(|_| is_unfinished && self.is_chunked) {
            Some(before) => {
                self.client.write_all(before).await.map_err(RawError::Client)?;
                self.client.write_all(&last_words()).await.map_err(RawError::Client)?;
            }
            None => self.client.write_all(&bytes[..count]).await.map_err(RawError::Client)?,
        }
        self.source.passed(count);
        if self.framing.is_broken() {
            return Err(RawError::Framing);
        }
        if self.framing.is_done() { Ok(Step::Over { clean: count == bytes.len() }) } else { Ok(Step::More) }
    }

    /// The worker has ended its stream in order, and has not said that it is complete; where that is known.
    fn is_unfinished(&self) -> bool {
        !self.source.was_lent() && self.ledger.ending.as_ref().is_some_and(Ending::is_unfinished)
    }

    /// Lends the stream to the kernel until it gives it back, or bytes come that it did not take.
    async fn lend(&mut self) -> Result<Step, RawError> {
        let Some(way) = self.ways.last().cloned() else { return Ok(Step::More) };
        let written = relay::written(&self.client.stream).map_err(RawError::Client)?;
        let (turn, redirected) = (self.source.turn(), self.source.redirected());
        let metrics = self.ledger.attempt.metrics().clone();
        let metrics = &metrics.relay;
        let is_first = !self.source.was_lent();
        match self.source.lend(&way, &self.terms, self.framing).map_err(RawError::Client)? {
            Lending::Ordered => self.terms.flow.moved_by(way.state()),
            Lending::ReadFirst => return Ok(Step::More),
            Lending::Refused => {
                self.ways.pop();
                return Ok(Step::More);
            }
        }
        if is_first {
            metrics.by(way.path()).responses.inc();
        }
        metrics.lent.inc();
        self.stretch = Some(Stretch { turn, redirected, written });
        let (read, taken) = loop {
            tokio::select! {
                biased;
                event = self.source.event() => event.map_err(RawError::Worker)?,
                () = tokio::time::sleep(WATCH_EVERY) => {
                    let moved = || self.source.redirected() - redirected;
                    if let Err(error) = counts::watch(&self.client, written, moved).await {
                        distrust(&way, metrics, &error);
                        return Err(error);
                    }
                }
            }
            if self.terms.flow.first_byte_ns().is_some() {
                self.ledger.attempt.first_byte();
            }
            // In this order: bytes that can be read were passed before the turn that is looked at after them.
            self.buffer.clear();
            let read = self.source.try_read(&mut self.buffer);
            let turns = self.source.turn() - turn;
            let nothing = read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
            if turns != 2 && nothing {
                continue;
            }
            break (read, turns);
        };
        self.stretch = None;
        self.source.disarm();
        self.terms.flow.moved_by(FlowState::Copy);
        let (stop, framing) = self.source.stopped();
        let moved = self.source.redirected() - redirected;
        self.source.moved(moved);
        metrics.by(way.path()).bytes.inc_by(moved);
        if taken == 2 {
            metrics.returned(stop).inc();
        }
        // As long as it takes: a client that does not read holds its stream, and by TCP its worker, here.
        counts::settle(&self.client, written, || moved).await.inspect_err(|error| {
            if let RawError::Mismatch { .. } = error {
                distrust(&way, metrics, error);
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
                    distrust(&way, metrics, &error);
                    return Err(error);
                }
            }
            (_, stop) => {
                match stop {
                    Stop::End => {
                        let clean = read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
                        return Ok(Step::Over { clean });
                    }
                    // Copying takes many events at once, the kernel one by one.
                    Stop::Fast => self.ways.clear(),
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

    /// The worker broke off. In an event stream that can be told, once the chunk that is open is filled up; else the
    /// connection ends unfinished.
    async fn broke_off(&mut self, error: RawError) -> Result<(), RawError> {
        let Ledger { attempt, account, status, is_event_stream, .. } = &mut self.ledger;
        attempt.fail("broken_stream");
        account.answered(*status);
        tracing::warn!(worker = %attempt.worker().name, %error, "response broke off");
        let filler =
            filler(self.framing).filter(|_| *is_event_stream && matches!(error, RawError::Worker(_)));
        let Some(filler) = filler else { return Err(error) };
        let rest = [filler, last_words()].concat();
        self.client.write_all(&rest).await.map_err(RawError::Client)
    }
}

/// An error event in a chunk of its own, and the end of the chunks.
fn last_words() -> Vec<u8> {
    // What the kernel moved was not looked at: an event may be open.
    let event = error_event(false);
    let size = format!("{:x}\r\n", event.len());
    [size.as_bytes(), &event, b"\r\n", LAST_CHUNK].concat()
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
        let Some(stretch) = self.stretch.take() else { return };
        self.source.disarm();
        if self.source.turn() != stretch.turn + 2 || self.source.stopped().0 != Stop::End {
            return;
        }
        let moved = self.source.redirected() - stretch.redirected;
        let metrics = &self.ledger.attempt.metrics().relay;
        if let Some(way) = self.ways.last() {
            metrics.by(way.path()).bytes.inc_by(moved);
        }
        metrics.returned(Stop::End).inc();
        let all = relay::written(&self.client.stream).is_ok_and(|now| now - stretch.written == moved);
        self.complete(all);
    }
}

fn distrust(way: &Way, metrics: &RelayMetrics, error: &RawError) {
    way.switch_off();
    metrics.mismatches.inc();
    metrics.available(way.path(), false);
    let path = way.path().label();
    tracing::error!(%error, path, "this way of relaying is switched off: such bodies are copied from here on");
}

#[cfg(test)]
mod tests {
    use super::*;

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
