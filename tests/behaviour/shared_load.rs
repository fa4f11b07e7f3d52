//! Load that gateways tell each other through Redis: what decisions see, and for how long.

use warmpath_tests::{Gateway, Redis, Signal, SimHandle, Stream, eventually, sims, urls};

use crate::shared_gateways::{config, explain, gateway, metric_is};

/// Streams that wait at `worker` by way of `gateway`, their heads read.
async fn streams(gateway: &Gateway, count: usize) -> Vec<Stream> {
    let mut streams = Vec::new();
    for number in 0..count {
        streams.push(gateway.stream(&format!("stream {number}"), 100_000).await);
    }
    streams
}

fn peer_in_flight(worker: &SimHandle) -> String {
    format!("warmpath_worker_peer_in_flight_requests{{worker=\"{}\"}}", worker.addr())
}

async fn own_in_flight(gateway: &Gateway, worker: &SimHandle) -> f64 {
    gateway.metric(&format!("warmpath_worker_in_flight_requests{{worker=\"{}\"}}", worker.addr())).await
}

#[tokio::test]
async fn decisions_see_what_all_gateways_have_in_flight() {
    let Some(redis) = Redis::start("shared load").await else { return };
    let sims = sims(2).await;
    // Scrapes would show other gateways' requests, too, later.
    let config = config(&redis, "scrape_interval: 1h\n");
    let start = async || gateway(&urls(&sims), &config, &["--policy", "least_loaded"]).await;
    let (a, b) = (start().await, start().await);
    for gateway in [&a, &b] {
        metric_is(gateway, "warmpath_shared_peers", 1.0).await;
        metric_is(gateway, "warmpath_shared_state{state=\"up\"}", 1.0).await;
    }
    let held = streams(&a, 4).await;
    for sim in &sims {
        metric_is(&b, &peer_in_flight(sim), 2.0).await;
        assert!(own_in_flight(&b, sim).await < 0.5, "its own count is its own");
    }
    // To the first worker only, as far as the other gateway knows.
    let only = gateway(&urls(&sims[..1]), &config, &[]).await;
    let more = streams(&only, 3).await;
    metric_is(&b, &peer_in_flight(&sims[0]), 5.0).await;
    for _ in 0..3 {
        let reply = b.chat("hello").await;
        assert_eq!(reply.header("x-warmpath-worker"), sims[1].addr().to_string());
    }
    drop((held, more));
    for sim in &sims {
        metric_is(&b, &peer_in_flight(sim), 0.0).await;
    }
}

#[tokio::test]
async fn gateways_that_die_or_leave_have_no_load_any_more() {
    let Some(redis) = Redis::start("shared load").await else { return };
    let sims = sims(1).await;
    let config = config(&redis, "");
    let watching = gateway(&urls(&sims), &config, &[]).await;
    let mut killed = gateway(&urls(&sims), &config, &[]).await;
    let mut stopped = gateway(&urls(&sims), &config, &["--drain-timeout", "1ms"]).await;
    let held = (streams(&killed, 2).await, streams(&stopped, 3).await);
    metric_is(&watching, &peer_in_flight(&sims[0]), 5.0).await;
    killed.signal(Signal::KILL);
    killed.ended().await;
    metric_is(&watching, &peer_in_flight(&sims[0]), 3.0).await;
    metric_is(&watching, "warmpath_shared_peers", 1.0).await;
    stopped.signal(Signal::TERM);
    assert_eq!(stopped.ended().await, Some(0));
    metric_is(&watching, &peer_in_flight(&sims[0]), 0.0).await;
    metric_is(&watching, "warmpath_shared_peers", 0.0).await;
    drop(held);
}

#[tokio::test]
async fn a_scrape_that_shows_peers_requests_does_not_count_them_twice() {
    let Some(redis) = Redis::start("shared load").await else { return };
    let sims = sims(1).await;
    let config = config(&redis, "scrape_interval: 50ms\n");
    let (a, b) = (gateway(&urls(&sims), &config, &[]).await, gateway(&urls(&sims), &config, &[]).await);
    metric_is(&b, "warmpath_shared_peers", 1.0).await;
    let held = streams(&a, 5).await;
    metric_is(&b, &peer_in_flight(&sims[0]), 5.0).await;
    let scraped = format!("warmpath_worker_engine_running_requests{{worker=\"{}\"}}", sims[0].addr());
    metric_is(&b, &scraped, 5.0).await;
    // What the next decision would see.
    eventually("a batch of five", || async {
        (explain(&b, "hello").await["workers"][0]["requests"] == 5).then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(explain(&b, "hello").await["workers"][0]["requests"], 5);
    }
    drop(held);
}
