//! One connection while it is lent.
//!
//! Two rules of the kernel's are in the type, so that no caller can break them: a socket may leave the map only when
//! nothing is on its way through the program and every byte that the program passed was read (what was not is lost),
//! and it must leave it, or be closed, before anybody else uses it. Hence [`Lent`] owns the socket, all reading goes
//! through [`Lent::try_read`], which counts, [`Lent::end`] gives the socket back only if the counts agree, and dropping
//! it closes the connection.

use std::{
    io::{self, Read},
    mem::{MaybeUninit, offset_of},
    net::TcpStream,
    sync::Arc,
};

use aya::maps::MapError;
use router_common::{flows::FlowState, framing::Framing, splice::State};
use socket2::SockRef;

use super::{Refused, Shared, Terms};
use crate::kernel::{epoll::Interest, flows::Flow, relay::Stop, sys};

/// Our connection to a worker, in the kernel's hands. Dropping it closes the connection.
pub struct Lent {
    shared: Arc<Shared>,
    /// Until it is given back.
    socket: Option<TcpStream>,
    flow: Flow,
    slot: u32,
    cookie: u64,
    /// Bytes that the program passed and that were read.
    read: u64,
    /// Where the kernel was asked to take over.
    armed_at: u64,
    interest: Interest,
}

const SOCKET: &str = "only `end` takes it, and consumes the rest";

impl Lent {
    pub(super) fn new(
        shared: &Arc<Shared>,
        flow: &Flow,
        socket: TcpStream,
        terms: Terms,
        keep_overlaps: bool,
    ) -> Result<Self, Refused> {
        let cookie = socket.set_nonblocking(true).and_then(|()| sys::socket_cookie(&socket));
        let cookie = match cookie {
            Ok(cookie) => cookie,
            Err(error) => return Err(Refused { socket, error }),
        };
        let slot = flow.slot();
        if let Err(error) = shared.slots.take(slot, cookie, &terms, keep_overlaps) {
            return Err(Refused { socket, error });
        }
        flow.moved_by(FlowState::Splice);
        shared.slots.arm(slot, 0, terms.framing);
        let inserted = shared.watch.add(&socket, slot).and_then(|()| {
            let inserted = shared.workers.lock().set(slot, &socket, 0).map_err(into_io);
            if inserted.is_err() {
                shared.watch.remove(&socket);
            }
            inserted
        });
        if let Err(error) = inserted {
            shared.slots.give_back(cookie);
            flow.moved_by(FlowState::Copy);
            return Err(Refused { socket, error });
        }
        let lent = Self {
            shared: shared.clone(),
            socket: Some(socket),
            flow: flow.clone(),
            slot,
            cookie,
            read: 0,
            armed_at: 0,
            interest: Interest::End,
        };
        // Bytes that were queued before the socket was in the map have no one to push them through the program.
        lent.wait_for_lock();
        Ok(lent)
    }

    /// Even: the bytes are user space's. Odd: the kernel's. 0 at first; one more at each take-over and at each return.
    pub fn turn(&self) -> u64 {
        self.state(offset_of!(State, turn))
    }

    /// Bytes redirected since the connection was lent.
    pub fn redirected(&self) -> u64 {
        self.state(offset_of!(State, redirected))
    }

    /// Segments redirected since.
    pub fn segments(&self) -> u64 {
        self.state(offset_of!(State, segments))
    }

    /// Events of the response so far, by whomever they were moved.
    pub fn events(&self) -> u64 {
        self.flow.events()
    }

    /// Segments that brought bytes again, and were cut to what was new.
    pub fn overlaps(&self) -> u32 {
        self.shared.slots.state_u32(self.slot, offset_of!(State, overlaps))
    }

    /// Why the kernel gave the stream back last, and where the scanner stands. Only while the turn is even, and not 0.
    pub fn stopped(&self) -> (Stop, Framing) {
        self.shared.slots.stopped(self.slot)
    }

    /// Completes when the kernel has given the stream back, or has moved its first bytes, or the worker has closed its
    /// side; possibly sooner, so look at [`Lent::turn`], and then at [`Lent::is_closed`].
    pub async fn event(&self) {
        self.shared.watch.of(self.slot).notified().await;
    }

    /// Whether the worker has closed its side, or the connection broke. Afterwards, all that came before has gone through
    /// the program: an odd turn now means that the body broke off.
    pub fn is_closed(&self) -> bool {
        let closed = sys::is_closed_by_peer(self.socket());
        if closed {
            self.wait_for_lock();
        }
        closed
    }

