//! What is left of a gateway's privileges when it serves: nothing, in any of its threads. Needs root to have something to give
//! up; says "skipped: why" without.

use std::{collections::BTreeSet, fs, process::Command};

use warmpath_tests::{Gateway, Signal, eventually, sims, urls};

use crate::{
    privileges::{CONFIG, Place, USER, can_arrange, granted, prepared, said},
    upgrade::successor_of,
};

/// A line of each thread's status: `CapEff`, `NoNewPrivs`, `Uid` …
fn of_threads(pid: u32, key: &str) -> BTreeSet<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // A thread may end while we look.
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
    let value = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{key}: {status}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    statuses.map(value).collect()
}

/// No thread has a privilege, or can get one.
async fn has_none(pid: u32) {
    let none: BTreeSet<String> = ["0000000000000000".to_owned()].into();
    // The threads that were there before follow, this last.
    for (key, value) in [("CapPrm", &none), ("NoNewPrivs", &["1".to_owned()].into())] {
        eventually(key, || async { (of_threads(pid, key) == *value).then_some(()) }).await;
    }
    for set in ["CapEff", "CapInh", "CapAmb"] {
        assert_eq!(of_threads(pid, set), none, "{set}");
    }
}

fn is_root() -> bool {
    let is = rustix::process::geteuid().is_root();
    if !is {
        println!("skipped: needs root");
    }
    is
}

#[tokio::test]
async fn no_thread_that_serves_has_a_capability_and_everything_works_without() {
    if !is_root() {
        return;
    }
    let sims = sims(1).await;
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(config.path(), CONFIG).unwrap();
    let gateway = Gateway::start(&urls(&sims), &["--config", config.path().to_str().unwrap()]).await;
    assert!(gateway.output().contains("capabilities kept: none: all were given up"), "{}", gateway.output());
    gateway.chat("hello").await;
    let mut stream = gateway.stream("hello", 20).await;
    assert!(stream.rest().await.1);
    has_none(gateway.pid()).await;
    assert!(
        fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap().count() >= 4,
        "threads to look at"
    );
    // The threads that were started last did not need to give anything up; that of the bypass did.
    let bypassed = gateway.metric("warmpath_relay_responses_total{path=\"bypass\"}").await;
    if said(&gateway.output(), "bypass") == "yes" {
        assert!((bypassed - 1.0).abs() < f64::EPSILON, "the kernel moved the stream");
    }
}

#[tokio::test]
async fn a_gateway_that_root_starts_can_become_another_user_and_leaves_no_pin_behind() {
    if !can_arrange() {
        return;
    }
    let (place, sims) = (Place::new(), sims(1).await);
    let name = Command::new("id").args(["-nu", USER]).output().unwrap();
    let name = String::from_utf8(name.stdout).unwrap().trim().to_owned();
    if name.is_empty() {
        return println!("skipped: no user {USER} here");
    }
    let config = place.directory.path().join("user.yaml");
    fs::write(&config, format!("user: {name}\n{CONFIG}")).unwrap();
    let mut command = prepared("become");
    command.arg(place.binary()).args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command
        .args(["--instance", "become", "--threads", "2", "--worker", &urls(&sims)[0], "--config"])
        .arg(config);
    let mut gateway = Gateway::spawn(command.into()).await;
    assert_eq!(of_threads(gateway.pid(), "Uid"), [[USER; 4].join(" ")].into());
    assert_eq!(of_threads(gateway.pid(), "Groups"), [USER.to_owned()].into());
    has_none(gateway.pid()).await;
    assert_eq!(gateway.chat("hello").await.status, 200);
    let pins = format!("/proc/{}/root/sys/fs/bpf/warmpath-become", gateway.pid());
    // Its own mount of the BPF file system goes with it: held, so that one can look afterwards.
    let held = fs::File::open(&pins).unwrap();
    let pinned = || fs::read_dir(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held)));
    assert!(said(&gateway.output(), "pins") != "yes" || pinned().unwrap().count() > 0);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().await, Some(0));
    assert_eq!(pinned().map_or(0, Iterator::count), 0, "the pins are gone");
}

#[tokio::test]
async fn a_successor_of_a_gateway_without_privileges_has_what_the_first_one_began_with() {
    if !can_arrange() {
        return;
    }
    let (place, sims) = (Place::new(), sims(1).await);
    let mut gateway = place.start("heir", Some(&granted()), &sims).await;
    if said(&gateway.output(), "load") != "yes" {
        return println!("skipped: {}", said(&gateway.output(), "load"));
    }
    has_none(gateway.pid()).await;
    gateway.signal(Signal::USR2);
    assert_eq!(gateway.ended().await, Some(0));
    let heir = Heir(successor_of(&gateway.output()));
    has_none(heir.0.cast_unsigned()).await;
    for capability in ["load", "steering", "bypass", "pins"] {
        let available = format!("warmpath_kernel_available{{capability=\"{capability}\"}}");
        assert!(gateway.metric(&available).await > 0.5, "{capability}");
    }
    assert_eq!(gateway.chat("hello").await.status, 200);
    drop(heir);
}

/// A process that no handle here would end.
struct Heir(i32);

impl Drop for Heir {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.0).unwrap();
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

#[tokio::test]
async fn a_user_that_is_not_there_is_named() {
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(config.path(), "user: no-such-user-here\nworkers: ['http://127.0.0.1:1']\n").unwrap();
    let mut command = tokio::process::Command::new(warmpath_tests::binary());
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config"])
        .arg(config.path());
    let output = command.kill_on_drop(true).output().await.unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("no user \"no-such-user-here\""));
}
