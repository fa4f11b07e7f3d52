//! Bodies that the kernel moves, one property at a time; `relay_stress` sends random ones. Some workers here speak raw
//! TCP, because what is tested is how they cut their bytes. Needs root; says "skipped: why" without.

mod pace;
mod reading;
mod room;
mod turns;
mod watchdog;

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
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

/// Reads one request into `request`, as a worker: a head alone, or with a JSON body. None at the connection's end.
async fn read_request(socket: &mut TcpStream, request: &mut Vec<u8>) -> Option<()> {
    request.clear();
    while !request.ends_with(b"}") && !request.ends_with(b"\r\n\r\n") {
        if socket.read_buf(request).await.ok()? == 0 {
            return None;
        }
    }
    Some(())
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

/// A client over one connection, for as long as that lasts.
struct Client {
    address: SocketAddr,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        Self { address, sender: None }
    }

    async fn sender(&mut self) -> &mut SendRequest<Full<Bytes>> {
        if self.sender.as_ref().is_none_or(SendRequest::is_closed) {
            let stream = TcpStream::connect(self.address).await.expect("the gateway listens");
            stream.set_nodelay(true).expect("a socket");
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("no IO yet");
            tokio::spawn(connection);
            self.sender = Some(sender);
        }
        self.sender.as_mut().expect("just made")
    }

    /// The whole body.
    async fn get(&mut self, path: &str) -> Bytes {
        let body = Full::new(Bytes::from_static(b"{\"prompt\":\"x\",\"stream\":true}"));
        let request = Request::post(path).header("host", "g").body(body).expect("a request");
        let sender = self.sender().await;
        let answer = async {
            sender.ready().await?;
            sender.send_request(request).await?.into_body().collect().await
        };
        let body = tokio::time::timeout(PATIENCE, answer).await.expect("an answer");
        body.unwrap_or_else(|error| panic!("{path}: {error}")).to_bytes()
    }
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
