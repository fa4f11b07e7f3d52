//! A reload: the configuration is replaced under the requests, and a wrong one changes nothing.

use serde_json::{Value, json};
use tempfile::TempDir;
use warmpath_tests::{Gateway, Reply, Signal, SimHandle, eventually, request, sims, urls};

/// A configuration file that is written anew.
struct File(TempDir);

impl File {
    fn path(&self) -> String {
        self.0.path().join("warmpath.yaml").to_str().unwrap().to_owned()
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }
}

/// A gateway in front of two simulated workers, with a file that says `text` beside them.
async fn start(text: &str) -> (Vec<SimHandle>, File, Gateway) {
    let sims = sims(2).await;
    let file = File(TempDir::new().unwrap());
    file.write(text);
    let gateway = Gateway::start(&urls(&sims), &["--config", &file.path()]).await;
    (sims, file, gateway)
}

async fn reload(gateway: &Gateway) -> Reply {
    request(gateway.admin, "POST", "/admin/reload", &[], String::new()).await
}

#[tokio::test]
async fn policy_and_limits_change_under_an_open_connection() {
    let (_sims, file, gateway) = start("routing: {policy: round_robin}\n").await;
    let mut stream = gateway.stream("a long answer", 400).await;
    stream.next().await.unwrap().unwrap();
    assert_eq!(gateway.chat("hello").await.header("x-warmpath-policy"), "round_robin");

    file.write("routing: {policy: random}\nlimits: {body_bytes: 1KiB}\nthreads: 7\n");
    let reply = reload(&gateway).await;
    // `--threads 2` wins over the file.
    assert_eq!(
        (reply.status, reply.json()),
        (200, json!({"changed": ["routing", "limits"], "needs_restart": []}))
    );
    assert_eq!(gateway.chat("hello").await.header("x-warmpath-policy"), "random");
    assert_eq!(gateway.chat(&"x".repeat(2000)).await.status, 413);
    let (text, ended) = stream.rest().await;
    assert!(ended && text.ends_with("data: [DONE]\n\n"), "the stream knows nothing of it: {text}");
}

#[tokio::test]
async fn a_changed_file_is_reloaded_however_it_was_changed() {
    let (_sims, file, gateway) = start("routing: {policy: round_robin}\n").await;
    let directory = file.0.path();
    let in_force = async |policy: &str| {
        eventually(policy, || async {
            (gateway.chat("hello").await.header("x-warmpath-policy") == policy).then_some(())
        })
        .await;
    };
    file.write("routing: {policy: random}\n");
    in_force("random").await;
    // As editors do it.
    std::fs::write(directory.join("new"), "routing: {policy: least_loaded}\n").unwrap();
    std::fs::rename(directory.join("new"), file.path()).unwrap();
    in_force("least_loaded").await;
    // As Kubernetes does it: the file is a link through a directory that is swapped.
    for (version, policy) in [("1", "warm"), ("2", "round_robin")] {
        std::fs::create_dir(directory.join(version)).unwrap();
        let text = format!("routing: {{policy: {policy}}}\n");
        std::fs::write(directory.join(version).join("warmpath.yaml"), text).unwrap();
        std::os::unix::fs::symlink(version, directory.join("next")).unwrap();
        std::fs::rename(directory.join("next"), directory.join("..data")).unwrap();
        if version == "1" {
            std::os::unix::fs::symlink("..data/warmpath.yaml", directory.join("link")).unwrap();
            std::fs::rename(directory.join("link"), file.path()).unwrap();
        }
        in_force(policy).await;
    }
    // Gone for a while, it is as it was.
    std::fs::remove_file(file.path()).unwrap();
    assert_eq!(gateway.chat("hello").await.header("x-warmpath-policy"), "round_robin");
    file.write("routing: {policy: random}\n");
    in_force("random").await;
    assert!(!gateway.output().contains("nothing changed"), "{}", gateway.output());
}

#[tokio::test]
async fn what_takes_a_restart_is_named_and_stays() {
    let (_sims, file, gateway) = start("index: {block_bytes: 64}\n").await;
    file.write("index: {block_bytes: 128}\nlog_format: json\nbreaker: {failures: 1}\n");
    let expected = json!({"changed": ["breaker"], "needs_restart": ["log_format", "index.block_bytes"]});
    assert_eq!(reload(&gateway).await.json(), expected);
    let again = reload(&gateway).await.json();
    assert_eq!(again["changed"], json!([]), "{again}");
    assert_eq!(again["needs_restart"], expected["needs_restart"], "they are still not in force");
}

#[tokio::test]
async fn a_wrong_file_changes_nothing_and_says_why() {
    let (_sims, file, gateway) = start("routing: {policy: round_robin}\n").await;
    for (text, words) in [
        (
            "routing: {policy: random}\nlimits:\n  connectoins: 5\n",
            ["warmpath.yaml", "connectoins", "line 3"],
        ),
        ("routing: {policy: fastest}\n", ["fastest", "line 1: routing.policy", "round_robin"]),
        ("limits:\n  tries: 0\n", ["warmpath.yaml, line 2", "limits.tries", "at least 1"]),
    ] {
        file.write(text);
        let reply = reload(&gateway).await;
        let error: Value = reply.json()["error"].clone();
        assert_eq!(reply.status, 422, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{error} does not say {word}");
        }
    }
    let failed = gateway.metric("warmpath_reloads_total{result=\"failed\"}").await;
    assert!((failed - 3.0).abs() < 0.5, "{failed}");
    gateway.signal(Signal::HUP);
    eventually("a word about the reload", || async {
        (gateway.output().matches("nothing changed").count() == 4).then_some(())
    })
    .await;
    assert_eq!(gateway.chat("hello").await.header("x-warmpath-policy"), "round_robin");
}
