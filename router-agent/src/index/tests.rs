//! The index against its reference model, over random histories, and the cases worth a name.

use std::ops::Range;

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{INDEX_BYTES_MAX, Matches, PrefixIndex, WorkerSlot, model::Model};

/// The chain of hashes of a prompt whose blocks are these bytes.
fn chain(blocks: &[u8]) -> Vec<u64> {
    let mut last = 7;
    blocks
        .iter()
        .map(|block| {
            last = xxh3_64_with_seed(&[*block], last);
            last
        })
        .collect()
}

fn lookup(index: &PrefixIndex, hashes: &[u64]) -> Matches {
    let mut matches = Matches::new();
    index.lookup(hashes, &mut matches);
    matches
}

const W0: WorkerSlot = WorkerSlot(0);
const W1: WorkerSlot = WorkerSlot(1);

#[derive(Debug, Clone)]
enum Step {
    /// Goes back to a prompt of before, keeps so much of it (per mille), and adds new blocks.
    Insert {
        slot: usize,
        from: usize,
        keep: usize,
        add: usize,
    },
    /// Says that a worker holds a stretch (per mille) of a prompt of before, which may leave a hole before it.
    Store {
        slot: usize,
        from: usize,
        stretch: (usize, usize),
        parent: bool,
    },
    /// Says that a stretch is gone.
    Drop {
        slot: usize,
        from: usize,
        stretch: (usize, usize),
    },
    Clear {
        slot: usize,
    },
    Remove {
        slot: usize,
    },
    Capacity {
        slot: usize,
        blocks: u64,
    },
}

/// Slots on both sides of every word boundary that matters.
const SLOTS: [WorkerSlot; 6] =
    [WorkerSlot(0), WorkerSlot(1), WorkerSlot(63), WorkerSlot(64), WorkerSlot(130), WorkerSlot(1023)];

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..SLOTS.len();
    let stretch = (0..=1000_usize, 0..=1000_usize);
    // New blocks: seldom so many that a run is filled.
    let add = prop_oneof![8 => 0..12_usize, 1 => 0..100_usize];
    prop_oneof![
        20 => (slot.clone(), any::<usize>(), prop_oneof![Just(1000), 0..=1000_usize], add)
            .prop_map(|(slot, from, keep, add)| Step::Insert { slot, from, keep, add }),
        10 => (slot.clone(), any::<usize>(), stretch.clone(), any::<bool>())
            .prop_map(|(slot, from, stretch, parent)| Step::Store { slot, from, stretch, parent }),
        10 => (slot.clone(), any::<usize>(), stretch)
            .prop_map(|(slot, from, stretch)| Step::Drop { slot, from, stretch }),
        1 => slot.clone().prop_map(|slot| Step::Clear { slot }),
        1 => slot.clone().prop_map(|slot| Step::Remove { slot }),
        2 => (slot, 0..60_u64).prop_map(|(slot, blocks)| Step::Capacity { slot, blocks }),
    ]
}

fn cut(len: usize, (a, b): (usize, usize)) -> Range<usize> {
    len * a.min(b) / 1000..len * a.max(b) / 1000
}

