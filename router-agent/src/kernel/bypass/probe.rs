//! The start-up test: everything that the bypass relies on, tried with four sockets on loopback that nobody else knows.
//! A kernel that fails any of it gets no bypass, and the log says what it was. Takes a few milliseconds.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use router_common::framing::Framing;

use super::{Bypass, Ends, LendError, Lent};
use crate::kernel::{
    flows::{Flow, Flows},
    relay::{ClientEnd, Clients, Stop, written},
    sys::{bytes_to_read, socket_cookie},
};

/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the kernel failed at.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The test itself could not be set up.
    #[error("setting up the self-test: {0}")]
    Socket(#[from] io::Error),
    /// A stream could not be lent.
    #[error("self-test failed: {0}")]
    Lend(#[from] LendError),
    /// A check did not hold.
    #[error("self-test failed: {0}")]
    Check(&'static str),
}

fn check(holds: bool, what: &'static str) -> Result<(), ProbeError> {
    if holds { Ok(()) } else { Err(ProbeError::Check(what)) }
}

/// The four sockets: worker ⇄ gateway ⇄ client.
struct Rig<'a> {
    bypass: &'a Bypass,
    flows: &'a Flows,
    worker: TcpStream,
    to_worker: TcpStream,
    to_client: TcpStream,
    client: TcpStream,
    client_end: ClientEnd,
}

/// Tries the bypass. Blocks for milliseconds if all is well, for at most a few seconds if not.
pub fn probe(bypass: &Bypass, flows: &Flows, clients_map: &Clients) -> Result<(), ProbeError> {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (workers, clients) = (TcpListener::bind(local)?, TcpListener::bind(local)?);
    let mut rig = Rig::new(bypass, flows, clients_map, &workers, &clients)?;
    rig.takes_over_at_the_position_only()?;
    rig.keeps_the_order()?;
    rig.gives_the_socket_back()?;
    rig.returns_what_ends_inside_a_message()?;
    rig.returns_what_tells_of_an_error()?;
    rig.returns_what_finds_no_room()?;
    Rig::new(bypass, flows, clients_map, &workers, &clients)?.shows_a_death()?;
    refuses_what_is_not_there(bypass, flows, &workers, rig.client_end)
}

/// The listener is no connection.
fn refuses_what_is_not_there(
    bypass: &Bypass,
    flows: &Flows,
    workers: &TcpListener,
    client: ClientEnd,
) -> Result<(), ProbeError> {
    let ends = Ends { worker: workers.local_addr()?, gateway: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)) };
    let lent = bypass.lend(&flow(flows)?, ends, client, Framing::chunked(), false);
    check(
        lent.is_err_and(|error| error == LendError::NoWorker),
        "a connection that is not there is not found",
    )
}

fn flow(flows: &Flows) -> Result<Flow, ProbeError> {
    flows.unnamed().ok_or(ProbeError::Check("there is a free flow"))
}

impl<'a> Rig<'a> {
    fn new(
        bypass: &'a Bypass,
        flows: &'a Flows,
        clients_map: &Clients,
        workers: &TcpListener,
        clients: &TcpListener,
    ) -> Result<Self, ProbeError> {
        let to_worker = TcpStream::connect(workers.local_addr()?)?;
        let (worker, _) = workers.accept()?;
        let client = TcpStream::connect(clients.local_addr()?)?;
        let (to_client, _) = clients.accept()?;
        for socket in [&worker, &to_worker, &to_client, &client] {
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
        }
        let client_end = clients_map.add(&to_client, socket_cookie(&to_client)?);
        let client_end = client_end.ok_or(ProbeError::Check("a client's socket can be put into the map"))?;
        Ok(Self { bypass, flows, worker, to_worker, to_client, client, client_end })
    }

    fn lend(&self, framing: Framing, watch_errors: bool) -> Result<Lent, ProbeError> {
        let ends = Ends { worker: self.to_worker.peer_addr()?, gateway: self.to_worker.local_addr()? };
        Ok(self.bypass.lend(&flow(self.flows)?, ends, self.client_end, framing, watch_errors)?)
    }

    fn reads(&mut self, expected: &[u8]) -> io::Result<bool> {
        let mut bytes = vec![0; expected.len()];
        self.to_worker.read_exact(&mut bytes)?;
        Ok(bytes == expected)
    }

    fn client_reads(&mut self, expected: &[u8]) -> io::Result<bool> {
        let mut bytes = vec![0; expected.len()];
        self.client.read_exact(&mut bytes)?;
        Ok(bytes == expected)
    }

