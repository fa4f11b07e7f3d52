//! The signals that a gateway heeds.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What somebody wants of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// SIGTERM, SIGINT: its end.
    End,
    /// SIGHUP: a reload.
    Reload,
    /// SIGUSR2: a successor, started by this process.
    Upgrade,
}

/// See the module. To be made before anything that a second Ctrl-C could interrupt half-way.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user_2: Signal,
}

impl Signals {
    /// Heeds them from now on.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user_2: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next one.
    pub async fn next(&mut self) -> Wanted {
        tokio::select! {
            _ = self.terminate.recv() => Wanted::End,
            _ = self.interrupt.recv() => Wanted::End,
            _ = self.hang_up.recv() => Wanted::Reload,
            _ = self.user_2.recv() => Wanted::Upgrade,
        }
    }

    /// The next one that wants this process's end.
    pub async fn end(&mut self) {
        while self.next().await != Wanted::End {}
    }
}
