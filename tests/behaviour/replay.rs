//! `warmpath replay`: recorded decisions through another configuration, and traces against a server.

use std::{fs, path::Path, process::Output};

use serde_json::{Value, json};
use warmpath_tests::{Gateway, SimHandle, binary, eventually, sims, urls};

async fn replay(args: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(binary());
    command.arg("replay").args(args).kill_on_drop(true);
    command.output().await.unwrap()
}

/// What it printed, and its report; it must have ended well.
async fn report(args: &[&str], directory: &Path) -> (String, Value) {
    let file = directory.join("report.json");
    let output = replay(&[args, &["--json", file.to_str().unwrap()]].concat()).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    (text, serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap())
}

/// The one line that it says when it fails.
async fn complaint(args: &[&str]) -> String {
    let output = replay(args).await;
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Thirty requests of five conversations, logged.
async fn log(sims: &[SimHandle], directory: &Path, prompts: &str) -> std::path::PathBuf {
    let log = directory.join("decisions.jsonl");
    let config = directory.join("serving.yaml");
    fs::write(&config, format!("decision_log: {{path: '{}', prompts: {prompts}}}\n", log.display())).unwrap();
    let gateway = Gateway::start(&urls(sims), &["--config", text(&config)]).await;
    for number in 0..30 {
        let prompt = format!("conversation {} begins so. ", number % 5).repeat(60);
        gateway.chat(&format!("{prompt} turn {number}")).await;
    }
    let lines = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    eventually("the log", || async { (lines() == 30).then_some(()) }).await;
    log
}

#[tokio::test]
async fn a_decision_log_is_replayed_through_another_policy_and_fleet() {
    let sims = sims(2).await;
    let directory = tempfile::tempdir().unwrap();
    let log = log(&sims, directory.path(), "hashes").await;
    let config = directory.path().join("new.yaml");
    let workers: Vec<String> = urls(&sims).into_iter().chain(["http://127.0.0.1:9".to_owned()]).collect();
    fs::write(&config, json!({"workers": workers, "routing": {"policy": "round_robin"}}).to_string())
        .unwrap();
    let (printed, report) =
        report(&["--decisions", text(&log), "--config", text(&config)], directory.path()).await;
    assert_eq!(
        (&report["requests"], &report["policy_before"], &report["policy_after"]),
        (&30.into(), &"warm".into(), &"round_robin".into())
    );
    let moved = report["moved_share"].as_f64().unwrap();
    assert!((0.3..=1.0).contains(&moved), "a third is on a worker that was not there: {moved}");
    let hit = |side: &str| report[side]["hit_rate"].as_f64().unwrap();
    assert!(hit("before") > 0.5, "five prompts of thirty are new: {report}");
    assert!(hit("after") < hit("before"), "turns scatter conversations: {report}");
    for (side, workers) in [("before", 2), ("after", 3)] {
        let shares = report[side]["workers"].as_object().unwrap();
        assert_eq!(shares.len(), workers);
        let requests: u64 = shares.values().map(|share| share["requests"].as_u64().unwrap()).sum();
        assert_eq!(requests, 30);
        let ttft = &report[side]["time_to_first_token_seconds"];
        for figure in ["mean", "p50", "p90", "p99"] {
            assert!(ttft[figure].as_f64() > Some(0.0), "{side} {figure}: {ttft}");
        }
    }
    assert!(printed.contains("would go to another worker") && printed.contains("127.0.0.1:9"), "{printed}");
}

#[tokio::test]
async fn a_log_without_hashes_says_what_to_set() {
    let sims = sims(1).await;
    let directory = tempfile::tempdir().unwrap();
    let log = log(&sims, directory.path(), "none").await;
    let config = directory.path().join("new.yaml");
    fs::write(&config, "workers: ['http://127.0.0.1:9']\n").unwrap();
    let error = complaint(&["--decisions", text(&log), "--config", text(&config)]).await;
    assert!(error.contains("line 1") && error.contains("prompts: hashes"), "{error}");
    fs::write(&config, "workers: ['http://127.0.0.1:9']\nroutin: {}\n").unwrap();
    let error = complaint(&["--decisions", text(&log), "--config", text(&config)]).await;
    assert!(error.contains("new.yaml") && error.contains("routin"), "{error}");
}

#[tokio::test]
async fn traces_of_every_form_are_sent_and_their_times_are_told_with_intervals() {
    let sims = sims(2).await;
    let directory = tempfile::tempdir().unwrap();
    let decisions = log(&sims, directory.path(), "hashes").await;
    let (mooncake, prompts) =
        (directory.path().join("mooncake.jsonl"), directory.path().join("prompts.jsonl"));
    let lines = |line: &dyn Fn(u64) -> Value| (0..12).map(|i| line(i).to_string() + "\n").collect::<String>();
    let line = |i: u64| json!({"timestamp": i / 4 * 3000, "input_length": 700, "output_length": 3, "hash_ids": [i % 3, 10 + i]});
    fs::write(&mooncake, lines(&line)).unwrap();
    let line = |i: u64| json!({"timestamp": i * 50, "prompt": format!("question {i}"), "max_tokens": 3});
    fs::write(&prompts, lines(&line)).unwrap();
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let url = format!("http://{}", gateway.address);
    let plot = directory.path().join("ttft.svg");
    for (trace, count) in [(&mooncake, 12), (&prompts, 12), (&decisions, 30)] {
        let args = ["--trace", text(trace), "--against", &url, "--speed", "20", "--plot", text(&plot)];
        let (printed, report) = report(&args, directory.path()).await;
        assert_eq!((&report["requests"], &report["completed"]), (&count.into(), &count.into()), "{printed}");
        for figures in ["time_to_first_token_seconds", "inter_token_latency_seconds"] {
            for statistic in ["mean", "p50", "p90", "p99"] {
                let estimate = &report[figures][statistic];
                let [low, value, high] =
                    ["low", "value", "high"].map(|name| estimate[name].as_f64().unwrap());
                assert!(0.0 < low && low <= value && value <= high, "{figures} {statistic}: {estimate}");
            }
        }
        assert!(report["output_tokens"].as_u64() >= Some(3 * count), "{printed}");
        assert_eq!(report["records"].as_array().unwrap().len() as u64, count);
        let by_worker: u64 =
            report["workers"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(by_worker, count);
        let drawn = fs::read_to_string(&plot).unwrap();
        assert_eq!(drawn.matches("<circle").count() as u64, count, "a point for each request");
        fs::remove_file(&plot).unwrap();
    }
    let pixels = directory.path().join("ttft.png");
    let args = ["--trace", text(&mooncake), "--against", &url, "--speed", "20", "--requests", "5", "--plot"];
    assert_eq!(report(&[&args[..], &[text(&pixels)]].concat(), directory.path()).await.1["sent"], 5);
    assert!(fs::read(&pixels).unwrap().starts_with(b"\x89PNG\r\n"));
}

#[tokio::test]
async fn what_is_not_answered_is_counted_by_cause_and_fails_the_command() {
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace.jsonl");
    fs::write(&trace, "{\"prompt\":\"a\"}\n{\"prompt\":\"b\"}\n").unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    let output = replay(&["--trace", text(&trace), "--against", &url]).await;
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("2 sent, 0 completed") && printed.contains("ERROR 2 × connect"), "{printed}");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("2 of 2 requests were not completed"));
}

