//! The decoder on every recording, on what it does not know, and on what is broken.

use std::collections::BTreeMap;

use rmp_serde::to_vec;
use serde::Serialize;
use serde_json::Value;

use super::*;
use crate::kv_events::recordings::payloads;

fn decoded(name: &str) -> Vec<Batch> {
    let batches: Vec<_> = payloads(name).iter().map(|payload| decode(payload).unwrap()).collect();
    assert!(
        batches.iter().all(|batch| batch.undecodable == 0 && !batch.events.contains(&Event::Other)),
        "{name}"
    );
    batches
}

fn stored(batches: &[Batch]) -> Vec<&Stored> {
    let events = batches.iter().flat_map(|batch| &batch.events);
    events.filter_map(|event| if let Event::Stored(stored) = event { Some(stored) } else { None }).collect()
}

#[test]
fn every_recording_is_read_to_its_last_event() {
    for name in ["int_map", "int_array", "bytes_map", "lora_map", "cleared_map", "duplicates_map"] {
        let batches = decoded(name);
        let mut counts = BTreeMap::new();
        for event in batches.iter().flat_map(|batch| &batch.events) {
            let kind = match event {
                Event::Stored(_) => "stored",
                Event::Removed(_) => "removed",
                Event::Cleared => "cleared",
                Event::Other => "other",
            };
            *counts.entry(kind).or_insert(0) += 1;
        }
        assert!(counts["stored"] > 0, "{name}: {counts:?}");
        let first = stored(&batches)[0];
        assert_eq!(first.block_tokens, 16, "{name}");
        assert_eq!(first.kind.as_deref(), Some("full_attention"), "{name}");
        assert!(first.place.is_device() && first.place.group == Some(0), "{name}");
        assert_eq!(first.extra_keys.len(), first.hashes.len(), "{name}");
    }
}

#[test]
fn both_formats_say_the_same() {
    assert_eq!(decoded("int_map"), decoded("int_array"));
}

#[test]
fn hashes_come_as_integers_or_as_digests() {
    assert!(stored(&decoded("int_map")).iter().all(|event| matches!(event.hashes[0], EngineHash::Low(_))));
    let batches = decoded("bytes_map");
    let EngineHash::Digest(digest) = stored(&batches)[0].hashes[0] else { panic!("an integer") };
    assert_eq!(digest.as_bytes().len(), 32);
    assert_eq!(EngineHash::Digest(digest).low(), digest.low_u64());
}

#[test]
fn adapters_and_salts_are_read() {
    let batches = decoded("lora_map");
    let adapters: Vec<_> = stored(&batches).into_iter().filter(|event| event.adapter.is_some()).collect();
    let name = adapters[0].adapter.clone().unwrap();
    assert_eq!(adapters[0].extra_keys[0][0], ExtraKey::Text(name));
    let batches = decoded("cleared_map");
    assert!(batches.iter().any(|batch| batch.events.contains(&Event::Cleared)));
    let salted = stored(&batches).into_iter().find(|event| !event.extra_keys[0].is_empty()).unwrap();
    assert_eq!(salted.extra_keys[0], [ExtraKey::Text("tenant-a".into())]);
}

fn batch(events: &[impl Serialize]) -> Vec<u8> {
    to_vec(&(1.5, events, Option::<u32>::None)).unwrap()
}

#[test]
fn what_is_not_known_is_passed_over() {
    let field =
        serde_json::json!({"type": "BlockRemoved", "block_hashes": [7, -1], "shape": [[1, {"a": [null]}]]});
    let kind = serde_json::json!({"type": "BlockMoved", "blocks": "later"});
    let read = decode(&batch(&[field, kind])).unwrap();
    let hashes = vec![EngineHash::Low(7), EngineHash::Low(u64::MAX)];
    assert_eq!(read.events, [Event::Removed(Removed { hashes, place: Place::default() }), Event::Other]);
    assert_eq!((read.rank, read.undecodable), (0, 0));

    let longer = serde_json::json!(["BlockRemoved", [7], "CPU", 1, "and", {"more": true}]);
    let Event::Removed(removed) = decode(&batch(&[longer])).unwrap().events.remove(0) else {
        panic!("other")
    };
    assert_eq!((removed.place.is_device(), removed.place.group), (false, Some(1)));

    let shorter = serde_json::json!(["BlockStored", [1, 2], null, [5, 6, 7, 8], 2, null]);
    let Event::Stored(stored) = decode(&batch(&[shorter])).unwrap().events.remove(0) else { panic!("other") };
    assert_eq!((stored.tokens.len(), stored.place.is_device(), stored.adapter), (4, true, None));
}

