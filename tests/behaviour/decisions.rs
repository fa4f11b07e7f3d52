//! What is told of decisions: over the admin port, and in the decision log.

use std::{fs, path::Path, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use warmpath_tests::{Gateway, Reply, Signal, eventually, get, open, request, sims, urls};

/// `GET path` of the admin port, which must be answered.
async fn ask(gateway: &Gateway, path: &str) -> Vec<Value> {
    let reply = get(gateway.admin, path).await;
    assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    reply.json().as_array().unwrap().clone()
}

async fn send(gateway: &Gateway, id: &str, body: &Value) -> Reply {
    let headers = [("content-type", "application/json"), ("x-request-id", id)];
    request(gateway.address, "POST", "/v1/chat/completions", &headers, body.to_string()).await
}

fn chat(prompt: &str) -> Value {
    json!({"model": "sim", "messages": [{"role": "user", "content": prompt}], "max_tokens": 4, "ignore_eos": true})
}

/// The records of a request, once its last try has ended.
async fn ended(gateway: &Gateway, id: &str) -> Vec<Value> {
    let path = format!("/decisions/{id}");
    eventually("the record's end", || async {
        let records = ask(gateway, &path).await;
        records.iter().all(|record| !record["outcome"].is_null()).then_some(records)
    })
    .await
}

#[tokio::test]
async fn a_decision_can_be_read_in_full_with_what_became_of_it() {
    let sims = sims(3).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let prompt = "tell me about the sea ".repeat(60);
    let first = send(&gateway, "first", &chat(&prompt)).await;
    send(&gateway, "second", &chat(&prompt)).await;
    let records = ended(&gateway, "second").await;
    let [record] = &records[..] else { panic!("one try: {records:?}") };
    assert_eq!(record["worker"], first.header("x-warmpath-worker"), "the prefix is there");
    assert_eq!((&record["reason"], &record["policy"]), (&json!("prefix_hit"), &json!("warm")));
    assert_eq!(
        (&record["schema"], &record["attempt"], &record["tenant"]),
        (&1.into(), &1.into(), &"default".into())
    );
    assert_eq!((&record["model"], &record["route"]), (&"sim".into(), &"chat".into()));
    assert!(record["matched_tokens"].as_u64() > Some(200), "{record}");
    let candidates = record["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 3);
    let named = |name: &Value| candidates.iter().find(|candidate| candidate["worker"] == *name).unwrap();
    let (chosen, runner_up) = (named(&record["worker"]), named(&record["runner_up"]));
    assert_eq!((&chosen["cost"], &runner_up["cost"]), (&record["cost"], &record["runner_up_cost"]));
    assert!(chosen["cost"].as_u64() < runner_up["cost"].as_u64());
    assert_eq!(
        (&chosen["matched_tokens"], &runner_up["matched_tokens"]),
        (&record["matched_tokens"], &0.into())
    );
    let outcome = &record["outcome"];
    assert_eq!((&outcome["end"], &outcome["status"]), (&"completed".into(), &200.into()));
    assert_eq!(outcome["completion_tokens"], 4, "from the worker's usage: {outcome}");
    assert!(outcome["cached_tokens"].is_u64() || outcome["cached_tokens"].is_null());
    assert!(outcome["first_byte_seconds"].as_f64() <= outcome["duration_seconds"].as_f64());
    assert!(outcome["time_to_first_token_seconds"].is_null(), "not of an answer in one piece");
}

#[tokio::test]
async fn a_stream_s_record_has_its_first_token_and_a_client_that_left_is_told() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    gateway.stream("hello", 8).await.rest().await;
    let mut left = gateway.stream("goodbye", 4000).await;
    left.next().await.unwrap().unwrap();
    drop(left);
    let records = eventually("both ends", || async {
        let records = ask(&gateway, "/decisions").await;
        records.iter().all(|record| !record["outcome"].is_null()).then_some(records)
    })
    .await;
    let [left, whole] = &records[..] else { panic!("newest first: {records:?}") };
    assert_eq!(whole["outcome"]["end"], "completed");
    assert!(whole["outcome"]["time_to_first_token_seconds"].as_f64() > Some(0.0), "{whole}");
    assert!(whole["outcome"]["events"].as_u64() >= Some(1), "{whole}"); // what comes together is one
    assert_eq!(left["outcome"]["end"], "cancelled");
    assert!(left["candidates"].is_null(), "a list has no candidates");
}

#[tokio::test]
async fn every_try_of_a_request_has_a_record_of_its_own() {
    let sims = sims(2).await;
    let gateway = Gateway::start(&urls(&sims), &["--policy", "round_robin"]).await;
    sims[0].kill().await;
    assert_eq!(send(&gateway, "again", &chat("x")).await.status, 200);
    assert_eq!(send(&gateway, "again", &chat("x")).await.status, 200);
    let records = ended(&gateway, "again").await;
    let failed = records.iter().find(|record| record["outcome"]["end"] == "failed").unwrap();
    assert_eq!(failed["outcome"]["fault"], "connect");
    let next = records.iter().find(|record| record["attempt"] == 2).unwrap();
    assert_eq!(next["outcome"]["end"], "completed");
    assert_ne!(next["worker"], failed["worker"]);
}

#[tokio::test]
async fn decisions_are_listed_newest_first_and_filtered() {
    let sims = sims(2).await;
    let gateway = Gateway::start(&urls(&sims), &["--policy", "round_robin"]).await;
    let mut workers = Vec::new();
    for number in 0..6 {
        let reply = send(&gateway, &format!("r{number}"), &chat("x")).await;
        workers.push(reply.header("x-warmpath-worker").to_owned());
    }
    let ids = |records: Vec<Value>| -> Vec<String> {
        records.iter().map(|record| record["request_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(ask(&gateway, "/decisions").await), ["r5", "r4", "r3", "r2", "r1", "r0"]);
    assert_eq!(ids(ask(&gateway, "/decisions?limit=2").await), ["r5", "r4"]);
    let here = ids(ask(&gateway, &format!("/decisions?worker={}", workers[0])).await);
    assert_eq!(here, ["r4", "r2", "r0"]);
    assert_eq!(
        ids(ask(&gateway, "/decisions?request_id=r3&reason=round_robin&tenant=default&model=sim").await),
        ["r3"]
    );
    assert!(ask(&gateway, "/decisions?reason=prefix_hit").await.is_empty());
    assert!(ask(&gateway, "/decisions?model=other").await.is_empty());
    assert_eq!(
        ask(&gateway, "/decisions?full=true&limit=1").await[0]["candidates"].as_array().unwrap().len(),
        2
    );
    for (path, word) in [
        ("/decisions?reason=luck", "prefix_hit"),
        ("/decisions?limit=0", "1 to 1000"),
        ("/decisions?colour=red", "colour"),
        ("/decisions/follow?limit=3", "unknown field `limit`"),
    ] {
        let reply = get(gateway.admin, path).await;
        assert_eq!(reply.status, 400, "{path}");
        assert!(reply.text().contains(word), "{path}: {}", reply.text());
    }
    let unknown = get(gateway.admin, "/decisions/nobody").await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.text().contains("decisions.keep"), "{}", unknown.text());
}

#[tokio::test]
async fn decisions_are_followed_as_they_are_made_and_as_they_end() {
    let sims = sims(2).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let mut events = open(gateway.admin, "GET", "/decisions/follow?request_id=mine", &[], Bytes::new()).await;
    assert_eq!(events.header("content-type"), "text/event-stream");
    eventually("the follower", || async {
        (gateway.metric("warmpath_decision_followers").await > 0.0).then_some(())
    })
    .await;
    send(&gateway, "theirs", &chat("x")).await;
    send(&gateway, "mine", &chat("x")).await;
    let mut text = String::new();
    while text.matches("\n\n").count() < 2 {
        text.push_str(std::str::from_utf8(&events.next().await.unwrap().unwrap()).unwrap());
    }
    let told: Vec<(&str, Value)> = text
        .trim_end()
        .split("\n\n")
        .map(|event| {
            let (name, data) = event.split_once('\n').unwrap();
            let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            (name.strip_prefix("event: ").unwrap(), data)
        })
        .collect();
    assert_eq!((told[0].0, told[1].0), ("decided", "ended"));
    assert!(told.iter().all(|(_, record)| record["request_id"] == "mine"), "{told:?}");
    assert_eq!((&told[0].1["outcome"], &told[1].1["outcome"]["end"]), (&Value::Null, &"completed".into()));
    drop(events);
    eventually("no follower", || async {
        // One that has left is seen to have when there is something to tell.
        send(&gateway, "mine", &chat("x")).await;
        (gateway.metric("warmpath_decision_followers").await < 1.0).then_some(())
    })
    .await;
}

/// The lines of a log, each of which must be a record.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// A directory with a configuration that has a decision log in it.
struct Site(tempfile::TempDir);

impl Site {
    fn new(settings: &str) -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        site.configure(settings);
        site
    }

    fn configure(&self, settings: &str) {
        let text = format!("decision_log: {{path: '{}', {settings}}}\n", self.log().display());
        fs::write(self.config(), text).unwrap();
    }

    fn config(&self) -> std::path::PathBuf {
        self.0.path().join("warmpath.yaml")
    }

    fn log(&self) -> std::path::PathBuf {
        self.0.path().join("decisions.jsonl")
    }

    async fn start(&self, workers: &[String]) -> Gateway {
        Gateway::start(workers, &["--config", self.config().to_str().unwrap()]).await
    }

    /// Waits for so many lines in the log.
    async fn logged(&self, count: usize) -> Vec<Value> {
        eventually("lines in the log", || async {
            let lines = lines(&self.log());
            (lines.len() >= count).then_some(lines)
        })
        .await
    }
}

#[tokio::test]
async fn the_log_has_a_line_for_every_try_that_has_ended() {
    let sims = sims(2).await;
    let site = Site::new("prompts: hashes");
    let mut gateway = site.start(&urls(&sims)).await;
    let prompt = "the same beginning ".repeat(40);
    send(&gateway, "a", &chat(&prompt)).await;
    send(&gateway, "b", &chat(&format!("{prompt} and another end"))).await;
    let lines = site.logged(2).await;
    assert_eq!((&lines[0]["request_id"], &lines[1]["request_id"]), (&"a".into(), &"b".into()));
    assert!(lines.iter().all(|line| line["schema"] == 1 && line["outcome"]["end"] == "completed"));
    let hashes = |line: &Value| line["prompt_hashes"].as_array().unwrap().clone();
    let (first, second) = (hashes(&lines[0]), hashes(&lines[1]));
    assert!(first.len() > 4 && first[..4] == second[..4], "a common prefix has common hashes");
    assert_eq!(gateway.metric("warmpath_decision_log_records_total{result=\"written\"}").await as u64, 2);
    send(&gateway, "c", &chat("the last one")).await;
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().await, Some(0));
    assert_eq!(lines_of(&site), ["a", "b", "c"], "what waits is written before the end");
}

fn lines_of(site: &Site) -> Vec<String> {
    lines(&site.log()).iter().map(|line| line["request_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn neither_keys_nor_prompts_are_in_the_log() {
    let sims = sims(1).await;
    let site = Site::new("prompts: none");
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // of "abc"
    let text =
        fs::read_to_string(site.config()).unwrap() + &format!("keys: [{{name: team-a, sha256: {digest}}}]\n");
    fs::write(site.config(), text).unwrap();
    let gateway = site.start(&urls(&sims)).await;
    let headers = [("content-type", "application/json"), ("authorization", "Bearer abc")];
    let body = chat("a prompt that is nobody's business ".repeat(20).as_str()).to_string();
    request(gateway.address, "POST", "/v1/chat/completions", &headers, body).await;
    let lines = site.logged(1).await;
    assert_eq!(lines[0]["tenant"], "team-a");
    assert!(lines[0]["prompt_hashes"].is_null());
    let text = fs::read_to_string(site.log()).unwrap();
    assert!(!text.contains("abc") && !text.contains("business"), "{text}");
}

#[tokio::test]
async fn a_log_that_cannot_be_written_is_said_once_and_no_request_fails_for_it() {
    let sims = sims(1).await;
    let site = Site::new("keep: 1");
    fs::create_dir(site.log()).unwrap();
    let gateway = site.start(&urls(&sims)).await;
    for _ in 0..20 {
        assert_eq!(gateway.chat("hello").await.status, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eventually("records that are lost", || async {
        let failed = gateway.metric("warmpath_decision_log_records_total{result=\"failed\"}").await;
        (failed >= 20.0).then_some(())
    })
    .await;
    assert_eq!(gateway.metric("warmpath_decision_log_failing").await as u64, 1);
    assert_eq!(
        gateway.output().matches("decision log: cannot be written").count(),
        1,
        "{}",
        gateway.output()
    );
    fs::remove_dir(site.log()).unwrap();
    eventually("the log", || async {
        assert_eq!(gateway.chat("hello").await.status, 200);
        (!lines(&site.log()).is_empty()).then_some(())
    })
    .await;
    assert!(gateway.output().contains("decision log: written again"));
    assert_eq!(gateway.metric("warmpath_decision_log_failing").await as u64, 0);
}

#[tokio::test]
async fn a_hang_up_signal_opens_the_log_anew_and_reload_switches_it() {
    let sims = sims(1).await;
    let site = Site::new("keep: 1");
    let gateway = site.start(&urls(&sims)).await;
    send(&gateway, "before", &chat("x")).await;
    site.logged(1).await;
    let moved = site.0.path().join("moved");
    fs::rename(site.log(), &moved).unwrap();
    gateway.signal(Signal::HUP);
    eventually("a new file", || async { site.log().exists().then_some(()) }).await;
    send(&gateway, "after", &chat("x")).await;
    assert_eq!(site.logged(1).await[0]["request_id"], "after");
    assert_eq!(lines(&moved).len(), 1);
    fs::write(site.config(), "decisions: {keep: 0}\n").unwrap();
    let reply = request(gateway.admin, "POST", "/admin/reload", &[], Bytes::new()).await.json();
    assert_eq!(reply["changed"], json!(["decisions", "decision_log"]), "{reply}");
    send(&gateway, "unseen", &chat("x")).await;
    assert!(ask(&gateway, "/decisions").await.is_empty());
    site.configure("keep: 1");
    request(gateway.admin, "POST", "/admin/reload", &[], Bytes::new()).await;
    send(&gateway, "again", &chat("x")).await;
    site.logged(2).await;
    assert_eq!(lines_of(&site), ["after", "again"]);
}

#[tokio::test]
async fn the_log_is_rotated_by_size() {
    let sims = sims(1).await;
    let site = Site::new("prompts: hashes, rotate_bytes: 64KiB, keep: 2");
    let gateway = site.start(&urls(&sims)).await;
    let prompt = "a long prompt ".repeat(4000); // some 440 hashes, 8 KB a line
    for number in 0..40 {
        send(&gateway, &number.to_string(), &chat(&prompt)).await;
        site.logged(1).await;
    }
    let file = |suffix: &str| site.0.path().join(format!("decisions.jsonl{suffix}"));
    eventually("two rotated logs", || async { file(".2").exists().then_some(()) }).await;
    assert!(!file(".3").exists());
    for suffix in ["", ".1", ".2"] {
        assert!(fs::metadata(file(suffix)).unwrap().len() <= 64 * 1024, "{suffix}");
        assert!(!lines(&file(suffix)).is_empty());
    }
}

#[tokio::test]
async fn a_share_of_the_decisions_is_in_the_log() {
    let sims = sims(1).await;
    let site = Site::new("sample: 0.5");
    let mut gateway = site.start(&urls(&sims)).await;
    for number in 0..60 {
        send(&gateway, &number.to_string(), &chat("x")).await;
    }
    gateway.signal(Signal::TERM);
    gateway.ended().await;
    let logged = lines(&site.log()).len();
    assert!((5..55).contains(&logged), "{logged} of 60"); // beyond that is one in 10^9
}
