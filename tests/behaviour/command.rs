//! The command line: wrong input gets one line that says what is wrong and what would be right.

use std::process::Command;

use warmpath_tests::binary;

/// Runs `warmpath serve ARGS`, which must fail; what it says.
fn fails(args: &[&str]) -> String {
    let output = Command::new(binary()).arg("serve").args(args).output().unwrap();
    assert!(!output.status.success(), "{args:?} should fail");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn wrong_flags_are_explained() {
    let worker = ["--worker", "http://127.0.0.1:1"];
    let with = |args: &[&str]| fails(&[&worker[..], args].concat());
    assert!(fails(&[]).contains("--worker http://HOST:PORT"));
    assert!(fails(&["--worker", "ftp://x"]).contains("http://"));
    let policy = with(&["--policy", "best"]);
    assert!(policy.contains("best") && policy.contains("least_loaded"), "{policy}");
    let threads = with(&["--threads", "0"]);
    assert!(threads.contains("threads"), "{threads}");
    assert!(with(&["--listen", "nowhere"]).contains("--listen"));
    assert!(with(&["--drain-timeout", "soon"]).contains("--drain-timeout"));
    assert!(with(&["--config", "/no/such/file.yaml"]).contains("/no/such/file.yaml"));
    let guard = with(&["--guard", "nosuch0"]);
    assert!(guard.contains("nosuch0") && guard.contains("lo"), "{guard}");
    assert!(with(&["--guard", "lo:fast"]).contains("native, generic or auto"));
    assert!(with(&["--guard", "lo,lo:native"]).contains("twice"));
    assert!(with(&["--no-such-flag"]).contains("--no-such-flag"));
}

#[test]
fn an_unknown_key_in_the_file_names_file_line_and_key() {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), "workers:\n  - http://127.0.0.1:1\nlisten_on: 127.0.0.1:80\n").unwrap();
    let said = fails(&["--config", file.path().to_str().unwrap()]);
    assert!(
        said.contains("listen_on") && said.contains(file.path().to_str().unwrap()) && said.contains('3'),
        "{said}"
    );
}

#[test]
fn a_port_in_use_is_said_to_be_in_use() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let worker = ["--worker", "http://127.0.0.1:1"];
    let listen = fails(&[&worker[..], &["--listen", &address, "--admin", "127.0.0.1:0"]].concat());
    assert!(listen.contains("in use") && listen.contains("--listen"), "{listen}");
    let admin = fails(&[&worker[..], &["--admin", &address, "--listen", "127.0.0.1:0"]].concat());
    assert!(admin.contains("in use") && admin.contains("--admin"), "{admin}");
}

#[test]
fn help_has_examples() {
    let output = Command::new(binary()).args(["serve", "--help"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Examples:") && text.contains("WARMPATH_LISTEN"), "{text}");
}
