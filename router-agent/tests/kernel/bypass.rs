//! The bypass relay: its start-up test on this kernel.

use router_agent::kernel::{Kernel, Options};

#[test]
fn this_kernel_passes_the_self_test() {
    let options = Options { bypass: true, ..super::options("bypass", 1) };
    let (kernel, capabilities) = Kernel::open(&options);
    let reason = capabilities.bypass.to_string();
    if reason.contains("needs root") {
        return println!("skipped: {reason}");
    }
    assert!(capabilities.bypass.is_available(), "{reason}");
    assert!(kernel.relays().bypass.is_some_and(|bypass| bypass.is_on()));
}

#[test]
fn it_stays_off_unless_asked_for() {
    let (kernel, capabilities) = Kernel::open(&super::options("no-bypass", 1));
    assert!(kernel.relays().bypass.is_none());
    assert!(!capabilities.bypass.is_available());
}
