//! The models that a worker serves, LoRA adapters among them: what `GET /v1/models` lists.

use serde::Deserialize;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

/// A model's name as decisions compare it.
pub fn model_key(name: &str) -> u64 {
    xxh3_64(name.as_bytes())
}

/// One worker's list.
#[derive(Debug, Default)]
pub struct Models {
    /// Sorted.
    keys: Vec<u64>,
    entries: Vec<Value>,
}

#[derive(Deserialize)]
struct List {
    data: Vec<Value>,
}

impl Models {
    /// Reads the answer; none if it is not OpenAI's list.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let List { mut data } = serde_json::from_slice(body).ok()?;
        data.retain(|entry| entry["id"].is_string());
        let mut keys: Vec<u64> =
            data.iter().filter_map(|entry| entry["id"].as_str()).map(model_key).collect();
        keys.sort_unstable();
        Some(Self { keys, entries: data })
    }

    /// As configured.
    pub(super) fn listed(names: &[String]) -> Self {
        let mut keys: Vec<u64> = names.iter().map(|name| model_key(name)).collect();
        keys.sort_unstable();
        let entry = |name: &String| json!({ "id": name, "object": "model", "owned_by": "vllm" });
        Self { keys, entries: names.iter().map(entry).collect() }
    }

    /// Whether the model is listed.
    pub fn contains(&self, key: u64) -> bool {
        self.keys.binary_search(&key).is_ok()
    }

    /// The entries as the worker wrote them, each with a string as its `id`.
    pub fn entries(&self) -> &[Value] {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_of_vllm_is_read_and_rubbish_is_not() {
        let models = Models::parse(br#"{"object":"list","data":[{"id":"base"},{"id":"sql-lora"},{"id":7}]}"#)
            .expect("a list");
        assert!(models.contains(model_key("base")) && models.contains(model_key("sql-lora")));
        assert!(!models.contains(model_key("gpt-5")) && models.entries().len() == 2);
        for rubbish in [&b"[]"[..], b"{}", b"{\"data\":7}", b"<html>"] {
            assert!(Models::parse(rubbish).is_none());
        }
    }
}
