//! What a gateway says of its load: one line of JSON on the channel `PREFIXload`, so that a person can listen, too
//! (`redis-cli subscribe warmpath:load`).

use serde::{Deserialize, Serialize};

use crate::{
    fleet::{Fleet, LoadOfPeers},
    limits,
};

/// The form of the messages. Another one is not understood, and not listened to.
const VERSION: u32 = 1;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    #[serde(rename = "v")]
    version: u32,
    /// What the gateway is called.
    pub(super) gateway: String,
    /// Which process it is: during an upgrade there are two of one name.
    pub(super) process: u64,
    /// It says no more after this.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_last: bool,
    /// Workers that have anything of it.
    pub(super) workers: Vec<WorkerLoad>,
}

/// A worker's URL, requests in flight, of these before their first byte, and uncached prompt tokens of those.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WorkerLoad(pub(super) String, u32, u32, u64);

impl WorkerLoad {
    pub(super) fn load(&self) -> LoadOfPeers {
        let Self(_, in_flight, pending, queued_prefill_tokens) = *self;
        LoadOfPeers { in_flight, pending, queued_prefill_tokens }
    }
}

/// Why a message is not listened to.
#[derive(Debug, thiserror::Error)]
pub(super) enum MessageError {
    #[error("{0} bytes are too many")]
    Length(usize),
    #[error("not a gateway's message: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a message of form {0}")]
    Version(u32),
}

impl Message {
    /// What this gateway has in flight now.
    pub(super) fn of(gateway: &str, process: u64, fleet: &Fleet) -> Self {
        let workers = fleet.workers();
        let loads = workers.iter().filter_map(|worker| {
            let load = &worker.load;
            let says = WorkerLoad(
                worker.address_text.to_string(),
                load.in_flight(),
                load.pending(),
                load.queued_prefill_tokens(),
            );
            (says.load() != LoadOfPeers::default()).then_some(says)
        });
        Self {
            version: VERSION,
            gateway: gateway.to_owned(),
            process,
            is_last: false,
            workers: loads.collect(),
        }
    }

    /// That there is nothing more to be said.
    pub(super) fn last(gateway: &str, process: u64) -> Self {
        Self { version: VERSION, gateway: gateway.to_owned(), process, is_last: true, workers: Vec::new() }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers serialise")
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self, MessageError> {
        if text.len() > limits::SHARED_MESSAGE_BYTES_MAX {
            return Err(MessageError::Length(text.len()));
        }
        let message: Self = serde_json::from_slice(text)?;
        if message.version == VERSION { Ok(message) } else { Err(MessageError::Version(message.version)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written_and_others_are_refused() {
        let workers = vec![WorkerLoad("http://a:1".to_owned(), 3, 2, 4096)];
        let message = Message { workers, ..Message::last("gw", u64::MAX) };
        assert_eq!(Message::parse(message.to_json().as_bytes()).unwrap(), message);
        let quiet = r#"{"v":1,"gateway":"a","process":7,"workers":[],"of_a_later_version":1}"#;
        assert!(!Message::parse(quiet.as_bytes()).unwrap().is_last);
        for (text, expected) in [
            (quiet.replace("\"v\":1", "\"v\":2"), "form 2"),
            ("PING".to_owned(), "not a gateway's message"),
            (" ".repeat(limits::SHARED_MESSAGE_BYTES_MAX + 1), "too many"),
        ] {
            let error = Message::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
