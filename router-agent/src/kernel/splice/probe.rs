//! The start-up test: everything that the splice relies on, tried with sockets on loopback that nobody else knows. A
//! kernel that fails any of it gets no splice, and the log says what it was. Takes tens of milliseconds.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use router_common::{framing::Framing, splice::BACKLOG_BYTES_MAX};
use socket2::SockRef;

use super::{Lent, Splice, Terms, repair};
use crate::kernel::{
    flows::Flows,
    relay::{ClientEnd, Clients, Stop, written},
    sys::socket_cookie,
};

/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(2);
/// Of a socket, where it is to be full soon.
const BUFFER_BYTES: usize = 64 * 1024;
/// Responses on one pair of connections.
const ROUNDS: usize = 8;

/// What the kernel failed at.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The test itself could not be set up, or went another way than any check foresees.
    #[error("carrying out the self-test: {0}")]
    Socket(#[from] io::Error),
    /// A check did not hold.
    #[error("self-test failed: {0}")]
    Check(&'static str),
}

fn check(holds: bool, what: &'static str) -> Result<(), ProbeError> {
    if holds { Ok(()) } else { Err(ProbeError::Check(what)) }
}

/// Tries the splice. Blocks for tens of milliseconds if all is well, for at most a few seconds if not.
pub fn probe(splice: &Splice, flows: &Flows, clients: &Clients) -> Result<(), ProbeError> {
    let new = || Rig::new(splice, flows, clients, false);
    let mut rig = new()?;
    for round in 0..ROUNDS {
        rig.keeps_the_order(round)?;
    }
    rig.takes_what_is_queued()?;
    rig.returns_what_ends_inside_a_segment()?;
    rig.returns_what_tells_of_an_error()?;
    new()?.takes_the_rest_of_a_segment_read_in_part()?;
    new()?.takes_overlapping_segments_once(5, 6)?;
    // More than one call of the helper cuts.
    new()?.takes_overlapping_segments_once(10_000, 100)?;
    new()?.bounds_the_backlog()?;
    new()?.shows_a_death(false)?;
    new()?.shows_a_death(true)?;
    new()?.refuses_a_closed_connection()
}

/// The check for overlapping segments with a program that does not cut them: for tests, to show that the kernel has the
/// defect, or that the check does not see it.
#[doc(hidden)]
pub fn probe_without_cut(splice: &Splice, flows: &Flows, clients: &Clients) -> Result<(), ProbeError> {
    Rig::new(splice, flows, clients, true)?.takes_overlapping_segments_once(5, 6)
}

/// The four sockets: worker ⇄ gateway ⇄ client.
struct Rig {
    splice: Splice,
    flows: Flows,
    keep_overlaps: bool,
    worker: TcpStream,
    /// While it is not lent.
    to_worker: Option<TcpStream>,
    to_client: TcpStream,
    client: TcpStream,
    client_end: ClientEnd,
}

impl Rig {
    fn new(
        splice: &Splice,
        flows: &Flows,
        clients: &Clients,
        keep_overlaps: bool,
    ) -> Result<Self, ProbeError> {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let pair = || -> io::Result<(TcpStream, TcpStream)> {
            let connected = TcpStream::connect(listener.local_addr()?)?;
            Ok((connected, listener.accept()?.0))
        };
        let ((to_worker, worker), (client, to_client)) = (pair()?, pair()?);
        for socket in [&worker, &to_worker, &to_client, &client] {
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
        }
        let client_end = clients
            .add(&to_client, socket_cookie(&to_client)?)
            .ok_or(ProbeError::Check("a client's socket can be put into the map"))?;
        let (splice, flows, to_worker) = (splice.clone(), flows.clone(), Some(to_worker));
        Ok(Self { splice, flows, keep_overlaps, worker, to_worker, to_client, client, client_end })
    }

    fn lend(&mut self, framing: Framing, is_event_stream: bool) -> Result<Lent, ProbeError> {
        let socket = self.to_worker.take().ok_or(ProbeError::Check("a connection can be taken back"))?;
        let flow = self.flows.unnamed().ok_or(ProbeError::Check("there is a free flow"))?;
        let terms = Terms { client: self.client_end, framing, is_event_stream };
        let lent = self.splice.lend_with(&flow, socket, terms, self.keep_overlaps);
        lent.map_err(|refused| ProbeError::Socket(refused.error))
    }

    fn take_back(&mut self, lent: Lent) -> Result<(), ProbeError> {
        let socket = lent.end().ok_or(ProbeError::Check("an idle connection can be taken back"))?;
        socket.set_nonblocking(false)?;
        self.to_worker = Some(socket);
        Ok(())
    }

    fn client_reads(&mut self, expected: &[u8]) -> io::Result<bool> {
        receives(&mut self.client, expected)
    }

    /// The worker's bytes reach our socket before it is lent.
    fn wait_for_bytes(&self) -> Result<(), ProbeError> {
        let socket = self.to_worker.as_ref().ok_or(ProbeError::Check("a connection can be taken back"))?;
        socket.peek(&mut [0])?;
        Ok(())
    }

    /// A head by user space, then a body by the kernel; afterwards both connections are as before.
    fn keeps_the_order(&mut self, round: usize) -> Result<(), ProbeError> {
        let before = written(&self.to_client)?;
        let head = format!("head {round} ").into_bytes();
        self.to_client.write_all(&head)?;
        let lent = self.lend(Framing::chunked(), false)?;
        check(lent.turn() == 0, "nothing is taken before there is anything")?;
        // Chunks in one segment, a chunk over two, a size over two; extensions and a trailer.
        let body: [&[u8]; 6] =
            [b"3\r\none\r\n3;x=y\r\ntwo\r\n", b"00", b"5\r\nthr", b"ee\r\n", b"0\r\nt: 1\r\n", b"\r\n"];
        for segment in body {
            self.worker.write_all(segment)?;
        }
        let expected = [&head, &body.concat()[..]].concat();
        check(
            self.client_reads(&expected)?,
            "redirected segments arrive in order, after what was written before",
        )?;
        check(lent.turn() == 2 && lent.stopped().0 == Stop::End, "the end of a chunked body is found")?;
        check(lent.redirected() == body.concat().len() as u64, "every redirected byte is counted")?;
        check(
            written(&self.to_client)? == before + expected.len() as u64,
            "the client's socket counts every byte",
        )?;
        self.take_back(lent)?;
        self.worker.write_all(b"next")?;
        self.user_space_reads(b"next", "the connection is usable after a redirected body")
    }

    fn user_space_reads(&mut self, expected: &[u8], what: &'static str) -> Result<(), ProbeError> {
        let socket = self.to_worker.as_mut().ok_or(ProbeError::Check("a connection can be taken back"))?;
        check(receives(socket, expected)?, what)
    }

    fn takes_what_is_queued(&mut self) -> Result<(), ProbeError> {
        self.worker.write_all(b"queued")?;
        self.wait_for_bytes()?;
        let lent = self.lend(Framing::length(10), false)?;
        check(
            self.client_reads(b"queued")?,
            "what is queued when a connection is lent is redirected at once",
        )?;
        self.worker.write_all(b" end")?;
        check(self.client_reads(b" end")?, "what comes behind it follows it")?;
        self.take_back(lent)
    }

    fn takes_the_rest_of_a_segment_read_in_part(&mut self) -> Result<(), ProbeError> {
        self.worker.write_all(b"HEADbody")?;
        self.user_space_reads(b"HEAD", "a head is read")?;
        let lent = self.lend(Framing::length(8), false)?;
        self.worker.write_all(b"more")?;
        check(
            self.client_reads(b"bodymore")?,
            "of a segment that user space has read in part, the rest is redirected, once",
        )?;
        self.take_back(lent)
    }

    fn returns_what_ends_inside_a_segment(&mut self) -> Result<(), ProbeError> {
        let mut lent = self.lend(Framing::length(8), false)?;
        self.worker.write_all(b"1234")?;
        check(self.client_reads(b"1234")?, "a body with a length is redirected")?;
        self.worker.write_all(b"5678and more")?;
        check(
            reads(&mut lent, b"5678and more")?,
            "a segment with bytes after the end comes to user space whole",
        )?;
        check(lent.turn() == 2, "bytes after the end are seen")?;
        check(
            lent.stopped() == (Stop::Framing, Framing::length(4)),
            "the scanner's state is that before the refused segment",
        )?;
        check(lent.rearm(Framing::length(3))?, "a connection can be lent again")?;
        self.worker.write_all(b"two")?;
        check(self.client_reads(b"two")?, "a connection that is lent again is redirected from there on")?;
        self.take_back(lent)
    }

    fn returns_what_tells_of_an_error(&mut self) -> Result<(), ProbeError> {
        let mut lent = self.lend(Framing::chunked(), true)?;
        self.worker.write_all(b"c\r\ndata: {\"id\":\r\n")?;
        check(self.client_reads(b"c\r\ndata: {\"id\":\r\n")?, "an event is redirected")?;
        let event = b"11\r\ndata: {\"error\":{}\r\n";
        self.worker.write_all(event)?;
        check(reads(&mut lent, event)?, "an error event comes to user space")?;
        check(
            lent.turn() == 2 && lent.stopped() == (Stop::ErrorEvent, Framing::chunked()),
            "an error event is seen",
        )?;
        check(lent.events() == 1, "events are counted")?;
        self.take_back(lent)
    }

    /// `old` bytes come twice, in one segment with `new` more.
    fn takes_overlapping_segments_once(mut self, old: usize, new: usize) -> Result<(), ProbeError> {
        let lent = self.lend(Framing::length((old + new + 10) as u64), false)?;
        self.worker.write_all(&pattern(0, old))?;
        check(self.client_reads(&pattern(0, old))?, "a body with a length is redirected")?;
        self.worker = repair::step_back(self.worker, old as u32)?;
        self.worker.write_all(&pattern(0, old + new))?;
        check(
            self.client_reads(&pattern(old, new))?,
            "bytes that the network delivers twice reach the client once",
        )?;
        // What follows a segment that was cut.
        self.worker.write_all(&pattern(old + new, 10))?;
        check(
            self.client_reads(&pattern(old + new, 10))?,
            "a segment behind one that was cut is redirected",
        )?;
        check(lent.overlaps() == 1, "an overlapping segment is seen to be one")?;
        check(lent.turn() == 2 && lent.stopped().0 == Stop::End, "bytes that come twice are counted once")?;
        self.take_back(lent)
    }

    fn bounds_the_backlog(mut self) -> Result<(), ProbeError> {
        const TOTAL: usize = 64 << 20;
        // So that it does not take megabytes to fill them.
        SockRef::from(&self.to_client).set_send_buffer_size(BUFFER_BYTES)?;
        SockRef::from(&self.worker).set_send_buffer_size(BUFFER_BYTES)?;
        let mut lent = self.lend(Framing::length(TOTAL as u64), false)?;
        self.worker.set_nonblocking(true)?;
        let (mut sent, started) = (0_usize, Instant::now());
        // The client reads nothing: what it cannot take must end with us, and then with the worker.
        loop {
            check(
                started.elapsed() < PATIENCE && sent < TOTAL / 2,
                "a client that reads nothing stops the relay, and then the worker",
            )?;
            match self.worker.write(&pattern(sent, 16 * 1024)) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && lent.turn() == 2 => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => return Err(error.into()),
            }
        }
        check(lent.stopped().0 == Stop::Room, "the reason for stopping is told")?;
        let redirected = lent.redirected();
        let queued = redirected.saturating_sub(written(&self.to_client)?);
        check(
            queued <= u64::from(BACKLOG_BYTES_MAX),
            "what waits for a client that reads nothing is bounded",
        )?;
        check(self.client_reads(&pattern(0, redirected as usize))?, "the client reads what was redirected")?;
        check(
            reads(&mut lent, &pattern(redirected as usize, sent - redirected as usize))?,
            "user space reads what was not",
        )?;
        check(lent.rearm(Framing::length(4))?, "a connection can be lent again")?;
        self.worker.set_nonblocking(false)?;
        self.worker.write_all(b"last")?;
        check(self.client_reads(b"last")?, "a connection that is lent again is redirected from there on")?;
        self.take_back(lent)
    }

    fn shows_a_death(mut self, by_reset: bool) -> Result<(), ProbeError> {
        let lent = self.lend(Framing::length(100), false)?;
        self.worker.write_all(b"half")?;
        check(self.client_reads(b"half")?, "what a worker sent before it died arrives")?;
        check(!lent.is_closed(), "a worker that lives is not taken for dead")?;
        if by_reset {
            SockRef::from(&self.worker).set_linger(Some(Duration::ZERO))?;
        }
        drop(self.worker);
        wait_until(|| Ok(lent.is_closed()))
            .map_err(|_| ProbeError::Check("a worker's end is seen while its bytes are redirected"))?;
        check(lent.turn() == 1, "a body that broke off is not taken for a complete one")?;
        check(lent.end().is_none(), "a connection in the middle of a body is not taken back")
    }

    fn refuses_a_closed_connection(mut self) -> Result<(), ProbeError> {
        self.worker.write_all(b"all")?;
        drop(self.worker);
        let socket = self.to_worker.take().ok_or(ProbeError::Check("a connection can be taken back"))?;
        wait_until(|| Ok(crate::kernel::sys::is_closed_by_peer(&socket)))?;
        let terms = Terms { client: self.client_end, framing: Framing::length(3), is_event_stream: false };
        let flow = self.flows.unnamed().ok_or(ProbeError::Check("there is a free flow"))?;
        let Err(mut refused) = self.splice.lend(&flow, socket, terms) else {
            return Err(ProbeError::Check("a connection that the worker has closed is not lent"));
        };
        let mut bytes = [0; 3];
        refused.socket.read_exact(&mut bytes)?;
        check(&bytes == b"all", "a connection that is not lent is as before")
    }
}

/// Whether exactly this comes next, in time.
fn receives(socket: &mut TcpStream, expected: &[u8]) -> io::Result<bool> {
    let mut bytes = vec![0; expected.len()];
    match socket.read_exact(&mut bytes) {
        Ok(()) => Ok(bytes == expected),
        Err(error) if is_late(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether exactly this is what the program passed, in time.
fn reads(lent: &mut Lent, expected: &[u8]) -> io::Result<bool> {
    let mut bytes = vec![0; expected.len()];
    let mut at = 0;
    let all = wait_until(|| {
        match lent.try_read(&mut bytes[at..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => at += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(at == expected.len())
    });
    match all {
        Ok(()) => Ok(bytes == expected && lent.unread() == 0),
        Err(error) if is_late(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::UnexpectedEof)
}

fn wait_until(mut holds: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let started = Instant::now();
    while !holds()? {
        if started.elapsed() > PATIENCE {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn pattern(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|i| (i % 251) as u8).collect()
}