/// Runs a history against both; compares everything after every step.
fn run(steps: &[Step], bytes_max: Option<usize>) -> Result<(), TestCaseError> {
    let bytes_max_or_default = bytes_max.unwrap_or(INDEX_BYTES_MAX);
    let index = PrefixIndex::new(bytes_max_or_default);
    let mut model = Model::default();
    let mut prompts: Vec<(Vec<u8>, Vec<u64>)> = vec![(vec![], vec![])];
    let mut matches = Matches::new();
    for (number, step) in steps.iter().enumerate() {
        match *step {
            Step::Insert { slot, from, keep, add } => {
                let from = &prompts[from % prompts.len()].0;
                let mut prompt = from[..from.len() * keep / 1000].to_vec();
                prompt.extend((0..add).map(|place| (number * 31 + place) as u8));
                let hashes = chain(&prompt);
                index.insert(SLOTS[slot], &hashes);
                model.store(SLOTS[slot], &hashes);
                prompts.push((prompt, hashes));
            }
            Step::Store { slot, from, stretch, parent } => {
                let hashes = &prompts[from % prompts.len()].1;
                let stretch = cut(hashes.len(), stretch);
                let before = hashes[..stretch.start].last().copied().filter(|_| parent);
                index.store(SLOTS[slot], before, &hashes[stretch.clone()]);
                model.store(SLOTS[slot], &hashes[stretch]);
            }
            Step::Drop { slot, from, stretch } => {
                let hashes = &prompts[from % prompts.len()].1;
                let stretch = cut(hashes.len(), stretch);
                index.remove(SLOTS[slot], &hashes[stretch.clone()]);
                model.remove(SLOTS[slot], &hashes[stretch]);
            }
            Step::Clear { slot } => {
                index.clear(SLOTS[slot]);
                model.clear(SLOTS[slot]);
            }
            Step::Remove { slot } => {
                index.remove_worker(SLOTS[slot]);
                model.remove_worker(SLOTS[slot]);
            }
            Step::Capacity { slot, blocks } => {
                index.set_capacity_blocks(SLOTS[slot], blocks);
                model.set_capacity(SLOTS[slot], blocks);
            }
        }
        prop_assert_eq!(index.audit(), Ok(()), "after step {}", number);
        let stats = index.stats();
        if bytes_max.is_some() {
            prop_assert!(model.held_blocks() >= stats.held_blocks, "more is held than was inserted");
            model.evict_to(stats.held_blocks);
        }
        prop_assert_eq!(stats.held_blocks, model.held_blocks(), "after step {}", number);
        prop_assert_eq!(stats.blocks, model.distinct_blocks(), "after step {}", number);
        for slot in SLOTS {
            prop_assert_eq!(index.blocks(slot), model.blocks(slot), "{:?} after step {}", slot, number);
        }
        for (_, hashes) in &prompts {
            index.lookup(hashes, &mut matches);
            for slot in SLOTS {
                let expected = model.matched(slot, hashes);
                prop_assert_eq!(matches.blocks(slot), expected, "{:?} after step {}", slot, number);
            }
            prop_assert!(matches.iter().all(|(slot, _)| SLOTS.contains(&slot)));
        }
    }
    for slot in SLOTS {
        index.remove_worker(slot);
    }
    let stats = index.stats();
    prop_assert_eq!((stats.runs, stats.blocks, stats.held_blocks), (0, 0, 0));
    prop_assert_eq!(
        stats.bytes,
        PrefixIndex::new(bytes_max_or_default).bytes(),
        "nothing held, yet memory counted"
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn answers_as_the_reference_does_after_any_history(steps in prop::collection::vec(step(), 1..70)) {
        run(&steps, None)?;
    }

    #[test]
    fn evicts_the_globally_oldest_to_stay_below_its_bytes(
        steps in prop::collection::vec(step(), 1..70),
        spare in 0..6_000_usize,
    ) {
        let empty = PrefixIndex::new(0).bytes();
        run(&steps, Some(empty + spare))?;
    }

    /// Whoever finds a collision of the hash can break the rule that a hash names a prefix. Then answers may be
    /// wrong, but nothing else: no panic, and nothing is left behind.
    #[test]
    fn hashes_that_name_no_prefix_do_no_harm(
        steps in prop::collection::vec((0..3_u16, prop::collection::vec(0..5_u64, 0..12), 0..8_u64), 1..200),
    ) {
        let index = PrefixIndex::default();
        for (slot, hashes, what) in &steps {
            let slot = WorkerSlot(*slot);
            match what {
                0 => index.clear(slot),
                2 => index.remove(slot, hashes),
                3 => index.store(slot, hashes.last().copied(), hashes),
                1 => index.set_capacity_blocks(slot, hashes.len() as u64 * 2),
                _ => index.insert(slot, hashes),
            }
            for slot in 0..3 {
                prop_assert!(lookup(&index, hashes).blocks(WorkerSlot(slot)) as usize <= hashes.len());
            }
        }
        prop_assert_eq!(index.audit(), Ok(()));
        (0..3).for_each(|slot| index.remove_worker(WorkerSlot(slot)));
        prop_assert_eq!(index.stats().bytes, PrefixIndex::default().bytes());
        prop_assert_eq!(index.audit(), Ok(()));
    }
}

#[test]
fn an_empty_index_matches_nothing() {
    let index = PrefixIndex::default();
    assert_eq!(lookup(&index, &chain(b"abc")).iter().count(), 0);
    assert_eq!(lookup(&index, &[]).best_blocks(), 0);
}

#[test]
fn a_conversation_grows_in_place() {
    let index = PrefixIndex::default();
    let prompt: Vec<u8> = (0..200).collect();
    for turn in 1..=20 {
        index.insert(W0, &chain(&prompt[..turn * 10]));
    }
    assert_eq!((index.stats().runs, index.stats().blocks), (200_usize.div_ceil(32), 200));
    assert_eq!(lookup(&index, &chain(&prompt)).blocks(W0), 200);
}

#[test]
fn every_worker_gets_its_own_depth() {
    let index = PrefixIndex::default();
    let prompt: Vec<u8> = (0..100).collect();
    for slot in 0..64 {
        index.insert(WorkerSlot(slot), &chain(&prompt[..=usize::from(slot)]));
    }
    let matches = lookup(&index, &chain(&prompt));
    for slot in 0..64 {
        assert_eq!(matches.blocks(WorkerSlot(slot)), u32::from(slot) + 1);
    }
    assert_eq!(matches.best_blocks(), 64);
    assert_eq!(index.audit(), Ok(()));
}

#[test]
fn eviction_takes_the_end_of_the_oldest_prompt_first() {
    let index = PrefixIndex::default();
    index.set_capacity_blocks(W0, 8);
    index.insert(W0, &chain(b"system-a"));
    index.insert(W0, &chain(b"system"));
    index.insert(W0, &chain(b"xy"));
    assert_eq!(lookup(&index, &chain(b"system-a")).blocks(W0), 6, "the end is gone, the used start is not");
    assert_eq!(lookup(&index, &chain(b"xy")).blocks(W0), 2);
    assert_eq!(index.stats().evicted_by_capacity, 2);
}

#[test]
fn one_workers_eviction_leaves_the_others_alone() {
    let index = PrefixIndex::default();
    for slot in [W0, W1] {
        index.insert(slot, &chain(b"shared prefix"));
    }
    index.set_capacity_blocks(W0, 5);
    let matches = lookup(&index, &chain(b"shared prefix"));
    assert_eq!((matches.blocks(W0), matches.blocks(W1)), (5, 13));
    index.remove_worker(W0);
    assert_eq!(lookup(&index, &chain(b"shared prefix")).blocks(W1), 13);
    assert_eq!(index.audit(), Ok(()));
}

#[test]
fn a_prompt_beyond_the_capacity_keeps_its_start() {
    let index = PrefixIndex::default();
    index.set_capacity_blocks(W0, 3);
    index.insert(W0, &chain(b"abcdef"));
    assert_eq!(lookup(&index, &chain(b"abcdef")).blocks(W0), 3);
    index.set_capacity_blocks(W0, 0);
    assert_eq!(index.stats().blocks, 0);
}

#[test]
fn reading_goes_on_while_a_large_worker_is_removed() {
    let index = PrefixIndex::default();
    let mut hashes = chain(b"start");
    for number in 0..20_000_u64 {
        hashes.truncate(5);
        hashes.push(xxh3_64_with_seed(&number.to_le_bytes(), 1));
        index.insert(W0, &hashes);
    }
    index.insert(W1, &chain(b"start"));
    std::thread::scope(|scope| {
        let remover = scope.spawn(|| index.remove_worker(W0));
        while !remover.is_finished() {
            assert_eq!(lookup(&index, &chain(b"start")).blocks(W1), 5);
        }
    });
    assert_eq!((index.blocks(W0), index.stats().blocks), (0, 5));
    assert_eq!(index.audit(), Ok(()));
}

#[test]
fn blocks_behind_a_hole_count_again_once_it_is_filled() {
    let index = PrefixIndex::default();
    let prompt = chain(b"abcdefgh");
    index.store(W0, None, &prompt[..4]);
    index.store(W0, Some(prompt[3]), &prompt[4..]);
    index.store(W1, None, &prompt[..2]);
    index.remove(W0, &prompt[2..4]);
    let matches = lookup(&index, &prompt);
    assert_eq!((matches.blocks(W0), matches.blocks(W1)), (2, 2));
    index.store(W0, Some(prompt[2]), &prompt[3..4]);
    assert_eq!(lookup(&index, &prompt).blocks(W0), 2, "one block is still missing");
    index.store(W0, Some(prompt[1]), &prompt[2..3]);
    assert_eq!(lookup(&index, &prompt).blocks(W0), 8);
    index.clear(W0);
    let matches = lookup(&index, &prompt);
    assert_eq!((matches.blocks(W0), matches.blocks(W1)), (0, 2));
}

#[test]
fn blocks_behind_an_unknown_parent_wait_for_it() {
    let index = PrefixIndex::default();
    let prompt = chain(b"abcdef");
    index.store(W0, Some(prompt[2]), &prompt[3..]);
    assert_eq!(lookup(&index, &prompt).blocks(W0), 0);
    index.store(W0, None, &prompt[..3]);
    assert_eq!(lookup(&index, &prompt).blocks(W0), 6);
}
