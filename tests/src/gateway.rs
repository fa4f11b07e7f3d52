//! A `warmpath serve` process.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, OnceLock},
};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
};

use crate::{
    PATIENCE,
    client::{self, Reply, Stream},
    eventually,
};

/// The `warmpath` binary: `$WARMPATH_BIN`, or the one beside the test's own, which is built first so that it is not stale.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("WARMPATH_BIN") {
            return path.into();
        }
        let test = std::env::current_exe().expect("a test has a path");
        let profile = test.parent().and_then(Path::parent).expect("tests live in target/<profile>/deps");
        let mut cargo = std::process::Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "router-agent"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().expect("cargo runs").success(), "building warmpath failed");
        profile.join("warmpath")
    })
}

/// A running gateway. Killed when dropped.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where operators connect.
    pub admin: SocketAddr,
    output: Arc<Mutex<String>>,
}

impl Gateway {
    /// Starts a gateway on free ports in front of `workers` and waits until it is ready.
    pub async fn start(workers: &[String], args: &[&str]) -> Self {
        Self::run("serve", workers, args).await
    }

    /// As [`Gateway::start`], of `warmpath epp`.
    pub async fn start_picker(workers: &[String], args: &[&str]) -> Self {
        Self::run("epp", workers, args).await
    }

    async fn run(what: &str, workers: &[String], args: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args([what, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--threads", "2"]);
        // Tests run side by side: each gateway has pins of its own.
        command.args(["--instance", &format!("test-{:08x}", client::random())]);
        command.args(workers.iter().flat_map(|url| ["--worker", url]));
        command.args(args);
        Self::spawn(command).await
    }

    /// Runs `command`, which must print the banner of `warmpath serve`.
    pub async fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the gateway starts");
        let output = Arc::new(Mutex::new(String::new()));
        collect(child.stdout.take().expect("piped"), output.clone());
        collect(child.stderr.take().expect("piped"), output.clone());
        let (address, admin) = eventually("the gateway's banner", || {
            let text = output.lock().expect("no test panics holding it").clone();
            let ended = child.try_wait().expect("the gateway can be waited for");
            assert!(ended.is_none(), "the gateway ended ({ended:?}) and said:\n{text}");
            async move { text.contains("Ctrl-C").then(|| (banner(&text, "clients"), banner(&text, "admin"))) }
        })
        .await;
        Self { child, address, admin, output }
    }

    /// Everything that it has printed so far.
    pub fn output(&self) -> String {
        self.output.lock().expect("no test panics holding it").clone()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it is running")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process id is not zero");
        kill_process(pid, signal).expect("the gateway is there");
    }

    /// Waits for its end; its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .expect("it ends")
            .expect("it can be waited for")
            .code()
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        client::request(self.address, "POST", path, &[("content-type", "application/json")], body.to_string())
            .await
    }

    /// A unary chat completion of a few tokens for one user message.
    pub async fn chat(&self, prompt: &str) -> Reply {
        self.post("/v1/chat/completions", &chat_body(prompt, 4, false)).await
    }

    /// A streamed chat completion, read up to its head.
    pub async fn stream(&self, prompt: &str, max_tokens: u32) -> Stream {
        let body = chat_body(prompt, max_tokens, true).to_string();
        let headers = [("content-type", "application/json")];
        client::open(self.address, "POST", "/v1/chat/completions", &headers, body).await
    }

    /// The value of one series of `/metrics`, written as it stands there; zero if it is not there.
    pub async fn metric(&self, series: &str) -> f64 {
        sample(&client::get(self.admin, "/metrics").await.text(), series)
    }

    /// The same of a gateway that wants this admin token.
    pub async fn metric_as(&self, series: &str, token: &str) -> f64 {
        let token = format!("Bearer {token}");
        let fields = [("authorization", token.as_str())];
        sample(&client::request(self.admin, "GET", "/metrics", &fields, "").await.text(), series)
    }

    /// The fleet as the admin port tells it.
    pub async fn workers(&self) -> Vec<Value> {
        let reply = client::get(self.admin, "/workers").await.json();
        reply.as_array().expect("a list of workers").clone()
    }

    /// Waits until nothing is in flight on any worker.
    pub async fn idle(&self) {
        eventually("no request in flight", || async {
            let workers = self.workers().await;
            let idle = |w: &Value| w["in_flight_requests"] == 0 && w["queued_prefill_tokens"] == 0;
            workers.iter().all(idle).then_some(())
        })
        .await;
    }
}

fn sample(metrics: &str, series: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().expect("a sample has a number"))
}

/// A chat completion request. The sim serves it whatever model is named; none is.
pub(crate) fn chat_body(prompt: &str, max_tokens: u32, stream: bool) -> Value {
    json!({
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "ignore_eos": true,
        "stream": stream,
    })
}

fn collect(from: impl AsyncRead + Unpin + Send + 'static, into: Arc<Mutex<String>>) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut into = into.lock().expect("no test panics holding it");
            into.push_str(&line);
            into.push('\n');
        }
    });
}

fn banner(text: &str, what: &str) -> SocketAddr {
    let line =
        text.lines().find(|line| line.trim_start().starts_with(what)).expect("the banner has the line");
    let url = line.split_whitespace().nth(1).expect("a URL follows");
    let (_, address) = url.split_once("://").expect("a scheme");
    address.parse().expect("an address follows the scheme")
}
