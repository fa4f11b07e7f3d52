//! What other gateways have in flight on a worker, as they last said ([`crate::shared`]).
//!
//! Decisions add it to what this gateway knows itself. It counts for nothing else: a drain, a limit and a metric of this
//! gateway are about its own requests.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// One gateway's, or several gateways' together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadOfPeers {
    /// Requests sent and not yet ended.
    pub in_flight: u32,
    /// Of these, requests whose first body byte has not come.
    pub pending: u32,
    /// Uncached prompt tokens of those.
    pub queued_prefill_tokens: u64,
}

impl LoadOfPeers {
    /// Both together. What others say is not to be believed to the last bit, so nothing overflows.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            in_flight: self.in_flight.saturating_add(other.in_flight),
            pending: self.pending.saturating_add(other.pending),
            queued_prefill_tokens: self.queued_prefill_tokens.saturating_add(other.queued_prefill_tokens),
        }
    }
}

/// See the module. Zero where no gateway says anything.
#[derive(Debug, Default)]
pub struct PeerLoad {
    in_flight: AtomicU32,
    pending: AtomicU32,
    queued_prefill_tokens: AtomicU64,
}

impl PeerLoad {
    /// Requests sent by others and not yet ended.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Of these, requests whose first body byte has not come.
    pub fn pending(&self) -> u32 {
        self.pending.load(Relaxed)
    }

    /// Uncached prompt tokens of those.
    pub fn queued_prefill_tokens(&self) -> u64 {
        self.queued_prefill_tokens.load(Relaxed)
    }

    /// The others say so now.
    pub fn set(&self, load: LoadOfPeers) {
        self.in_flight.store(load.in_flight, Relaxed);
        self.pending.store(load.pending, Relaxed);
        self.queued_prefill_tokens.store(load.queued_prefill_tokens, Relaxed);
    }
}
