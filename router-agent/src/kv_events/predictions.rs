//! What a worker is expected to hold before it says so.
//!
//! A request's blocks are in the worker's cache once it has been prefilled, and its events follow within milliseconds. Until
//! then the next request with the same prompt must be able to find it. So with the decision the prompt's blocks are put
//! into the index of tokens, and a guard is kept with the request: dropped at the first byte of the answer, or with the
//! request, it leaves the blocks [`GRACE`] to be confirmed by an event, and what is not is taken out again.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc::{self, OwnedPermit, error::TrySendError},
    time::Instant,
};

use crate::{
    index::{PrefixIndex, WorkerSlot},
    limits::KV_PREDICTIONS_MAX,
    telemetry::Metrics,
};

/// How long after prefill the worker's events may take.
const GRACE: Duration = Duration::from_secs(1);

/// Makes predictions; shared by all data threads.
#[derive(Clone)]
pub struct Predictions {
    tokens: Arc<PrefixIndex>,
    metrics: Arc<Metrics>,
    over: mpsc::Sender<Over>,
}

/// One request's blocks, until its prefill is over.
#[derive(Debug)]
pub struct Prediction {
    over: Option<(OwnedPermit<Over>, WorkerSlot, Box<[u64]>)>,
}

/// A prediction whose time has come.
#[derive(Debug)]
pub struct Over {
    pub slot: WorkerSlot,
    pub keys: Box<[u64]>,
    pub due: Instant,
}

impl Predictions {
    /// The maker, and where predictions end.
    pub fn new(tokens: Arc<PrefixIndex>, metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<Over>) {
        let (over, ended) = mpsc::channel(KV_PREDICTIONS_MAX);
        (Self { tokens, metrics, over }, ended)
    }

    /// Expects the blocks `keys` on the worker, of which it holds the first `held` already. None if nothing is new, or if
    /// there are too many predictions.
    pub fn predict(&self, slot: WorkerSlot, keys: &[u64], held: u32) -> Option<Prediction> {
        let (before, new) = keys.split_at(keys.len().min(held as usize));
        if new.is_empty() {
            return None;
        }
        match self.over.clone().try_reserve_owned() {
            Ok(permit) => {
                self.tokens.store(slot, before.last().copied(), new);
                Some(Prediction { over: Some((permit, slot, new.into())) })
            }
            Err(TrySendError::Full(_)) => {
                self.metrics.kv_events.predictions_refused.inc();
                None
            }
            Err(TrySendError::Closed(_)) => None, // the gateway is ending, or events are off
        }
    }
}

impl Drop for Prediction {
    fn drop(&mut self) {
        if let Some((permit, slot, keys)) = self.over.take() {
            permit.send(Over { slot, keys, due: Instant::now() + GRACE });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Matches;

    fn held(index: &PrefixIndex, keys: &[u64]) -> u32 {
        let mut matches = Matches::new();
        index.lookup(keys, &mut matches);
        matches.blocks(WorkerSlot(3))
    }

    #[tokio::test]
    async fn a_prediction_is_there_at_once_and_ends_with_its_guard() {
        let index = Arc::new(PrefixIndex::default());
        let (predictions, mut ended) = Predictions::new(index.clone(), Metrics::new().unwrap());
        index.store(WorkerSlot(3), None, &[1]);
        let prediction = predictions.predict(WorkerSlot(3), &[1, 2, 3], 1).unwrap();
        assert_eq!(held(&index, &[1, 2, 3]), 3);
        assert!(ended.try_recv().is_err());
        drop(prediction);
        let over = ended.try_recv().unwrap();
        assert_eq!((over.slot, &*over.keys), (WorkerSlot(3), &[2, 3][..]));
        assert!(predictions.predict(WorkerSlot(3), &[1, 2, 3], 3).is_none(), "nothing is new");
    }

    #[tokio::test]
    async fn their_number_is_bounded() {
        let index = Arc::new(PrefixIndex::default());
        let (predictions, _ended) = Predictions::new(index.clone(), Metrics::new().unwrap());
        let all: Vec<_> = (0..KV_PREDICTIONS_MAX as u64)
            .map(|key| predictions.predict(WorkerSlot(3), &[key], 0).unwrap())
            .collect();
        let beyond = KV_PREDICTIONS_MAX as u64;
        assert!(predictions.predict(WorkerSlot(3), &[beyond], 0).is_none());
        assert_eq!(held(&index, &[beyond]), 0);
        drop(all);
    }
}
