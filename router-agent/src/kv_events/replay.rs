//! Asking a worker for batches that it has published before.
//!
//! A DEALER sends `[b"", first number]`; vLLM's ROUTER answers with one message per batch that it still has,
//! `[b"", topic, number, payload]`, and ends with number −1. Up to vLLM 0.25 the topic was left out. A request that it
//! does not like is not answered at all.

use bytes::Bytes;
use tokio::time::timeout;

use super::zmtp::{Connection, Endpoint, Role, ZmtpError};
use crate::limits::KV_REPLAY_PAUSE_MAX;

const END: u64 = u64::MAX;

/// Why a replay broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplayError {
    /// The connection failed.
    #[error(transparent)]
    Zmtp(#[from] ZmtpError),
    /// It says nothing more.
    #[error("no answer within {KV_REPLAY_PAUSE_MAX:?}")]
    Timeout,
    /// What it says is no replay.
    #[error("an answer of {0} frames, the number of {1} bytes")]
    Malformed(usize, usize),
}

/// A replay under way.
pub(super) struct Replay(Connection);

impl Replay {
    /// Asks for every batch from the number `first` on.
    pub(super) async fn open(endpoint: &Endpoint, first: u64) -> Result<Self, ReplayError> {
        let mut connection = Connection::connect(endpoint, Role::Dealer).await?;
        connection.send(&[b"", &first.to_be_bytes()]).await?;
        Ok(Self(connection))
    }

    /// The next batch, its number and its payload; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<(u64, Bytes)>, ReplayError> {
        let frames =
            timeout(KV_REPLAY_PAUSE_MAX, self.0.receive()).await.map_err(|_| ReplayError::Timeout)??;
        let (number, payload) = number_and_payload(&frames).ok_or_else(|| {
            ReplayError::Malformed(frames.len(), frames.iter().rev().nth(1).map_or(0, Bytes::len))
        })?;
        Ok((number != END).then(|| (number, payload.clone())))
    }
}

/// The last two frames of a message of the stream or of a replay, whatever is before them.
pub(super) fn number_and_payload(frames: &[Bytes]) -> Option<(u64, &Bytes)> {
    let [.., number, payload] = frames else { return None };
    Some((u64::from_be_bytes(number.as_ref().try_into().ok()?), payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topic_may_be_there_or_not() {
        let frame = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
        let number = 7_u64.to_be_bytes();
        let payload = frame(b"p");
        for frames in [
            vec![frame(b""), frame(b"topic"), frame(&number), payload.clone()],
            vec![frame(b""), frame(&number), payload.clone()],
            vec![frame(&number), payload.clone()],
        ] {
            assert_eq!(number_and_payload(&frames), Some((7, &payload)));
        }
        assert_eq!(number_and_payload(&[frame(b""), frame(b"short"), payload.clone()]), None);
        assert_eq!(number_and_payload(&[payload]), None);
    }
}
