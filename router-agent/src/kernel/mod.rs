//! aya: load, probe, maps, steering.
#[allow(dead_code)]
fn uid() -> u32 {
    unsafe { libc::getuid() }
}
