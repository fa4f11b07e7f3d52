//! Who may use the operators' port.

use tempfile::NamedTempFile;
use warmpath_tests::{Authority, Gateway, get, request, request_over, sims, urls};

const TOKEN: &str = "t0ken-of-the-operators";

fn yaml(config: &str) -> NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), config).unwrap();
    file
}

#[tokio::test]
async fn with_a_token_the_port_answers_who_shows_it() {
    let sims = sims(1).await;
    let token = yaml(&format!("{TOKEN}\n"));
    let config = yaml(&format!("admin_token_file: {}\n", token.path().display()));
    let gateway = Gateway::start(&urls(&sims), &["--config", config.path().to_str().unwrap()]).await;
    assert_eq!(get(gateway.admin, "/health").await.status, 200);
    assert_eq!(get(gateway.admin, "/ready").await.status, 200);
    let right = format!("Bearer {TOKEN}");
    for (method, path) in
        [("GET", "/metrics"), ("GET", "/workers"), ("GET", "/guard"), ("POST", "/admin/reload")]
    {
        for fields in [&[][..], &[("authorization", "Bearer wrong")], &[("authorization", TOKEN)]] {
            let reply = request(gateway.admin, method, path, fields, "").await;
            assert_eq!(
                (reply.status, reply.header("www-authenticate")),
                (401, "Bearer"),
                "{path} {fields:?}"
            );
        }
        let reply = request(gateway.admin, method, path, &[("authorization", &right)], "").await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    }
    // A new one takes no restart.
    std::fs::write(config.path(), "admin_token: another-token\nadmin_open_metrics: true\n").unwrap();
    let reload = async |token: &str| {
        let token = format!("Bearer {token}");
        request(gateway.admin, "POST", "/admin/reload", &[("authorization", &token)], "").await.status
    };
    assert_eq!(reload(TOKEN).await, 200);
    assert_eq!((reload(TOKEN).await, reload("another-token").await), (401, 200));
    assert_eq!(get(gateway.admin, "/metrics").await.status, 200);
}

#[tokio::test]
async fn the_token_may_come_by_the_environment() {
    let sims = sims(1).await;
    let mut command = tokio::process::Command::new(warmpath_tests::binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--threads", "1"]);
    command.args(["--instance", &format!("test-token-{}", std::process::id()), "--worker", &urls(&sims)[0]]);
    let gateway = Gateway::spawn({
        command.env("WARMPATH_ADMIN_TOKEN", TOKEN);
        command
    })
    .await;
    assert_eq!(get(gateway.admin, "/workers").await.status, 401);
    let right = format!("Bearer {TOKEN}");
    assert_eq!(request(gateway.admin, "GET", "/workers", &[("authorization", &right)], "").await.status, 200);
}

#[tokio::test]
async fn without_a_token_no_strange_page_may_ask() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let ask = async |fields: &[(&str, &str)]| {
        request(gateway.admin, "POST", "/admin/reload", fields, "").await.status
    };
    assert_eq!(ask(&[]).await, 200);
    assert_eq!(ask(&[("origin", "http://elsewhere.example")]).await, 403);
}

#[test]
fn a_port_that_others_can_reach_is_refused_without_a_token() {
    let start = |config: &str| {
        let file = yaml(&format!("listen: 127.0.0.1:0\nworkers: ['http://127.0.0.1:1']\n{config}"));
        let mut command = std::process::Command::new(warmpath_tests::binary());
        command.args(["serve", "--config"]).arg(file.path()).output().unwrap()
    };
    for address in ["0.0.0.0:0", "'[::]:0'", "192.0.2.1:0"] {
        let output = start(&format!("admin: {address}\n"));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{address}");
        for word in ["admin", "admin_token", "client_ca", "127.0.0.1"] {
            assert!(said.contains(word), "{address}: {said}");
        }
    }
}

#[tokio::test]
async fn an_operator_can_be_known_by_a_certificate() {
    let (authority, sims) = (Authority::default(), sims(1).await);
    let server = authority.server("admin");
    let ca = authority.path("ca.pem").display().to_string();
    let config = yaml(&format!("admin: 0.0.0.0:0\nadmin_tls: {{{server}, client_ca: {ca}}}\n"));
    let mut command = tokio::process::Command::new(warmpath_tests::binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--threads", "1", "--worker", &urls(&sims)[0]]);
    command.args(["--instance", &format!("test-mtls-{}", std::process::id()), "--config"]).arg(config.path());
    let gateway = Gateway::spawn(command).await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], gateway.admin.port()));
    let pair = authority.issue(&["an operator"]);
    // One that says nothing holds up nobody.
    let _silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let stream = authority.client(&[], Some(&pair)).connect(address).await.unwrap();
    assert_eq!(request_over(stream, address, "GET", "/workers", &[], "").await.status, 200);
    let refused = match authority.client(&[], None).connect(address).await {
        Err(_) => true,
        Ok(mut stream) => {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let _ = stream.write_all(b"GET /health HTTP/1.1\r\nhost: g\r\n\r\n").await;
            stream.read(&mut [0; 1]).await.is_err()
        }
    };
    assert!(refused);
}
