//! Slots: user space's view of [`Order`] and [`State`]. A stream's slot is its flow's.

use std::{
    mem::offset_of,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use aya::maps::Map;
use router_common::{
    flows::FlowState,
    framing::Framing,
    names,
    relay::{DISARMED, Order, SLOTS, State},
};

use super::Shared;
use crate::kernel::{
    error::KernelError,
    flows::{Flow, share},
    relay::{ClientEnd, Stop},
    sys::SharedArray,
    watch::Watch,
};

pub(super) struct Slots {
    orders: SharedArray,
    states: SharedArray,
    watch: Watch,
}

impl Slots {
    pub(super) fn new(orders: &Map, states: &Map, watch: Watch) -> Result<Self, KernelError> {
        Ok(Self {
            orders: share(orders, names::RELAY_ORDERS, size_of::<Order>() * SLOTS as usize)?,
            states: share(states, names::RELAY_STATES, size_of::<State>() * SLOTS as usize)?,
            watch,
        })
    }

    /// The slot of `flow`, as new.
    pub(super) fn take(shared: &Arc<Shared>, flow: Flow) -> Lent {
        let at = flow.slot() as usize * size_of::<State>();
        for word in (0..size_of::<State>()).step_by(8) {
            shared.slots.states.u64(at + word).store(0, SeqCst);
        }
        flow.moved_by(FlowState::Bypass);
        Lent { shared: shared.clone(), flow }
    }
}

/// A stream that the program moves, or would on order. Lent at most once in a flow's life.
pub struct Lent {
    shared: Arc<Shared>,
    flow: Flow,
}

impl Lent {
    pub(super) fn slot(&self) -> u32 {
        self.flow.slot()
    }

    /// Orders: take over at `position`, where user space has passed on everything before it and the scanner stands at
    /// `framing`. At most one take-over follows; [`Lent::turn`] tells. Positions count from the byte at which the stream
    /// was lent first.
    pub fn arm(&self, position: u32, client: ClientEnd, framing: Framing, is_event_stream: bool) {
        let Framing { remaining, state, overhead } = framing;
        self.order_u64(offset_of!(Order, target)).store(client.cookie, SeqCst);
        self.order_u64(offset_of!(Order, remaining)).store(remaining, SeqCst);
        self.order_u32(offset_of!(Order, state)).store(state, SeqCst);
        self.order_u32(offset_of!(Order, overhead)).store(overhead, SeqCst);
        self.order_u32(offset_of!(Order, is_event_stream)).store(u32::from(is_event_stream), SeqCst);
        self.order_u64(offset_of!(Order, arm_at)).store(u64::from(position), SeqCst);
    }

    /// Takes the order back. A take-over that has begun goes on.
    pub fn disarm(&self) {
        self.order_u64(offset_of!(Order, arm_at)).store(DISARMED, SeqCst);
    }

    /// Even: the bytes are user space's. One more at each take-over and at each return.
    pub fn turn(&self) -> u64 {
        self.state_u64(offset_of!(State, turn)).load(SeqCst)
    }

    /// Bytes redirected since the stream was lent first.
    pub fn redirected(&self) -> u64 {
        self.state_u64(offset_of!(State, redirected)).load(SeqCst)
    }

    /// Messages redirected since.
    pub fn messages(&self) -> u64 {
        self.state_u64(offset_of!(State, messages)).load(SeqCst)
    }

    /// Why the kernel gave the stream back last, and where the scanner stands. Only while the turn is even.
    pub fn stopped(&self) -> (Stop, Framing) {
        let base = offset_of!(State, framing);
        let framing = Framing {
            remaining: self.state_u64(base + offset_of!(Framing, remaining)).load(SeqCst),
            state: self.state_u32(base + offset_of!(Framing, state)).load(SeqCst),
            overhead: self.state_u32(base + offset_of!(Framing, overhead)).load(SeqCst),
        };
        let stop = Stop::of(self.state_u32(offset_of!(State, stop)).load(SeqCst));
        (stop, framing)
    }

    /// Completes when the kernel has given the stream back, or has moved its first bytes; possibly sooner, so look.
    pub async fn event(&self) {
        self.shared.slots.watch.of(self.slot()).notified().await;
    }

    fn order_u64(&self, offset: usize) -> &std::sync::atomic::AtomicU64 {
        self.shared.slots.orders.u64(self.slot() as usize * size_of::<Order>() + offset)
    }

    fn order_u32(&self, offset: usize) -> &std::sync::atomic::AtomicU32 {
        self.shared.slots.orders.u32(self.slot() as usize * size_of::<Order>() + offset)
    }

    fn state_u64(&self, offset: usize) -> &std::sync::atomic::AtomicU64 {
        self.shared.slots.states.u64(self.slot() as usize * size_of::<State>() + offset)
    }

    fn state_u32(&self, offset: usize) -> &std::sync::atomic::AtomicU32 {
        self.shared.slots.states.u32(self.slot() as usize * size_of::<State>() + offset)
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Lent")
            .field("slot", &self.slot())
            .field("turn", &self.turn())
            .finish_non_exhaustive()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.disarm();
        // Not there if the worker has closed it, or if it was refused.
        let _ = self.shared.workers.lock().clear_index(&self.slot());
        self.flow.moved_by(FlowState::Copy);
    }
}
