//! No key and no token is in anything that the gateway says: logs at every level, metrics, the admin port, the BPF maps,
//! answers to clients, its command line.

use std::{fs, process::Command};

use serde_json::json;
use tempfile::NamedTempFile;
use warmpath_tests::{Authority, Gateway, SimConfig, TlsClient, get, request, request_over, sim};

use crate::keys::digest;

/// Distinct from each other and from whatever else is said; `{name}-S3CRET`.
const CLIENT: &str = "sk-client-S3CRET";
const CLIENT_X: &str = "sk-other-client-S3CRET";
const WRONG: &str = "sk-unknown-S3CRET";
const WORKER: &str = "sk-worker-S3CRET";
const ADMIN: &str = "admin-token-S3CRET";
const ALL: [&str; 5] = [CLIENT, CLIENT_X, WRONG, WORKER, ADMIN];

fn yaml(config: &str) -> NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    fs::write(file.path(), config).unwrap();
    file
}

/// A secret, or so much of one that the rest is not worth much.
fn is_clean(what: &str, said: &str) {
    for secret in ALL {
        assert!(!said.contains(secret), "{secret} is in {what}: {said}");
    }
    assert!(!said.contains("S3CRET"), "a part of a secret is in {what}: {said}");
}

/// Over HTTP/2, whose libraries log what they read, too.
async fn over_http2(client: &TlsClient, gateway: &Gateway, key: &str) -> u16 {
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let stream = client.connect(gateway.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request =
        hyper::Request::get("https://localhost/v1/models").header("authorization", format!("Bearer {key}"));
    let response = sender.send_request(request.body(Full::<bytes::Bytes>::default()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    is_clean("an answer over HTTP/2", &format!("{:?}", response.headers()));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    is_clean("a body over HTTP/2", &String::from_utf8_lossy(&body));
    status
}

#[tokio::test]
async fn no_secret_is_in_anything_that_the_gateway_says() {
    let sim = sim(SimConfig { api_key: Some(WORKER.into()), ..SimConfig::default() }).await;
    let authority = Authority::default();
    let instance = format!("test-secrets-{}", std::process::id());
    let config = |more: &str| {
        format!(
            "tls: {{{}}}\nadmin_token: {ADMIN}\nworkers: [{{url: 'http://{}', api_key: {WORKER}}}]\n\
             keys:\n  - {{name: a, sha256: '{}', requests_per_second: 100}}\n  - {{name: b, sha256: '{}'}}\n\
             tokenizers: {{default: worker}}\n{more}",
            authority.server("server"),
            sim.addr(),
            digest(CLIENT),
            digest(CLIENT_X),
        )
    };
    let file = yaml(&config(""));
    let mut command = tokio::process::Command::new(warmpath_tests::binary());
    command.env("WARMPATH_LOG", "trace").args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.args(["--threads", "1", "--instance", &instance, "--config"]).arg(file.path());
    let gateway = Gateway::spawn(command).await;

    // Every way a secret may come in: right and wrong, in either field, over either protocol, served and refused.
    let client = authority.client(&["h2", "http/1.1"], None);
    let http1 = authority.client(&["http/1.1"], None);
    let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}).to_string();
    let bearer = |key: &str| format!("Bearer {key}");
    let (right, wrong) = (bearer(CLIENT), bearer(WRONG));
    for (fields, status) in [
        (&[("authorization", right.as_str())][..], 200),
        (&[("x-api-key", CLIENT_X)], 200),
        (&[("authorization", &wrong)], 401),
        (&[("x-api-key", WRONG)], 401),
        (&[("authorization", &right), ("x-api-key", WRONG), ("proxy-authorization", &wrong)], 200),
    ] {
        let stream = http1.connect(gateway.address).await.unwrap();
        let fields = [&[("content-type", "application/json")][..], fields].concat();
        let reply =
            request_over(stream, gateway.address, "POST", "/v1/chat/completions", &fields, body.clone())
                .await;
        assert_eq!(reply.status, status, "{fields:?}: {}", reply.text());
        is_clean("an answer", &format!("{:?} {}", reply.headers, reply.text()));
    }
    assert_eq!(over_http2(&client, &gateway, CLIENT).await, 200);
    assert_eq!(over_http2(&client, &gateway, WRONG).await, 401);

    // What operators see.
    let digests = ALL.map(digest);
    let token = bearer(ADMIN);
    let fields = [("authorization", token.as_str())];
    for path in [
        "/metrics",
        "/workers",
        "/guard",
        "/health",
        "/ready",
        "/config",
        "/stats",
        "/tenants",
        "/index",
        "/live",
        "/decisions",
        "/log-level",
        "/openapi.json",
        "/",
        "/page/main.js",
    ] {
        let reply = request(gateway.admin, "GET", path, &fields, "").await;
        assert_eq!(reply.status, 200, "{path}");
        let said = format!("{:?} {}", reply.headers, reply.text());
        is_clean(path, &said);
        // Nor what a short one could be guessed from.
        for (secret, digest) in ALL.iter().zip(&digests) {
            assert!(!said.contains(digest), "the digest of {secret} is in {path}: {said}");
        }
    }
    is_clean("a refusal of the admin port", &get(gateway.admin, "/workers").await.text());
    // A configuration that is wrong beside its secrets, and one that is right again.
    for more in ["tokenizerz: 1\n", "limits: {tries: many}\n", ""] {
        fs::write(file.path(), config(more)).unwrap();
        let reply = request(gateway.admin, "POST", "/admin/reload", &fields, "").await;
        assert_eq!(reply.status == 200, more.is_empty(), "{}", reply.text());
        is_clean("the answer to a reload", &reply.text());
    }

    let output = gateway.output();
    assert!(output.lines().any(|line| line.contains("TRACE")), "the log is as loud as it gets");
    is_clean("the log", &output);
    is_clean("the command line", &fs::read_to_string(format!("/proc/{}/cmdline", gateway.pid())).unwrap());
    for map in ["workers", "decisions", "flows", "prefixes", "instance"] {
        let mut maps = Command::new(warmpath_tests::binary());
        let output = maps.args(["maps", map, "--instance", &instance, "--json"]).output().unwrap();
        if !output.status.success() {
            println!("skipped: no map {map}: {}", String::from_utf8_lossy(&output.stderr).trim());
            continue;
        }
        let said = String::from_utf8(output.stdout).unwrap();
        is_clean(map, &said);
        // As bytes, too, which bpftool would show as numbers.
        let numbers = "S3CRET".bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(",");
        assert!(!said.replace([' ', '\n'], "").contains(&numbers), "{map}: {said}");
    }
}
