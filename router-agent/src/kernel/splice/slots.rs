//! Slots: user space's view of [`Order`] and [`State`], and which lent connection has which.

use std::{
    io,
    mem::offset_of,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
};

use aya::maps::{HashMap, Map, MapData};
use parking_lot::Mutex;
use router_common::{
    framing::Framing,
    names,
    relay::DISARMED,
    splice::{Order, SLOTS, State},
};

use super::Terms;
use crate::kernel::{error::KernelError, flows::share, relay::Stop, sys::SharedArray};

pub(super) struct Slots {
    by_cookie: Mutex<HashMap<MapData, u64, u32>>,
    orders: SharedArray,
    states: SharedArray,
}

impl Slots {
    pub(super) fn new(
        by_cookie: HashMap<MapData, u64, u32>,
        orders: &Map,
        states: &Map,
    ) -> Result<Self, KernelError> {
        Ok(Self {
            by_cookie: Mutex::new(by_cookie),
            orders: share(orders, names::SPLICE_ORDERS, size_of::<Order>() * SLOTS as usize)?,
            states: share(states, names::SPLICE_STATES, size_of::<State>() * SLOTS as usize)?,
        })
    }

    /// Makes `slot`, as new and not armed, that of the connection whose socket on our side is `cookie`.
    pub(super) fn take(&self, slot: u32, cookie: u64, terms: &Terms, keep_overlaps: bool) -> io::Result<()> {
        for word in (0..size_of::<State>()).step_by(8) {
            self.states.u64(slot as usize * size_of::<State>() + word).store(0, SeqCst);
        }
        self.disarm(slot);
        self.order_u64(slot, offset_of!(Order, target)).store(terms.client.cookie, SeqCst);
        let set = |offset, value: bool| self.order_u32(slot, offset).store(u32::from(value), SeqCst);
        set(offset_of!(Order, is_event_stream), terms.is_event_stream);
        set(offset_of!(Order, keep_overlaps), keep_overlaps);
        self.by_cookie.lock().insert(cookie, slot, 0).map_err(io::Error::other)
    }

    /// After its socket has left the map of lent sockets, or was closed.
    pub(super) fn give_back(&self, cookie: u64) {
        let _ = self.by_cookie.lock().remove(&cookie);
    }

    /// The kernel is to take over at `position`, where the scanner stands at `framing`.
    pub(super) fn arm(&self, slot: u32, position: u64, framing: Framing) {
        let Framing { remaining, state, overhead } = framing;
        self.order_u64(slot, offset_of!(Order, remaining)).store(remaining, SeqCst);
        self.order_u32(slot, offset_of!(Order, state)).store(state, SeqCst);
        self.order_u32(slot, offset_of!(Order, overhead)).store(overhead, SeqCst);
        self.order_u64(slot, offset_of!(Order, arm_at)).store(position, SeqCst);
    }

    pub(super) fn disarm(&self, slot: u32) {
        self.order_u64(slot, offset_of!(Order, arm_at)).store(DISARMED, SeqCst);
    }

    /// One of the `u64`s of [`State`], by its offset.
    pub(super) fn state(&self, slot: u32, offset: usize) -> u64 {
        self.states.u64(slot as usize * size_of::<State>() + offset).load(SeqCst)
    }

    /// One of the `u32`s of [`State`], by its offset.
    pub(super) fn state_u32(&self, slot: u32, offset: usize) -> u32 {
        self.states.u32(slot as usize * size_of::<State>() + offset).load(SeqCst)
    }

    pub(super) fn stopped(&self, slot: u32) -> (Stop, Framing) {
        let base = offset_of!(State, framing);
        let framing = Framing {
            remaining: self.state(slot, base + offset_of!(Framing, remaining)),
            state: self.state_u32(slot, base + offset_of!(Framing, state)),
            overhead: self.state_u32(slot, base + offset_of!(Framing, overhead)),
        };
        let stop = Stop::of(self.state_u32(slot, offset_of!(State, stop)));
        (stop, framing)
    }

    fn order_u64(&self, slot: u32, offset: usize) -> &AtomicU64 {
        self.orders.u64(slot as usize * size_of::<Order>() + offset)
    }

    fn order_u32(&self, slot: u32, offset: usize) -> &AtomicU32 {
        self.orders.u32(slot as usize * size_of::<Order>() + offset)
    }
}
