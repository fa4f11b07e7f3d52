//! Any history of the prefix index: after every step it says what the literal reference says, and is sound; with hashes that
//! name no prefix, it is still sound.
#![no_main]

#[path = "../../../router-agent/src/index/model.rs"]
#[allow(dead_code)]
mod model;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use model::Model;
use router_agent::index::{Matches, PrefixIndex, WorkerSlot};

#[derive(Debug, Arbitrary)]
struct History {
    /// Hashes that stand for a block's contents alone: they name no prefix.
    colliding: bool,
    steps: Vec<(u8, Step)>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Insert { prompt: Vec<u8> },
    /// The stretch between the two of a prompt.
    Store { prompt: Vec<u8>, stretch: (u8, u8), parent: bool },
    Remove { prompt: Vec<u8>, stretch: (u8, u8) },
    Clear,
    Leave,
    Capacity { blocks: u8 },
}

const SLOTS: [u16; 8] = [0, 1, 7, 8, 63, 64, 500, 1023];

/// Blocks of few kinds, each repeated, so that prompts share beginnings, part, and fill runs.
fn hashes(prompt: &[u8], colliding: bool) -> Vec<u64> {
    let blocks = prompt.iter().take(32).flat_map(|byte| (0..=byte >> 4).map(move |part| (byte & 3, part)));
    let mut before = 1_u64;
    blocks
        .map(|(kind, part)| {
            let content = u64::from(kind) << 8 | u64::from(part);
            if colliding {
                return content;
            }
            before = (before ^ content).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29) | 1 << 63;
            before
        })
        .collect()
}

fn cut(len: usize, (a, b): (u8, u8)) -> std::ops::Range<usize> {
    len * usize::from(a.min(b)) / 255..len * usize::from(a.max(b)) / 255
}

fuzz_target!(|history: History| {
    let (index, mut model) = (PrefixIndex::new(4 << 20), Model::default());
    let (mut prompts, mut matches) = (Vec::new(), Matches::new());
    for (slot, step) in history.steps.iter().take(64) {
        let slot = WorkerSlot(SLOTS[usize::from(*slot) % SLOTS.len()]);
        match step {
            Step::Insert { prompt } => {
                let hashes = hashes(prompt, history.colliding);
                index.insert(slot, &hashes);
                model.store(slot, &hashes);
                prompts.push(hashes);
            }
            Step::Store { prompt, stretch, parent } => {
                let hashes = hashes(prompt, history.colliding);
                let stretch = cut(hashes.len(), *stretch);
                let before = hashes[..stretch.start].last().copied().filter(|_| *parent);
                index.store(slot, before, &hashes[stretch.clone()]);
                model.store(slot, &hashes[stretch]);
                prompts.push(hashes);
            }
            Step::Remove { prompt, stretch } => {
                let hashes = hashes(prompt, history.colliding);
                let stretch = cut(hashes.len(), *stretch);
                index.remove(slot, &hashes[stretch.clone()]);
                model.remove(slot, &hashes[stretch]);
            }
            Step::Clear => {
                index.clear(slot);
                model.clear(slot);
            }
            Step::Leave => {
                index.remove_worker(slot);
                model.remove_worker(slot);
            }
            Step::Capacity { blocks } => {
                index.set_capacity_blocks(slot, u64::from(*blocks));
                model.set_capacity(slot, u64::from(*blocks));
            }
        }
        index.audit().expect("sound");
        for prompt in &prompts {
            index.lookup(prompt, &mut matches);
            for slot in SLOTS.map(WorkerSlot) {
                let found = matches.blocks(slot);
                assert!(found as usize <= prompt.len());
                if !history.colliding {
                    assert_eq!(found, model.matched(slot, prompt), "{slot:?} after {step:?}");
                }
            }
        }
    }
    SLOTS.iter().for_each(|slot| index.remove_worker(WorkerSlot(*slot)));
    assert_eq!((index.stats().runs, index.stats().held_blocks), (0, 0));
});
