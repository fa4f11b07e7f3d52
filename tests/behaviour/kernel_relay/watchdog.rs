//! A kernel that miscounts: the relay is switched off, and what it had ends visibly.

use std::{mem::offset_of, sync::Arc, time::Duration};

use aya::{
    maps::{Array, Map, MapData, MapInfo},
    programs::loaded_programs,
};
use router_common::{names, relay, splice};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use warmpath_tests::{Gateway, PATIENCE, eventually};

use super::{all_by, read_request, start};
use crate::privileges::ids;

const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const EVENT: &[u8] = b"9\r\ndata: x\n\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_too_many_or_too_few_switches_the_bypass_off() {
    const AT: usize = offset_of!(relay::State, redirected);
    tokio::join!(
        miscount::<{ size_of::<relay::State>() }>("bypass", names::RELAY_STATES, AT, 1),
        miscount::<{ size_of::<relay::State>() }>("bypass", names::RELAY_STATES, AT, -1),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_too_many_or_too_few_switches_the_splice_off() {
    const AT: usize = offset_of!(splice::State, redirected);
    tokio::join!(
        miscount::<{ size_of::<splice::State>() }>("splice", names::SPLICE_STATES, AT, 1),
        miscount::<{ size_of::<splice::State>() }>("splice", names::SPLICE_STATES, AT, -1),
    );
}

/// Lends a stream that then rests, and changes the kernel's count of its bytes, which stands at `at` in its state.
async fn miscount<const STATE: usize>(path: &str, states: &str, at: usize, by: i64) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let go_on = Arc::new(Notify::new());
    let wait = go_on.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            socket.set_nodelay(true).unwrap();
            tokio::spawn(worker(socket, wait.clone()));
        }
    });
    let Some(gateway) = start(&[format!("http://{address}")], &all_by(path)).await else { return };
    let mut stream = ask(&gateway).await;
    let mut states: Array<MapData, [u8; STATE]> = map(&gateway, states);
    // Both kinds of state begin with the turn. The start-up test leaves some behind, with a few bytes in them.
    let slot = eventually("the kernel has the stream", || {
        let lent = (0..states.len()).find(|slot| {
            let state = states.get(slot, 0).expect("a slot");
            word(&state, 0) % 2 == 1 && word(&state, at) >= 5 * EVENT.len() as u64
        });
        async move { lent }
    })
    .await;
    let mut state = states.get(&slot, 0).expect("a slot");
    let wrong = word(&state, at).checked_add_signed(by).expect("more than one");
    state[at..at + 8].copy_from_slice(&wrong.to_ne_bytes());
    states.set(slot, state, 0).expect("the map takes it");

    eventually("the difference is seen", || async {
        (gateway.metric("warmpath_relay_mismatches_total").await > 0.5).then_some(())
    })
    .await;
    let available = format!("warmpath_relay_available{{path=\"{path}\"}}");
    assert!(gateway.metric(&available).await < 0.5, "{path} {by}: it would be used again");
    let mut rest = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("an end");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{path} {by}: {end:?}, and it looks complete");

    // The next one is copied.
    go_on.notify_waiters();
    let mut stream = ask(&gateway).await;
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n0\r\n\r\n") {
        go_on.notify_waiters();
        let read = tokio::time::timeout(Duration::from_millis(50), stream.read_buf(&mut text)).await;
        assert!(!matches!(read, Ok(Ok(0) | Err(_))), "{path} {by}: ended after {}", text.len());
    }
    assert!((gateway.metric("warmpath_relay_mismatches_total").await - 1.0).abs() < 0.5);
    gateway.idle().await;
}

/// Eleven events, and a rest before the last one.
async fn worker(mut socket: TcpStream, go_on: Arc<Notify>) -> Option<()> {
    let mut request = Vec::new();
    loop {
        read_request(&mut socket, &mut request).await?;
        if !request.starts_with(b"POST /v1/") {
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.ok()?;
            continue;
        }
        socket.write_all(HEAD).await.ok()?;
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            socket.write_all(EVENT).await.ok()?;
        }
        go_on.notified().await;
        socket.write_all(&[EVENT, b"0\r\n\r\n"].concat()).await.ok()?;
    }
}

async fn ask(gateway: &Gateway) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).await.expect("the gateway listens");
    let body = "{\"prompt\":\"x\",\"stream\":true}";
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).await.expect("it reads");
    stream
}

/// The map of this name that the gateway's programs use; the gateway itself has it as memory only.
fn map<const VALUE: usize>(gateway: &Gateway, name: &str) -> Array<MapData, [u8; VALUE]> {
    let programs = ids(gateway.pid(), "prog_id");
    let mut maps = loaded_programs()
        .flatten()
        .filter(|program| programs.contains(&program.id()))
        .flat_map(|program| program.map_ids().ok().flatten().unwrap_or_default());
    let id = maps
        .find(|id| MapInfo::from_id(*id).is_ok_and(|info| info.name_as_str() == Some(name)))
        .unwrap_or_else(|| panic!("the gateway has no map {name}"));
    let data = MapData::from_id(id).expect("root may open it");
    Array::try_from(Map::Array(data)).expect("values of this size")
}

fn word(state: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(state[at..at + 8].try_into().expect("eight bytes"))
}
