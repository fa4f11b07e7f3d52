//! The `decisions` map: the last decisions, as a ring. It answers "why this worker?" for one request.
//!
//! Decision `n`, counted from 1, is written to slot `(n − 1) mod `[`DECISIONS_MAX`], through shared memory and by
//! whichever thread decided. A slot that is being written cannot be mistaken for a whole one: the writer sets
//! `claimed` (the last field) to `n` before it touches the rest, and `sequence` (the first field) to `n` after it.
//! A copy taken from front to back is whole if both are equal, and not 0. A writer that finds a slot still claimed
//! by another leaves its record out, so two never write to one slot.
//!
//! [`DECISIONS_MAX`]: crate::limits::DECISIONS_MAX

use crate::{
    bytes::{map_enum, map_value},
    limits::REQUEST_ID_BYTES,
};

/// In place of a worker index: there was none.
pub const NO_WORKER: u32 = u32::MAX;

map_enum! {
    /// By which policy the worker was chosen.
    pub enum DecisionPolicy {
        Warm = 1,
        RoundRobin = 2,
        Random = 3,
        LeastLoaded = 4,
        PowerOfTwo = 5,
        Prefix = 6,
        Session = 7,
        Lmcache = 8,
        Weighted = 9,
    }
}

map_enum! {
    /// Why this worker.
    pub enum DecisionReason {
        /// There was no choice.
        OnlyCandidate = 1,
        /// No other worker has a longer part of the prompt, and waiting there costs less than prefilling elsewhere.
        PrefixHit = 2,
        /// Another worker has more of the prompt, but it is too busy for that to pay.
        LoadOverPrefix = 3,
        /// No worker has any of the prompt: the least work and the smallest batch.
        LeastCost = 4,
        /// Several workers were equally good: the one that was chosen longest ago.
        TieLru = 5,
        LeastLoaded = 6,
        PowerOfTwo = 7,
        RoundRobin = 8,
        Random = 9,
        /// A worker with more of the prompt is at its limit of requests.
        Saturated = 10,
        /// The session's own worker.
        Session = 11,
        /// The session's own worker has more than its bound: the next one in the session's order.
        SessionOverflow = 12,
        /// The highest sum of weighted scores.
        HighestScore = 13,
        /// Drawn with chances by score.
        WeightedRandom = 14,
        /// It made the response that this request goes on from.
        PreviousResponse = 15,
    }
}

map_value! {
    /// One decision. 192 bytes: three cache lines.
    pub struct DecisionValue {
        /// The decision's number, from 1; 0 while nothing has been written here. See the module.
        pub sequence: u64,
        /// `CLOCK_MONOTONIC`, nanoseconds.
        pub decided_ns: u64,
        /// xxh3 (64 bits) of the whole `x-request-id`, which finds the request if its id is longer than the field below.
        pub request_hash: u64,
        /// The first bytes of `x-request-id`, NUL-padded.
        pub request_id: [u8; REQUEST_ID_BYTES],
        /// What the policy minimises, in its own unit (`warm`: microseconds, or tokens × requests while speeds are not known);
        /// 0 for policies that do not.
        pub cost: u64,
        /// The same for the worker that would have been next; 0 without one.
        pub runner_up_cost: u64,
        /// Prefill tokens that waited on the worker.
        pub queued_prefill_tokens: u64,
        /// And on the one that would have been next.
        pub runner_up_queued_prefill_tokens: u64,
        /// Key in `workers`.
        pub worker: u32,
        /// Key in `workers` of the worker that would have been next, or [`NO_WORKER`].
        pub runner_up: u32,
        pub policy: DecisionPolicy,
        pub reason: DecisionReason,
        /// 1 for a request's first worker, 2 for the one after that failed, and so on.
        pub attempt: u32,
        /// Workers that could have taken the request.
        pub candidates: u32,
        /// Of these, as good as the chosen one, itself included.
        pub tied: u32,
        /// 0 where there is no prompt to speak of.
        pub prompt_tokens: u32,
        /// Blocks of the prompt that the worker is believed to have cached.
        pub matched_blocks: u32,
        /// The same in tokens.
        pub matched_tokens: u32,
        /// The longest match of any candidate, tokens.
        pub best_matched_tokens: u32,
        /// The match of the worker that would have been next, tokens.
        pub runner_up_matched_tokens: u32,
        /// Tokens that the worker has to prefill.
        pub new_tokens: u32,
        /// Requests that the worker had before this one.
        pub batch: u32,
        /// And the worker that would have been next.
        pub runner_up_batch: u32,
        pub padding: u32,
        /// The number of the decision that is being written here, or was last. See the module.
        pub claimed: u64,
    }
}

const _: () = assert!(size_of::<DecisionValue>() == 192);
const _: () = assert!(core::mem::offset_of!(DecisionValue, sequence) == 0, "read first, written last");

#[cfg(not(target_arch = "bpf"))]
impl DecisionValue {
    /// Where `claimed` lies: read last, written first.
    pub const CLAIMED_AT: usize = core::mem::offset_of!(Self, claimed);

    /// A decision of which nothing else is known.
    pub const fn new(worker: u32, policy: DecisionPolicy, reason: DecisionReason) -> Self {
        Self {
            sequence: 0,
            decided_ns: 0,
            request_hash: 0,
            request_id: [0; REQUEST_ID_BYTES],
            cost: 0,
            runner_up_cost: 0,
            queued_prefill_tokens: 0,
            runner_up_queued_prefill_tokens: 0,
            worker,
            runner_up: NO_WORKER,
            policy,
            reason,
            attempt: 1,
            candidates: 1,
            tied: 1,
            prompt_tokens: 0,
            matched_blocks: 0,
            matched_tokens: 0,
            best_matched_tokens: 0,
            runner_up_matched_tokens: 0,
            new_tokens: 0,
            batch: 0,
            runner_up_batch: 0,
            padding: 0,
            claimed: 0,
        }
    }

    /// The slot of decision `sequence`, from 1.
    pub const fn slot(sequence: u64) -> u32 {
        (sequence.wrapping_sub(1) % crate::limits::DECISIONS_MAX as u64) as u32
    }

    /// Whether a copy taken from front to back holds one whole decision.
    pub fn is_whole(bytes: &<Self as crate::MapValue>::Bytes) -> bool {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        word(0) != 0 && word(0) == word(Self::CLAIMED_AT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MapValue, limits::DECISIONS_MAX};

    #[test]
    fn numbers_go_round_the_ring() {
        assert_eq!(DecisionValue::slot(1), 0);
        assert_eq!(DecisionValue::slot(u64::from(DECISIONS_MAX)), DECISIONS_MAX - 1);
        assert_eq!(DecisionValue::slot(u64::from(DECISIONS_MAX) + 1), 0);
    }

    #[test]
    fn only_a_slot_with_one_number_at_both_ends_is_whole() {
        let mut bytes = [0; size_of::<DecisionValue>()];
        assert!(!DecisionValue::is_whole(&bytes), "never written");
        assert_eq!(DecisionValue::from_bytes(&bytes), None, "no policy has the number 0");
        bytes[DecisionValue::CLAIMED_AT..].copy_from_slice(&7_u64.to_ne_bytes());
        assert!(!DecisionValue::is_whole(&bytes), "being written");
        bytes[..8].copy_from_slice(&7_u64.to_ne_bytes());
        assert!(DecisionValue::is_whole(&bytes));
    }
}
