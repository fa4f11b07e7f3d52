//! Requests and responses that other proxies got wrong, as bytes: what is refused, what is served, and that a worker only
//! ever gets requests that every reader takes for the same.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use warmpath_tests::{Gateway, PATIENCE};

/// A worker that answers each request with `response` and keeps what it was sent, the gateway's own questions aside.
pub(crate) struct Worker {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Worker {
    pub(crate) async fn start(response: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let all = requests.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(answer(socket, response, all.clone()));
            }
        });
        Self { address, requests }
    }

    pub(crate) async fn gateway(&self) -> Gateway {
        Gateway::start(&[self.url()], &[]).await
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

async fn answer(
    mut socket: TcpStream,
    response: &'static str,
    requests: Arc<Mutex<Vec<String>>>,
) -> Option<()> {
    let mut bytes = Vec::new();
    loop {
        let request = loop {
            if let Some(length) = whole(&bytes) {
                break String::from_utf8_lossy(&bytes.drain(..length).collect::<Vec<_>>()).into_owned();
            }
            if socket.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        };
        if request.contains("\r\nuser-agent: warmpath/") {
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.ok()?;
            continue;
        }
        requests.lock().unwrap().push(request);
        socket.write_all(response.as_bytes()).await.ok()?;
        if response.contains("onnection: close") || response.starts_with("HTTP/1.0") {
            return None;
        }
    }
}

/// The length of the first request in `bytes`, if it is whole, by the strictest reading.
fn whole(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let total = end + length.unwrap_or(0);
    (bytes.len() >= total).then_some(total)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Sends bytes and returns all that comes, and whether the connection was closed behind it. Silence ends it.
async fn exchange(gateway: &Gateway, request: &str) -> (String, bool) {
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let patience = if answer.is_empty() { PATIENCE } else { Duration::from_millis(150) };
        match timeout(patience, socket.read_buf(&mut answer)).await {
            Ok(Ok(0) | Err(_)) => return (String::from_utf8_lossy(&answer).into_owned(), true),
            Ok(Ok(_)) => {}
            Err(_) => return (String::from_utf8_lossy(&answer).into_owned(), false),
        }
    }
}

/// The status codes in an answer.
fn statuses(answer: &str) -> Vec<u16> {
    let lines = answer.split("\r\n").flat_map(|line| line.split("ok"));
    lines.filter_map(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()).collect()
}

#[tokio::test]
async fn what_two_servers_may_read_differently_is_refused_and_no_worker_sees_it() {
    let worker = Worker::start(OK).await;
    let gateway = worker.gateway().await;
    let cases = [
        (
            "two lengths",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            400,
        ),
        ("a list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", 400),
        ("a negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", 400),
        ("a signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", 400),
        (
            "a length beyond all numbers",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
            400,
        ),
        ("no number", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: five\r\n\r\nhello", 400),
        (
            "chunked, identity",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 400),
        ("xchunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (
            "vertical tab",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "gzip, chunked",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            501,
        ),
        (
            "chunked twice",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            501,
        ),
        ("chunked in 1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("a folded line", "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
        ("white space before the colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        ("white space before a field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
        ("a bare CR", "GET / HTTP/1.1\r\nHost: a\r\n\rX: b\r\n\r\n", 400),
        ("a control character", "GET / HTTP/1.1\r\nHost: a\r\nX: t\x07\r\n\r\n", 400),
        ("a zero byte", "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("a name that is none", "GET / HTTP/1.1\r\nHost: a\r\nX[]: b\r\n\r\n", 400),
        ("no host", "GET / HTTP/1.1\r\nX: b\r\n\r\n", 400),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("a host that is none", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("no version", "GET / \r\n\r\n", 400),
        ("another version", "GET / HTTP/9.9\r\nHost: a\r\n\r\n", 400),
        ("two words in front", "Extra lineGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("a host as the target", "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("another scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("a tunnel", "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (
            "another expectation",
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: more\r\nContent-Length: 5\r\n\r\nhello",
            417,
        ),
    ];
    for (name, request, status) in cases {
        let (answer, closed) = exchange(&gateway, request).await;
        assert_eq!(statuses(&answer), [status], "{name}: {answer}");
        assert!(closed || status == 405, "{name}: the connection is open");
    }
    assert_eq!(worker.take(), Vec::<String>::new());
}

#[tokio::test]
async fn broken_chunks_are_refused_and_no_worker_sees_them() {
    let worker = Worker::start(OK).await;
    let gateway = worker.gateway().await;
    for body in [
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        ";a\r\n0\r\n\r\n",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let (answer, closed) = exchange(&gateway, &request).await;
        assert_eq!((statuses(&answer), closed), (vec![400], true), "{body:?}: {answer}");
        assert!(answer.contains("request_incomplete"), "{body:?}: {answer}");
    }
    assert_eq!(worker.take(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_unusual_and_right_is_served_and_reaches_the_worker_in_one_form() {
    let worker = Worker::start(OK).await;
    let gateway = worker.gateway().await;
    let chunked = "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    // Request, statuses, whether the connection stays, and what the worker's request starts and ends with.
    let cases = [
        ("GET / HTTP/1.1\r\nhoSt:\ta\r\nempty:\r\n\r\n".to_owned(), &[200][..], true, "GET / HTTP/1.1\r\n", ""),
        ("GET / HTTP/1.1\nHost: a\nX: y\n\n".into(), &[200], true, "GET / HTTP/1.1\r\n", ""),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), &[200], true, "GET / HTTP/1.1\r\n", ""),
        ("GET http://b/x?y HTTP/1.1\r\nHost: a\r\n\r\n".into(), &[200], true, "GET /x?y HTTP/1.1\r\n", ""),
        ("GET //v1/models HTTP/1.1\r\nHost: a\r\n\r\n".into(), &[200], true, "GET //v1/models HTTP/1.1\r\n", ""),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n".into(), &[200], true, "OPTIONS * HTTP/1.1\r\n", ""),
        ("GET / HTTP/1.0\r\n\r\n".into(), &[200], false, "GET / HTTP/1.1\r\n", ""),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".into(), &[200], true, "GET / HTTP/1.1\r\n", ""),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".into(), &[200], false, "GET / HTTP/1.1\r\n", ""),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".into(),
            &[200],
            true,
            "GET / HTTP/1.1\r\n",
            "",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\nhello".into(),
            &[200],
            true,
            "POST / HTTP/1.1\r\n",
            "hello",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello".into(),
            &[100, 200],
            true,
            "POST / HTTP/1.1\r\n",
            "hello",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello".into(),
            &[200],
            true,
            "POST / HTTP/1.1\r\n",
            "hello",
        ),
        (format!("{chunked}5;a=\"b\"\r\nhello\r\n0\r\n\r\n"), &[200], true, "POST /c HTTP/1.1\r\n", "hello"),
        (
            format!("{chunked}5\r\nhello\r\n0\r\nX-T: 1\r\nContent-Length: 9\r\n\r\n"),
            &[200],
            true,
            "POST /c HTTP/1.1\r\n",
            "hello",
        ),
        // Both lengths: the chunks count, and what follows on that connection is not believed.
        (
            "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".into(),
            &[200],
            false,
            "POST /c HTTP/1.1\r\n",
            "hello",
        ),
        (
            "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".into(),
            &[200],
            false,
            "POST /c HTTP/1.1\r\n",
            "hello",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nx_y: 1\r\nX-UPPER: 2\r\n\r\n".into(), &[200], true, "GET / HTTP/1.1\r\n", ""),
    ];
    for (request, expected, stays, start, end) in cases {
        let (answer, closed) = exchange(&gateway, &request).await;
        assert_eq!((statuses(&answer), !closed), (expected.to_vec(), stays), "{request:?}: {answer}");
        let seen = worker.take();
        let [seen] = &seen[..] else { panic!("{request:?}: the worker saw {seen:?}") };
        assert!(seen.starts_with(start) && seen.ends_with(end), "{request:?}: {seen:?}");
        is_well_formed(seen);
    }
}

/// One `host`, one length if there is a body and no other framing, CRLF everywhere, nothing of one connection.
fn is_well_formed(request: &str) {
    let (head, body) = request.split_once("\r\n\r\n").expect("a head");
    let fields: Vec<_> =
        head.split("\r\n").skip(1).map(|line| line.split_once(':').expect("a field")).collect();
    let count = |name: &str| fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name)).count();
    assert_eq!(count("host"), 1, "{request:?}");
    assert_eq!(count("content-length"), usize::from(!body.is_empty()), "{request:?}");
    for name in ["transfer-encoding", "connection", "upgrade", "expect", "te", "trailer", "keep-alive"] {
        assert_eq!(count(name), 0, "{name}: {request:?}");
    }
    let bare = head.replace("\r\n", "");
    assert!(!bare.contains(['\r', '\n', '\0']), "{request:?}");
}

#[tokio::test]
async fn half_a_request_is_waited_for_and_pipelined_ones_are_answered_in_order() {
    let worker = Worker::start(OK).await;
    let gateway = worker.gateway().await;
    let request = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    for cut in 1..request.len() {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        socket.write_all(&request.as_bytes()[..cut]).await.unwrap();
        let mut answer = Vec::new();
        let early = timeout(Duration::from_millis(5), socket.read_buf(&mut answer)).await;
        assert!(early.is_err(), "an answer to {:?}", &request[..cut]);
        socket.write_all(&request.as_bytes()[cut..]).await.unwrap();
        while !answer.ends_with(b"\r\n\r\nok") {
            let read = timeout(PATIENCE, socket.read_buf(&mut answer)).await.expect("an answer").unwrap();
            assert!(read > 0, "cut at {cut}: {:?}", String::from_utf8_lossy(&answer));
        }
    }
    assert_eq!(worker.take().len(), request.len() - 1);

    let (answer, _) = exchange(&gateway, &request.repeat(20)).await;
    assert_eq!(statuses(&answer), [200; 20], "{answer}");
    assert_eq!(worker.take().len(), 20);
}

/// What the client gets for a worker's response: status, body, and whether the body was complete.
async fn relayed(method: &str, response: &'static str) -> (u16, String, bool) {
    let worker = Worker::start(response).await;
    let gateway = worker.gateway().await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let request = format!("{method} /v1/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let ended = timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("an end");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let last = answer.rfind("HTTP/1.1 ").expect("a status line");
    let (head, body) = answer[last..].split_once("\r\n\r\n").expect("a head");
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    let chunked = head.contains("transfer-encoding: chunked");
    assert!(!(chunked && length.is_some()), "{answer}");
    let whole = ended.is_ok()
        && if chunked {
            body.ends_with("0\r\n\r\n")
        } else {
            length.is_none_or(|length| length == body.len())
        };
    let status = head["http/1.1 ".len()..][..3].parse().unwrap();
    (status, body.to_owned(), whole)
}

#[tokio::test]
async fn a_workers_response_is_passed_on_whole_or_visibly_not() {
    let whole = |status, body: &str| (status, body.to_owned(), true);
    assert_eq!(relayed("GET", OK).await, whole(200, "ok"));
    assert_eq!(
        relayed(
            "GET",
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        )
        .await,
        whole(200, "ok")
    );
    assert_eq!(relayed("GET", "HTTP/1.1 204 No Content\r\n\r\n").await, whole(204, ""));
    assert_eq!(relayed("GET", "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n").await, whole(304, ""));
    assert_eq!(
        relayed("GET", "HTTP/1.1 200 OK\r\nX_Y: 1\r\ncOnTeNt-LeNgTh: 2\r\n\r\nok").await,
        whole(200, "ok")
    );
    assert_eq!(relayed("GET", "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nto the end").await.0, 200);
    let head = relayed("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").await;
    assert_eq!((head.0, &head.1[..]), (200, ""));
    let chunks =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nx-trailer: 1\r\n\r\n";
    let (status, body, is_whole) = relayed("GET", chunks).await;
    assert!(status == 200 && is_whole && body.contains("\r\nok\r\n"), "{status} {body:?}");
}

#[tokio::test]
async fn a_workers_response_of_two_minds_is_a_fault_of_the_worker() {
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\n folded: 1\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
        "not HTTP at all\r\n\r\n",
    ] {
        let (status, body, whole) = relayed("GET", response).await;
        assert_eq!((status, whole), (502, true), "{response:?}: {body}");
        assert!(body.contains("server_error"), "{response:?}: {body}");
    }
    // Its head was passed on before the defect came.
    for response in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\nok",
    ] {
        let (status, body, whole) = relayed("GET", response).await;
        assert_eq!((status, whole), (200, false), "{response:?}: {body}");
    }
}