    /// Reads what the program passed. `Ok(0)`: the worker has closed its side. `WouldBlock`: nothing now;
    /// `InvalidData`: bytes were lost, and the connections of both sides must be ended.
    pub fn try_read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.is_lost() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the kernel delivered segments that cannot be put right",
            ));
        }
        let count = self.socket().read(bytes)?;
        self.read += count as u64;
        Ok(count)
    }

    /// Completes when there may be something for [`Lent::try_read`], be it the worker's end; possibly sooner.
    pub async fn readable(&mut self) -> io::Result<()> {
        self.watch(Interest::Bytes)?;
        self.event().await;
        Ok(())
    }

    /// Bytes that the program passed and that were not read. Those may still be on their way to the socket.
    pub fn unread(&self) -> u64 {
        let passed = self.state(offset_of!(State, position)).saturating_sub(self.redirected());
        passed.saturating_sub(self.read)
    }

    /// Lends the stream again, with everything that was read passed on and the scanner at `framing`. Only while the turn
    /// is even. `false`: there are bytes to be read first.
    ///
    /// Before, the client's socket must have taken all that was redirected into it.
    pub fn rearm(&mut self, framing: Framing) -> io::Result<bool> {
        let turn = self.turn();
        if turn & 1 != 0 || self.is_lost() {
            return Ok(!self.is_lost()); // the kernel has it; or nobody should
        }
        self.watch(Interest::End)?;
        let position = self.redirected() + self.read;
        // The program cannot be reading the order meanwhile: the position in it has passed, and does not come again.
        if self.armed_at != position {
            self.shared.slots.arm(self.slot, position, framing);
            self.armed_at = position;
        }
        // In this order; see `router_common::splice`.
        if self.state(offset_of!(State, position)) == position {
            return Ok(true);
        }
        self.wait_for_lock();
        Ok(self.turn() != turn)
    }

    /// Takes the order back. A take-over that has begun goes on.
    pub fn disarm(&self) {
        self.shared.slots.disarm(self.slot);
    }

    /// Takes the connection back, for another response: `Some` if nothing is on its way and every byte that came for
    /// user space was read. Otherwise it is closed, because what is left could only be lost.
    pub fn end(mut self) -> Option<TcpStream> {
        self.shared.slots.disarm(self.slot);
        self.wait_for_lock();
        let position = self.state(offset_of!(State, position));
        if self.turn() & 1 != 0 || self.is_lost() || self.unread() != 0 {
            return None;
        }
        self.shared.workers.lock().clear_index(&self.slot).ok()?;
        // A segment may have come in between, and may have been passed into a queue that is gone.
        self.wait_for_lock();
        if self.state(offset_of!(State, position)) != position {
            return None;
        }
        let socket = self.socket.take()?;
        self.shared.watch.remove(&socket);
        Some(socket)
    }

    /// Reads nothing, but under the lock under which the program runs: segments that are queued go through it first,
    /// and a run that had begun is over afterwards.
    fn wait_for_lock(&self) {
        let mut byte = [MaybeUninit::uninit()];
        let _ = SockRef::from(self.socket()).recv_with_flags(&mut byte, libc::MSG_PEEK | libc::MSG_DONTWAIT);
    }

    fn watch(&mut self, interest: Interest) -> io::Result<()> {
        // Looking for bytes again must find those that are there already.
        if interest == Interest::Bytes || self.interest != interest {
            self.shared.watch.change(self.socket(), self.slot, interest)?;
            self.interest = interest;
        }
        Ok(())
    }

    fn is_lost(&self) -> bool {
        self.shared.slots.state_u32(self.slot, offset_of!(State, lost)) != 0
    }

    fn state(&self, offset: usize) -> u64 {
        self.shared.slots.state(self.slot, offset)
    }

    fn socket(&self) -> &TcpStream {
        self.socket.as_ref().expect(SOCKET)
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Lent")
            .field("slot", &self.slot)
            .field("turn", &self.turn())
            .field("redirected", &self.redirected())
            .field("read", &self.read)
            .field("unread", &self.unread())
            .field("stopped", &self.stopped())
            .field("lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.shared.slots.disarm(self.slot);
        // Closing takes it out of the map and of the epoll instance. Before the slot: without one, segments pass uncut.
        drop(self.socket.take());
        self.shared.slots.give_back(self.cookie);
        self.flow.moved_by(FlowState::Copy);
    }
}

/// The error of the system call in aya's.
fn into_io(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        error => io::Error::other(error),
    }
}
