//! Makes the index take shuttle's atomics: see `router-agent/src/index/sync.rs`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cfg=shuttle");
}
