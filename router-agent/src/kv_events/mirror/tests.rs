//! The mirror on recordings and on made-up events, against counts kept plainly.

use serde_json::json;

use super::*;
use crate::{
    index::Matches,
    kv_events::{
        recordings::payloads,
        wire::{Batch, EngineHash, decode},
    },
    prompt::{hash_tokens_into, token_root},
    telemetry::Metrics,
};

struct Bench {
    mirror: Mirror,
    worker: Arc<Worker>,
    indices: Indices,
}

impl Bench {
    fn new() -> Self {
        let worker = Worker::for_tests("http://127.0.0.1:1");
        let indices = Indices { tokens: Arc::default(), bytes: Arc::default() };
        let metrics = Metrics::new().unwrap().kv_events.worker("test");
        let mut mirror = Mirror::new(worker.clone(), indices.clone(), Arc::default(), metrics);
        mirror.set_model("/tiny".into(), vec!["tiny".into()], None);
        Self { mirror, worker, indices }
    }

    fn apply(&mut self, rank: u32, event: serde_json::Value) -> Result<(), Overflow> {
        let payload = rmp_serde::to_vec(&(0.0, [event], rank)).unwrap();
        let Batch { events, rank, undecodable } = decode(&payload).unwrap();
        assert_eq!(undecodable, 0);
        self.mirror.apply(rank, &events[0])
    }

    fn store(&mut self, rank: u32, parent: Option<u64>, hashes: &[u64], tokens: &[u32]) {
        self.apply(
            rank,
            json!({"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent, "token_ids": tokens,
                "block_size": tokens.len() / hashes.len(), "medium": "GPU"}),
        )
        .unwrap();
    }

    fn remove(&mut self, rank: u32, hashes: &[u64]) {
        self.apply(rank, json!({"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU"})).unwrap();
    }

    /// Leading blocks of the tokens that the index says the worker holds.
    fn held(&self, tokens: &[u32], adapter: Option<&str>, salt: Option<&str>, block_tokens: u32) -> u32 {
        let (mut keys, mut matches) = (Vec::new(), Matches::new());
        hash_tokens_into(token_root("/tiny", adapter, salt, block_tokens), block_tokens, tokens, &mut keys);
        self.indices.tokens.lookup(&keys, &mut matches);
        matches.blocks(self.worker.slot)
    }

    fn plain(&self, tokens: &[u32]) -> u32 {
        self.held(tokens, None, None, 2)
    }
}

#[test]
fn a_block_is_held_until_its_last_copy_is_gone() {
    let mut bench = Bench::new();
    bench.store(0, None, &[1, 2], &[5, 6, 7, 8]);
    bench.store(0, Some(1), &[2], &[7, 8]);
    bench.store(0, Some(1), &[2], &[7, 8]);
    assert_eq!((bench.plain(&[5, 6, 7, 8, 9]), bench.mirror.size()), (2, (2, 4)));
    bench.remove(0, &[2]);
    bench.remove(0, &[2]);
    assert_eq!(bench.plain(&[5, 6, 7, 8]), 2, "one copy is left");
    bench.remove(0, &[2]);
    assert_eq!(bench.plain(&[5, 6, 7, 8]), 1);
    bench.remove(0, &[2, 99]);
    assert_eq!(bench.mirror.size(), (1, 1), "what is not there is passed over");
    bench.store(0, Some(1), &[2], &[7, 8]);
    bench.remove(0, &[1]);
    assert_eq!(bench.plain(&[5, 6, 7, 8]), 0, "a hole in front");
    bench.store(0, None, &[1], &[5, 6]);
    assert_eq!(bench.plain(&[5, 6, 7, 8]), 2, "filled again");
}

#[test]
fn what_follows_an_unknown_block_cannot_be_named() {
    let mut bench = Bench::new();
    bench.store(0, Some(77), &[1], &[5, 6]);
    assert_eq!(bench.mirror.size(), (0, 0));
    assert_eq!(bench.mirror.metrics.orphaned.get(), 1);
}

#[test]
fn other_memories_groups_and_lengths_do_not_count() {
    let mut bench = Bench::new();
    let stored = |more: serde_json::Value| {
        let mut event = json!({"type": "BlockStored", "block_hashes": [1], "parent_block_hash": null,
            "token_ids": [5, 6], "block_size": 2, "medium": "GPU"});
        event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        event
    };
    bench.apply(0, stored(json!({"group_idx": 1, "kv_cache_spec_kind": "sliding_window"}))).unwrap();
    bench.apply(0, stored(json!({"medium": "CPU"}))).unwrap();
    assert_eq!(bench.mirror.size(), (0, 0));
    bench.apply(0, stored(json!({"group_idx": 0, "kv_cache_spec_kind": "full_attention"}))).unwrap();
    bench.apply(0, stored(json!({"group_idx": 1, "kv_cache_spec_kind": "sliding_window"}))).unwrap();
    bench.apply(0, stored(json!({"block_size": 1, "block_hashes": [8, 9]}))).unwrap();
    assert_eq!(bench.mirror.size(), (1, 1));
    bench
        .apply(0, json!({"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU", "group_idx": 1}))
        .unwrap();
    bench.apply(0, json!({"type": "BlockRemoved", "block_hashes": [1], "medium": "CPU"})).unwrap();
    assert_eq!(bench.plain(&[5, 6]), 1);
    bench
        .apply(0, json!({"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU", "group_idx": 0}))
        .unwrap();
    assert_eq!(bench.plain(&[5, 6]), 0);
}

