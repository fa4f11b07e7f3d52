//! Whether the data threads' event loops turn.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// How often a thread says so.
const EVERY: Duration = Duration::from_millis(100);

/// A count per data thread, which goes on while its event loop turns.
#[derive(Debug)]
pub struct Pulses(Vec<AtomicU64>);

impl Pulses {
    /// For so many threads.
    pub fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| AtomicU64::new(0)).collect())
    }

    /// The counts now. One that is the same a while later is of a thread that hangs, or has ended.
    pub fn look(&self) -> Vec<u64> {
        self.0.iter().map(|pulse| pulse.load(Relaxed)).collect()
    }

    /// Counts on, for ever; for thread `number`.
    pub(super) async fn beat(&self, number: usize) {
        while let Some(pulse) = self.0.get(number) {
            pulse.fetch_add(1, Relaxed);
            tokio::time::sleep(EVERY).await;
        }
    }
}
