//! Redis as it is set up in production: with passwords, over TLS, as a cluster; and what `check` and `doctor` say of it.

use std::{path::Path, process::Output};

use tokio::process::Command;
use warmpath_tests::{Authority, Redis, Signal, binary, eventually, sims, urls};

use crate::shared_gateways::{config, explain, gateway, metric_is, write};

/// A deadline that holds on a busy machine.
const PATIENT: &str = "hints: {deadline: 1s}";

async fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binary()).args(arguments).output().await;
    let Output { status, stdout, stderr } = output.unwrap();
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What one of two gateways has sent, the other one finds.
async fn is_shared(configuration: &str) {
    let sims = sims(3).await;
    let config = write(configuration);
    let (a, b) = (gateway(&urls(&sims), &config, &[]).await, gateway(&urls(&sims), &config, &[]).await);
    for gateway in [&a, &b] {
        metric_is(gateway, "warmpath_shared_state{state=\"up\"}", 1.0).await;
        metric_is(gateway, "warmpath_shared_peers", 1.0).await;
    }
    let prompt = "A prompt that both of them get. ".repeat(100);
    let home = a.chat(&prompt).await.header("x-warmpath-worker").to_owned();
    eventually("a hint", || async {
        let explained = explain(&b, &prompt).await;
        let first = &explained["workers"][0];
        (first["match_kind"] == "hint" && first["worker"] == home.as_str()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_password_is_shown_and_a_wrong_one_is_named() {
    let Some(redis) = Redis::with("shared servers", &["--requirepass", "s3cret-of-redis"]).await else {
        return;
    };
    let url = redis.url();
    is_shared(&format!("shared: {{urls: ['{url}'], password: s3cret-of-redis, {PATIENT}}}\n")).await;
    let sims = sims(1).await;
    for wrong in ["password: wr0ng-one", "timeout: 1s"] {
        let file = write(&format!("workers: ['{}']\nshared: {{urls: ['{url}'], {wrong}}}\n", urls(&sims)[0]));
        let (code, said) = run(&["check", text(file.path())]).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("shared state: "), "{said}");
        assert!(!said.contains("wr0ng-one"), "{said}");
    }
}

#[tokio::test]
async fn names_and_times_are_as_configured_and_a_user_sees_its_own_keys_only() {
    let Some(redis) = Redis::start("shared servers").await else { return };
    let said = redis.ask(&["ACL", "SETUSER", "warm", "on", ">of-warm", "~edge:*", "&edge:*", "+@all"]).await;
    assert!(said.contains("+OK"), "{said}");
    let sims = sims(1).await;
    let password = write("of-warm\n");
    let config = write(&format!(
        "shared: {{urls: ['{}'], username: warm, password_file: '{}', key_prefix: 'edge:', gateway: edge-1,\n\
         \x20 hints: {{ttl: 77s}}, peer_ttl: 60s}}\n",
        redis.url(),
        text(password.path())
    ));
    let gateway = gateway(&urls(&sims), &config, &[]).await;
    metric_is(&gateway, "warmpath_shared_state{state=\"up\"}", 1.0).await;
    gateway.chat(&"A prompt of some length. ".repeat(100)).await;
    let keys = eventually("hints", || async {
        let keys = redis.ask(&["KEYS", "*"]).await;
        keys.contains("edge:p:").then_some(keys)
    })
    .await;
    let keys: Vec<_> = keys.lines().filter(|line| line.contains(':')).collect();
    assert!(keys.contains(&"edge:gateway:edge-1"), "{keys:?}");
    assert!(keys.iter().all(|key| key.starts_with("edge:")), "{keys:?}");
    let hint = keys.iter().find(|key| key.starts_with("edge:p:")).expect("a hint");
    let ttl = redis.ask(&["TTL", hint]).await;
    let seconds: i64 = ttl.trim().trim_start_matches(':').parse().expect("seconds");
    assert!((1..=77).contains(&seconds), "{seconds}");
    // A gateway of which nothing is heard for `peer_ttl`, and no shorter, is thought to be there.
    let mut other = crate::shared_gateways::gateway(&urls(&sims), &config, &[]).await;
    metric_is(&gateway, "warmpath_shared_peers", 1.0).await;
    other.signal(Signal::KILL);
    other.ended().await;
    let beats = "warmpath_shared_commands_total{result=\"ok\",use=\"load\"}";
    let now = gateway.metric(beats).await;
    eventually("more messages", || async { (gateway.metric(beats).await > now + 10.0).then_some(()) }).await;
    metric_is(&gateway, "warmpath_shared_peers", 1.0).await;
}

#[tokio::test]
async fn check_and_doctor_say_how_the_server_stands() {
    let Some(mut redis) = Redis::start("shared servers").await else { return };
    let sims = sims(1).await;
    let config = config(&redis, &format!("workers: ['{}']\n", urls(&sims)[0]));
    let file = text(config.path()).to_owned();
    let (code, said) = run(&["check", &file]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("shared state: Redis "), "{said}");
    let (_, said) = run(&["doctor", "--config", &file]).await;
    assert!(said.lines().any(|line| line.starts_with("ok") && line.contains("shared state")), "{said}");
    redis.kill().await;
    let (code, said) = run(&["check", &file]).await;
    assert_eq!(code, Some(1), "{said}");
    let (_, said) = run(&["doctor", "--config", &file]).await;
    assert!(said.lines().any(|line| line.starts_with("no") && line.contains("shared state")), "{said}");
}

#[tokio::test]
async fn over_tls_the_server_is_who_the_authority_says() {
    let (authority, other) = (Authority::default(), Authority::default());
    authority.server("redis");
    other.server("redis");
    let ca = authority.path("ca.pem");
    let arguments = |port: u16, _: &Path| {
        let mut arguments = vec!["--port".to_owned(), "0".to_owned()];
        let mut add = |name: &str, value: &str| arguments.extend([name.to_owned(), value.to_owned()]);
        add("--tls-port", &port.to_string());
        add("--tls-cert-file", text(&authority.path("redis.pem")));
        add("--tls-key-file", text(&authority.path("redis.key")));
        add("--tls-ca-cert-file", text(&ca));
        add("--tls-auth-clients", "no");
        arguments
    };
    let Some(redis) = Redis::on_port("shared servers", arguments).await else { return };
    let url = format!("rediss://localhost:{}", redis.address().expect("a port").port());
    is_shared(&format!("shared: {{urls: ['{url}'], ca: '{}', {PATIENT}}}\n", text(&ca))).await;
    let sims = sims(1).await;
    let stranger = other.path("ca.pem");
    let config = write(&format!(
        "workers: ['{}']\nshared: {{urls: ['{url}'], ca: '{}'}}\n",
        urls(&sims)[0],
        text(&stranger)
    ));
    let (code, said) = run(&["check", text(config.path())]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.to_lowercase().contains("certificate"), "{said}");
}

#[tokio::test]
async fn a_cluster_of_three_is_shared_like_one_server() {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let arguments = |port: u16, directory: &Path| {
            let bus = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
            let config = directory.join("nodes.conf");
            [
                ("--port", port.to_string()),
                ("--cluster-enabled", "yes".to_owned()),
                ("--cluster-config-file", text(&config).to_owned()),
                ("--cluster-port", bus.expect("a free port").port().to_string()),
                ("--cluster-announce-ip", "127.0.0.1".to_owned()),
            ]
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect()
        };
        let Some(node) = Redis::on_port("shared servers", arguments).await else { return };
        nodes.push(node);
    }
    // 16,384 slots over three nodes.
    for (node, (first, last)) in nodes.iter().zip([(0, 5_460), (5_461, 10_922), (10_923, 16_383)]) {
        let said = node.ask(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]).await;
        assert!(said.contains("+OK"), "{said}");
    }
    let first = nodes[0].address().expect("a port");
    let bus = |text: &str| {
        let myself = text.lines().find(|line| line.contains("myself")).expect("it knows itself").to_owned();
        let address = myself.split(' ').nth(1).expect("an address").to_owned();
        address.split_once('@').expect("a bus").1.split(',').next().expect("a port").to_owned()
    };
    let first_bus = bus(&nodes[0].ask(&["CLUSTER", "NODES"]).await);
    for node in &nodes[1..] {
        let (ip, port) = (first.ip().to_string(), first.port().to_string());
        let said = node.ask(&["CLUSTER", "MEET", &ip, &port, &first_bus]).await;
        assert!(said.contains("+OK"), "{said}");
    }
    for node in &nodes {
        eventually("the cluster agrees", || async {
            let info = node.ask(&["CLUSTER", "INFO"]).await;
            (info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")).then_some(())
        })
        .await;
    }
    let seeds: Vec<_> = nodes[..2].iter().map(|node| format!("'{}'", node.url())).collect();
    is_shared(&format!("shared: {{urls: [{}], cluster: on, {PATIENT}}}\n", seeds.join(", "))).await;
    let mut holders = 0;
    for node in &nodes {
        holders += i32::from(node.ask(&["KEYS", "warmpath:p:*"]).await.contains("warmpath:p:"));
    }
    assert!(holders >= 2, "keys lie on several nodes");
}
