//! The decoder of KV events on any bytes: it never panics, what it says fits together, and a batch in front of which or
//! behind which nothing is changed is read the same way twice.
#![no_main]

use libfuzzer_sys::fuzz_target;
use router_agent::kv_events::wire::{Event, decode};

fuzz_target!(|payload: &[u8]| {
    let Ok(batch) = decode(payload) else { return };
    assert_eq!(decode(payload).ok().as_ref(), Some(&batch));
    for event in &batch.events {
        if let Event::Stored(stored) = event {
            assert_eq!(stored.tokens.len(), stored.hashes.len() * stored.block_tokens as usize);
            assert!(stored.extra_keys.is_empty() || stored.extra_keys.len() == stored.hashes.len());
        }
    }
    // An event more costs nothing of the others.
    let ([0x93, number, ..], Some(mut rest)) = (payload, payload.get(10..)) else { return };
    if *number == 0xcb && matches!(rest.first(), Some(0x90..=0x9e)) {
        let events = rest[0];
        rest = &rest[1..];
        let longer = [&payload[..10], &[events + 1, 0xc0], rest].concat();
        let longer = decode(&longer).expect("one event more, null");
        assert_eq!((longer.events, longer.undecodable), (batch.events, batch.undecodable + 1));
    }
});
