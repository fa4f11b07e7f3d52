//! Bodies that the kernel moves: every byte, whatever the worker writes and however the client reads. The workers here
//! speak raw TCP, because what is tested is how they cut their bytes. Needs root; says "skipped: why" without.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Notify,
};
use warmpath_tests::{Gateway, PATIENCE, SimConfig, eventually, sim, urls};

/// Everything that can go past the gateway does, by one way.
fn all_by(path: &str) -> String {
    let other = if path == "bypass" { "splice" } else { "bypass" };
    format!(
        "relay: {{{path}: on, {other}: off, min_bytes: 0B, sample: 0}}\nhealth: {{interval: 60s}}\nscrape_interval: 60s\n"
    )
}

/// What is measured to pay.
const EVENT_STREAMS: &str = "relay: {bypass: auto, sample: 0}\n";

async fn start(workers: &[String], config: &str) -> Option<Gateway> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), config).expect("the file is writable");
    let gateway = Gateway::start(workers, &["--config", file.path().to_str().expect("a plain path")]).await;
    let output = gateway.output();
    let path = if config.contains("bypass: off") { "splice" } else { "bypass" };
    let line = output.lines().find(|line| line.contains(path)).unwrap_or_default().trim().to_owned();
    if line.ends_with("yes") {
        return Some(gateway);
    }
    assert!(!line.contains("self-test"), "{line}");
    println!("skipped: {line}");
    None
}

async fn returns(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(&format!("warmpath_relay_returns_total{{reason=\"{reason}\"}}")).await
}

/// Streams until one has ended in the kernel's hands: on a busy machine its last bytes may reach the gateway before the
/// stream is lent.
async fn relayed_to_the_end(gateway: &Gateway) {
    eventually("a stream ends in the kernel's hands", || async {
        let (text, ended) = gateway.stream("hello", 40).await.rest().await;
        assert!(ended && text.ends_with("data: [DONE]\n\n"), "{text}");
        (returns(gateway, "end").await > 0.5).then_some(())
    })
    .await;
}

/// A small generator: the same numbers for the same seed, in worker and client.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> usize {
        (self.next() % end.max(1)) as usize
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// One response, all of it said by its seed.
struct Script {
    data: Vec<u8>,
    wire: Vec<u8>,
    /// How the wire bytes are cut into writes, and the pauses before them.
    writes: Vec<(usize, Duration)>,
    /// The worker dies after this many bytes.
    dies_at: Option<usize>,
}

impl Script {
    fn of(seed: u64, deaths: bool) -> Self {
        let mut random = Random(seed);
        let bits = 1 + random.below(21);
        let length = random.below(1 << bits);
        let mut data = Vec::with_capacity(length + 8);
        while data.len() < length {
            data.extend(random.next().to_le_bytes());
        }
        data.truncate(length);
        let mut body = Vec::with_capacity(length + length / 8);
        let head = if random.one_in(3) {
            body.extend(&data);
            format!("content-length: {length}")
        } else {
            let chunk_max = 1 + (length as u64 / (1 + random.below(200) as u64));
            let mut left = &data[..];
            while !left.is_empty() {
                let size = (1 + random.below(chunk_max)).min(left.len());
                let zeros = "0".repeat(random.below(12).saturating_sub(8));
                let extension = if random.one_in(8) { ";x=\"y\"" } else { "" };
                body.extend(format!("{zeros}{size:x}{extension}\r\n").bytes());
                body.extend(&left[..size]);
                body.extend(b"\r\n");
                left = &left[size..];
            }
            body.extend(if random.one_in(6) { &b"0\r\nx-trailer: 1\r\n\r\n"[..] } else { b"0\r\n\r\n" });
            "transfer-encoding: chunked".to_owned()
        };
        let kind = if random.one_in(2) { "text/event-stream" } else { "application/octet-stream" };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{head}\r\n\r\n");
        let dies_at = (deaths && random.one_in(8) && body.len() > 10)
            .then(|| head.len() + random.below(body.len() as u64 - 1));
        let wire = [head.as_bytes(), &body].concat();
        let mut writes = Vec::new();
        let mut left = wire.len();
        let write_max = 1 + wire.len() as u64 / (1 + random.below(60) as u64);
        while left > 0 {
            let size = (1 + random.below(write_max)).min(left);
            let pause = if random.one_in(4) {
                Duration::from_micros(random.below(2_000) as u64)
            } else {
                Duration::ZERO
            };
            writes.push((size, pause));
            left -= size;
        }
        Self { data, wire, writes, dies_at }
    }
}

