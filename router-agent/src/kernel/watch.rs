//! Wakes the task that waits for its lent connection: one thread waits for a relay program's ring buffer, and for ends of
//! sockets that tokio must not watch, in an epoll instance of its own. Wake-ups carry no truth, only the advice to look.
//!
//! In an ordinary epoll instance a socket with a verdict program wakes for every segment. Here it is registered for the
//! end of the connection only, and for bytes while somebody waits for passed ones.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use router_common::flows::FLOWS_MAX;
use tokio::sync::Notify;

use super::epoll::{Epoll, Interest};
use crate::privileges::Follower;

/// How soon the thread notices that nobody is left to wake.
const PATIENCE: Duration = Duration::from_millis(500);
/// Not a slot: the ring buffer.
const RING: u64 = u64::MAX;

/// Who waits, by slot.
pub(super) struct Watch {
    epoll: Arc<Epoll>,
    slots: Arc<[Notify]>,
    over: Arc<AtomicBool>,
}

impl Watch {
    /// `thread` is its name.
    pub(super) fn start(thread: &str, mut events: RingBuf<MapData>) -> io::Result<Self> {
        let epoll = Arc::new(Epoll::new()?);
        epoll.add(&events, RING, Interest::Bytes)?;
        let slots: Arc<[Notify]> = (0..FLOWS_MAX).map(|_| Notify::new()).collect();
        let over = Arc::new(AtomicBool::new(false));
        let (wait, waiters, stop) = (epoll.clone(), slots.clone(), over.clone());
        std::thread::Builder::new().name(thread.to_owned()).spawn(move || {
            let wake = |slot: u64| {
                if let Some(waiter) = usize::try_from(slot).ok().and_then(|slot| waiters.get(slot)) {
                    waiter.notify_one();
                }
            };
            let mut privileges = Follower::default();
            while !stop.load(Relaxed) {
                privileges.follow();
                wait.wait(PATIENCE, |token| {
                    if token != RING {
                        return wake(token);
                    }
                    while let Some(event) = events.next() {
                        let slot =
                            event.get(..4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
                        if let Some(slot) = slot {
                            wake(u64::from(slot));
                        }
                    }
                });
            }
        })?;
        Ok(Self { epoll, slots, over })
    }

    pub(super) fn of(&self, slot: u32) -> &Notify {
        &self.slots[slot as usize]
    }

    pub(super) fn add(&self, socket: impl AsFd, slot: u32) -> io::Result<()> {
        self.epoll.add(socket, u64::from(slot), Interest::End)
    }

    pub(super) fn change(&self, socket: impl AsFd, slot: u32, interest: Interest) -> io::Result<()> {
        self.epoll.change(socket, u64::from(slot), interest)
    }

    pub(super) fn remove(&self, socket: impl AsFd) {
        self.epoll.remove(socket);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
    }
}
