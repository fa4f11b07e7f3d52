//! The configuration in force. A reload replaces it as a whole; whoever reads it has either the old one or the new one.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use super::Config;

/// See the module. Shared by all threads.
#[derive(Debug)]
pub struct Live {
    current: ArcSwap<Config>,
    replaced: watch::Sender<()>,
}

impl Live {
    /// With the configuration that the gateway was started with.
    pub fn new(config: Config) -> Self {
        Self { current: ArcSwap::from_pointee(config), replaced: watch::Sender::new(()) }
    }

    /// The configuration now, for a moment: no lock and no shared count, but each thread has a few such guards only. What
    /// is kept for longer is [`Live::get`].
    pub fn load(&self) -> Guard<Arc<Config>> {
        self.current.load()
    }

    /// The configuration now, to be kept.
    pub fn get(&self) -> Arc<Config> {
        self.current.load_full()
    }

    /// Puts another one in force, and wakes who waits for it.
    pub fn replace(&self, config: Config) {
        self.current.store(Arc::new(config));
        self.replaced.send_replace(());
    }

    /// Sees every replacement from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.replaced.subscribe()
    }
}
