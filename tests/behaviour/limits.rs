//! Every limit gives a clear answer.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use warmpath_tests::{Gateway, eventually, request, sims, urls};

async fn gateway(config: &str) -> (Vec<warmpath_tests::SimHandle>, Gateway) {
    let sims = sims(1).await;
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), config).unwrap();
    let gateway = Gateway::start(&urls(&sims), &["--config", file.path().to_str().unwrap()]).await;
    (sims, gateway)
}

/// What the gateway says on `socket` until it closes it.
async fn last_words(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer is as good an end as any.
    let _ = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut bytes))
        .await
        .expect("it closes");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_by_its_declared_length_and_by_its_bytes() {
    let (_sims, gateway) = gateway("limits: {body_bytes: 10KiB}\n").await;
    let fits = format!("{{\"prompt\":\"{}\",\"max_tokens\":1}}", "x".repeat(10_000));
    let json = [("content-type", "application/json")];
    assert_eq!(request(gateway.address, "POST", "/v1/completions", &json, fits).await.status, 200);
    let too_long = format!("{{\"prompt\":\"{}\"}}", "x".repeat(11_000));
    let reply = request(gateway.address, "POST", "/v1/completions", &[], too_long).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (413, &"request_too_large".into()));
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
    for _ in 0..3 {
        socket.write_all(chunk.as_bytes()).await.unwrap();
    }
    assert!(last_words(&mut socket).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn a_head_above_the_limit_is_refused() {
    let (_sims, gateway) = gateway("").await;
    let reply = request(gateway.address, "GET", "/version", &[("x-long", &"x".repeat(50_000))], "").await;
    assert_eq!(reply.status, 200, "50 kB of head are allowed");
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!("GET /version HTTP/1.1\r\nhost: g\r\nx-long: {}\r\n\r\n", "x".repeat(70_000));
    let _ = socket.write_all(head.as_bytes()).await;
    assert!(last_words(&mut socket).await.starts_with("HTTP/1.1 431 "));
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let many = "x-many: 1\r\n".repeat(101);
    let _ = socket.write_all(format!("GET /version HTTP/1.1\r\n{many}\r\n").as_bytes()).await;
    assert!(last_words(&mut socket).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn a_head_that_trickles_is_cut_off_and_an_idle_connection_is_not() {
    let (_sims, gateway) = gateway("timeouts: {head: 300ms, keep_alive: 1m}\n").await;
    let mut idle = TcpStream::connect(gateway.address).await.unwrap();
    let mut slow = TcpStream::connect(gateway.address).await.unwrap();
    slow.write_all(b"GET /ver").await.unwrap();
    let words = last_words(&mut slow).await;
    assert!(words.starts_with("HTTP/1.1 408 ") && words.contains("timeouts.head"), "{words}");
    idle.write_all(b"GET /version HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(last_words(&mut idle).await.starts_with("HTTP/1.1 200 "));
    assert!(gateway.metric("warmpath_errors_total{kind=\"head_timeout\",source=\"client\"}").await >= 1.0);
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_the_keep_alive_time() {
    let (_sims, gateway) = gateway("timeouts: {head: 100ms, keep_alive: 300ms}\n").await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    assert_eq!(last_words(&mut socket).await, "");
}

#[tokio::test]
async fn a_body_that_pauses_for_too_long_is_given_up() {
    let (_sims, gateway) = gateway("timeouts: {body_idle: 200ms}\n").await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 100\r\n\r\n{";
    socket.write_all(head.as_bytes()).await.unwrap();
    let words = last_words(&mut socket).await;
    assert!(words.starts_with("HTTP/1.1 408 ") && words.contains("timeouts.body_idle"), "{words}");
}

#[tokio::test]
async fn connections_above_the_limit_are_told_so() {
    let (_sims, gateway) = gateway("limits: {connections: 3}\n").await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        socket.write_all(b"GET /version HTTP/1.1\r\nhost: g\r\n\r\n").await.unwrap();
        let mut byte = [0];
        socket.read_exact(&mut byte).await.unwrap();
        held.push(socket);
    }
    let mut one_more = TcpStream::connect(gateway.address).await.unwrap();
    let words = last_words(&mut one_more).await;
    assert!(words.starts_with("HTTP/1.1 503 ") && words.contains("too_many_connections"), "{words}");
    let (head, body) = words.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())), "{words}");
    held.pop();
    eventually("a place is free again", || async {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        socket.write_all(b"GET /version HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n").await.ok()?;
        last_words(&mut socket).await.starts_with("HTTP/1.1 200 ").then_some(())
    })
    .await;
}

#[tokio::test]
async fn connections_are_refused_before_file_descriptors_run_out() {
    const DESCRIPTORS: usize = 400;
    let sims = sims(1).await;
    let mut command = tokio::process::Command::new("sh");
    command
        .args(["-c", &format!("ulimit -n {DESCRIPTORS} && exec \"$0\" \"$@\"")])
        .arg(warmpath_tests::binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--threads", "2"]);
    command.args([
        "--instance",
        &format!("files-{:08x}", warmpath_tests::random()),
        "--worker",
        &urls(&sims)[0],
    ]);
    let gateway = Gateway::spawn(command).await;
    let said = gateway.output();
    assert!(said.contains("limits.connections") && said.contains("LimitNOFILE"), "{said}");

    let ask = b"GET /version HTTP/1.1\r\nhost: g\r\n\r\n";
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..DESCRIPTORS {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        socket.write_all(ask).await.unwrap();
        let mut status = [0; 12];
        socket.read_exact(&mut status).await.unwrap();
        match &status {
            b"HTTP/1.1 200" => held.push(socket),
            b"HTTP/1.1 503" => refused += 1,
            other => panic!("{}", String::from_utf8_lossy(other)),
        }
    }
    // Three of four, within what health checks and the like may hold.
    assert_eq!((held.len(), refused), (DESCRIPTORS / 4 * 3, DESCRIPTORS / 4));
    assert!(gateway.workers().await[0]["health"] == "healthy", "the worker is not to blame");
}

#[tokio::test]
async fn memory_of_a_busy_time_goes_back_in_a_quiet_one() {
    const PIECE: usize = 64 * 1024;
    const SENDERS: usize = 300;
    let (_sims, gateway) = gateway("kv_events: {mode: off}\n").await;
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 1024
    };
    let before = resident();
    // Pieces that are no mappings of their own: the allocator keeps what was freed of them.
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: {}\r\n\r\n", PIECE + 1);
    let mut senders = Vec::new();
    for _ in 0..SENDERS {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&vec![b'x'; PIECE]).await.unwrap();
        senders.push(socket);
    }
    let held = (SENDERS * PIECE) as f64;
    eventually("the bodies are there", || async {
        (gateway.metric("warmpath_request_body_bytes").await >= held).then_some(())
    })
    .await;
    let busy = resident();
    assert!(busy > before + SENDERS * PIECE / 2, "{before} then {busy}");
    drop(senders);
    eventually("it is given back", || async { (resident() < usize::midpoint(before, busy)).then_some(()) })
        .await;
}
