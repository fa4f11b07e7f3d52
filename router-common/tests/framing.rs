//! The body scanner against a literal reference, at every split point, and against hyper's own decoder.
#![forbid(unsafe_code)]

mod reference;

use std::fmt::Write as _;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use reference::reference;
use router_common::framing::{BROKEN, Framing, OVERHEAD_BYTES_MAX};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A chunked body as written, with what it holds.
#[derive(Clone, Debug)]
struct Body {
    wire: Vec<u8>,
    data: Vec<u8>,
}

/// One chunk: data, zeros before its size, upper case, what follows the size.
type Chunk = (Vec<u8>, usize, bool, String);

fn write_chunked(chunks: &[Chunk], last: &str, trailers: &[String]) -> Body {
    let (mut wire, mut all) = (Vec::new(), Vec::new());
    for (data, zeros, upper, extension) in chunks {
        let size = if *upper { format!("{:X}", data.len()) } else { format!("{:x}", data.len()) };
        wire.extend(format!("{}{size}{extension}\r\n", "0".repeat(*zeros)).bytes());
        wire.extend(data);
        wire.extend(b"\r\n");
        all.extend(data);
    }
    let mut end = format!("{last}\r\n");
    for trailer in trailers {
        let _ = write!(end, "{trailer}\r\n");
    }
    end.push_str("\r\n");
    wire.extend(end.bytes());
    Body { wire, data: all }
}

fn chunk() -> impl Strategy<Value = Chunk> {
    let data = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..20),
        prop::collection::vec(prop::sample::select(b"\r\n0a;".to_vec()), 1..40),
        prop::collection::vec(any::<u8>(), 200..700),
    ];
    let extension = prop_oneof![4 => Just(String::new()), 1 => "[ \t]{0,3}(;[a-z=\"]{0,9}){0,2}"];
    (data, prop_oneof![3 => Just(0_usize), 1 => 1..20_usize], any::<bool>(), extension)
}

fn body() -> impl Strategy<Value = Body> {
    let trailer = "[a-z][a-z0-9-]{0,8}: ?[a-z0-9 ]{0,12}";
    (prop::collection::vec(chunk(), 0..8), "0{1,5}( ?;[a-z]{0,4})?", prop::collection::vec(trailer, 0..3))
        .prop_map(|(chunks, last, trailers)| write_chunked(&chunks, &last, &trailers))
}

/// What a scanner that is given `wire` in the given pieces finds: the bytes of the body on the wire, and its state.
fn scan(mut framing: Framing, wire: &[u8], cuts: &[usize]) -> (usize, Framing) {
    let mut total = 0;
    let mut from = 0;
    for to in cuts.iter().copied().chain([wire.len()]) {
        let taken = framing.advance(&wire[from..to]);
        total += taken;
        if taken < to - from {
            break;
        }
        from = to;
    }
    (total, framing)
}

/// What hyper's client reads of a response whose body is `wire`, sent in the given pieces.
fn hyper_reads(head: &str, wire: &[u8], cuts: &[usize]) -> Option<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.expect("no IO yet");
        let driver = tokio::spawn(connection);
        let response = sender.send_request(Request::new(Empty::<Bytes>::new()));
        let server = async {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(far.read_u8().await.expect("a request"));
            }
            far.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes()).await.expect("room");
            let mut from = 0;
            for to in cuts.iter().copied().chain([wire.len()]) {
                // An error is hyper hanging up on what it does not like.
                let _ = far.write_all(&wire[from..to]).await;
                tokio::task::yield_now().await;
                from = to;
            }
            drop(far);
        };
        let (response, ()) = tokio::join!(response, server);
        let body = response.expect("the head is good").into_body().collect().await.ok();
        driver.abort();
        body.map(|body| body.to_bytes().to_vec())
    })
}

