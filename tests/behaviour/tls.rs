//! TLS with clients and with workers.

use std::{net::SocketAddr, sync::Arc};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use vllm_sim::{Ending, Fault, FaultKind};
use warmpath_tests::{
    Authority, Gateway, Pair, Reply, SimHandle, TlsClient, eventually, open_over, request_over, sims, urls,
};

use crate::conformance::Worker;

async fn start(workers: &[String], config: &str) -> Gateway {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), config).unwrap();
    Gateway::start(workers, &["--config", file.path().to_str().unwrap()]).await
}

/// A gateway with a certificate of `authority`, in the files `server.pem` and `server.key`.
async fn gateway(authority: &Authority, sims: &[SimHandle], more: &str) -> Gateway {
    start(&urls(sims), &format!("tls: {{{}}}\n{more}", authority.server("server"))).await
}

async fn chat(client: &TlsClient, address: SocketAddr) -> std::io::Result<Reply> {
    let stream = client.connect(address).await?;
    let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}).to_string();
    let fields = [("content-type", "application/json")];
    Ok(request_over(stream, address, "POST", "/v1/chat/completions", &fields, body).await)
}

#[tokio::test]
async fn the_protocol_is_agreed_by_alpn_and_workers_are_told_of_https() {
    let (authority, worker) = (Authority::default(), Worker::start("HTTP/1.1 204 No Content\r\n\r\n").await);
    let gateway = start(&[worker.url()], &format!("tls: {{{}}}", authority.server("server"))).await;
    for (offered, agreed) in [
        (&["h2", "http/1.1"][..], Some(&b"h2"[..])),
        (&["http/1.1", "h2"], Some(b"h2")),
        (&["http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let client = authority.client(offered, None);
        let stream = client.connect(gateway.address).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed, "{offered:?}");
        if agreed != Some(b"h2") {
            let reply = request_over(stream, gateway.address, "GET", "/any", &[], "").await;
            assert_eq!(reply.status, 204);
            let seen = worker.take().join("\n");
            assert!(seen.contains("x-forwarded-proto: https\r\n"), "{seen}");
        }
    }
    assert!(authority.client(&["spdy/3"], None).connect(gateway.address).await.is_err(), "nothing in common");
    // A client may know of it before it is counted.
    for (result, count) in [("ok", 4.0), ("failed", 1.0)] {
        let handshakes = format!("warmpath_tls_handshakes_total{{result=\"{result}\"}}");
        eventually(result, || async { (gateway.metric(&handshakes).await >= count).then_some(()) }).await;
    }
}

#[tokio::test]
async fn a_stream_over_tls_is_the_workers_stream_and_is_copied() {
    let (authority, sims) = (Authority::default(), sims(1).await);
    let gateway = gateway(&authority, &sims, "relay: {copy: off}\n").await;
    let stream = authority.client(&[], None).connect(gateway.address).await.unwrap();
    let body = json!({"prompt": "x", "max_tokens": 50, "ignore_eos": true, "stream": true}).to_string();
    let fields = [("content-type", "application/json")];
    let mut stream = open_over(stream, gateway.address, "POST", "/v1/completions", &fields, body).await;
    let (text, whole) = stream.rest().await;
    assert!(whole && text.ends_with("data: [DONE]\n\n") && text.matches("data: ").count() > 5, "{text}");
    let path = |path: &str| format!("warmpath_relay_responses_total{{path=\"{path}\"}}");
    assert!((gateway.metric(&path("copy")).await - 1.0).abs() < f64::EPSILON);
    assert!(gateway.metric(&path("bypass")).await + gateway.metric(&path("splice")).await < 0.5);
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_tls_stream_is_missed_by_its_worker() {
    let (authority, sims) = (Authority::default(), sims(1).await);
    let gateway = gateway(&authority, &sims, "").await;
    let stream = authority.client(&[], None).connect(gateway.address).await.unwrap();
    let body = json!({"prompt": "x", "max_tokens": 100_000, "ignore_eos": true, "stream": true}).to_string();
    let fields = [("content-type", "application/json")];
    let mut stream = open_over(stream, gateway.address, "POST", "/v1/completions", &fields, body).await;
    stream.next().await.unwrap().unwrap();
    drop(stream);
    eventually("the worker gives up the request", || async {
        let stats = sims[0].stats();
        (stats.aborts == 1 && stats.generating == 0).then_some(())
    })
    .await;
    gateway.idle().await;
}

async fn shown(client: &TlsClient, gateway: &Gateway) -> CertificateDer<'static> {
    let stream = client.connect(gateway.address).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_the_next_client_and_a_wrong_pair_changes_nothing() {
    let (authority, sims) = (Authority::default(), sims(1).await);
    let gateway = gateway(&authority, &sims, "").await;
    let client = authority.client(&[], None);
    let mut held = client.connect(gateway.address).await.unwrap();
    let renewed = authority.issue(&["localhost"]);
    assert!(!renewed.is(&shown(&client, &gateway).await));
    authority.put("server", &renewed);
    eventually("the new certificate", || async { renewed.is(&shown(&client, &gateway).await).then_some(()) })
        .await;
    held.write_all(b"GET /version HTTP/1.1\r\nhost: g\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    held.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200", "the connection from before goes on");

    // The wrong key, and what is no key.
    let others = authority.issue(&["localhost"]);
    for (key, said) in
        [(others.key.as_str(), "is not the key of the first certificate"), ("nonsense", "no private key")]
    {
        let path = authority.write("server.key", key).display().to_string();
        eventually(said, || async {
            let output = gateway.output();
            output.lines().any(|line| line.contains(said) && line.contains(&path)).then_some(())
        })
        .await;
        assert!(renewed.is(&shown(&client, &gateway).await), "the old one stays");
    }
    let failed = "warmpath_tls_certificate_reloads_total{result=\"failed\"}";
    assert!((gateway.metric(failed).await - 2.0).abs() < f64::EPSILON, "each is said once");
    authority.put("server", &others);
    eventually("the right pair", || async { others.is(&shown(&client, &gateway).await).then_some(()) }).await;
}

#[tokio::test]
async fn where_a_client_ca_is_configured_a_client_without_its_certificate_is_refused() {
    let (authority, other, sims) = (Authority::default(), Authority::default(), sims(1).await);
    let server = authority.server("server");
    let ca = authority.path("ca.pem").display().to_string();
    let gateway =
        start(&urls(&sims), &format!("tls: {{{server}, client_ca: {ca}, min_version: '1.3'}}")).await;
    let pair = authority.issue(&["a client"]);
    assert_eq!(chat(&authority.client(&[], Some(&pair)), gateway.address).await.unwrap().status, 200);
    let of_another: Pair = other.issue(&["a client"]);
    for pair in [None, Some(&of_another)] {
        // With TLS 1.3 a client learns of it after its own side of the handshake.
        let refused = match authority.client(&[], pair).connect(gateway.address).await {
            Err(_) => true,
            Ok(mut stream) => {
                let _ = stream.write_all(b"GET /version HTTP/1.1\r\nhost: g\r\n\r\n").await;
                stream.read(&mut [0; 1]).await.is_err()
            }
        };
        assert!(refused, "{}", pair.is_some());
    }
}

#[tokio::test]
async fn a_handshake_may_not_take_longer_than_a_head() {
    let (authority, sims) = (Authority::default(), sims(1).await);
    let gateway = gateway(&authority, &sims, "timeouts: {head: 300ms}\n").await;
    let mut silent = TcpStream::connect(gateway.address).await.unwrap();
    let mut half = TcpStream::connect(gateway.address).await.unwrap();
    half.write_all(&[0x16, 3, 1]).await.unwrap();
    for socket in [&mut silent, &mut half] {
        let end = tokio::time::timeout(warmpath_tests::PATIENCE, socket.read(&mut [0; 1])).await;
        assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
    }
    let late = "warmpath_tls_handshakes_total{result=\"timeout\"}";
    eventually("both are counted", || async { (gateway.metric(late).await >= 2.0).then_some(()) }).await;
    // Nor is clear text answered.
    let mut clear = TcpStream::connect(gateway.address).await.unwrap();
    clear.write_all(b"GET / HTTP/1.1\r\nhost: g\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = clear.read_to_end(&mut said).await;
    assert!(!said.starts_with(b"HTTP"), "{said:?}");
    assert_eq!(chat(&authority.client(&[], None), gateway.address).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_start_with_a_wrong_pair_names_the_file_and_what_is_wrong() {
    let authority = Authority::default();
    let right = authority.server("server");
    authority.write("empty.pem", "");
    authority.write(
        "encrypted.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    authority.put("other", &authority.issue(&["localhost"]));
    for (wrong, said) in [
        (right.replace("server.pem", "none.pem"), "cannot read"),
        (right.replace("server.pem", "empty.pem"), "no certificate in it"),
        (right.replace("server.key", "server.pem"), "no private key in it"),
        (right.replace("server.key", "encrypted.key"), "the key is encrypted"),
        (right.replace("server.key", "other.key"), "is not the key of"),
        (format!("{right}, client_ca: {}", authority.path("empty.pem").display()), "empty.pem"),
        (format!("{right}, min_version: '1.1'"), "1.2"),
    ] {
        let file = authority.write("warmpath.yaml", &format!("tls: {{{wrong}}}"));
        let mut command = tokio::process::Command::new(warmpath_tests::binary());
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--worker",
            "http://127.0.0.1:1",
        ]);
        command.arg("--config").arg(file).kill_on_drop(true);
        let output = tokio::time::timeout(warmpath_tests::PATIENCE, command.output()).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(said) && text.contains("tls"), "{wrong}: {text}");
    }
}

/// Speaks TLS in front of a simulated worker.
async fn terminator(authority: &Authority, sim: &SimHandle) -> SocketAddr {
    let Pair { certificate, key, .. } = authority.issue(&["localhost"]);
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let (acceptor, sim) = (TlsAcceptor::from(Arc::new(config)), sim.addr());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut near = acceptor.accept(stream).await?;
                let mut far = TcpStream::connect(sim).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    address
}

#[tokio::test]
async fn a_worker_is_reached_over_tls_for_requests_and_for_questions_of_our_own() {
    let (authority, sims) = (Authority::default(), sims(1).await);
    authority.server("any");
    let (ca, port) =
        (authority.path("ca.pem").display().to_string(), terminator(&authority, &sims[0]).await.port());
    let config = format!(
        "workers: [{{url: 'https://127.0.0.1:{port}', name: w, tls: {{ca: {ca}, server_name: localhost}}}}]\n\
         tokenizers: {{default: worker}}\nrelay: {{copy: off}}\n"
    );
    let gateway = start(&[], &config).await;
    assert_eq!(gateway.workers().await[0]["url"], format!("https://127.0.0.1:{port}"));
    assert_eq!(gateway.chat("hello").await.status, 200);
    let mut stream = gateway.stream("hello", 30).await;
    assert!(stream.rest().await.1);
    let tokenised = "warmpath_tokenize_requests_total{result=\"exact\",source=\"worker\"}";
    assert!(gateway.metric(tokenised).await >= 1.0);
    assert!(
        (gateway.metric("warmpath_worker_scrape_failures_total{worker=\"w\"}").await).abs() < f64::EPSILON
    );
    assert!(
        (gateway.metric("warmpath_relay_responses_total{path=\"copy\"}").await - 2.0).abs() < f64::EPSILON
    );
    let mut stream = gateway.stream("hello", 100_000).await;
    stream.next().await.unwrap().unwrap();
    drop(stream);
    eventually("the worker is told", || async { (sims[0].stats().aborts == 1).then_some(()) }).await;
}

#[tokio::test]
async fn a_worker_whose_certificate_is_not_as_expected_gets_no_request() {
    let (authority, other, sims) = (Authority::default(), Authority::default(), sims(1).await);
    authority.server("any");
    other.server("any");
    let port = terminator(&authority, &sims[0]).await.port();
    for (ca, name) in [(other.path("ca.pem"), "localhost"), (authority.path("ca.pem"), "elsewhere.example")] {
        let ca = ca.display();
        let config = format!(
            "workers: [{{url: 'https://127.0.0.1:{port}', tls: {{ca: {ca}, server_name: {name}}}}}]\n\
             timeouts: {{queue: 100ms}}\n"
        );
        let gateway = start(&[], &config).await;
        assert_eq!(gateway.workers().await[0]["health"], "unhealthy");
        assert!(gateway.output().contains("invalid peer certificate"), "{}", gateway.output());
        let reply = gateway.chat("hello").await;
        assert!(matches!(reply.status, 502 | 503), "{}", reply.text());
    }
    assert_eq!(sims[0].stats().prompt_tokens, 0);
}

#[tokio::test]
async fn a_worker_that_dies_behind_the_head_of_a_stream_is_replaced_by_another_over_tls_as_well() {
    let (authority, sims) = (Authority::default(), sims(2).await);
    authority.server("any");
    let (ca, port) =
        (authority.path("ca.pem").display().to_string(), terminator(&authority, &sims[0]).await.port());
    let config = format!(
        "workers: [{{url: 'https://127.0.0.1:{port}', name: coded, tls: {{ca: {ca}, server_name: localhost}}}},\n\
         \x20 {{url: 'http://{}', name: plain}}]\nrouting: {{policy: round_robin}}\n",
        sims[1].addr()
    );
    let gateway = start(&[], &config).await;
    sims[0].set_fault(Fault::always(FaultKind::Die { after_events: 0, how: Ending::Fin }));
    for _ in 0..4 {
        let mut stream = gateway.stream("x", 4).await;
        assert_eq!(stream.header("x-warmpath-worker"), "plain");
        let (text, ended) = stream.rest().await;
        assert!(ended && text.ends_with("data: [DONE]\n\n") && !text.contains("error"), "{text}");
    }
    assert!(gateway.metric("warmpath_retries_total{reason=\"broken\"}").await >= 1.0);
}
