//! `warmpath check` and `warmpath doctor`: what is wrong is said before anybody's request finds out.

use std::process::{Command, Output};

use warmpath_tests::{binary, sims, urls};

fn run(args: &[&str]) -> (Output, String, String) {
    let output = Command::new(binary()).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (output, out, err)
}

/// A file of these lines.
fn file(yaml: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), yaml).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn check_shows_every_worker_and_fails_if_one_is_not_there() {
    let sims = sims(2).await;
    let workers = urls(&sims);
    let right = file(&format!("workers: [\"{}\", {{url: \"{}\", name: gpu1}}]\n", workers[0], workers[1]));
    let (output, out, err) = run(&["check", right.path().to_str().unwrap()]);
    assert!(output.status.success(), "{out}{err}");
    assert!(out.contains("is right") && out.contains("gpu1") && out.contains(&workers[0]), "{out}");
    assert_eq!(out.matches("ok, ").count(), 2, "{out}");

    sims[1].kill().await;
    let (output, out, err) = run(&["check", right.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(out.contains("refused") && err.contains("1 of 2 workers"), "{out}{err}");

    let (output, out, _) = run(&["check", right.path().to_str().unwrap(), "--json"]);
    let answers: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        answers[0]["fault"].is_null() && answers[1]["fault"].as_str().unwrap().contains("refused"),
        "{out}"
    );
    assert!(answers[0]["version"].is_string() && answers[0]["models"][0].is_string(), "{out}");
}

#[test]
fn check_names_file_line_and_key_of_a_mistake() {
    let wrong = file("workers:\n  - http://127.0.0.1:1\nlimits:\n  tries: 0\n");
    let path = wrong.path().to_str().unwrap();
    let (output, out, err) = run(&["check", path, "--offline"]);
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(err.contains(path) && err.contains('4') && err.contains("limits.tries"), "{err}");
    let missing =
        file("workers: [\"http://127.0.0.1:1\"]\ntls: {certificate: /no/such.crt, key: /no/such.key}\n");
    let (output, _, err) = run(&["check", missing.path().to_str().unwrap(), "--offline"]);
    assert!(!output.status.success() && err.contains("/no/such.crt"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_what_is_missing_and_what_would_mend_it() {
    let sims = sims(1).await;
    let (_, out, err) = run(&["doctor", "--worker", &urls(&sims)[0]]);
    for line in ["kernel", "bpffs", "BPF: load", "open files", "conntrack", "worker 127.0.0.1"] {
        assert!(out.contains(line), "{line}: {out}{err}");
    }
    let remedies = out.lines().filter(|line| line.trim_start().starts_with('→')).count();
    let missing = out.lines().filter(|line| line.starts_with("no ") || line.starts_with("wrong ")).count();
    assert_eq!(remedies, missing, "{out}");

    sims[0].kill().await;
    let (output, out, err) = run(&["doctor", "--json", "--worker", &urls(&sims)[0]]);
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(err.contains("1 lines say `wrong`"), "{err}");
    let lines: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
    let wrong = lines.iter().find(|line| line["state"] == "wrong").unwrap();
    assert!(wrong["seen"].as_str().unwrap().contains("refused") && wrong["remedy"].is_string(), "{wrong}");
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let (output, _, err) = run(&["man", "--directory", directory.path().to_str().unwrap()]);
    assert!(output.status.success(), "{err}");
    for command in ["serve", "check", "doctor", "maps", "schema", "key"] {
        assert!(directory.path().join(format!("warmpath-{command}.1")).exists(), "{command}");
        for shell in ["bash", "zsh", "fish"] {
            assert!(run(&["completions", shell]).1.contains(command), "{shell}: {command}");
        }
    }
    assert!(!directory.path().join("warmpath-keeper.1").exists(), "it is not for people");
    let (output, _, err) = run(&["man", "--directory", "/no/such/directory"]);
    assert!(!output.status.success() && err.contains("/no/such/directory"), "{err}");
}
