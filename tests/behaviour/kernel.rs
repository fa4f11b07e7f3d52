//! What the gateway does with the kernel, as an operator sees it. Needs root and bpffs; says "skipped: why" without.

use std::process::{Command, Output};

use serde_json::{Value, json};
use tokio::net::TcpStream;
use warmpath_tests::{Gateway, Signal, SimHandle, eventually, request, sims, urls};

fn run(program: &str, args: &[&str]) -> std::io::Result<Output> {
    Command::new(program).args(args).output()
}

/// A gateway with pins of its own, or why there can be none here.
async fn pinned(sims: &[SimHandle], instance: &str) -> Result<Gateway, String> {
    pinned_with(sims, instance, &[]).await
}

async fn pinned_with(sims: &[SimHandle], instance: &str, args: &[&str]) -> Result<Gateway, String> {
    let gateway = Gateway::start(&urls(sims), &[&["--instance", instance], args].concat()).await;
    let output = gateway.output();
    let pins = output.lines().find(|line| line.contains("pins")).unwrap_or_default().trim().to_owned();
    if pins.contains("yes") { Ok(gateway) } else { Err(pins) }
}

#[tokio::test]
async fn the_workers_map_has_named_fields_in_bpftool_and_rows_in_warmpath_maps() {
    let sims = sims(2).await;
    let instance = format!("test-maps-{}", std::process::id());
    let mut gateway = match pinned(&sims, &instance).await {
        Ok(gateway) => gateway,
        Err(why) => return println!("skipped: {why}"),
    };
    gateway.chat("hello").await;
    let binary = warmpath_tests::binary().to_str().unwrap();
    let table = eventually("a row with a request", || async {
        let output = run(binary, &["maps", "workers", "--instance", &instance]).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        sims.iter().all(|sim| text.contains(&sim.addr().to_string())).then_some(text)
    })
    .await;
    assert!(table.contains("healthy") || table.contains("Healthy"), "{table}");
    let directory = format!("/sys/fs/bpf/warmpath-{instance}");
    match run("bpftool", &["map", "dump", "pinned", &format!("{directory}/workers")]) {
        Ok(dump) if dump.status.success() => {
            let text = String::from_utf8(dump.stdout).unwrap();
            for field in ["\"in_flight\"", "\"queued_prefill_tokens\"", "\"state\"", "\"breaker\""] {
                assert!(text.contains(field), "{field} is not in {text}");
            }
        }
        Ok(dump) => panic!("bpftool: {}", String::from_utf8_lossy(&dump.stderr)),
        Err(error) => println!("skipped: bpftool: {error}"),
    }
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().await, Some(0));
    assert!(!std::path::Path::new(&directory).exists(), "pins go with the gateway");
}

