//! The storm of `cargo xtask bench relay --stress` in its short form, over each way that a body can take: not a byte is
//! wrong, nothing hangs, nothing is left behind. A way that this host does not allow says "skipped: why".

use std::time::Duration;

use warmpath_tests::{
    Gateway, get,
    stress::{Profile, Storm, start_worker, storm},
};

/// The worker's deaths must not take it out of service, and the storm is all the traffic there is.
const COMMON: &str =
    "breaker: {failures: 1000000, volume: 1000000}\nhealth: {interval: 60s}\nscrape_interval: 60s\n";

/// Runs the storm; `path` is the way's label in the metrics, `relay` the configuration that makes it the only one.
async fn weather(path: &str, relay: &str) {
    let worker = start_worker().await.expect("a loopback port");
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), format!("{COMMON}relay: {relay}\n")).expect("the file is writable");
    let args = ["--config", file.path().to_str().expect("a plain path")];
    let gateway = Gateway::start(&[format!("http://{worker}")], &args).await;
    let available = format!("warmpath_relay_available{{path=\"{path}\"}}");
    if gateway.metric(&available).await < 0.5 {
        let output = gateway.output();
        let why = output.lines().find(|line| line.trim_start().starts_with("kernel") && line.contains(path));
        println!("skipped: {}", why.unwrap_or("the gateway says nothing about it").trim());
        return;
    }
    for (seed, faults) in [(1, true), (2, true), (3, true), (4, false)] {
        let summary = storm(
            Storm {
                gateway: gateway.address,
                seed,
                responses: 300,
                connections: 12,
                profile: Profile { size_max: 1 << 20, deaths: faults, resets: faults },
                hang_ups: faults,
                patience: Duration::from_mins(1),
            },
            |finding| println!("{finding:?}"),
        )
        .await;
        println!("{path}, seed {seed}: {summary:?}");
        if !summary.findings.is_empty() {
            println!("{}\n{}", get(gateway.admin, "/metrics").await.text(), gateway.output());
        }
        assert_eq!((summary.differences(), summary.hangs()), (0, 0), "{path}, seed {seed}");
        if faults {
            assert!(summary.whole > 100 && summary.broken > 5 && summary.hung_up > 2, "{summary:?}");
        } else {
            assert_eq!((summary.whole, summary.broken, summary.hung_up), (300, 0, 0), "{summary:?}");
        }
        // A response that breaks off is the end of its connection; all others leave theirs usable.
        assert!(summary.connections <= 12 + summary.broken + summary.hung_up, "{summary:?}");
    }
    gateway.idle().await;
    let took = format!("warmpath_relay_responses_total{{path=\"{path}\"}}");
    // Of 1,200. How many of them pause, so that a kernel relay takes them, depends on how busy this machine is.
    let taken = gateway.metric(&took).await;
    assert!(taken > 20.0, "the responses went another way: {taken}");
    if path != "copy" {
        let moved = gateway.metric(&format!("warmpath_relay_bytes_total{{path=\"{path}\"}}")).await;
        let ends = gateway.metric("warmpath_relay_returns_total{reason=\"end\"}").await;
        println!("{path}: {taken} responses, {moved} bytes by the kernel, {ends} ends seen there");
        assert!(moved > 1e6 && ends > 20.0, "{path}: {moved} {ends}");
    }
    assert!(gateway.metric("warmpath_relay_mismatches_total").await < 0.5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copied_responses_are_right_to_the_byte() {
    weather("copy", "{bypass: off, splice: off}").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bypassed_responses_are_right_to_the_byte() {
    weather("bypass", "{bypass: on, min_bytes: 0B}").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spliced_responses_are_right_to_the_byte() {
    weather("splice", "{bypass: off, splice: on, min_bytes: 0B}").await;
}
