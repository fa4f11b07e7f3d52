//! The binary: it says when it is ready, serves, and stops cleanly.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::json;

use crate::support::{Client, get, post};

/// A child that does not outlive its test.
struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vllm-sim"))
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary was built");
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn it_starts_workers_says_so_and_stops_on_a_signal() {
    for signal in ["-INT", "-TERM"] {
        let mut running = Running::start(&[
            "--port",
            "0",
            "--count",
            "3",
            "--threads",
            "2",
            "--seed",
            "7",
            "--served-model-name",
            "m",
            "--api-key",
            "k",
            "--max-model-len",
            "100",
        ]);
        let mut addrs = Vec::new();
        for index in 0..3 {
            let line = running.line();
            let words: Vec<_> = line.split(' ').collect();
            assert_eq!(
                (words[0], words[2], words[3]),
                ("ready", "seed", (7 + index).to_string().as_str()),
                "{line}"
            );
            addrs.push(words[1].strip_prefix("http://").unwrap().parse().unwrap());
        }
        for addr in addrs {
            let mut client = Client::connect(addr).await;
            assert_eq!(client.call(&get("/health")).await.status(), 200);
            assert_eq!(client.call(&get("/v1/models")).await.status(), 401);
            let tokens =
                client.call(&post("/tokenize", &json!({"model": "m", "prompt": "abcd"}))).await.json();
            assert_eq!((&tokens["count"], &tokens["max_model_len"]), (&json!(1), &json!(100)));
        }
        running.signal(signal);
        assert!(running.child.wait().unwrap().success());
    }
}

#[test]
fn what_cannot_start_says_why() {
    let output = Command::new(env!("CARGO_BIN_EXE_vllm-sim"))
        .args(["--port", "0", "--kv-events-endpoint", "inproc://kv"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("worker 0") && said.contains("inproc://kv"), "{said}");
}