/// A worker that plays scripts: the seed is in the request's path.
async fn worker(deaths: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            count.fetch_add(1, Relaxed);
            let _ = socket.set_nodelay(true);
            tokio::spawn(play(socket, deaths));
        }
    });
    (address, connections)
}

async fn play(mut socket: TcpStream, deaths: bool) -> Option<()> {
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if socket.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8(bytes[..end].to_vec()).expect("a head is text").to_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let total = end + length.unwrap_or(0);
        while bytes.len() < total {
            if socket.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        }
        bytes.drain(..total);
        let Some(seed) = head.split_once("seed=").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
        else {
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.ok()?;
            continue;
        };
        let script = Script::of(seed, deaths);
        let mut at = 0;
        for (size, pause) in script.writes {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let end = script.dies_at.map_or(at + size, |dies| dies.min(at + size));
            socket.write_all(&script.wire[at..end]).await.ok()?;
            if script.dies_at == Some(end) {
                return None;
            }
            at = end;
        }
    }
}

struct Client {
    address: SocketAddr,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        Self { address, sender: None }
    }

    async fn sender(&mut self, small_window: bool) -> &mut SendRequest<Full<Bytes>> {
        if self.sender.as_ref().is_none_or(SendRequest::is_closed) {
            let socket = TcpSocket::new_v4().expect("a socket");
            if small_window {
                socket.set_recv_buffer_size(8 * 1024).expect("a small buffer is allowed");
            }
            let stream = socket.connect(self.address).await.expect("the gateway listens");
            stream.set_nodelay(true).expect("a socket");
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("no IO yet");
            tokio::spawn(connection);
            self.sender = Some(sender);
        }
        self.sender.as_mut().expect("just made")
    }

    /// The body, and whether it ended as it should. `abort_after`: hang up when so much was read.
    async fn get(
        &mut self,
        path: &str,
        pauses: &mut Random,
        slow: bool,
        abort_after: Option<usize>,
    ) -> (Vec<u8>, bool) {
        let request = || {
            let body = Full::new(Bytes::from_static(b"{\"prompt\":\"x\",\"stream\":true}"));
            Request::post(path).header("host", "g").body(body).expect("a request")
        };
        let sender = self.sender(slow).await;
        let response = async {
            sender.ready().await?;
            sender.send_request(request()).await
        };
        let response = tokio::time::timeout(PATIENCE, response).await.expect("an answer");
        let Ok(response) = response else {
            self.sender = None;
            return (Vec::new(), false);
        };
        let mut body = response.into_body();
        let mut data = Vec::new();
        loop {
            if abort_after.is_some_and(|bytes| data.len() >= bytes) {
                self.sender = None;
                return (data, false);
            }
            if slow && pauses.one_in(3) {
                tokio::time::sleep(Duration::from_micros(pauses.below(3_000) as u64)).await;
            }
            match tokio::time::timeout(PATIENCE, body.frame()).await.expect("the body goes on") {
                None => return (data, true),
                Some(Ok(frame)) => data.extend(frame.into_data().unwrap_or_default()),
                Some(Err(_)) => {
                    self.sender = None;
                    return (data, false);
                }
            }
        }
    }
}

/// Filler of the chunk that was open, and then the gateway's error event, or the beginning of these.
fn is_part_of_an_error(bytes: &[u8]) -> bool {
    let event = bytes.trim_ascii_start();
    let begins = &b"data: {\"error\":{\"message\":\"the worker failed"[..];
    let length = event.len().min(begins.len());
    event[..length] == begins[..length]
}

