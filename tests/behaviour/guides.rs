//! The guides in docs/guides: their commands are run against a running gateway, and their configurations are checked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use vllm_sim::KvEventsConfig;
use warmpath_tests::{Gateway, SimConfig, binary, eventually, get, random, sim, urls};

/// A fenced block.
struct Block {
    kind: String,
    text: String,
    /// Behind `<!-- run -->`.
    runs: bool,
}

fn pages() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guides");
    let mut pages: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|of| of == "md"))
        .collect();
    pages.sort();
    pages
}

fn blocks(page: &str) -> Vec<Block> {
    let (mut blocks, mut open, mut runs) = (Vec::new(), None::<Block>, false);
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(kind)) => open = Some(Block { kind: kind.to_owned(), text: String::new(), runs }),
            (None, None) if line.is_empty() => {}
            (None, None) => runs = line == "<!-- run -->",
            (Some(_), Some(_)) => {
                blocks.extend(open.take());
                runs = false;
            }
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
        }
    }
    assert!(open.is_none(), "a block that is not closed");
    blocks
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_guides_do_what_they_say() {
    let kv_events = KvEventsConfig {
        endpoint: "tcp://*:0".to_owned(),
        replay_endpoint: Some("tcp://*:0".to_owned()),
        ..KvEventsConfig::default()
    };
    let mut sims = Vec::new();
    for seed in 0..4 {
        let kv_events = Some(kv_events.clone());
        sims.push(sim(SimConfig { seed, kv_events, ..SimConfig::default() }).await);
    }
    let workers = urls(&sims);
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("warmpath.yaml");
    let entries: Vec<_> =
        workers.iter().zip(0..).map(|(url, n)| format!("  - {{url: \"{url}\", name: gpu{n}}}\n")).collect();
    let tokenizers = "tokenizers: {default: worker}";
    fs::write(&config, format!("{tokenizers}\nworkers:\n{}", entries.concat())).unwrap();
    let instance = format!("guides-{:08x}", random());
    let args = ["--config", config.to_str().unwrap(), "--instance", &instance];
    let gateway = Gateway::start(&[], &args).await;
    eventually("the caches are known", || async {
        let metrics = get(gateway.admin, "/metrics").await.text();
        let is_exact = |line: &&str| line.starts_with("warmpath_kv_events_state") && line.contains("exact");
        (metrics.lines().filter(is_exact).filter(|line| line.ends_with(" 1")).count() == 4).then_some(())
    })
    .await;
    std::os::unix::fs::symlink(binary().canonicalize().unwrap(), directory.path().join("warmpath")).unwrap();
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());

    let mut run = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for block in blocks(&text).iter().filter(|block| block.runs) {
            assert_eq!(block.kind, "sh", "{}", page.display());
            let script = block
                .text
                .replace("127.0.0.1:8080", &gateway.address.to_string())
                .replace("127.0.0.1:9090", &gateway.admin.to_string())
                .replace("/etc/warmpath", directory.path().to_str().unwrap())
                .replace("warmpath maps", &format!("warmpath maps --instance {instance}"));
            let output = Command::new("sh").args(["-euc", &script]).env("PATH", &path).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}:\n{script}\n{said}{error}", page.display());
            let mut rest = &said[..];
            for expected in block.text.lines().filter_map(|line| Some(line.split_once("# → ")?.1)) {
                let Some((_, behind)) = rest.split_once(expected) else {
                    panic!("{}: no {expected:?} in what is left of\n{script}\n{said}", page.display())
                };
                rest = behind;
            }
            run += 1;
        }
    }
    assert!(run >= 9, "{run} blocks were run");
}

#[test]
fn the_configurations_of_the_guides_are_right() {
    let directory = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(directory.path().join("tls.crt"), certified.cert.pem()).unwrap();
    fs::write(directory.path().join("tls.key"), certified.signing_key.serialize_pem()).unwrap();
    let mut checked = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for block in blocks(&text).iter().filter(|block| block.kind == "yaml") {
            let workers =
                if block.text.contains("workers:") { "" } else { "workers: [\"http://127.0.0.1:1\"]\n" };
            let config = directory.path().join("warmpath.yaml");
            fs::write(&config, format!("{workers}{}", block.text)).unwrap();
            let output = Command::new(binary())
                .args(["check", "warmpath.yaml", "--offline"])
                .current_dir(&directory)
                .env("WARMPATH_TOKEN", "a-token-of-the-test")
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}:\n{}\n{error}", page.display(), block.text);
            checked += 1;
        }
    }
    assert!(checked >= 5, "{checked} configurations were checked");
}