#[tokio::test]
async fn replaying_ends_in_bounded_time_whatever_the_server_does() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap(); // accepts, by its backlog, and says nothing
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace.jsonl");
    fs::write(&trace, "{\"prompt\":\"a\"}\n{\"prompt\":\"b\"}\n{\"prompt\":\"c\"}\n").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let args = ["--trace", text(&trace), "--against", &url, "--concurrency-max", "1", "--time-max", "300ms"];
    let output = replay(&args).await;
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed.contains("3 requests: 1 sent, 0 completed") && printed.contains("1 × timeout"),
        "{printed}"
    );
}

#[tokio::test]
async fn wrong_traces_and_flags_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace.jsonl");
    fs::write(&trace, "{\"prompt\":\"a\"}\n{\"prompt\":7}\n").unwrap();
    let file = text(&trace);
    let error = complaint(&["--trace", file, "--against", "http://127.0.0.1:9"]).await;
    assert!(error.contains("trace.jsonl") && error.contains("line 2, field `prompt`"), "{error}");
    fs::write(&trace, "{\"prompt\":\"a\"}\n").unwrap();
    for (args, words) in [
        (&["--against", "https://127.0.0.1:9"][..], "only http://"),
        (&["--against", "ftp://x"], "--against"),
        (&["--against", "http://127.0.0.1:9", "--speed", "0"], "--speed: 0: above 0"),
        (&["--against", "http://127.0.0.1:9", "--concurrency-max", "0"], "--concurrency-max: at least 1"),
    ] {
        let error = complaint(&[&["--trace", file][..], args].concat()).await;
        assert!(error.contains(words), "{args:?}: {error}");
    }
    let error = complaint(&["--trace", "/no/such/trace", "--against", "http://127.0.0.1:9"]).await;
    assert!(error.contains("/no/such/trace"), "{error}");
}