/// `clients` connections, `rounds` responses over each; counts of responses and of bodies that broke off.
async fn storm(gateway: &Gateway, clients: u64, rounds: u64, seed: u64, faults: bool) -> (usize, usize) {
    let tasks: Vec<_> = (0..clients)
        .map(|number| {
            let mut client = Client::new(gateway.address);
            let mut random = Random(seed ^ (number << 32));
            tokio::spawn(async move {
                let slow = random.one_in(4);
                let (mut whole, mut broken) = (0, 0);
                for round in 0..rounds {
                    let seed = random.next();
                    let script = Script::of(seed, faults);
                    if round % 3 == 2 {
                        // A copied one on the same connections.
                        let (body, ended) = client.get("/tokenize", &mut random, false, None).await;
                        assert!(ended && body == b"{}", "{body:?}");
                    }
                    let abort =
                        (faults && random.one_in(10)).then(|| random.below(script.data.len() as u64 + 1));
                    let path = format!("/v1/completions?seed={seed}");
                    let (body, ended) = client.get(&path, &mut random, slow, abort).await;
                    let common = body.iter().zip(&script.data).take_while(|(a, b)| a == b).count();
                    if ended && script.dies_at.is_none() {
                        assert!(
                            body == script.data,
                            "seed {seed}: {} of {} bytes agree, then {:?}",
                            common,
                            script.data.len(),
                            String::from_utf8_lossy(&body[common..(common + 200).min(body.len())])
                        );
                        whole += 1;
                    } else if ended {
                        // An event stream may end in order, with the error in it.
                        let rest = String::from_utf8_lossy(&body[common..]).into_owned();
                        assert!(
                            rest.contains("\"server_error\""),
                            "seed {seed}: {rest:?} behind {common} good bytes"
                        );
                        broken += 1;
                    } else {
                        assert!(
                            script.dies_at.is_some() || abort.is_some(),
                            "seed {seed}: broke off after {}",
                            body.len()
                        );
                        // Who hangs up may have read a part of that error already.
                        let rest = &body[common..];
                        assert!(
                            rest.is_empty() || script.dies_at.is_some() && is_part_of_an_error(rest),
                            "seed {seed}: {:?} behind {common} good bytes",
                            String::from_utf8_lossy(rest)
                        );
                        broken += 1;
                    }
                }
                (whole, broken)
            })
        })
        .collect();
    let mut sum = (0, 0);
    for task in tasks {
        let (whole, broken) = task.await.expect("a client that found nothing wrong");
        sum = (sum.0 + whole, sum.1 + broken);
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_arrives_and_every_connection_is_used_again() {
    for path in ["bypass", "splice"] {
        every_byte_arrives_by(path).await;
    }
}

async fn every_byte_arrives_by(path: &str) {
    let (address, connections) = worker(false).await;
    let Some(gateway) = start(&[format!("http://{address}")], &all_by(path)).await else { return };
    let (whole, broken) = storm(&gateway, 8, 60, 7, false).await;
    assert_eq!((whole, broken), (480, 0));
    let (moved, ends) = (
        gateway.metric(&format!("warmpath_relay_bytes_total{{path=\"{path}\"}}")).await,
        returns(&gateway, "end").await,
    );
    println!(
        "{path}: {moved} bytes by the kernel, {ends} ends seen there, {} connections",
        connections.load(Relaxed)
    );
    assert!(moved > 1e6 && ends > 100.0, "{moved} {ends}");
    assert!(gateway.metric("warmpath_relay_mismatches_total").await < 0.5);
    // Two data threads, eight clients: as many worker connections as were ever needed at once, and checks.
    assert!(connections.load(Relaxed) < 30, "{} connections", connections.load(Relaxed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_relayed_and_copied_responses_take_turns_on_one_pair_of_connections() {
    for path in ["bypass", "splice"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                tokio::spawn(count_up(socket, count.clone()));
            }
        });
        let config = format!("{}threads: 1\n", all_by(path));
        let Some(gateway) = start(&[format!("http://{address}")], &config).await else { return };
        let mut client = Client::new(gateway.address);
        for number in 0..500 {
            let uri = format!("/v1/completions?number={number}");
            let (body, ended) = client.get(&uri, &mut Random(1), false, None).await;
            assert!(ended && body == events(number).concat(), "{path}, {number}: {body:?}");
            let (body, ended) = client.get("/tokenize", &mut Random(1), false, None).await;
            assert!(ended && body == b"{}", "{path}, behind {number}: {body:?}");
        }
        let ends = returns(&gateway, "end").await;
        println!("{path}: {ends} of 500 responses ended in the kernel's hands");
        assert!(ends > 50.0, "{path}: {ends}");
        assert_eq!(connections.load(Relaxed), 1, "{path}: connections to the worker that saw a request");
        let accepted = gateway.metric("warmpath_connections_accepted_total").await;
        assert!((accepted - 1.0).abs() < 0.5, "{path}: {accepted} connections of the client");
    }
}

/// The events of a response.
fn events(number: usize) -> Vec<Vec<u8>> {
    (0..=number % 7)
        .map(|i| format!("data: {number}-{i}{}\n\n", "x".repeat(number * 13 % 900)).into_bytes())
        .collect()
}

/// Answers with [`events`], one write each, and counts itself with its first request.
async fn count_up(mut socket: TcpStream, connections: Arc<AtomicUsize>) -> Option<()> {
    let (mut request, mut is_counted) = (Vec::new(), false);
    loop {
        request.clear();
        while !request.ends_with(b"}") && !request.ends_with(b"\r\n\r\n") {
            if socket.read_buf(&mut request).await.ok()? == 0 {
                return None;
            }
        }
        let head = String::from_utf8_lossy(&request).into_owned();
        if head.starts_with("POST ") && !std::mem::replace(&mut is_counted, true) {
            connections.fetch_add(1, Relaxed);
        }
        let number = head.split_once("number=").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        let Some(number) = number else {
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.ok()?;
            continue;
        };
        let head =
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        socket.write_all(head).await.ok()?;
        for event in events(number) {
            // Long enough for the gateway to read what came before, and to lend the stream.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let chunk = [format!("{:x}\r\n", event.len()).as_bytes(), &event, b"\r\n"].concat();
            socket.write_all(&chunk).await.ok()?;
        }
        socket.write_all(b"0\r\n\r\n").await.ok()?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hang_ups_and_deaths_leave_nothing_behind_and_spoil_nothing() {
    for path in ["bypass", "splice"] {
        hang_ups_and_deaths_by(path).await;
    }
}

async fn hang_ups_and_deaths_by(path: &str) {
    let (address, _) = worker(true).await;
    let config = format!("{}breaker: {{failures: 1000000}}\n", all_by(path));
    let Some(gateway) = start(&[format!("http://{address}")], &config).await else { return };
    let (whole, broken) = storm(&gateway, 8, 60, 11, true).await;
    assert!(whole > 300 && broken > 30, "{whole} {broken}");
    gateway.idle().await;
    assert!(gateway.metric("warmpath_relay_mismatches_total").await < 0.5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_holds_the_worker_back_and_gets_everything_later() {
    for path in ["bypass", "splice"] {
        a_client_that_stops_reading_by(path).await;
    }
}

async fn a_client_that_stops_reading_by(path: &str) {
    // More than all buffers between worker and client can grow to.
    const LENGTH: usize = 64 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let flood = Arc::new(Notify::new());
    let (count, go) = (sent.clone(), flood.clone());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (count, go) = (count.clone(), go.clone());
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let n = socket.read(&mut request).await.unwrap_or(0);
                if !request[..n].starts_with(b"POST /v1/") {
                    let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
                    return;
                }
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {LENGTH}\r\n\r\n"
                );
                socket.write_all(head.as_bytes()).await.unwrap();
                for start in (0..LENGTH).step_by(4096) {
                    let piece: Vec<u8> = (start..start + 4096).map(|i| (i % 251) as u8).collect();
                    if socket.write_all(&piece).await.is_err() {
                        return;
                    }
                    count.fetch_add(4096, Relaxed);
                    if start == 0 {
                        go.notified().await;
                    }
                }
            });
        }
    });
    let Some(gateway) = start(&[format!("http://{address}")], &all_by(path)).await else { return };
    let client = TcpSocket::new_v4().unwrap();
    client.set_recv_buffer_size(64 * 1024).unwrap();
    let mut client = client.connect(gateway.address).await.unwrap();
    let body = "{\"prompt\":\"x\",\"stream\":true}";
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    client.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    while bytes.len() < 4096 {
        let n = tokio::time::timeout(PATIENCE, client.read_buf(&mut bytes))
            .await
            .expect("the first piece")
            .unwrap();
        assert!(n > 0, "ended after {}", bytes.len());
    }
    // Its first piece may have passed the kernel by; then the stream is lent again.
    let before = std::cell::Cell::new(0.0);
    eventually("the stream is the kernel's", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = gateway.metric("warmpath_relay_lent_total").await;
        (now > 0.5 && (now - before.replace(now)).abs() < 0.5).then_some(())
    })
    .await;
    flood.notify_one();
    eventually("the stream comes back from the kernel", || async {
        (returns(&gateway, "room").await > 0.0).then_some(())
    })
    .await;
    // What is on its way fits the buffers; the rest stays with the worker.
    let mut before = usize::MAX;
    eventually("the worker is held back", || {
        let now = sent.load(Relaxed);
        let steady = now == std::mem::replace(&mut before, now);
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            steady.then_some(())
        }
    })
    .await;
    assert!(sent.load(Relaxed) < LENGTH, "{} sent", sent.load(Relaxed));
    loop {
        let n =
            tokio::time::timeout(PATIENCE, client.read_buf(&mut bytes)).await.expect("it goes on").unwrap();
        assert!(n > 0, "ended after {}", bytes.len());
        let end = bytes.windows(4).take(2048).position(|window| window == b"\r\n\r\n");
        if let Some(body) = end.map(|end| &bytes[end + 4..]).filter(|body| body.len() == LENGTH) {
            let piece: Vec<u8> = (0..=250).collect();
            assert!(body.chunks(251).all(|chunk| chunk == &piece[..chunk.len()]));
            break;
        }
    }
    assert!(gateway.metric("warmpath_relay_mismatches_total").await < 0.5);
}

