//! The start-up test: everything that the bypass relies on, tried with four sockets on loopback that nobody else knows.
//! A kernel that fails any of it gets no bypass, and the log says what it was. Takes a few milliseconds.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use router_common::{
    framing::Framing,
    relay::{PORT_OF_CLIENTS, PORT_OF_WORKER},
};

use super::{Bypass, ClientEnd, Stop, WorkerEnd, written};
use crate::kernel::error::KernelError;

/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the kernel failed at.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The test itself could not be set up.
    #[error("setting up the self-test: {0}")]
    Socket(#[from] io::Error),
    /// As above, with the ports' map.
    #[error("setting up the self-test: {0}")]
    Map(#[from] KernelError),
    /// A check did not hold.
    #[error("self-test failed: {0}")]
    Check(&'static str),
}

fn check(holds: bool, what: &'static str) -> Result<(), ProbeError> {
    if holds { Ok(()) } else { Err(ProbeError::Check(what)) }
}

/// The four sockets: worker ⇄ gateway ⇄ client.
struct Rig {
    worker: TcpStream,
    to_worker: TcpStream,
    to_client: TcpStream,
    client: TcpStream,
    worker_end: WorkerEnd,
    client_end: ClientEnd,
    /// Bytes of the worker's that this side has read or had redirected.
    position: u32,
}

/// Tries the bypass. Blocks for milliseconds if all is well, for at most a few seconds if not.
pub fn probe(bypass: &Bypass) -> Result<(), ProbeError> {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (workers, clients) = (TcpListener::bind(local)?, TcpListener::bind(local)?);
    let (workers_at, clients_at) = (workers.local_addr()?, clients.local_addr()?);
    bypass.note(workers_at.port(), PORT_OF_WORKER)?;
    bypass.note(clients_at.port(), PORT_OF_CLIENTS)?;
    let result = (|| {
        let mut rig = Rig::new(bypass, &workers, &clients)?;
        rig.passes_when_not_armed()?;
        rig.takes_over_at_the_position_only()?;
        rig.keeps_the_order()?;
        rig.returns_what_ends_inside_a_message()?;
        rig.returns_what_tells_of_an_error()?;
        rig.returns_what_finds_no_room()?;
        Rig::new(bypass, &workers, &clients)?.shows_a_death()
    })();
    bypass.forget(workers_at.port());
    bypass.forget(clients_at.port());
    result
}

impl Rig {
    fn new(bypass: &Bypass, workers: &TcpListener, clients: &TcpListener) -> Result<Self, ProbeError> {
        let to_worker = TcpStream::connect(workers.local_addr()?)?;
        let (worker, _) = workers.accept()?;
        let client = TcpStream::connect(clients.local_addr()?)?;
        let (to_client, _) = clients.accept()?;
        for socket in [&worker, &to_worker, &to_client, &client] {
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
        }
        let worker_end = bypass.worker(to_worker.peer_addr()?, to_worker.local_addr()?);
        let worker_end =
            worker_end.ok_or(ProbeError::Check("a worker's socket is noted when it is accepted"))?;
        let client_end = bypass.client(&to_client);
        let client_end = client_end.ok_or(ProbeError::Check("a client's socket can be put into the map"))?;
        Ok(Self { worker, to_worker, to_client, client, worker_end, client_end, position: 0 })
    }

    fn reads(&mut self, expected: &[u8]) -> io::Result<bool> {
        let mut bytes = vec![0; expected.len()];
        self.to_worker.read_exact(&mut bytes)?;
        self.position = self.position.wrapping_add(bytes.len() as u32);
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

    fn passes_when_not_armed(&mut self) -> Result<(), ProbeError> {
        self.worker.write_all(b"before")?;
        check(self.reads(b"before")?, "a message that nobody wants arrives as ever")?;
        check(self.worker_end.turn() == 0, "nothing is taken without an order")
    }

    fn takes_over_at_the_position_only(&mut self) -> Result<(), ProbeError> {
        self.worker_end.arm(self.position.wrapping_add(1), self.client_end, Framing::chunked(), false);
        self.worker.write_all(b"early")?;
        check(self.reads(b"early")?, "a message at another position is not taken")?;
        check(self.worker_end.turn() == 0, "an order for another position takes nothing")
    }

    fn keeps_the_order(&mut self) -> Result<(), ProbeError> {
        let before = written(&self.to_client)?;
        self.to_client.write_all(b"head ")?;
        self.worker_end.arm(self.position, self.client_end, Framing::chunked(), false);
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
        check(self.worker_end.turn() == 2, "the end of a chunked body is found")?;
        check(self.worker_end.stopped().0 == Stop::End, "the end of a chunked body is told")?;
        check(
            written(&self.to_client)? == before + expected.len() as u64,
            "the client's socket counts every byte",
        )?;
        check(self.nothing_to_read()?, "redirected messages are not delivered twice")?;
        self.position = self.position.wrapping_add(body.concat().len() as u32);
        self.worker.write_all(b"next")?;
        check(self.reads(b"next")?, "the connection is usable after a redirected body")
    }

    fn returns_what_ends_inside_a_message(&mut self) -> Result<(), ProbeError> {
        let turn = self.worker_end.turn();
        self.worker_end.arm(self.position, self.client_end, Framing::length(8), false);
        self.worker.write_all(b"1234")?;
        check(self.client_reads(b"1234")?, "a body with a length is redirected")?;
        self.position = self.position.wrapping_add(4);
        self.worker.write_all(b"5678and more")?;
        check(self.reads(b"5678and more")?, "a message with bytes after the end comes to user space whole")?;
        check(self.worker_end.turn() == turn + 2, "bytes after the end are seen")?;
        check(
            self.worker_end.stopped() == (Stop::Framing, Framing::length(4)),
            "the scanner's state is that before the refused message",
        )
    }

    fn returns_what_tells_of_an_error(&mut self) -> Result<(), ProbeError> {
        let turn = self.worker_end.turn();
        self.worker_end.arm(self.position, self.client_end, Framing::chunked(), true);
        self.worker.write_all(b"c\r\ndata: {\"id\":\r\n")?;
        check(self.client_reads(b"c\r\ndata: {\"id\":\r\n")?, "an event is redirected")?;
        self.position = self.position.wrapping_add(17);
        let event = b"11\r\ndata: {\"error\":{}\r\n";
        self.worker.write_all(event)?;
        check(self.reads(event)?, "an error event comes to user space")?;
        check(self.worker_end.turn() == turn + 2, "an error event is seen")?;
        check(
            self.worker_end.stopped() == (Stop::ErrorEvent, Framing::chunked()),
            "the scanner's state is that before the error event",
        )
    }

    fn returns_what_finds_no_room(&mut self) -> Result<(), ProbeError> {
        const TOTAL: usize = 64 << 20;
        let (turn, redirected) = (self.worker_end.turn(), self.worker_end.redirected());
        self.worker_end.arm(self.position, self.client_end, Framing::length(TOTAL as u64), false);
        self.worker.set_nonblocking(true)?;
        let (mut sent, started) = (0_usize, Instant::now());
        // The client reads nothing: what it cannot take must end with us, and then with the worker.
        while self.worker_end.turn() != turn + 2 {
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
        check(self.worker_end.stopped().0 == Stop::Room, "the reason for stopping is told")?;
        let taken = (self.worker_end.redirected() - redirected) as usize;
        check(taken < sent, "the message without room was passed")?;
        check(self.client_reads(&pattern(0, taken))?, "the client reads what was redirected")?;
        check(self.reads(&pattern(taken, sent - taken))?, "user space reads what was not")
    }

    fn shows_a_death(mut self) -> Result<(), ProbeError> {
        self.worker_end.arm(self.position, self.client_end, Framing::length(100), false);
        self.worker.write_all(b"half")?;
        drop(self.worker);
        check(self.client.read_exact(&mut [0; 4]).is_ok(), "what a worker sent before it died arrives")?;
        check(self.to_worker.read(&mut [0])? == 0, "a worker's end is seen while its bytes are redirected")?;
        check(self.worker_end.turn() == 1, "a body that broke off is not taken for a complete one")
    }
}

fn pattern(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|i| (i % 251) as u8).collect()
}
