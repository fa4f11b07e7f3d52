//! The frames of ZMTP on any bytes: the decoder never panics, never takes more than it was given, and finds the same
//! messages however the bytes are cut.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use router_agent::kv_events::zmtp::{Decoder, Frame, FrameError};

fn all(wire: &[u8], cut: usize) -> (Vec<Frame>, Option<FrameError>) {
    let (mut decoder, mut buffer, mut frames) = (Decoder::default(), BytesMut::new(), Vec::new());
    for piece in wire.chunks(cut) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, wire) = input;
    let whole = all(wire, wire.len().max(1));
    assert_eq!(all(wire, usize::from(cut).max(1)), whole, "cut every {cut} bytes");
    let bytes = |frame: &Frame| match frame {
        Frame::Command(body) => body.len(),
        Frame::Message(frames) => frames.iter().map(bytes::Bytes::len).sum(),
    };
    assert!(whole.0.iter().map(bytes).sum::<usize>() <= wire.len());
});