#[tokio::test]
async fn a_streamed_answer_goes_past_the_gateway_and_a_unary_one_through_it() {
    let sims = [sim(SimConfig::default()).await];
    let Some(gateway) = start(&urls(&sims), EVENT_STREAMS).await else { return };
    let path = |path: &str| format!("warmpath_relay_responses_total{{path=\"{path}\"}}");
    assert_eq!(gateway.chat("hello").await.status, 200);
    assert!(gateway.metric(&path("copy")).await > 0.5 && gateway.metric(&path("bypass")).await < 0.5);
    relayed_to_the_end(&gateway).await;
    assert!(gateway.metric(&path("bypass")).await > 0.5);
    assert!((gateway.metric("warmpath_relay_available{path=\"bypass\"}").await - 1.0).abs() < 0.5);
}

#[tokio::test]
async fn switched_off_it_stays_off() {
    let sims = [sim(SimConfig::default()).await];
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), "relay: {bypass: off}\n").expect("the file is writable");
    for args in [["--splice", "off"], ["--config", file.path().to_str().expect("a plain path")]] {
        let gateway = Gateway::start(&urls(&sims), &args).await;
        let (text, ended) = gateway.stream("hello", 10).await.rest().await;
        assert!(ended && text.ends_with("data: [DONE]\n\n"), "{text}");
        assert!(gateway.metric("warmpath_relay_responses_total{path=\"bypass\"}").await < 0.5);
        assert!(gateway.metric("warmpath_relay_available{path=\"bypass\"}").await < 0.5);
    }
}

