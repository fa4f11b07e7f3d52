//! What the kernel, or the gateway, says of the times of a stream, against what the client of the same stream sees.

use std::time::{Duration, Instant};

use router_common::latency;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use warmpath_tests::{Gateway, PATIENCE, get};

const PREFILL: Duration = Duration::from_millis(48);
const GAP: Duration = Duration::from_millis(12);
const EVENTS: usize = 60;

/// Head at once, then `EVENTS` events, as vLLM does.
async fn worker() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            socket.set_nodelay(true).unwrap();
            tokio::spawn(answer(socket));
        }
    });
    address
}

async fn answer(mut socket: TcpStream) -> Option<()> {
    let mut request = [0; 4096];
    let n = socket.read(&mut request).await.ok()?;
    if !request[..n].starts_with(b"POST /v1/") {
        let _ =
            socket.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}").await;
        return None;
    }
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    socket.write_all(head).await.ok()?;
    tokio::time::sleep(PREFILL).await;
    for _ in 0..EVENTS {
        socket.write_all(b"9\r\ndata: x\n\n\r\n").await.ok()?;
        tokio::time::sleep(GAP).await;
    }
    socket.write_all(b"0\r\n\r\n").await.ok()
}

/// Times of one stream as its client saw them: first byte, and gaps.
async fn client(gateway: &Gateway) -> (Duration, Vec<Duration>) {
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let body = "{\"prompt\":\"x\",\"stream\":true}";
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let sent = Instant::now();
    socket.write_all(head.as_bytes()).await.unwrap();
    let (mut stamps, mut seen, mut bytes) = (Vec::new(), 0, Vec::new());
    while !bytes.ends_with(b"\r\n0\r\n\r\n") {
        let n =
            tokio::time::timeout(PATIENCE, socket.read_buf(&mut bytes)).await.expect("it goes on").unwrap();
        assert!(n > 0, "ended with {:?}", String::from_utf8_lossy(&bytes));
        let events = bytes.windows(5).filter(|window| window == b"data:").count();
        if events > seen {
            stamps.push(Instant::now());
            seen = events;
        }
    }
    assert_eq!(seen, EVENTS);
    (stamps[0] - sent, stamps.windows(2).map(|pair| pair[1] - pair[0]).collect())
}

/// A histogram's counts by bucket, from the metrics.
async fn histogram(gateway: &Gateway, name: &str) -> Vec<(f64, f64)> {
    let text = get(gateway.admin, "/metrics").await.text();
    let mut before = 0.0;
    text.lines()
        .filter(|line| line.starts_with(&format!("{name}_bucket")))
        .map(|line| {
            let end = line.split("le=\"").nth(1).unwrap().split('"').next().unwrap();
            let sum: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
            let count = sum - std::mem::replace(&mut before, sum);
            (end.parse().unwrap_or(f64::INFINITY), count)
        })
        .collect()
}

/// The end of the bucket in which the median lies, in seconds.
fn median_end(histogram: &[(f64, f64)]) -> f64 {
    let half = histogram.iter().map(|(_, count)| count).sum::<f64>() / 2.0;
    let mut sum = 0.0;
    for (end, count) in histogram {
        sum += count;
        if sum >= half {
            return *end;
        }
    }
    f64::INFINITY
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_bytes_and_gaps_agree_with_what_clients_see_whoever_moves_the_bytes() {
    let address = worker().await;
    for args in [["--splice", "auto"], ["--splice", "off"]] {
        let gateway = Gateway::start(&[format!("http://{address}")], &args).await;
        let (mut firsts, mut gaps) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let (first, between) = client(&gateway).await;
            firsts.push(first);
            gaps.extend(between);
        }
        gateway.idle().await;
        let bypassed = gateway.metric("warmpath_relay_responses_total{path=\"bypass\"}").await;
        println!("{args:?}: {bypassed} of 3 streams moved by the kernel");
        assert!(args[1] != "off" || bypassed < 0.5);

        for (name, seen, expected) in [
            ("warmpath_stream_first_byte_seconds", firsts, 3),
            ("warmpath_stream_event_gap_seconds", gaps, 3 * (EVENTS - 1)),
        ] {
            let histogram = histogram(&gateway, name).await;
            let count = histogram.iter().map(|(_, count)| count).sum::<f64>();
            // Events that arrive together, on a busy machine, have one stamp.
            assert!(
                count <= expected as f64 && count > expected as f64 * 0.5,
                "{name}: {count} of {expected}"
            );
            let (end, seen) = (median_end(&histogram), median(seen));
            // The same bucket; where the client's median is near a bucket's edge, the next one.
            let near = [seen.mul_f64(0.85), seen, seen.mul_f64(1.15)]
                .map(|time| latency::bucket_end_seconds(latency::bucket(time.as_nanos() as u64)));
            assert!(
                near.iter().any(|near| (near - end).abs() < 1e-9),
                "{args:?} {name}: the median is in the bucket that ends at {end} s; clients saw {seen:?}"
            );
        }
    }
}
