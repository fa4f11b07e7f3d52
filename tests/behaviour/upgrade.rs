//! A new `warmpath serve` of the same name takes over from the one that runs, and no request fails.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use rustix::process::{Pid, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    task::JoinSet,
};
use warmpath_tests::{Gateway, Signal, SimHandle, binary, eventually, get, random, sims, urls};

const BODY: &str =
    r#"{"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "ignore_eos": true}"#;

/// The command of a gateway that its successors repeat.
fn command(instance: &str, sims: &[SimHandle], more: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--threads", "2"]);
    command.args(["--instance", instance]).args(more);
    command.args(urls(sims).iter().flat_map(|url| ["--worker", url.as_str()]));
    command
}

/// Clients that send one request after the other until they are told to stop.
struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: JoinSet<()>,
}

impl Traffic {
    fn start(address: SocketAddr) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut clients = JoinSet::new();
        for keep_alive in [true, true, false, false] {
            clients.spawn(ask_again_and_again(address, keep_alive, stop.clone(), answered.clone()));
        }
        Self { stop, answered, clients }
    }

    /// Waits until so many more requests have been answered.
    async fn more(&self, requests: usize) {
        let wanted = self.answered.load(Relaxed) + requests;
        eventually("more answers", || async { (self.answered.load(Relaxed) >= wanted).then_some(()) }).await;
    }

    /// Panics if any request has failed.
    async fn end(mut self) {
        self.stop.store(true, Relaxed);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
    }
}

/// Uses a connection for as long as it is told that it may.
async fn ask_again_and_again(
    address: SocketAddr,
    keep_alive: bool,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
) {
    let mut open: Option<TcpStream> = None;
    while !stop.load(Relaxed) {
        let mut socket = match open.take() {
            Some(socket) => socket,
            None => TcpStream::connect(address).await.expect("somebody listens, always"),
        };
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: {connection}\r\n\
             Content-Length: {}\r\n\r\n{BODY}",
            BODY.len()
        );
        socket.write_all(request.as_bytes()).await.expect("the request is taken");
        let mut answer = Vec::new();
        while !is_whole(&answer) {
            let count = socket.read_buf(&mut answer).await.expect("the answer is not cut off");
            assert!(count > 0, "the connection ended: {:?}", String::from_utf8_lossy(&answer));
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        answered.fetch_add(1, Relaxed);
        if keep_alive && !answer.to_lowercase().contains("\r\nconnection: close\r\n") {
            open = Some(socket);
        }
    }
}

/// Whether the head and as much body as it promises are there.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    answer.len() >= head + 4 + length.expect("a unary answer has a length")
}

#[tokio::test]
async fn two_upgrades_under_traffic_and_open_streams_cost_no_request() {
    let sims = sims(2).await;
    let instance = format!("up-{:08x}", random());
    let mut first = Gateway::spawn(command(&instance, &sims, &[])).await;
    let traffic = Traffic::start(first.address);
    traffic.more(20).await;
    let mut streams = Vec::new();
    let mut olds = Vec::new();
    for _ in 0..2 {
        for _ in 0..3 {
            let mut stream = first.stream("a long answer", 400).await;
            stream.next().await.unwrap().unwrap();
            streams.push(stream);
        }
        let next = Gateway::spawn(command(&instance, &sims, &[])).await;
        assert_eq!((next.address, next.admin), (first.address, first.admin), "they are the same sockets");
        traffic.more(20).await;
        olds.push(std::mem::replace(&mut first, next));
    }
    assert_eq!(get(first.admin, "/ready").await.text(), "ready\n");
    for mut stream in streams {
        let (text, ended) = stream.rest().await;
        assert!(ended && text.ends_with("data: [DONE]\n\n"), "{text}");
    }
    for mut old in olds {
        assert_eq!(old.ended().await, Some(0));
        assert!(old.output().contains("the successor serves"), "{}", old.output());
    }
    traffic.more(20).await;
    traffic.end().await;
    // What the kernel gives to one process only has changed hands.
    let kernel_may = async |what: &str| {
        first.metric(&format!("warmpath_kernel_available{{capability=\"{what}\"}}")).await > 0.5
    };
    if kernel_may("steering").await {
        assert!(first.metric("warmpath_steering_connections_total{result=\"selected\"}").await > 0.5);
    }
    if kernel_may("pins").await {
        let maps = Command::new(binary())
            .args(["maps", "instance", "--instance", &instance])
            .output()
            .await
            .unwrap();
        let printed = String::from_utf8(maps.stdout).unwrap();
        assert!(printed.contains(&format!(" {} ", first.pid())), "{printed}");
    }
    assert!(!first.output().contains("WARN"), "{}", first.output());
}