    fn nothing_to_read(&self) -> io::Result<bool> {
        self.to_worker.set_nonblocking(true)?;
        let peeked = self.to_worker.peek(&mut [0]);
        self.to_worker.set_nonblocking(false)?;
        match peeked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            other => other.map(|_| false),
        }
    }

    fn takes_over_at_the_position_only(&mut self) -> Result<(), ProbeError> {
        self.worker.write_all(b"before")?;
        let lent = self.lend(Framing::chunked(), false)?;
        self.worker.write_all(b"early")?;
        check(self.reads(b"beforeearly")?, "what comes before the stream's position is not taken")?;
        check(lent.turn() == 0, "a stream with unread bytes before it is not taken over")?;
        lent.arm(12, self.client_end, Framing::chunked(), false);
        self.worker.write_all(b"other")?;
        check(self.reads(b"other")?, "a message at another position is not taken")?;
        check(lent.turn() == 0, "an order for another position takes nothing")?;
        lent.arm(16, self.client_end, Framing::length(4), false);
        self.worker.write_all(b"here")?;
        check(self.client_reads(b"here")?, "an order given again is followed")?;
        check(lent.turn() == 2, "the end of a body with a length is found")
    }

    fn keeps_the_order(&mut self) -> Result<(), ProbeError> {
        let before = written(&self.to_client)?;
        self.to_client.write_all(b"head ")?;
        let lent = self.lend(Framing::chunked(), false)?;
        // Chunks in one message, a chunk over two, a size over two; extensions and a trailer.
        let body: [&[u8]; 6] =
            [b"3\r\none\r\n3;x=y\r\ntwo\r\n", b"00", b"5\r\nthr", b"ee\r\n", b"0\r\nt: 1\r\n", b"\r\n"];
        for message in body {
            self.worker.write_all(message)?;
        }
        let expected = [b"head ", &body.concat()[..]].concat();
        check(
            self.client_reads(&expected)?,
            "redirected messages arrive in order, after what was written before",
        )?;
        check(lent.turn() == 2, "the end of a chunked body is found")?;
        check(lent.stopped().0 == Stop::End, "the end of a chunked body is told")?;
        check(
            written(&self.to_client)? == before + expected.len() as u64,
            "the client's socket counts every byte",
        )?;
        check(self.nothing_to_read()?, "redirected messages are not delivered twice")?;
        self.worker.write_all(b"next")?;
        check(self.reads(b"next")?, "the connection is usable after a redirected body")
    }

    fn gives_the_socket_back(&mut self) -> Result<(), ProbeError> {
        // In a socket map it would answer 0: see `docs/relay.md`.
        self.to_worker.write_all(b"a request")?;
        let mut byte = [0];
        self.worker.peek(&mut byte)?;
        check(
            bytes_to_read(&self.worker)? == 9,
            "a worker's socket is as before once its stream is not lent any more",
        )?;
        self.worker.read_exact(&mut [0; 9])?;
        Ok(())
    }

    fn returns_what_ends_inside_a_message(&mut self) -> Result<(), ProbeError> {
        let lent = self.lend(Framing::length(8), false)?;
        self.worker.write_all(b"1234")?;
        check(self.client_reads(b"1234")?, "a body with a length is redirected")?;
        self.worker.write_all(b"5678and more")?;
        check(self.reads(b"5678and more")?, "a message with bytes after the end comes to user space whole")?;
        check(lent.turn() == 2, "bytes after the end are seen")?;
        check(
            lent.stopped() == (Stop::Framing, Framing::length(4)),
            "the scanner's state is that before the refused message",
        )
    }

    fn returns_what_tells_of_an_error(&mut self) -> Result<(), ProbeError> {
        let lent = self.lend(Framing::chunked(), true)?;
        self.worker.write_all(b"c\r\ndata: {\"id\":\r\n")?;
        check(self.client_reads(b"c\r\ndata: {\"id\":\r\n")?, "an event is redirected")?;
        let event = b"11\r\ndata: {\"error\":{}\r\n";
        self.worker.write_all(event)?;
        check(self.reads(event)?, "an error event comes to user space")?;
        check(lent.turn() == 2, "an error event is seen")?;
        check(
            lent.stopped() == (Stop::ErrorEvent, Framing::chunked()),
            "the scanner's state is that before the error event",
        )
    }

    fn returns_what_finds_no_room(&mut self) -> Result<(), ProbeError> {
        const TOTAL: usize = 64 << 20;
        let lent = self.lend(Framing::length(TOTAL as u64), false)?;
        self.worker.set_nonblocking(true)?;
        let (mut sent, started) = (0_usize, Instant::now());
        // The client reads nothing: what it cannot take must end with us, and then with the worker.
        while lent.turn() != 2 {
            check(
                started.elapsed() < PATIENCE && sent < TOTAL / 2,
                "a client that reads nothing stops the relay",
            )?;
            match self.worker.write(&pattern(sent, 4096)) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.worker.set_nonblocking(false)?;
        check(lent.stopped().0 == Stop::Room, "the reason for stopping is told")?;
        let taken = lent.redirected() as usize;
        check(taken < sent, "the message without room was passed")?;
        check(self.client_reads(&pattern(0, taken))?, "the client reads what was redirected")?;
        check(self.reads(&pattern(taken, sent - taken))?, "user space reads what was not")
    }

    fn shows_a_death(mut self) -> Result<(), ProbeError> {
        let lent = self.lend(Framing::length(100), false)?;
        self.worker.write_all(b"half")?;
        drop(self.worker);
        check(self.client.read_exact(&mut [0; 4]).is_ok(), "what a worker sent before it died arrives")?;
        check(self.to_worker.read(&mut [0])? == 0, "a worker's end is seen while its bytes are redirected")?;
        check(lent.turn() == 1, "a body that broke off is not taken for a complete one")
    }
}

fn pattern(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|i| (i % 251) as u8).collect()
}
