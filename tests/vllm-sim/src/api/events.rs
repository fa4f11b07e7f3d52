//! Streams: what each API makes of new tokens, one SSE event at a time.

use super::job::Job;
use crate::engine::sequence::Delta;

/// Collects SSE events, keeping their boundaries: each one becomes a chunk of its own.
#[derive(Debug, Default)]
pub(crate) struct Events {
    text: String,
    ends: Vec<usize>,
}

impl Events {
    /// Ends the event under way.
    fn end_event(&mut self) {
        self.text.push_str("\n\n");
        self.ends.push(self.text.len());
    }

    /// An event of data alone.
    pub(crate) fn data(&mut self, write: impl FnOnce(&mut String)) {
        self.text.push_str("data: ");
        write(&mut self.text);
        self.end_event();
    }

    /// An event with a name.
    pub(crate) fn named(&mut self, name: &str, write: impl FnOnce(&mut String)) {
        self.text.push_str("event: ");
        self.text.push_str(name);
        self.text.push_str("\ndata: ");
        write(&mut self.text);
        self.end_event();
    }

    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }

    /// The events' bytes, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.text[start..*end])
    }
}

/// One API's stream format.
pub(crate) trait EventWriter: Send {
    /// Events that need no token.
    fn start(&mut self, _job: &Job, _events: &mut Events) {}
    /// New tokens of one choice.
    fn delta(&mut self, job: &Job, delta: &Delta, events: &mut Events);
    /// All choices have ended.
    fn end(&mut self, job: &Job, events: &mut Events);
}
