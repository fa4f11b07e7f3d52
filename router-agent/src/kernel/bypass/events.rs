//! Wakes the task that waits for its slot: one thread reads the programs' ring buffer and notifies. Events carry no
//! truth, only the advice to look at the slot.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use router_common::relay::SLOTS;
use tokio::sync::Notify;

use crate::kernel::sys;

/// How soon the thread notices that nobody is left to wake.
const PATIENCE: Duration = Duration::from_millis(500);

/// Who waits, by slot.
pub(super) struct Waiters {
    slots: Arc<[Notify]>,
    over: Arc<AtomicBool>,
}

impl Waiters {
    pub(super) fn start(mut events: RingBuf<MapData>) -> io::Result<Self> {
        let slots: Arc<[Notify]> = (0..SLOTS).map(|_| Notify::new()).collect();
        let over = Arc::new(AtomicBool::new(false));
        let (waiters, stop) = (slots.clone(), over.clone());
        std::thread::Builder::new().name("relay-events".to_owned()).spawn(move || {
            while !stop.load(Relaxed) {
                while let Some(event) = events.next() {
                    let slot = event.get(..4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
                    if let Some(waiter) = slot.and_then(|slot| waiters.get(slot as usize)) {
                        waiter.notify_one();
                    }
                }
                sys::wait_readable(&events, PATIENCE);
            }
        })?;
        Ok(Self { slots, over })
    }

    pub(super) fn of(&self, slot: u32) -> &Notify {
        &self.slots[slot as usize]
    }
}

impl Drop for Waiters {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
    }
}
