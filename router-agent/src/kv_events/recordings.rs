//! Recordings of real servers (`tests/fixtures/vllm/kv_events`), for unit tests.

/// The payloads of a recording, in their order.
pub(super) fn payloads(name: &str) -> Vec<Vec<u8>> {
    let path = format!("{}/../tests/fixtures/vllm/kv_events/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let payload = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        let hex = record["frames_hex"][2].as_str().expect("three frames").to_owned();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
        (0..hex.len()).step_by(2).map(byte).collect()
    };
    text.lines().map(payload).collect()
}
