//! The `decisions` ring: its writer, on the data threads, and its reader, in any process.
//!
//! A record costs one atomic addition, one compare-and-swap and 23 plain stores into memory shared with the kernel
//! (`BPF_F_MMAPABLE`, Linux 5.5): no lock, no system call, no allocation, nobody waits. How a reader tells a whole
//! record from one being written is said in [`router_common::decisions`].

use std::{
    mem::offset_of,
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
        fence,
    },
};

use aya::maps::{Map, MapData};
use router_common::{MapValue, decisions::DecisionValue, limits::DECISIONS_MAX, names};

use super::{
    error::KernelError,
    sys::{SharedArray, monotonic_ns},
};

const SIZE: usize = size_of::<DecisionValue>();
const SEQUENCE: usize = offset_of!(DecisionValue, sequence);
const LENGTH: usize = SIZE * DECISIONS_MAX as usize;

/// The writer: one for all data threads.
pub struct Decisions {
    ring: SharedArray,
    /// The number of the last decision.
    last: AtomicU64,
}

impl Decisions {
    pub(super) fn new(map: &Map) -> Result<Self, KernelError> {
        let Map::Array(map) = map else {
            return Err(KernelError::Missing { what: "array", name: names::DECISIONS });
        };
        let ring = SharedArray::map(map.fd(), LENGTH)
            .map_err(|source| KernelError::SharedMemory { name: names::DECISIONS, source })?;
        Ok(Self { ring, last: AtomicU64::new(0) })
    }

    /// Writes a decision over the oldest one, with the next number and the present time. Left out, so that nobody
    /// waits, in the one case that a thread has been off its CPU in here for the last [`DECISIONS_MAX`] decisions.
    pub fn record(&self, decision: &DecisionValue) {
        let sequence = self.last.fetch_add(1, Relaxed) + 1;
        let at = DecisionValue::slot(sequence) as usize * SIZE;
        let first = self.ring.u64(at + SEQUENCE);
        let claimed = self.ring.u64(at + DecisionValue::CLAIMED_AT);
        let before = first.load(Acquire);
        let is_ours =
            before < sequence && claimed.compare_exchange(before, sequence, AcqRel, Relaxed).is_ok();
        if !is_ours {
            return;
        }
        // No store below is seen before the claim.
        fence(Release);
        let stamped = DecisionValue { decided_ns: monotonic_ns(), ..*decision };
        let bytes = stamped.to_bytes();
        for (offset, word) in (0..).step_by(8).zip(bytes.chunks_exact(8)) {
            if offset != SEQUENCE && offset != DecisionValue::CLAIMED_AT {
                let word = u64::from_ne_bytes(word.try_into().expect("chunks of eight"));
                self.ring.u64(at + offset).store(word, Relaxed);
            }
        }
        first.store(sequence, Release);
    }
}

/// All whole records, oldest first. Reads the shared memory itself: what bpf(2) would copy in one call it does not copy
/// at one instant.
pub(super) fn read(map: &MapData) -> Result<Vec<DecisionValue>, KernelError> {
    let info = map.info().map_err(|source| KernelError::Map { name: names::DECISIONS.to_owned(), source })?;
    let unreadable = || KernelError::Entry { name: names::DECISIONS.to_owned() };
    if info.value_size() as usize != SIZE || info.max_entries() != DECISIONS_MAX {
        return Err(unreadable());
    }
    let ring = SharedArray::map_read_only(map.fd(), LENGTH)
        .map_err(|source| KernelError::SharedMemory { name: names::DECISIONS, source })?;
    let mut decisions = Vec::new();
    for slot in 0..DECISIONS_MAX as usize {
        if let Some(bytes) = copy(&ring, slot * SIZE) {
            decisions.push(DecisionValue::from_bytes(&bytes).ok_or_else(unreadable)?);
        }
    }
    decisions.sort_unstable_by_key(|decision| decision.sequence);
    Ok(decisions)
}

