//! The body scanner on any bytes: it never panics, finds the same end however the bytes are cut, and agrees with the
//! plainly written grammar about what a chunked body is.
#![no_main]

#[path = "../../../router-common/tests/reference/mod.rs"]
mod reference;

use libfuzzer_sys::fuzz_target;
use router_common::framing::Framing;

fuzz_target!(|input: (u8, Option<u16>, &[u8])| {
    let (cut, length, wire) = input;
    let start = length.map_or(Framing::chunked(), |length| Framing::length(u64::from(length)));

    let mut whole = start;
    let mut data = Vec::new();
    let taken = whole.advance_with(wire, |piece| data.extend_from_slice(piece));
    assert!(taken <= wire.len());

    let mut pieces = start;
    let mut sum = 0;
    for piece in wire.chunks(usize::from(cut).max(1)) {
        let here = pieces.advance(piece);
        sum += here;
        if here < piece.len() {
            break;
        }
    }
    assert_eq!((sum, pieces), (taken, whole), "cut every {cut} bytes");

    // As the kernel programs go: data in bulk, everything else byte by byte.
    let mut steps = start;
    let mut at = 0;
    while at < wire.len() && !steps.is_over() {
        let skippable = usize::try_from(steps.skippable()).unwrap_or(usize::MAX).min(wire.len() - at);
        if skippable > 0 {
            steps.skip(skippable as u64);
            at += skippable;
        } else {
            steps.step(wire[at]);
            at += usize::from(!steps.is_broken());
        }
    }
    assert_eq!((at, steps), (taken, whole));

    match length {
        Some(length) => assert_eq!(whole.is_done(), wire.len() >= usize::from(length)),
        None if whole.is_done() => {
            assert_eq!(
                reference::reference(wire),
                Some((data, taken)),
                "a body that is none was taken for one"
            );
        }
        None => {}
    }
});