#[tokio::test]
async fn a_client_that_leaves_with_the_last_byte_has_been_answered() {
    let sims = [sim(SimConfig::default()).await];
    let gateway =
        start(&urls(&sims), &format!("{EVENT_STREAMS}health: {{interval: 60s}}\nscrape_interval: 60s\n"))
            .await;
    let Some(gateway) = gateway else { return };
    let connections = sims[0].stats().connections_accepted;
    for _ in 0..30 {
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        let body = "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream\":true,\"max_tokens\":8}";
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        client.write_all(head.as_bytes()).await.unwrap();
        let (mut bytes, mut more) = (Vec::new(), [0; 4096]);
        while !bytes.ends_with(b"\r\n0\r\n\r\n") {
            let n = tokio::time::timeout(PATIENCE, client.read(&mut more))
                .await
                .unwrap_or_else(|_| panic!("stuck after {:?}", String::from_utf8_lossy(&bytes)))
                .unwrap();
            bytes.extend_from_slice(&more[..n]);
            assert!(n > 0, "ended with {:?}", String::from_utf8_lossy(&bytes));
        }
    }
    gateway.idle().await;
    let worker = &gateway.workers().await[0];
    assert_eq!((&worker["requests_completed"], &worker["requests_failed"]), (&30.into(), &0.into()));
    assert!(gateway.metric("warmpath_errors_total{kind=\"disconnect\",source=\"client\"}").await < 0.5);
    let used = sims[0].stats().connections_accepted - connections;
    // One for each data thread, and now and then one because the last has not been put back yet.
    assert!(used <= 8, "{used} worker connections for 30 responses in a row");
}

