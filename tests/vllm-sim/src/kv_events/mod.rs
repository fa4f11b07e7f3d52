//! vLLM's KV cache events: what the engine stored and evicted, published over ZMQ.

mod publisher;
pub mod wire;

pub(crate) use publisher::start;
pub use publisher::{PublishError, binds};

use crate::engine::hashing::BlockHash;
use crate::engine::sequence::Sequence;

/// One event, before it is written in one of the wire forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvEvent {
    /// Consecutive full blocks of one sequence now have content.
    Stored {
        hashes: Vec<BlockHash>,
        /// The block before the first one; `None` at the start of a sequence.
        parent: Option<BlockHash>,
        /// The tokens of all these blocks.
        token_ids: Vec<u32>,
        block_size: usize,
        lora_name: Option<String>,
        /// Per block: LoRA name, cache salt.
        extra_keys: Vec<Option<Vec<String>>>,
        session_id: Option<String>,
    },
    /// A block's content was evicted.
    Removed { hash: BlockHash },
    /// The prefix cache was reset.
    Cleared,
}

impl KvEvent {
    pub(crate) fn stored(sequence: &Sequence, blocks: std::ops::Range<usize>, block_size: usize) -> Self {
        let tokens = blocks.start * block_size..blocks.end * block_size;
        Self::Stored {
            hashes: sequence.hashes[blocks.clone()].to_vec(),
            parent: blocks.start.checked_sub(1).map(|before| sequence.hashes[before]),
            token_ids: sequence.tokens[tokens].to_vec(),
            block_size,
            lora_name: sequence.extra.lora.as_ref().map(|(name, _)| name.clone()),
            extra_keys: blocks.map(|index| sequence.extra.published(index)).collect(),
            session_id: sequence.session_id.clone(),
        }
    }
}

/// Where the engine puts each step's batch.
#[derive(Clone)]
pub(crate) struct EventSink {
    batches: tokio::sync::mpsc::UnboundedSender<Vec<KvEvent>>,
}

impl EventSink {
    pub(crate) fn new(batches: tokio::sync::mpsc::UnboundedSender<Vec<KvEvent>>) -> Self {
        Self { batches }
    }

    pub(crate) fn publish(&self, events: Vec<KvEvent>) {
        let _ = self.batches.send(events); // the publisher ends only with the worker
    }
}
