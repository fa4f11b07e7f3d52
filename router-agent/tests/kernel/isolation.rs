//! Several gateways, killed gateways and gateways without privileges on one host.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use router_agent::kernel::{DEFAULT_ROOT, Kernel, Options, PinnedMaps, pin_directory};
use router_common::{names, workers::WorkerValue};

use super::{PinRoot, instance, open, options};

const HOLD: &str = "WARMPATH_TEST_HOLD";
const NO_PERFMON: &str = "WARMPATH_TEST_NO_PERFMON";
const UNPRIVILEGED: &str = "WARMPATH_TEST_UNPRIVILEGED";

/// Runs one test of this binary in a process of its own.
fn child(test: &str, variable: &str, value: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command
        .args(["--exact", test, "--nocapture"])
        .env(variable, value)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

fn wait_for_line(child: &mut Child, wanted: &str) -> bool {
    let output = child.stdout.as_mut().expect("piped");
    BufReader::new(output).lines().any(|line| line.is_ok_and(|line| line.contains(wanted)))
}

#[test]
fn a_dropped_kernel_takes_its_pins_along() {
    let Some((kernel, _)) = open("drop", 1) else { return };
    let directory = kernel.pin_directory().expect("pinned").to_owned();
    assert!(directory.join(names::WORKERS).exists());
    drop(kernel);
    assert!(!directory.exists());
    let gone =
        PinnedMaps::open(Path::new(DEFAULT_ROOT), Some(&instance("drop"))).expect_err("nothing to read");
    assert!(std::error::Error::source(&gone).is_some());
}

#[test]
fn a_second_gateway_of_the_same_name_runs_without_pins() {
    let Some((mut first, _)) = open("same", 1) else { return };
    let mut workers = first.take_workers().expect("loaded");
    workers.publish(0, &WorkerValue::new("first", ([127, 0, 0, 1], 1).into())).expect("publish");

    let (mut second, capabilities) = Kernel::open(&options("same", 1));
    let reason = capabilities.pins.to_string();
    assert!(reason.contains("another running gateway") && reason.contains("instance"), "{reason}");
    assert!(capabilities.load.is_available() && capabilities.steering.is_available());
    second
        .take_workers()
        .expect("loaded")
        .publish(0, &WorkerValue::new("second", ([127, 0, 0, 1], 2).into()))
        .expect("publish");
    drop(second);

    let maps = PinnedMaps::open(Path::new(DEFAULT_ROOT), Some(&instance("same"))).expect("still there");
    let rows = maps.rows::<WorkerValue>(names::WORKERS).expect("readable");
    assert!(rows[0].value.name.starts_with(b"first\0"), "undisturbed");

    let (other, capabilities) = Kernel::open(&options("same-other", 1));
    assert!(capabilities.pins.is_available(), "{capabilities:?}");
    assert_ne!(other.pin_directory(), first.pin_directory());
}

#[test]
fn stale_pins_of_another_shape_are_replaced() {
    let Some(root) = PinRoot::create("stale") else { return };
    let directory = pin_directory(&root.0, Some("a"));
    fs::create_dir(&directory).expect("as a killed process leaves it");
    let foreign = aya::maps::Array::<_, [u8; 3]>::create(1, 0).expect("a map of another shape");
    foreign.pin(directory.join(names::WORKERS)).expect("pin");
    let foreign = aya::maps::Array::<_, [u8; 3]>::create(1, 0).expect("a map of an older version");
    foreign.pin(directory.join("forgotten")).expect("pin");

    // A reader sees that it is not what it expects, instead of misreading it.
    let maps = PinnedMaps::open(&root.0, Some("a")).expect("there");
    maps.rows::<WorkerValue>(names::WORKERS).expect_err("values of 3 bytes");
    assert!(!maps.is_live());

    let (mut kernel, capabilities) = Kernel::open(&root.options("a"));
    assert!(capabilities.pins.is_available(), "{capabilities:?}");
    assert!(maps.is_live());
    let mut workers = kernel.take_workers().expect("loaded");
    workers.publish(0, &WorkerValue::new("w", ([127, 0, 0, 1], 1).into())).expect("publish");
    assert_eq!(maps.rows::<WorkerValue>(names::WORKERS).expect("readable now").len(), 1);
    let names: Vec<_> = maps.list().expect("listed").into_iter().map(|map| map.name).collect();
    assert!(!names.contains(&"forgotten".to_owned()), "what an older version left is gone: {names:?}");
}

#[test]
fn a_killed_gateways_pins_are_taken_over_or_swept() {
    let Some(root) = PinRoot::create("killed") else { return };
    for successor in ["killed", "other"] {
        let mut gateway =
            child("isolation::holds_pins", HOLD, root.0.to_str().expect("UTF-8")).spawn().expect("spawn");
        assert!(wait_for_line(&mut gateway, "holding"), "the child has pinned");
        let (_second, capabilities) = Kernel::open(&root.options("killed"));
        assert!(!capabilities.pins.is_available(), "held by a live process");
        let (_third, capabilities) = Kernel::open(&root.options("third"));
        assert!(capabilities.pins.is_available(), "{capabilities:?}");
        assert_eq!(PinnedMaps::instances(&root.0), [Some("killed".to_owned()), Some("third".to_owned())]);

        gateway.kill().expect("SIGKILL");
        gateway.wait().expect("reaped");
        let left = pin_directory(&root.0, Some("killed"));
        assert!(left.join(names::WORKERS).exists(), "a killed process removes nothing");
        assert_eq!(PinnedMaps::instances(&root.0), [Some("third".to_owned())]);

        let (kernel, capabilities) = Kernel::open(&root.options(successor));
        assert!(capabilities.pins.is_available(), "{capabilities:?}");
        let maps = PinnedMaps::open(&root.0, Some(successor)).expect("there");
        assert_eq!(maps.instance().expect("readable").pid, std::process::id());
        assert_eq!(left.exists(), successor == "killed", "another instance sweeps what was left behind");
        assert!(PinnedMaps::open(&root.0, Some("third")).expect("untouched").is_live());
        drop(kernel);
        assert!(!left.exists());
    }
}

/// The other process of the test above.
#[test]
fn holds_pins() {
    let Ok(root) = std::env::var(HOLD) else { return };
    let options =
        Options { instance: Some("killed".to_owned()), pin_root: root.into(), ..Options::default() };
    let (_kernel, capabilities) = Kernel::open(&options);
    assert!(capabilities.pins.is_available(), "{capabilities:?}");
    println!("holding");
    std::io::stdout().flush().expect("flush");
    // Until killed, or until the parent is gone.
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

#[test]
fn without_privileges_everything_is_named_and_nothing_fails() {
    if open("privileged", 1).is_none() {
        return;
    }
    let mut command = child("isolation::opens_without_privileges", UNPRIVILEGED, &instance("nobody"));
    let mut nobody = match command.uid(65534).gid(65534).spawn() {
        Ok(nobody) => nobody,
        Err(error) => {
            println!("skipped: uid 65534 cannot run this binary: {error}");
            return;
        }
    };
    assert!(wait_for_line(&mut nobody, "named"));
    assert!(nobody.wait().expect("reaped").success());
    assert!(!pin_directory(Path::new(DEFAULT_ROOT), Some(&instance("nobody"))).exists());
}

/// The other process of the test above.
#[test]
fn opens_without_privileges() {
    let Ok(instance) = std::env::var(UNPRIVILEGED) else { return };
    let (mut kernel, capabilities) =
        Kernel::open(&Options { instance: Some(instance), ..Options::default() });
    let reason = capabilities.load.to_string();
    assert!(reason.contains("CAP_BPF") && !reason.contains('\n'), "{reason}");
    assert!(capabilities.iter().all(|(_, capability)| !capability.is_available()));
    assert!(kernel.take_workers().is_none() && kernel.steering_stats().is_none());
    println!("named");
}

#[test]
fn the_one_privilege_that_is_missing_is_named() {
    if open("one", 1).is_none() {
        return;
    }
    let caps = "-all,+bpf,+net_admin";
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    setpriv.args(["--inh-caps", "--ambient-caps", "--bounding-set"].map(|set| format!("{set}={caps}")));
    setpriv.arg(std::env::current_exe().expect("this binary"));
    setpriv.args(["--exact", "isolation::opens_without_perfmon", "--nocapture"]);
    match setpriv.env(NO_PERFMON, "1").output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("CAP_PERFMON (missing here)"), "{output:?}");
        }
        Err(error) => println!("skipped: setpriv: {error}"),
    }
}

