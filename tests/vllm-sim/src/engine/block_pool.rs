//! The KV block pool: reference counts, prefix cache, LRU eviction.
//!
//! The structure and the order of operations are those of vLLM's `BlockPool`:
//! - block 0 is the null block and is never handed out;
//! - blocks without references stay in a doubly linked free list in the order of their release, *with* their content:
//!   they are the prefix cache, and the list's front is the next to be evicted;
//! - one hash can be held by several blocks (equal sequences computed at the same time, a recomputed last block);
//! - a sequence releases its blocks last one first, so that the tail of a prefix is evicted before its head.
//!
//! Every operation is O(1) per block.

use std::collections::HashMap;

use super::hashing::{BlockHash, BlockHashState};

/// Index of a block in the pool.
pub type BlockId = u32;

const NONE: BlockId = BlockId::MAX;

#[derive(Clone, Debug)]
struct Block {
    references: u32,
    /// The content, once the block is full and registered.
    hash: Option<BlockHash>,
    prev: BlockId,
    next: BlockId,
}

/// The blocks that hold one hash.
#[derive(Debug)]
enum Holders {
    One(BlockId),
    Many(Vec<BlockId>),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    cached: HashMap<BlockHash, Holders, BlockHashState>,
    free_head: BlockId,
    free_tail: BlockId,
    free_len: usize,
    cached_len: usize,
}

impl BlockPool {
    /// A pool of `num_blocks` blocks, one of which is the null block.
    pub fn new(num_blocks: usize) -> Self {
        let block = Block { references: 0, hash: None, prev: NONE, next: NONE };
        let mut pool = Self {
            blocks: vec![block; num_blocks.max(2)],
            cached: HashMap::default(),
            free_head: NONE,
            free_tail: NONE,
            free_len: 0,
            cached_len: 0,
        };
        for id in 1..pool.blocks.len() as BlockId {
            pool.push_free(id);
        }
        pool
    }

    /// Blocks that can be allocated now (cached ones included).
    pub fn free_len(&self) -> usize {
        self.free_len
    }

    /// Blocks that can ever be allocated.
    pub fn capacity(&self) -> usize {
        self.blocks.len() - 1
    }

    /// Blocks that hold a registered hash, in use or not.
    pub fn cached_len(&self) -> usize {
        self.cached_len
    }

    /// Share of the blocks that are in use, 0..=1: `kv_cache_usage_perc`.
    pub fn usage(&self) -> f64 {
        1.0 - self.free_len as f64 / self.capacity() as f64
    }

    /// A block with this content, if any.
    pub fn lookup(&self, hash: &BlockHash) -> Option<BlockId> {
        match self.cached.get(hash)? {
            Holders::One(id) => Some(*id),
            Holders::Many(ids) => ids.first().copied(),
        }
    }

    /// True if nobody uses the block: touching it takes one from [`BlockPool::free_len`].
    pub fn is_free(&self, id: BlockId) -> bool {
        self.blocks[id as usize].references == 0
    }

    /// Takes a reference to a cached block.
    pub fn touch(&mut self, id: BlockId) {
        if self.is_free(id) {
            self.unlink_free(id);
        }
        self.blocks[id as usize].references += 1;
    }

    /// Takes the least recently used free block, with one reference. If it was cached, its content is gone and its
    /// hash is returned beside it. `None` when every block is in use.
    pub fn allocate(&mut self) -> Option<(BlockId, Option<BlockHash>)> {
        let id = self.free_head;
        if id == NONE {
            return None;
        }
        self.unlink_free(id);
        let evicted = self.forget(id);
        self.blocks[id as usize].references = 1;
        Some((id, evicted))
    }

    /// Registers the content of a full block.
    pub fn register(&mut self, id: BlockId, hash: BlockHash) {
        let block = &mut self.blocks[id as usize];
        assert!(block.hash.is_none(), "a block is registered once between allocations");
        block.hash = Some(hash);
        self.cached_len += 1;
        self.cached
            .entry(hash)
            .and_modify(|holders| match holders {
                Holders::One(first) => *holders = Holders::Many(vec![*first, id]),
                Holders::Many(ids) => ids.push(id),
            })
            .or_insert(Holders::One(id));
    }

    /// Gives one reference of each block back, in the order given; what nobody uses any more becomes evictable.
    pub fn release(&mut self, ids: impl IntoIterator<Item = BlockId>) {
        for id in ids {
            let block = &mut self.blocks[id as usize];
            assert!(block.references > 0, "a block is released as often as it is taken");
            block.references -= 1;
            if block.references == 0 {
                self.push_free(id);
            }
        }
    }

    /// Forgets all content. Fails while any block is in use, as vLLM's `reset_prefix_cache` does.
    pub fn reset(&mut self) -> bool {
        if self.free_len != self.capacity() {
            return false;
        }
        self.cached.clear();
        self.cached_len = 0;
        for block in &mut self.blocks {
            block.hash = None;
        }
        true
    }

    /// Removes a block's hash, if it has one.
    fn forget(&mut self, id: BlockId) -> Option<BlockHash> {
        let hash = self.blocks[id as usize].hash.take()?;
        self.cached_len -= 1;
        let Some(holders) = self.cached.get_mut(&hash) else {
            unreachable!("a registered hash has a holder")
        };
        match holders {
            Holders::Many(ids) if ids.len() > 2 => ids.retain(|other| *other != id),
            Holders::Many(ids) => {
                let left = ids.iter().copied().find(|other| *other != id);
                *holders = Holders::One(left.expect("two holders before one left"));
            }
            Holders::One(_) => {
                self.cached.remove(&hash);
            }
        }
        Some(hash)
    }

    fn push_free(&mut self, id: BlockId) {
        let tail = self.free_tail;
        let block = &mut self.blocks[id as usize];
        block.prev = tail;
        block.next = NONE;
        if tail == NONE {
            self.free_head = id;
        } else {
            self.blocks[tail as usize].next = id;
        }
        self.free_tail = id;
        self.free_len += 1;
    }

    fn unlink_free(&mut self, id: BlockId) {
        let Block { prev, next, .. } = self.blocks[id as usize];
        if prev == NONE {
            self.free_head = next;
        } else {
            self.blocks[prev as usize].next = next;
        }
        if next == NONE {
            self.free_tail = prev;
        } else {
            self.blocks[next as usize].prev = prev;
        }
        self.free_len -= 1;
    }
}
