//! An epoll instance beside tokio's (epoll(7)), edge-triggered: for sockets that tokio must not watch.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    ptr,
    time::Duration,
};

/// Most events in one call.
const BATCH: usize = 64;

/// What is watched of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    /// The peer's end, or an error.
    End,
    /// That, and bytes to read.
    Bytes,
}

pub(super) struct Epoll(OwnedFd);

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches `file` until it is removed or closed; `token` comes with its events.
    pub(super) fn add(&self, file: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, file, token, interest)
    }

    /// Looks anew: what is there already is an event.
    pub(super) fn change(&self, file: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, file, token, interest)
    }

    pub(super) fn remove(&self, file: impl AsFd) {
        // It was added; were it not, nothing is left to do.
        let _ = self.control(libc::EPOLL_CTL_DEL, file, 0, Interest::End);
    }

    /// Calls `event` with the token of each file to which something happened, or returns when the time is over.
    pub(super) fn wait(&self, timeout: Duration, mut event: impl FnMut(u64)) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        let timeout = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the kernel writes at most as many events as there are.
        let count = unsafe {
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), BATCH as libc::c_int, timeout)
        };
        for entry in events.iter().take(usize::try_from(count).unwrap_or(0)) {
            event(entry.u64);
        }
    }

    fn control(
        &self,
        operation: libc::c_int,
        file: impl AsFd,
        token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        let bytes = if interest == Interest::Bytes { libc::EPOLLIN } else { 0 };
        // Errors and the end of both directions are always told.
        let mut event =
            libc::epoll_event { events: (bytes | libc::EPOLLRDHUP | libc::EPOLLET) as u32, u64: token };
        // SAFETY: one valid event.
        let result = unsafe {
            libc::epoll_ctl(
                self.0.as_raw_fd(),
                operation,
                file.as_fd().as_raw_fd(),
                ptr::from_mut(&mut event),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