#[tokio::test]
async fn a_successor_that_fails_leaves_everything_as_it_was() {
    let sims = sims(1).await;
    let instance = format!("up-{:08x}", random());
    let gateway = Gateway::spawn(command(&instance, &sims, &[])).await;
    let traffic = Traffic::start(gateway.address);
    // One that does not get as far as asking.
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("warmpath.yaml");
    std::fs::write(&path, "guard: {interfaces: [nosuch0]}\n").unwrap();
    let failing = command(&instance, &sims, &["--config", path.to_str().unwrap()]).output().await.unwrap();
    assert!(!failing.status.success());
    // One that goes away with the sockets in its hands, while it waits for a worker that says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let worker = format!("http://{}", silent.local_addr().unwrap());
    let mut dying = command(&instance, &sims, &["--worker", &worker]).kill_on_drop(true).spawn().unwrap();
    eventually("it has asked", || async { gateway.output().contains("a successor starts").then_some(()) })
        .await;
    dying.start_kill().unwrap();
    dying.wait().await.unwrap();
    traffic.more(20).await;
    traffic.end().await;
    let next = Gateway::spawn(command(&instance, &sims, &[])).await;
    assert_eq!(next.chat("hello").await.status, 200);
}

#[tokio::test]
async fn sigusr2_starts_a_successor() {
    let sims = sims(1).await;
    let instance = format!("up-{:08x}", random());
    let mut gateway = Gateway::spawn(command(&instance, &sims, &[])).await;
    let traffic = Traffic::start(gateway.address);
    traffic.more(10).await;
    gateway.signal(Signal::USR2);
    assert_eq!(gateway.ended().await, Some(0), "its successor serves");
    traffic.more(20).await;
    traffic.end().await;
    let pid = get(gateway.admin, "/metrics").await.text();
    assert!(pid.contains("warmpath_connections "), "the successor has the admin port, too");
    let successor = successor_of(&gateway.output());
    kill_process(Pid::from_raw(successor).unwrap(), Signal::TERM).unwrap();
    eventually("the successor ends", || async {
        TcpStream::connect(gateway.address).await.is_err().then_some(())
    })
    .await;
}

/// The process that the log names.
pub(crate) fn successor_of(output: &str) -> i32 {
    let line = output.lines().find(|line| line.contains("a successor was started")).expect("it is said");
    line.rsplit("pid=").next().unwrap().split_whitespace().next().unwrap().parse().expect("a number")
}

#[tokio::test]
async fn gateways_with_other_addresses_leave_each_other_alone() {
    let sims = sims(1).await;
    let instance = format!("up-{:08x}", random());
    let first = Gateway::spawn(command(&instance, &sims, &[])).await;
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let second = Gateway::spawn(command(&instance, &sims, &["--listen", &elsewhere.to_string()])).await;
    assert_ne!(first.address, second.address);
    assert!(second.output().contains("give this one a"), "{}", second.output());
    for gateway in [&first, &second] {
        assert_eq!(gateway.chat("hello").await.status, 200);
    }
    assert_eq!(get(first.admin, "/ready").await.text(), "ready\n");
}
