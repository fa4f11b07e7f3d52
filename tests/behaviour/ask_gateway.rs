//! The commands that ask a running gateway: `workers`, `explain`, `top`.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};
use warmpath_tests::{Gateway, SimHandle, binary, eventually, sims, urls};

struct Site {
    sims: Vec<SimHandle>,
    gateway: Gateway,
    config: tempfile::NamedTempFile,
}

impl Site {
    /// Two workers, `a` and `b`, and a third that is not in the fleet.
    async fn start(more: Value) -> Self {
        let sims = sims(3).await;
        let urls = urls(&sims);
        let config = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        let mut yaml = json!({"workers": [{"url": urls[0], "name": "a"}, {"url": urls[1], "name": "b"}]});
        yaml.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        std::fs::write(config.path(), yaml.to_string()).unwrap();
        let gateway = Gateway::start(&[], &["--config", config.path().to_str().unwrap()]).await;
        Self { sims, gateway, config }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).env("WARMPATH_ADMIN", self.gateway.admin.to_string());
        command.env_remove("WARMPATH_ADMIN_TOKEN").stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().await.unwrap()
    }

    /// What a command prints that does what it is told.
    async fn prints(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one line of a command that is refused.
    async fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(!output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        said
    }
}

#[tokio::test]
async fn the_fleet_is_shown_and_changed() {
    let site = Site::start(json!({})).await;
    site.gateway.chat("hello").await;
    let list = site.prints(&["workers", "list"]).await;
    assert!(list.lines().next().unwrap().starts_with("NAME"), "{list}");
    assert_eq!(list.lines().filter(|line| line.contains("serving")).count(), 2, "{list}");
    let workers: Value = serde_json::from_str(&site.prints(&["workers", "list", "--json"]).await).unwrap();
    assert_eq!(workers[1]["name"], "b");

    let mut stream = site.gateway.stream("hello", 300).await;
    stream.next().await.unwrap().unwrap();
    let name = stream.header("x-warmpath-worker").to_owned();
    let said = site.prints(&["workers", "drain", &name]).await;
    assert_eq!(said, format!("{name}: draining, 1 of 1 left\n"));
    let waiting =
        site.command(&["workers", "drain", &name, "--wait"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(stream);
    let said = String::from_utf8(waiting.wait_with_output().await.unwrap().stdout).unwrap();
    assert!(said.ends_with(&format!("{name}: drained\n")), "{said}");
    assert_eq!(site.prints(&["workers", "undrain", &name]).await, format!("{name}: serving\n"));

    let url = urls(&site.sims)[2].clone();
    assert_eq!(site.prints(&["workers", "add", &url, "--name", "c"]).await, "c: added, serving\n");
    let gone = site.prints(&["workers", "remove", "c", "--timeout", "1h", "--wait"]).await;
    assert!(gone.ends_with("c: gone\n"), "{gone}");
    assert_eq!(site.gateway.workers().await.len(), 2);
}

#[tokio::test]
async fn what_is_refused_is_told_in_one_line_with_what_would_help() {
    let site = Site::start(json!({"admin_token": "t0ken"})).await;
    let list = &["workers", "list"][..];
    let said = site.fails(list).await;
    assert!(said.contains("--token-file") && said.contains("WARMPATH_ADMIN_TOKEN"), "{said}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "wrong\n").unwrap();
    let with = |token: &std::path::Path| {
        ["workers", "list", "--token-file", token.to_str().unwrap()].map(str::to_owned)
    };
    let args = with(file.path());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    assert!(site.fails(&args).await.contains("another"));
    std::fs::write(file.path(), "t0ken\n").unwrap();
    assert!(site.prints(&args).await.contains("serving"));
    let output = site.command(list).env("WARMPATH_ADMIN_TOKEN", "t0ken").output().await.unwrap();
    assert!(output.status.success());

    let token = ["--token-file", file.path().to_str().unwrap()];
    let nobody = site.fails(&[&["workers", "drain", "nobody"][..], &token].concat()).await;
    assert!(nobody.contains("nobody"), "{nobody}");
    let taken =
        site.fails(&[&["workers", "add", "http://127.0.0.1:9", "--name", "a"][..], &token].concat()).await;
    assert!(taken.contains("in the fleet already"), "{taken}");
    let unreachable = site.fails(&["workers", "list", "--admin", "127.0.0.1:1"]).await;
    assert!(unreachable.contains("is it running?") && unreachable.contains("127.0.0.1:1"), "{unreachable}");
    assert!(site.fails(&["workers", "list", "--admin", "ftp://x"]).await.contains("http://"));
    assert!(
        site.fails(&["workers", "--admin", "ftp://x", "list"]).await.contains("http://"),
        "before it, too"
    );
    assert!(
        site.fails(&["workers", "list", "--token-file", "/no/such/file"]).await.contains("/no/such/file")
    );
    assert!(site.fails(&["top"]).await.contains("terminal"));
    assert!(site.config.path().exists());
}

#[tokio::test]
async fn a_prompt_is_explained_without_being_sent() {
    let site = Site::start(json!({})).await;
    let prompt = "a prompt that is long enough for some blocks ".repeat(40);
    let worker = site.gateway.chat(&prompt).await.header("x-warmpath-worker").to_owned();
    site.gateway.idle().await;
    let sent = || site.sims.iter().map(|sim| sim.stats().prompt_tokens).sum::<u64>();
    let before = sent();
    let said = site.prints(&["explain", &prompt]).await;
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].starts_with("warm, chat, about "), "{said}");
    assert!(lines[1].starts_with(&format!("{worker}: prefix_hit")), "{said}");
    assert!(lines[4].starts_with('→') && lines[4].contains(&worker), "{said}");
    assert_eq!(lines.len(), 6, "{said}");
    let explained: Value = serde_json::from_str(&site.prints(&["explain", &prompt, "--json"]).await).unwrap();
    assert_eq!(explained["winner"]["worker"], worker);

    let body = json!({"prompt": [1, 2, 3, 4], "max_tokens": 1}).to_string();
    let mut child = site
        .command(&["explain", "--file", "-", "--session", "alice"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(body.as_bytes()).await.unwrap();
    let said = String::from_utf8(child.wait_with_output().await.unwrap().stdout).unwrap();
    assert!(said.starts_with("warm, completions, 4 tokens (ids given)"), "{said}");
    assert_eq!(sent(), before);
    assert!(site.fails(&["explain", "--file", "/no/such/file"]).await.contains("/no/such/file"));
    assert!(site.fails(&["explain", "x", "--tenant", "nobody"]).await.contains("nobody"));
}

/// Over a real terminal: util-linux's `script` gives one.
#[tokio::test]
async fn top_shows_the_fleet_on_a_terminal_and_ends_by_a_key() {
    if Command::new("script").arg("--version").output().await.is_err() {
        return println!("skipped: no `script` (util-linux) to have a terminal by");
    }
    let site = Site::start(json!({})).await;
    site.gateway.chat("hello").await;
    let top = format!("stty rows 24 cols 80; exec {} top --from api", binary().display());
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &top, "/dev/null"])
        .env("WARMPATH_ADMIN", site.gateway.admin.to_string())
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let drawn = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let into = drawn.clone();
    tokio::spawn(async move {
        use tokio::io::AsyncReadExt;
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut buffer).await {
            into.lock().unwrap().extend_from_slice(&buffer[..count]);
        }
    });
    let shows = async |what: &'static str| {
        eventually(what, || async {
            String::from_utf8_lossy(&drawn.lock().unwrap()).contains(what).then_some(())
        })
        .await;
    };
    shows("serving").await;
    shows("TTFT50").await;
    keys.write_all(b"4").await.unwrap();
    // Only what differs from before is drawn: this stands where nothing like it was.
    shows("tie_lru").await;
    keys.write_all(b"p").await.unwrap();
    shows("PAUSED").await;
    keys.write_all(b"q").await.unwrap();
    let status =
        tokio::time::timeout(warmpath_tests::PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert!(status.success(), "{status}");
}