/// The record at `at`, or `None` if there is none or it is being written just now.
fn copy(ring: &SharedArray, at: usize) -> Option<[u8; SIZE]> {
    let mut bytes = [0; SIZE];
    let sequence = ring.u64(at + SEQUENCE).load(Acquire);
    for (offset, word) in (0..).step_by(8).zip(bytes.chunks_exact_mut(8)) {
        word.copy_from_slice(&ring.u64(at + offset).load(Relaxed).to_ne_bytes());
    }
    fence(Acquire);
    let claimed = ring.u64(at + DecisionValue::CLAIMED_AT).load(Relaxed);
    (sequence != 0 && sequence == claimed && DecisionValue::is_whole(&bytes)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use router_common::decisions::{DecisionPolicy, DecisionReason};
    use std::sync::atomic::AtomicBool;

    fn ring() -> Decisions {
        Decisions { ring: SharedArray::anonymous(LENGTH).expect("memory"), last: AtomicU64::new(0) }
    }

    /// Every number in it says `mark`.
    fn marked(mark: u32) -> DecisionValue {
        let wide = u64::from(mark);
        DecisionValue {
            request_hash: wide,
            request_id: [mark as u8; 64],
            cost: wide,
            runner_up_cost: wide,
            runner_up: mark,
            attempt: mark,
            prompt_tokens: mark,
            runner_up_batch: mark,
            ..DecisionValue::new(mark, DecisionPolicy::Warm, DecisionReason::PrefixHit)
        }
    }

    fn whole(decisions: &Decisions) -> Vec<DecisionValue> {
        let slots = (0..DECISIONS_MAX as usize).filter_map(|slot| copy(&decisions.ring, slot * SIZE));
        slots.map(|bytes| DecisionValue::from_bytes(&bytes).expect("readable")).collect()
    }

    #[test]
    fn the_ring_keeps_the_last_decisions() {
        let decisions = ring();
        assert!(whole(&decisions).is_empty());
        for mark in 1..=DECISIONS_MAX + 3 {
            decisions.record(&marked(mark));
        }
        let rows = whole(&decisions);
        assert_eq!(rows.len(), DECISIONS_MAX as usize);
        assert_eq!((rows[0].sequence, rows[0].worker), (u64::from(DECISIONS_MAX) + 1, DECISIONS_MAX + 1));
        assert_eq!((rows[3].sequence, rows[3].worker), (4, 4), "the oldest that is left");
        assert!(rows.iter().all(|row| row.sequence == u64::from(row.worker) && row.claimed == row.sequence));
        assert!(rows[3].decided_ns > 0 && rows[3].decided_ns <= rows[2].decided_ns);
    }

    #[test]
    fn a_slot_that_another_thread_is_writing_is_left_to_it_and_not_read() {
        let decisions = ring();
        decisions.record(&marked(1));
        let claimed = decisions.ring.u64(DecisionValue::CLAIMED_AT);
        claimed.store(u64::from(DECISIONS_MAX) + 1, Relaxed);
        assert!(whole(&decisions).is_empty(), "half written");
        decisions.last.store(2 * u64::from(DECISIONS_MAX), Relaxed);
        decisions.record(&marked(9));
        assert!(whole(&decisions).is_empty());
        assert_eq!(decisions.ring.u64(SEQUENCE).load(Relaxed), 1, "untouched");
    }

    #[test]
    fn readers_never_see_a_mixture() {
        let decisions = ring();
        // All writers in one slot, as if each had been round the ring.
        let done = AtomicBool::new(false);
        let seen = std::thread::scope(|scope| {
            let decisions = &decisions;
            let writers = [1, 2].map(|writer| {
                scope.spawn(move || {
                    for turn in 0..20_000 {
                        decisions.last.fetch_add(u64::from(DECISIONS_MAX) - 1, Relaxed);
                        decisions.record(&marked(2 * turn + writer));
                    }
                })
            });
            let reader = scope.spawn(|| {
                let mut seen = 0;
                loop {
                    let is_last = done.load(Relaxed);
                    for slot in 0..DECISIONS_MAX as usize {
                        let Some(bytes) = copy(&decisions.ring, slot * SIZE) else { continue };
                        let row = DecisionValue::from_bytes(&bytes).expect("readable");
                        assert_eq!(
                            DecisionValue { sequence: 0, claimed: 0, decided_ns: 0, ..row },
                            marked(row.worker)
                        );
                        seen += 1;
                    }
                    if is_last {
                        return seen;
                    }
                    std::thread::yield_now();
                }
            });
            for writer in writers {
                writer.join().expect("it writes");
            }
            done.store(true, Relaxed);
            reader.join().expect("no mixture")
        });
        assert!(seen > 0, "the reader has read something");
    }
}