fn cuts(wire: &[u8], seeds: &[prop::sample::Index]) -> Vec<usize> {
    let mut cuts: Vec<usize> = seeds.iter().map(|seed| seed.index(wire.len() + 1)).collect();
    cuts.sort_unstable();
    cuts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_body_ends_at_the_same_byte_wherever_it_is_split(body in body(), after in prop::collection::vec(any::<u8>(), 0..5)) {
        let wire = [&body.wire[..], &after].concat();
        prop_assert_eq!(reference(&wire), Some((body.data.clone(), body.wire.len())));
        for cut in 0..=wire.len() {
            let (end, framing) = scan(Framing::chunked(), &wire, &[cut]);
            prop_assert!(framing.is_done(), "split at {}: {:?}", cut, framing);
            prop_assert_eq!(end, body.wire.len());
        }
    }

    #[test]
    fn steps_and_skips_are_one_scanner(body in body(), flip in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut wire = body.wire;
        let at = flip.index(wire.len());
        wire[at] = to;
        let (end, whole) = scan(Framing::chunked(), &wire, &[]);
        let mut bytewise = Framing::chunked();
        let taken = wire.iter().take_while(|byte| {
            if bytewise.is_over() { return false; }
            bytewise.step(**byte);
            !bytewise.is_broken()
        });
        prop_assert_eq!(taken.count(), end);
        prop_assert_eq!(bytewise, whole);
    }

    #[test]
    fn damaged_framing_is_judged_as_the_reference_judges_it(
        body in body(), flips in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"\r\n;0 aFg\t".to_vec())), 1..4),
        seeds in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let mut wire = body.wire;
        for (flip, to) in flips {
            let at = flip.index(wire.len());
            wire[at] = to;
        }
        let (end, framing) = scan(Framing::chunked(), &wire, &cuts(&wire, &seeds));
        match reference(&wire) {
            Some((_, at)) => {
                prop_assert!(framing.is_done(), "{:?}", framing);
                prop_assert_eq!(end, at);
            }
            None => prop_assert!(!framing.is_done(), "done after {} bytes", end),
        }
    }

    #[test]
    fn hyper_reads_what_the_scanner_lets_through(
        body in body(), flip in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        seeds in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut wire = body.wire;
        if let Some((flip, to)) = flip {
            let at = flip.index(wire.len());
            wire[at] = to;
        }
        let cuts = cuts(&wire, &seeds);
        let (end, framing) = scan(Framing::chunked(), &wire, &cuts);
        let read = hyper_reads("transfer-encoding: chunked", &wire, &cuts);
        if framing.is_done() {
            let (data, at) = reference(&wire).expect("the scanner is no more lenient than the reference");
            prop_assert_eq!(end, at);
            match read {
                Some(read) => prop_assert_eq!(read, data),
                // hyper parses trailer fields; for the framing a line is a line.
                None => prop_assert!(!wire[..end].ends_with(b"\r\n0\r\n\r\n"), "hyper refuses {:?}", wire),
            }
        } else if read.is_some() {
            // The one place where the scanner is stricter: a bare LF in a trailer.
            prop_assert!(framing.is_broken() && wire[end] == b'\n', "hyper accepts what ends with {:?}", framing);
        }
    }

    #[test]
    fn a_length_is_counted(length in 0_usize..5_000, more in 0_usize..10, seeds in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let wire = vec![b'\n'; length + more];
        let cuts = cuts(&wire, &seeds);
        let (end, framing) = scan(Framing::length(length as u64), &wire, &cuts);
        prop_assert!(framing.is_done());
        prop_assert_eq!(end, length);
        let read = hyper_reads(&format!("content-length: {length}"), &wire, &cuts);
        prop_assert_eq!(read.map(|read| read.len()), Some(length));
    }

    #[test]
    fn no_state_panics(remaining in any::<u64>(), state in any::<u32>(), small in 0_u32..16, bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        for state in [state, small] {
            let mut framing = Framing { remaining, state, overhead: 0 };
            let taken = framing.advance(&bytes);
            prop_assert!(taken <= bytes.len());
            framing.skip(u64::MAX);
        }
    }
}

fn state_after(wire: &[u8]) -> Framing {
    scan(Framing::chunked(), wire, &[]).1
}

#[test]
fn what_is_not_chunked_framing_is_refused() {
    for wire in [
        "\r\n",
        "\n",
        "g\r\n",
        " 5\r\n",
        "-5\r\n",
        "0x5\r\n",
        "5\n",
        "5\rx",
        "5 6\r\n",
        "5;a\nb",
        "5\r\nhellox",
        "5\r\nhello\n",
        "5\r\nhello\rx",
        "0\r\n\n",
        "0\r\n\rx",
        "0\r\na: b\n",
        "0\r\na: b\rx",
        "10000000000000000\r\n",
    ] {
        assert_eq!(state_after(wire.as_bytes()).state, BROKEN, "{wire:?}");
    }
}

#[test]
fn sizes_up_to_64_bits_are_read() {
    assert_eq!(state_after(b"00000000000000000000ffffffffffffffff\r\n").skippable(), u64::MAX);
    assert_eq!(state_after(b"FfFf ;ext\r\n").skippable(), 0xffff);
}

#[test]
fn extensions_and_trailers_are_bounded_as_in_hyper() {
    let extension = |bytes: u32| format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(bytes as usize)).into_bytes();
    let trailer = |bytes: u32| format!("0\r\na:{}\r\n\r\n", "t".repeat(bytes as usize - 4)).into_bytes();
    for (wire, fits) in [
        (extension(OVERHEAD_BYTES_MAX - 1), true),
        (extension(OVERHEAD_BYTES_MAX), false),
        (trailer(OVERHEAD_BYTES_MAX - 3), true),
        (trailer(OVERHEAD_BYTES_MAX), false),
    ] {
        assert_eq!(state_after(&wire).is_done(), fits);
        assert_eq!(hyper_reads("transfer-encoding: chunked", &wire, &[]).is_some(), fits);
    }
}
