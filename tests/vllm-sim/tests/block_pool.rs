//! The block pool against a literal reference.

use proptest::prelude::*;
use vllm_sim::HashAlgo;
use vllm_sim::engine::block_pool::{BlockId, BlockPool};
use vllm_sim::engine::hashing::{BlockHash, BlockHasher, ExtraKeys};

/// What the pool promises, written down without any thought of speed.
#[derive(Default)]
struct Reference {
    references: Vec<u32>,
    hashes: Vec<Option<BlockHash>>,
    /// Free blocks, next to be evicted first.
    free: Vec<BlockId>,
}

impl Reference {
    fn new(num_blocks: usize) -> Self {
        Self {
            references: vec![0; num_blocks],
            hashes: vec![None; num_blocks],
            free: (1..num_blocks as BlockId).collect(),
        }
    }

    fn holds(&self, hash: &BlockHash) -> bool {
        self.hashes.contains(&Some(*hash))
    }

    fn allocate(&mut self) -> Option<(BlockId, Option<BlockHash>)> {
        if self.free.is_empty() {
            return None;
        }
        let id = self.free.remove(0);
        self.references[id as usize] = 1;
        Some((id, self.hashes[id as usize].take()))
    }

    fn touch(&mut self, id: BlockId) {
        self.free.retain(|own| *own != id);
        self.references[id as usize] += 1;
    }

    fn release(&mut self, id: BlockId) {
        self.references[id as usize] -= 1;
        if self.references[id as usize] == 0 {
            self.free.push(id);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Allocate,
    /// Registers the n-th block in use, if it has no content yet, with one of a few contents.
    Register(usize, usize),
    Touch(usize),
    Release(usize),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Allocate),
        4 => (any::<usize>(), 0..CONTENTS).prop_map(|(n, content)| Step::Register(n, content)),
        3 => (0..CONTENTS).prop_map(Step::Touch),
        4 => any::<usize>().prop_map(Step::Release),
        1 => Just(Step::Reset),
    ]
}

const CONTENTS: usize = 6;

fn contents() -> Vec<BlockHash> {
    let hasher = BlockHasher::new(HashAlgo::XxhashCbor, None);
    let mut hashes = Vec::new();
    hasher.extend(&vec![7; CONTENTS * 16], 16, &ExtraKeys::default(), &mut hashes);
    hashes
}

proptest! {
    #[test]
    fn it_does_what_the_reference_does(num_blocks in 2_usize..12, steps in prop::collection::vec(step(), 1..200)) {
        let contents = contents();
        let mut pool = BlockPool::new(num_blocks);
        let mut reference = Reference::new(num_blocks);
        let mut used: Vec<BlockId> = Vec::new();
        for step in steps {
            match step {
                Step::Allocate => {
                    let allocated = pool.allocate();
                    prop_assert_eq!(allocated, reference.allocate());
                    used.extend(allocated.map(|(id, _)| id));
                }
                Step::Register(n, content) => {
                    let Some(id) = used.get(n % used.len().max(1)).copied() else { continue };
                    if reference.hashes[id as usize].is_none() {
                        pool.register(id, contents[content]);
                        reference.hashes[id as usize] = Some(contents[content]);
                    }
                }
                Step::Touch(content) => {
                    if let Some(id) = pool.lookup(&contents[content]) {
                        prop_assert_eq!(reference.hashes[id as usize], Some(contents[content]));
                        pool.touch(id);
                        reference.touch(id);
                        used.push(id);
                    }
                }
                Step::Release(n) => {
                    if used.is_empty() { continue }
                    let id = used.swap_remove(n % used.len());
                    pool.release([id]);
                    reference.release(id);
                }
                Step::Reset => {
                    prop_assert_eq!(pool.reset(), used.is_empty());
                    if used.is_empty() {
                        reference.hashes.fill(None);
                    }
                }
            }
            prop_assert_eq!(pool.free_len(), reference.free.len());
            prop_assert_eq!(pool.cached_len(), reference.hashes.iter().flatten().count());
            for hash in &contents {
                prop_assert_eq!(pool.lookup(hash).is_some(), reference.holds(hash));
            }
            for id in 1..num_blocks as BlockId {
                prop_assert_eq!(pool.is_free(id), reference.references[id as usize] == 0);
            }
        }
    }
}

#[test]
fn the_tail_of_a_released_prefix_is_evicted_before_its_head() {
    let contents = contents();
    let mut pool = BlockPool::new(4);
    let ids: Vec<_> = (0..3).map(|_| pool.allocate().unwrap().0).collect();
    for (id, hash) in ids.iter().zip(&contents) {
        pool.register(*id, *hash);
    }
    pool.release(ids.iter().rev().copied());
    let evicted: Vec<_> = (0..3).map(|_| pool.allocate().unwrap().1.unwrap()).collect();
    assert_eq!(evicted, [contents[2], contents[1], contents[0]]);
    assert_eq!(pool.allocate(), None);
}

#[test]
fn a_content_lives_until_its_last_holder_is_evicted() {
    let content = contents()[0];
    let mut pool = BlockPool::new(4);
    let ids: Vec<_> = (0..3).map(|_| pool.allocate().unwrap().0).collect();
    for id in &ids {
        pool.register(*id, content);
    }
    pool.release(ids);
    for left in [true, true, false] {
        assert_eq!(pool.allocate().unwrap().1, Some(content));
        assert_eq!(pool.lookup(&content).is_some(), left);
    }
}
