//! How a source says what it knows.

use std::{fmt::Display, sync::Arc};

use tokio::sync::mpsc;

use super::Found;

/// What a source has said.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) source: Arc<str>,
    /// All its workers, or why it does not know.
    pub(super) said: Result<Vec<Found>, String>,
}

/// A source's voice.
#[derive(Debug, Clone)]
pub(super) struct Teller {
    source: Arc<str>,
    tell: mpsc::Sender<Told>,
}

impl Teller {
    pub(super) fn new(source: Arc<str>, tell: mpsc::Sender<Told>) -> Self {
        Self { source, tell }
    }

    /// These are its workers, all of them.
    pub(super) async fn answer(&self, found: Vec<Found>) {
        self.say(Ok(found)).await;
    }

    /// It cannot be asked, or what it says cannot be used.
    pub(super) async fn fail(&self, error: impl Display) {
        self.say(Err(error.to_string())).await;
    }

    async fn say(&self, said: Result<Vec<Found>, String>) {
        // Who listens outlives the source, but at the end of the process.
        let _ = self.tell.send(Told { source: self.source.clone(), said }).await;
    }
}