#[tokio::test]
async fn why_this_worker_is_answered_by_the_requests_id() {
    let sims = sims(2).await;
    let instance = format!("test-why-{}", std::process::id());
    let gateway = match pinned(&sims, &instance).await {
        Ok(gateway) => gateway,
        Err(why) => return println!("skipped: {why}"),
    };
    let maps = |args: &[&str]| {
        let args = [&["maps"], args, &["--instance", &instance, "--json"]].concat();
        let output = run(warmpath_tests::binary().to_str().unwrap(), &args).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let prompt = "What the whole conversation begins with. ".repeat(100);
    gateway.chat(&prompt).await;
    let body =
        json!({"messages": [{"role": "user", "content": format!("{prompt} And more.")}], "max_tokens": 2});
    let headers = [("content-type", "application/json"), ("x-request-id", "the-one-in-question")];
    let reply = request(gateway.address, "POST", "/v1/chat/completions", &headers, body.to_string()).await;
    gateway.chat("Something else.").await;

    let decisions = maps(&["decisions", "--request", "the-one-in-question"]);
    let decision = &decisions[0];
    assert_eq!(decisions.as_array().unwrap().len(), 1);
    assert_eq!(decision["request_id"], "the-one-in-question");
    assert_eq!(
        (&decision["policy"], &decision["reason"]),
        (&json!("Warm"), &json!("PrefixHit")),
        "{decision}"
    );
    assert_eq!((&decision["attempt"], &decision["candidates"]), (&json!(1), &json!(2)));
    assert_eq!(decision["matched_tokens"].to_string(), reply.header("x-warmpath-matched-tokens"));
    assert!(
        decision["matched_blocks"].as_u64() > Some(0)
            && decision["cost"].as_u64() < decision["runner_up_cost"].as_u64()
    );
    assert_ne!(decision["worker"], decision["runner_up"]);
    let workers = maps(&["workers"]);
    let worker =
        workers.as_array().unwrap().iter().find(|worker| worker["index"] == decision["worker"]).unwrap();
    assert_eq!(worker["name"], reply.header("x-warmpath-worker"));
    assert_eq!(maps(&["decisions"]).as_array().unwrap().len(), 3, "all that there were");
    assert_eq!(maps(&["decisions", "--last", "1"])[0]["sequence"], 3);

    // The prefix that both shared, in a sample of the index made every second.
    let prefix = eventually("the shared prefix", || async {
        let prefixes = maps(&["prefixes"]);
        prefixes.as_array().unwrap().iter().find(|prefix| prefix["hits"] == 2).cloned()
    })
    .await;
    assert_eq!(prefix["workers"], json!([decision["worker"]]));
    assert_eq!(prefix["depth_blocks"], decision["matched_blocks"]);
}

#[tokio::test]
async fn new_connections_are_steered_over_the_data_threads() {
    let sims = sims(1).await;
    let instance = format!("test-steer-{}", std::process::id());
    let gateway = match pinned(&sims, &instance).await {
        Ok(gateway) => gateway,
        Err(why) => return println!("skipped: {why}"),
    };
    assert!(gateway.output().lines().any(|line| line.contains("steering") && line.contains("yes")));
    for _ in 0..50 {
        gateway.chat("hello").await;
    }
    let steered = gateway.metric("warmpath_steering_connections_total{result=\"selected\"}").await;
    assert!(steered >= 40.0, "{steered}");
}

#[tokio::test]
async fn ten_thousand_connections_are_spread_over_the_data_threads() {
    const ROUNDS: u64 = 25;
    const ROUND: u64 = 400;
    const THREADS: usize = 4;
    let sims = sims(1).await;
    let instance = format!("test-spread-{}", std::process::id());
    let gateway = match pinned_with(&sims, &instance, &["--threads", &THREADS.to_string()]).await {
        Ok(gateway) => gateway,
        Err(why) => return println!("skipped: {why}"),
    };
    let rows = |map: &str| -> Vec<Value> {
        let args = ["maps", map, "--instance", &instance, "--json"];
        let output = run(warmpath_tests::binary().to_str().unwrap(), &args).unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let counted = |rows: &[Value], field: &str| -> Vec<u64> {
        rows.iter().map(|row| row[field].as_u64().unwrap()).collect()
    };
    eventually("all threads have reported", || async {
        counted(&rows("cores"), "last_seen_ns").iter().all(|seen| *seen > 0).then_some(())
    })
    .await;
    for round in 1..=ROUNDS {
        // Open together, so that what decides is how many each thread has, not how fast it is.
        let mut open = Vec::new();
        for _ in 0..ROUND {
            let stream = TcpStream::connect(gateway.address).await.unwrap();
            stream.set_zero_linger().unwrap(); // leaves no port in TIME_WAIT
            open.push(stream);
        }
        eventually("all accepted", || async {
            (counted(&rows("cores"), "accepted").iter().sum::<u64>() == round * ROUND).then_some(())
        })
        .await;
        drop(open);
        eventually("all closed", || async {
            (counted(&rows("cores"), "connections").iter().sum::<u64>() == 0).then_some(())
        })
        .await;
    }
    let accepted = counted(&rows("cores"), "accepted");
    let steering = &rows("steering")[0];
    let of = |field: &str| steering[field].as_u64().unwrap();
    // On a busy machine a thread may really be late for a moment: each time displaces one connection at most.
    let late = of("skipped_stalled") + of("skipped_lag");
    let mean = ROUNDS * ROUND / THREADS as u64;
    assert!(accepted.iter().all(|got| got.abs_diff(mean) <= mean / 10 + late), "{accepted:?} {steering}");
    assert_eq!(of("selected") + of("fallback_no_core"), ROUNDS * ROUND, "{steering}");
    assert!(of("selected") > 0, "{steering}");
}

#[tokio::test]
async fn without_privileges_one_line_says_so_and_the_gateway_serves() {
    let setpriv =
        ["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"];
    if !run("setpriv", &[&setpriv[..], &["true"]].concat()).is_ok_and(|output| output.status.success()) {
        return println!("skipped: setpriv cannot drop privileges here");
    }
    // The binary may lie where only root can go.
    let directory = tempfile::tempdir().unwrap();
    let binary = directory.path().join("warmpath");
    std::fs::copy(warmpath_tests::binary(), &binary).unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let sims = sims(1).await;
    let mut command = tokio::process::Command::new("setpriv");
    command.args(setpriv).arg(&binary).args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.args(["--instance", "test-unprivileged", "--worker", &urls(&sims)[0]]);
    let gateway = Gateway::spawn(command).await;
    for _ in 0..20 {
        assert_eq!(gateway.chat("hello").await.status, 200); // whichever thread the kernel's hash takes
    }
    let output = gateway.output();
    assert!(output.contains("CAP_BPF"), "what is missing is named: {output}");
}
