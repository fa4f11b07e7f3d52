//! What the gateway needs of the kernel's capabilities, and what it leaves behind: an ordinary user with the three that
//! the systemd unit grants, each of them missing, several gateways on one host, and one that is killed. Needs root to
//! arrange it; says "skipped: why" without.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use aya::{maps::loaded_maps, programs::loaded_programs};
use serde_json::Value;
use tempfile::TempDir;
use warmpath_tests::{Gateway, Signal, SimHandle, eventually, sims, urls};

const UNIT: &str = include_str!("../../deploy/systemd/warmpath.service");

/// Everything that the kernel side can do, wherever the default may be.
pub(crate) const CONFIG: &str = "relay: {bypass: on}\n";

/// The user of the tests: `nobody` of most systems.
pub(crate) const USER: &str = "65534";

/// What the unit does as root before it starts the gateway (`ExecStartPre=+`), on a BPF file system that only this
/// process and its children see.
const PREPARE: &str = "mount -t bpf -o mode=0700 bpf /sys/fs/bpf
    chmod 0711 /sys/fs/bpf
    install -d -o $USER -g $USER -m 0750 /sys/fs/bpf/warmpath-$INSTANCE
    exec \"$@\"";

/// A value of the unit file, by its key; it must be there once.
fn unit(key: &str) -> &'static str {
    let values: Vec<_> = UNIT.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect();
    assert_eq!(values.len(), 1, "{key}");
    values[0]
}

/// The capabilities that the unit grants, as setpriv(1) names them.
pub(crate) fn granted() -> Vec<String> {
    let names = unit("AmbientCapabilities").split(' ');
    names.map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase()).collect()
}

#[test]
fn the_unit_grants_exactly_what_the_kernel_side_needs_to_an_ordinary_user() {
    assert_eq!(granted(), ["bpf", "net_admin", "perfmon"]);
    assert_eq!(unit("CapabilityBoundingSet"), unit("AmbientCapabilities"));
    assert_ne!(unit("User"), "root");
    assert_eq!(unit("NoNewPrivileges"), "yes");
    // What `PREPARE` does in the tests.
    let user = unit("User");
    for command in [
        "/bin/chmod 0711 /sys/fs/bpf",
        &format!("/usr/bin/install -d -o {user} -g {user} -m 0750 /sys/fs/bpf/warmpath"),
    ] {
        assert!(UNIT.lines().any(|line| line.strip_prefix("ExecStartPre=-+") == Some(command)), "{command}");
    }
}

/// A place for the binary and its configuration that every user can read.
pub(crate) struct Place {
    pub(crate) directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        // By another process: a file open for writing here would be inherited by what other tests start meanwhile.
        let copied = Command::new("cp").arg(warmpath_tests::binary()).arg(directory.path()).status().unwrap();
        assert!(copied.success());
        fs::write(directory.path().join("warmpath.yaml"), CONFIG).unwrap();
        fs::set_permissions(directory.path().join("warmpath.yaml"), PermissionsExt::from_mode(0o644))
            .unwrap();
        Self { directory }
    }

    pub(crate) fn binary(&self) -> PathBuf {
        self.directory.path().join("warmpath")
    }

    /// A gateway of `instance` with a BPF file system of its own; as root, or as an ordinary user with `caps`.
    pub(crate) async fn start(
        &self,
        instance: &str,
        caps: Option<&[String]>,
        workers: &[SimHandle],
    ) -> Gateway {
        let mut command = prepared(instance);
        command.args(caps.map(as_user).unwrap_or_default()).arg(self.binary());
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--threads", "2"]);
        command.args(["--instance", instance, "--config"]).arg(self.directory.path().join("warmpath.yaml"));
        command.args(urls(workers).iter().flat_map(|url| ["--worker", url]));
        Gateway::spawn(command.into()).await
    }
}

/// A command that runs the arguments it is given on a prepared BPF file system.
pub(crate) fn prepared(instance: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", PREPARE, "sh"]).env("USER", USER).env("INSTANCE", instance);
    command
}

/// setpriv(1), of util-linux: this user, these capabilities and no others, as the unit does it.
fn as_user(caps: &[String]) -> Vec<String> {
    let set = ["-all".to_owned()].into_iter().chain(caps.iter().map(|cap| format!("+{cap}")));
    let set = set.collect::<Vec<_>>().join(",");
    let ids = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".to_owned()];
    let sets = ["inh-caps", "ambient-caps", "bounding-set"].map(|name| format!("--{name}={set}"));
    let mut command = vec!["setpriv".to_owned(), "--no-new-privs".to_owned()];
    command.extend(ids.into_iter().chain(sets));
    command
}