#[test]
fn adapters_salts_and_images_are_kept_apart() {
    let mut bench = Bench::new();
    let mut hash = 0;
    let mut store = |bench: &mut Bench, adapter: Option<&str>, first: serde_json::Value| {
        hash += 10;
        let event = json!({"type": "BlockStored", "block_hashes": [hash, hash + 1], "parent_block_hash": null,
            "token_ids": [5, 6, 7, 8], "block_size": 2, "lora_name": adapter, "medium": "GPU",
            "extra_keys": [first, adapter.map(|name| vec![name])]});
        bench.apply(0, event).unwrap();
    };
    let tokens = [5, 6, 7, 8];
    let held = |bench: &Bench| {
        [
            (None, None),
            (Some("ad"), None),
            (None, Some("ad")),
            (Some("ad"), Some("salt")),
            (Some("ad"), Some("ad")),
        ]
        .map(|(adapter, salt)| bench.held(&tokens, adapter, salt, 2))
    };
    store(&mut bench, None, json!([["image", 0]]));
    assert_eq!(held(&bench), [0, 0, 0, 0, 0], "an image in the first block");
    store(&mut bench, None, json!(null));
    assert_eq!(held(&bench), [2, 0, 0, 0, 0]);
    store(&mut bench, Some("ad"), json!(["ad"]));
    assert_eq!(held(&bench), [2, 2, 0, 0, 0]);
    store(&mut bench, None, json!(["ad"]));
    assert_eq!(held(&bench), [2, 2, 2, 0, 0]);
    store(&mut bench, Some("ad"), json!(["ad", "salt"]));
    assert_eq!(held(&bench), [2, 2, 2, 2, 0]);
    store(&mut bench, Some("ad"), json!(["ad", "ad"]));
    assert_eq!(held(&bench), [2, 2, 2, 2, 2]);
}

#[test]
fn a_cleared_worker_holds_nothing_and_what_was_sent_is_forgotten_too() {
    let mut bench = Bench::new();
    bench.indices.bytes.insert(bench.worker.slot, &[1, 2, 3]);
    bench.store(0, None, &[1, 2], &[5, 6, 7, 8]);
    bench.apply(0, json!({"type": "AllBlocksCleared"})).unwrap();
    assert_eq!((bench.plain(&[5, 6, 7, 8]), bench.mirror.size()), (0, (0, 0)));
    assert_eq!(bench.indices.bytes.blocks(bench.worker.slot), 0);
}

#[test]
fn ranks_are_counted_apart_and_held_together() {
    let mut bench = Bench::new();
    bench.store(0, None, &[1], &[5, 6]);
    bench.store(1, None, &[1, 2], &[5, 6, 7, 8]);
    bench.remove(0, &[1]);
    assert_eq!(bench.plain(&[5, 6, 7, 8]), 2, "the other rank has it");
    bench.store(0, None, &[1], &[5, 6]);
    bench.apply(1, json!({"type": "AllBlocksCleared"})).unwrap();
    assert_eq!(bench.plain(&[5, 6, 7, 8]), 1);
    bench.mirror.forget(0);
    assert_eq!((bench.plain(&[5, 6]), bench.mirror.size()), (0, (0, 0)));
}

#[test]
fn more_blocks_than_there_are_is_an_error() {
    let mut bench = Bench::new();
    bench.mirror.set_physical_max(2);
    let event = json!({"type": "BlockStored", "block_hashes": [1], "parent_block_hash": null, "token_ids": [5, 6],
        "block_size": 2});
    assert_eq!(bench.apply(0, event.clone()), Ok(()));
    assert_eq!(bench.apply(0, event.clone()), Ok(()));
    assert_eq!(bench.apply(0, event), Err(Overflow));
}

#[test]
fn predictions_that_do_not_come_true_are_taken_back() {
    let mut bench = Bench::new();
    bench.store(0, None, &[1], &[5, 6]);
    let mut keys = Vec::new();
    hash_tokens_into(token_root("/tiny", None, None, 2), 2, &[5, 6, 7, 8, 9, 10], &mut keys);
    bench.indices.tokens.store(bench.worker.slot, None, &keys);
    assert_eq!(bench.plain(&[5, 6, 7, 8, 9, 10]), 3);
    bench.store(0, Some(1), &[2], &[7, 8]);
    assert!(!bench.mirror.settle(&keys[1..]));
    assert_eq!(bench.plain(&[5, 6, 7, 8, 9, 10]), 2);
    assert!(bench.mirror.settle(&keys[..2]));
}

/// After every recorded batch the index holds what a plain count of the engine's own names says.
#[test]
fn recordings_add_up_to_what_a_plain_count_says() {
    for name in ["int_map", "int_array", "bytes_map", "lora_map", "cleared_map", "duplicates_map"] {
        let mut bench = Bench::new();
        let mut counts = HashMap::<u64, i64>::new();
        for payload in payloads(name) {
            for event in decode(&payload).unwrap().events {
                bench.mirror.apply(0, &event).unwrap();
                let known = |hash: &EngineHash| counts.get(&hash.low()).is_some_and(|count| *count > 0);
                match &event {
                    Event::Stored(stored) if stored.parent.as_ref().is_none_or(known) => {
                        stored.hashes.iter().for_each(|hash| *counts.entry(hash.low()).or_default() += 1);
                    }
                    Event::Removed(removed) => removed.hashes.iter().for_each(|hash| {
                        counts.entry(hash.low()).and_modify(|count| *count -= i64::from(*count > 0));
                    }),
                    Event::Cleared => counts.clear(),
                    _ => {}
                }
            }
            let different = counts.values().filter(|count| **count > 0).count();
            let physical: i64 = counts.values().sum();
            assert_eq!(bench.mirror.size(), (different, physical as u64), "{name}");
        }
        assert!(bench.mirror.size().0 > 0, "{name}");
    }
}