#[tokio::test]
async fn a_killed_gateway_leaves_the_worker_as_it_was() {
    let sims = [sim(SimConfig::default()).await];
    let Some(gateway) = start(&urls(&sims), EVENT_STREAMS).await else { return };
    let mut stream = gateway.stream("hello", 100_000).await;
    eventually("the stream is the kernel's", || async {
        (gateway.metric("warmpath_relay_lent_total").await > 0.0).then_some(())
    })
    .await;
    let event = stream.next().await.expect("it goes on").expect("it is whole");
    assert!(event.starts_with(b"data: "), "{event:?}");
    gateway.signal(warmpath_tests::Signal::KILL);
    let (_, ended) = stream.rest().await;
    assert!(!ended, "a stream that was cut off does not look complete");
    // The programs went with the process: the worker answers the next gateway, past it again.
    let Some(gateway) = start(&urls(&sims), EVENT_STREAMS).await else {
        panic!("the kernel allowed it before")
    };
    relayed_to_the_end(&gateway).await;
}

/// A worker that asks its socket how much there is to read, as nginx does: a socket in a socket map does not tell. So
/// what was lent must be given back before the next request comes, and what is not lent must be as ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_asks_how_much_there_is_to_read_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            tokio::spawn(asks(socket));
        }
    });
    let config =
        "relay: {bypass: auto, sample: 0}\nhealth: {interval: 60s}\nscrape_interval: 60s\nthreads: 1\n";
    let Some(gateway) = start(&[format!("http://{address}")], config).await else { return };
    let mut client = Client::new(gateway.address);
    for _ in 0..20 {
        for path in ["/v1/completions", "/tokenize", "/v1/completions"] {
            let (body, ended) = client.get(path, &mut Random(1), false, None).await;
            assert!(ended && !body.is_empty(), "{path}: {body:?}");
        }
    }
    assert!(returns(&gateway, "end").await > 3.0, "streams go past the gateway");
}

async fn asks(socket: TcpStream) -> Option<()> {
    let mut request = Vec::new();
    loop {
        // A byte, then as many as there are said to be: zero is taken for "wait for the next readiness".
        let mut first = [0];
        socket.readable().await.ok()?;
        match socket.try_read(&mut first) {
            Ok(1) => request.push(first[0]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            _ => return None,
        }
        let more = rustix::io::ioctl_fionread(&socket).ok()? as usize;
        let mut rest = vec![0; more];
        if more > 0 {
            let n = socket.try_read(&mut rest).ok()?;
            request.extend(&rest[..n]);
        }
        assert!(more > 0, "a request is more than a byte, and it is sent in one piece");
        if !request.windows(4).any(|window| window == b"\r\n\r\n") {
            continue;
        }
        let is_stream = request.starts_with(b"POST /v1/");
        request.clear();
        let socket = &socket;
        let say = async |bytes: &[u8]| {
            socket.writable().await.ok()?;
            (socket.try_write(bytes).ok()? == bytes.len()).then_some(())
        };
        if !is_stream {
            say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await?;
            continue;
        }
        say(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            .await?;
        for _ in 0..10 {
            say(b"9\r\ndata: x\n\n\r\n").await?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        say(b"0\r\n\r\n").await?;
    }
}