#[test]
fn images_count_by_their_hash_whatever_form_they_have() {
    let with = |key: Value| {
        let event = serde_json::json!({"type": "BlockStored", "block_hashes": [1], "parent_block_hash": null,
            "token_ids": [5, 6], "block_size": 2, "extra_keys": [[key]]});
        let Event::Stored(mut stored) = decode(&batch(&[event])).unwrap().events.remove(0) else {
            panic!("other")
        };
        stored.extra_keys.remove(0).remove(0)
    };
    let keys = [
        with(serde_json::json!(["image-1", 0])),
        with(serde_json::json!(["image-1", 3])),
        with(serde_json::json!(["image-2", 0])),
        with(serde_json::json!("image-1")),
        with(serde_json::json!(3)),
    ];
    for (at, key) in keys.iter().enumerate() {
        assert!(!keys[..at].contains(key), "{key:?}");
    }
    assert_eq!(with(serde_json::json!(["image-1", 3])), keys[1]);
}

#[test]
fn an_event_that_cannot_be_read_costs_that_event_only() {
    let good = serde_json::json!({"type": "BlockRemoved", "block_hashes": [7]});
    for bad in [
        serde_json::json!({"type": "BlockRemoved"}),
        serde_json::json!({"type": "BlockRemoved", "block_hashes": ["a"]}),
        serde_json::json!({"type": "BlockStored", "block_hashes": [1], "token_ids": [1, 2, 3], "block_size": 2}),
        serde_json::json!({"type": "BlockStored", "block_hashes": [], "token_ids": [], "block_size": 0}),
        serde_json::json!({"type": "BlockStored", "block_hashes": [1], "token_ids": [-1], "block_size": 1}),
        serde_json::json!({"type": 7}),
        serde_json::json!({}),
        serde_json::json!([]),
        serde_json::json!("BlockRemoved"),
        serde_json::json!(null),
    ] {
        let read = decode(&batch(&[good.clone(), bad.clone(), good.clone()])).unwrap();
        assert_eq!((read.events.len(), read.undecodable), (2, 1), "{bad}");
    }
}

#[test]
fn what_is_no_batch_is_refused_wherever_it_is_cut() {
    let payload = &payloads("int_map")[0];
    for end in 0..payload.len() {
        assert!(decode(&payload[..end]).is_err(), "cut at {end}");
    }
    for wrong in [&b"\x80"[..], b"\x91\x01", b"\xc0", b"\x93\x01\x02\x00", b"\xdd\xff\xff\xff\xff"] {
        assert!(decode(wrong).is_err(), "{wrong:x?}");
    }
    let nested = [vec![0x91; 10_000], vec![0xc0]].concat();
    assert!(decode(&[&b"\x92\x01\x91"[..], &nested].concat()).is_err(), "nested without end");
}

proptest::proptest! {
    /// Recorded payloads with bytes changed, added and taken away: read or refused, and always in the same way.
    #[test]
    fn nothing_that_is_sent_ends_the_gateway(
        at in 0_usize..15,
        changes in proptest::collection::vec((proptest::num::usize::ANY, proptest::num::u8::ANY, 0..3), 0..12),
    ) {
        let mut payload = payloads("int_map").remove(at);
        for (place, byte, kind) in changes {
            let place = place % payload.len();
            match kind {
                0 => payload[place] = byte,
                1 => payload.insert(place, byte),
                _ if payload.len() > 1 => drop(payload.remove(place)),
                _ => {}
            }
        }
        let read = || decode(&payload).map_err(|error| error.to_string());
        proptest::prop_assert_eq!(read(), read());
    }
}