/// The other process of the test above.
#[test]
fn opens_without_perfmon() {
    if std::env::var_os(NO_PERFMON).is_none() {
        return;
    }
    let (mut kernel, capabilities) = Kernel::open(&options("one-child", 1));
    assert!(capabilities.load.is_available() && kernel.take_workers().is_some(), "{capabilities:?}");
    println!("{}", capabilities.steering);
}

#[test]
fn a_host_without_bpffs_keeps_everything_but_the_pins() {
    if open("bpffs", 1).is_none() {
        return;
    }
    let root = tempfile::tempdir().expect("a directory that is no bpffs");
    let (mut kernel, capabilities) =
        Kernel::open(&Options { pin_root: root.path().to_owned(), ..Options::default() });
    let reason = capabilities.pins.to_string();
    assert!(reason.contains("mount -t bpf"), "{reason}");
    assert!(capabilities.load.is_available() && capabilities.steering.is_available());
    assert!(kernel.take_workers().is_some());
}

#[test]
fn a_name_that_cannot_be_a_directory_is_refused() {
    if open("name", 1).is_none() {
        return;
    }
    for name in ["../escape", "dotted.name", ""] {
        let (_kernel, capabilities) =
            Kernel::open(&Options { instance: Some(name.to_owned()), ..Options::default() });
        assert!(!capabilities.pins.is_available() && capabilities.load.is_available());
    }
}
