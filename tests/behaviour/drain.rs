//! SIGTERM and Ctrl-C: what is in flight ends, nothing new begins.

use tokio::net::TcpStream;
use warmpath_tests::{Gateway, eventually, get, sims, urls};

#[tokio::test]
async fn streams_in_flight_finish_and_new_connections_are_refused() {
    let sims = sims(2).await;
    let mut gateway = Gateway::start(&urls(&sims), &[]).await;
    let mut stream = gateway.stream("a long answer", 100).await;
    stream.next().await.unwrap().unwrap();
    let idle = TcpStream::connect(gateway.address).await.unwrap();
    gateway.signal("TERM").await;
    eventually("the listener is closed", || async {
        TcpStream::connect(gateway.address).await.is_err().then_some(())
    })
    .await;
    assert_eq!(get(gateway.admin, "/ready").await.text(), "draining\n");
    let (text, ended) = stream.rest().await;
    assert!(ended && text.ends_with("data: [DONE]\n\n"), "the stream ends as if nothing were: {text}");
    drop(idle);
    assert_eq!(gateway.ended().await, Some(0));
    eventually("its last line", || async { gateway.output().contains("stopped").then_some(()) }).await;
}

#[tokio::test]
async fn what_is_still_in_flight_after_the_drain_timeout_is_cut_off() {
    let sims = sims(1).await;
    let mut gateway = Gateway::start(&urls(&sims), &["--drain-timeout", "200ms"]).await;
    let mut stream = gateway.stream("an endless answer", 100_000).await;
    stream.next().await.unwrap().unwrap();
    gateway.signal("INT").await;
    let (_, ended) = stream.rest().await;
    assert!(!ended, "the client sees that it is cut off");
    assert_eq!(gateway.ended().await, Some(0));
    assert!(gateway.output().contains("drain timeout"), "{}", gateway.output());
    eventually("the worker gave up", || async { (sims[0].stats().generating == 0).then_some(()) }).await;
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let sims = sims(1).await;
    let mut gateway = Gateway::start(&urls(&sims), &["--drain-timeout", "1h"]).await;
    let mut stream = gateway.stream("an endless answer", 100_000).await;
    stream.next().await.unwrap().unwrap();
    gateway.signal("INT").await;
    eventually("draining", || async { gateway.output().contains("draining").then_some(()) }).await;
    gateway.signal("INT").await;
    assert_eq!(gateway.ended().await, Some(0));
}