/// Whether this process can arrange all that; says why if not.
pub(crate) fn can_arrange() -> bool {
    let tried = prepared("try").args(as_user(&granted())).arg("true").output();
    match tried {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
            false
        }
        Err(error) => {
            println!("skipped: unshare: {error}");
            false
        }
    }
}

/// What the start-up lines say of a capability of the kernel side: `yes`, or `no` with the reason.
pub(crate) fn said<'a>(output: &'a str, capability: &str) -> &'a str {
    let lines = output.lines().filter_map(|line| line.trim().strip_prefix("kernel"));
    let mut said = lines.filter_map(|line| line.trim_start().strip_prefix(capability));
    said.next().unwrap_or_else(|| panic!("nothing said of {capability}: {output}")).trim()
}

/// All of them, with whether they are there.
fn capabilities(output: &str) -> Vec<(&str, bool)> {
    let lines = output.lines().filter_map(|line| line.trim().strip_prefix("kernel"));
    lines.map(|line| (line.trim().split("  ").next().unwrap(), line.trim_end().ends_with(" yes"))).collect()
}

#[tokio::test]
async fn an_ordinary_user_with_the_units_capabilities_has_everything_that_root_has() {
    if !can_arrange() {
        return;
    }
    let (place, sims) = (Place::new(), sims(1).await);
    let root = place.start("root", None, &sims).await;
    let (root_said, load) = (root.output(), said(&root.output(), "load").to_owned());
    if load != "yes" {
        return println!("skipped: {load}");
    }
    let user = place.start("user", Some(&granted()), &sims).await;
    assert_eq!(capabilities(&user.output()), capabilities(&root_said), "{}", user.output());
    assert_eq!(said(&user.output(), "pins"), "yes");
    assert_eq!(user.chat("hello").await.status, 200);

    // Its own maps it reads without any capability.
    let enter = format!("--target={}", user.pid());
    let mut maps = Command::new("nsenter");
    maps.args([&enter, "--mount"]).args(as_user(&[])).arg(place.binary());
    let output = maps.args(["maps", "decisions", "--instance", "user", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let decisions: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(decisions.as_array().map(Vec::len), Some(1));
    // The first ones may come before the data threads have said that they live.
    eventually("a connection that is steered", || async {
        user.chat("hello").await;
        let steered = user.metric("warmpath_steering_connections_total{result=\"selected\"}").await;
        (steered >= 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn each_capability_that_is_missing_is_named_with_what_it_switches_off() {
    if !can_arrange() {
        return;
    }
    let (place, sims) = (Place::new(), sims(1).await);
    let all = ["load", "workers map", "steering", "bypass", "pins"];
    let cases = [("bpf", &all[..]), ("net_admin", &all[..]), ("perfmon", &["steering", "bypass"][..])];
    for (missing, off) in cases {
        let caps: Vec<_> = granted().into_iter().filter(|cap| cap != missing).collect();
        let gateway = place.start(missing, Some(&caps), &sims).await;
        let output = gateway.output();
        for capability in all {
            let said = said(&output, capability);
            if off.contains(&capability) {
                let named = format!("CAP_{} (missing here)", missing.to_uppercase());
                assert!(said.starts_with("no") && said.contains(&named), "{capability}: {said}");
            } else {
                assert_eq!(said, "yes", "{capability} without {missing}");
            }
        }
        assert_eq!(gateway.chat("hello").await.status, 200, "it serves without {missing}");
    }
}

#[tokio::test]
async fn without_a_directory_for_pins_the_user_is_told_what_root_has_to_do() {
    if !can_arrange() {
        return;
    }
    let (place, sims) = (Place::new(), sims(1).await);
    let mut command = prepared("other");
    command.args(as_user(&granted())).arg(place.binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--instance", "mine"]);
    command.args(["--worker", &urls(&sims)[0]]);
    let gateway = Gateway::spawn(command.into()).await;
    let output = gateway.output();
    assert_eq!(said(&output, "load"), "yes");
    let pins = said(&output, "pins");
    assert!(pins.contains(&format!("install -d -o {USER} -m 0750 /sys/fs/bpf/warmpath-mine")), "{pins}");
    assert_eq!(gateway.chat("hello").await.status, 200);
}

/// The ids that a process's file descriptors name: of programs (`prog_id`) or of maps (`map_id`).
pub(crate) fn ids(pid: u32, what: &str) -> BTreeSet<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    // One may be closed while we look.
    let infos = entries.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
    let found = |info: String| -> Vec<u32> {
        let lines = info.lines().filter_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        lines.map(|id| id.trim().parse().unwrap()).collect()
    };
    infos.flat_map(found).collect()
}

fn programs_left(of: &BTreeSet<u32>) -> Vec<u32> {
    let loaded = loaded_programs().filter_map(|program| program.ok().map(|program| program.id()));
    loaded.filter(|id| of.contains(id)).collect()
}

fn maps_left(of: &BTreeSet<u32>) -> Vec<u32> {
    loaded_maps().filter_map(|map| map.ok().map(|map| map.id())).filter(|id| of.contains(id)).collect()
}

/// A gateway with everything, under a name of this test's own; `None`, having said why, where it cannot pin.
async fn pinned(sims: &[SimHandle], instance: &str) -> Option<Gateway> {
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(config.path(), CONFIG).unwrap();
    let args = ["--instance", instance, "--config", config.path().to_str().unwrap()];
    let gateway = Gateway::start(&urls(sims), &args).await;
    let output = gateway.output();
    let pins = said(&output, "pins");
    if pins == "yes" {
        return Some(gateway);
    }
    println!("skipped: {pins}");
    None
}

fn maps(args: &[&str]) -> Value {
    let output =
        Command::new(warmpath_tests::binary()).arg("maps").args(args).arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn a_killed_gateway_leaves_nothing_that_its_successor_trips_over() {
    let sims = sims(1).await;
    let instance = format!("test-kill-{}", std::process::id());
    let Some(mut gateway) = pinned(&sims, &instance).await else { return };
    gateway.chat("hello").await;
    // In the middle of a stream, with whatever the kernel does about that.
    let mut stream = gateway.stream("a long answer", 10_000).await;
    assert!(stream.next().await.unwrap().is_ok());
    let (programs, old_maps) = (ids(gateway.pid(), "prog_id"), ids(gateway.pid(), "map_id"));
    assert!(!programs_left(&programs).is_empty() && !maps_left(&old_maps).is_empty(), "they are found");
    let killed = gateway.pid();
    gateway.signal(Signal::KILL);
    assert_eq!(gateway.ended().await, None);
    assert!(!stream.rest().await.1, "the client sees that its answer broke off");

    // The kernel frees programs and sockets some time after the process.
    eventually("no program is left", || async { programs_left(&programs).is_empty().then_some(()) }).await;

    let successor = pinned(&sims, &instance).await.expect("the pins are there to be had");
    assert_eq!(successor.chat("hello").await.status, 200);
    let who = maps(&["instance", "--instance", &instance]);
    assert_ne!(who[0]["pid"], killed);
    assert_eq!(who[0]["pid"], successor.pid());
    assert_eq!(maps(&["decisions", "--instance", &instance])[0]["sequence"], 1, "maps of its own");
    eventually("the old maps are gone", || async { maps_left(&old_maps).is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn two_gateways_on_one_host_do_not_disturb_each_other() {
    let sims = sims(2).await;
    let names = ["a", "b"].map(|name| format!("test-two-{name}-{}", std::process::id()));
    let Some(first) = pinned(&sims[..1], &names[0]).await else { return };
    let mut second = pinned(&sims[1..], &names[1]).await.expect("a name of its own");
    let (first_said, second_said) = (first.output(), second.output());
    assert_eq!(capabilities(&first_said), capabilities(&second_said));
    for (gateway, requests) in [(&first, 3), (&second, 2)] {
        for _ in 0..requests {
            let mut stream = gateway.stream("hello", 8).await;
            assert!(stream.rest().await.1);
        }
    }
    for ((gateway, name), (requests, sim)) in [&first, &second].into_iter().zip(&names).zip([(3, 0), (2, 1)])
    {
        assert_eq!(maps(&["instance", "--instance", name])[0]["pid"], gateway.pid());
        assert_eq!(maps(&["decisions", "--instance", name]).as_array().unwrap().len(), requests);
        let workers = maps(&["workers", "--instance", name]);
        assert_eq!(workers.as_array().unwrap().len(), 1);
        assert_eq!(workers[0]["address"], sims[sim].addr().to_string());
        let accepted: u64 = maps(&["cores", "--instance", name])
            .as_array()
            .unwrap()
            .iter()
            .map(|core| core["accepted"].as_u64().unwrap())
            .sum();
        assert_eq!(accepted, requests as u64, "connections of the other's clients are not among them");
    }

    // Nor when one of them is killed, and comes back.
    second.signal(Signal::KILL);
    second.ended().await;
    let mut stream = first.stream("hello", 8).await;
    assert!(stream.rest().await.1);
    let second = pinned(&sims[1..], &names[1]).await.expect("the same name again");
    assert_eq!(second.chat("hello").await.status, 200);
    assert_eq!(first.chat("hello").await.status, 200);
    assert_eq!(maps(&["instance", "--instance", &names[0]])[0]["pid"], first.pid());
    assert_eq!(maps(&["decisions", "--instance", &names[0]]).as_array().unwrap().len(), 5);
}
