//! The splice relay: its start-up test on this kernel.

use router_agent::kernel::{
    Kernel, Options, Splice,
    splice::{ProbeError, probe_without_cut},
};

/// The splice, having passed its start-up test; `None`, having said why, where this process may not.
pub(super) fn open(name: &str) -> Option<(Kernel, Splice)> {
    let options = Options { splice: true, ..super::options(name, 1) };
    let (kernel, capabilities) = Kernel::open(&options);
    let reason = capabilities.splice.to_string();
    if reason.contains("needs root") {
        println!("skipped: {reason}");
        return None;
    }
    assert!(capabilities.splice.is_available(), "{reason}");
    let splice = kernel.relays().splice.expect("available");
    Some((kernel, splice))
}

#[test]
fn this_kernel_passes_the_self_test() {
    let Some((_kernel, splice)) = open("splice") else { return };
    assert!(splice.is_on());
}

#[test]
fn the_self_test_sees_bytes_that_are_delivered_twice() {
    let Some((kernel, splice)) = open("splice-overlap") else { return };
    match probe_without_cut(
        &splice,
        &kernel.flows().expect("memory"),
        &kernel.relays().clients.expect("there is a way"),
    ) {
        Err(ProbeError::Check(what)) => {
            assert_eq!(what, "bytes that the network delivers twice reach the client once");
        }
        other => panic!("the cut would not be needed: {other:?}"),
    }
}

#[test]
fn it_stays_off_unless_asked_for() {
    let (kernel, capabilities) = Kernel::open(&super::options("no-splice", 1));
    assert!(kernel.relays().splice.is_none());
    assert!(!capabilities.splice.is_available());
}

#[test]
fn it_goes_together_with_the_bypass() {
    let options = Options { splice: true, bypass: true, ..super::options("splice-and-bypass", 1) };
    let (kernel, capabilities) = Kernel::open(&options);
    let (splice, bypass) = (capabilities.splice.to_string(), capabilities.bypass.to_string());
    if splice.contains("needs root") || bypass.contains("needs root") {
        return println!("skipped: {splice}, {bypass}");
    }
    let relays = kernel.relays();
    assert!(relays.splice.is_some() && relays.bypass.is_some(), "{splice}, {bypass}");
}
