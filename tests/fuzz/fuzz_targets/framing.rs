//! The body scanner on any bytes: it never panics, finds the same end however the bytes are cut, at every byte included,
//! and agrees with the plainly written grammar and with hyper's decoder about what a chunked body is.
#![no_main]

#[path = "../../../router-common/tests/reference/mod.rs"]
mod reference;

use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use router_common::framing::Framing;
use tokio::{io::AsyncWriteExt, runtime::Runtime};

thread_local! {
    static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
}

/// What of hyper's limits (16 KiB of chunk extensions or trailers) no input here reaches.
const HYPER_BYTES_MAX: usize = 4096;

/// The data of a chunked body as hyper reads it, if it reads it to its end.
fn by_hyper(wire: &[u8]) -> Option<Vec<u8>> {
    let read = async {
        let (mut client, server) = tokio::io::duplex(2 * HYPER_BYTES_MAX);
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await.ok()?;
        client.write_all(wire).await.ok()?;
        client.shutdown().await.ok()?;
        let body = std::cell::RefCell::new(None);
        let service = service_fn(async |request: Request<Incoming>| {
            if body.borrow().is_none() {
                let read = request.into_body().collect().await;
                *body.borrow_mut() = Some(read.ok().map(|body| body.to_bytes().to_vec()));
            }
            Ok::<_, std::convert::Infallible>(Response::new(String::new()))
        });
        // What is behind the body is no request, mostly: the connection's end says nothing of the body.
        let _ = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(server), service).await;
        body.into_inner().flatten()
    };
    RUNTIME.with(|runtime| runtime.block_on(read))
}

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

    let mut bytes = start;
    assert_eq!(wire.iter().map(|byte| bytes.advance(std::slice::from_ref(byte))).sum::<usize>(), taken);
    assert_eq!(bytes, whole, "cut at every byte");

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
            let (expected, end) = reference::reference(wire).expect("a body that is none was taken for one");
            assert_eq!((&data, taken), (&expected, end));
            // hyper refuses trailers that are no fields; they end the body all the same.
            if wire.len() <= HYPER_BYTES_MAX
                && let Some(read) = by_hyper(wire)
            {
                assert_eq!(read, data, "hyper reads another body");
            }
        }
        None if wire.len() <= HYPER_BYTES_MAX => {
            assert!(
                whole.is_broken() || by_hyper(wire).is_none(),
                "hyper has the end, the scanner waits for it"
            );
        }
        None => {}
    }
});
