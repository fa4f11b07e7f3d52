//! What goes over the wire, known to worker and client: four loads, and the bytes of each, a function of their position.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use warmpath_tests::stress::Random;

/// Bytes after which the content of bodies repeats: a prime, so that no buffer's length hides a shift.
const PERIOD: usize = 65_521;
/// Copies of the period in one piece, so that any stretch of a write or read is one comparison.
const COPIES: usize = 17;
/// Longest stretch that [`Pattern::stretch`] gives.
pub(super) const STRETCH_BYTES_MAX: usize = PERIOD * (COPIES - 1);
/// Longest event.
const EVENT_BYTES_MAX: usize = 4096;
/// `data: `, sixteen digits of a time stamp, a space, eight digits of a number, a space.
const EVENT_HEAD_BYTES: usize = 6 + 16 + 1 + 8 + 1;

/// Kinds of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Workload {
    /// Event streams at a fixed rate, evenly spaced
    Paced,
    /// Event streams, each as fast as it goes
    Saturated,
    /// Long bodies of known length
    Bulk,
    /// Short bodies, one request after the other
    Unary,
}

impl Workload {
    pub(super) const ALL: [Self; 4] = [Self::Paced, Self::Saturated, Self::Bulk, Self::Unary];

    /// What its CPU time is counted by.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Paced | Self::Saturated => "event",
            Self::Bulk => "MB",
            Self::Unary => "request",
        }
    }

    /// Events that carry a time stamp.
    pub(super) fn has_events(self) -> bool {
        matches!(self, Self::Paced | Self::Saturated)
    }
}

/// One kind in figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Load {
    pub(super) workload: Workload,
    /// Client connections, each with one response at a time.
    pub(super) connections: usize,
    /// Of an event, or of a whole body.
    pub(super) bytes: usize,
    /// Events a second and stream; only where it is fixed.
    pub(super) rate: u32,
}

impl Load {
    /// As issue and documentation have it.
    pub(super) fn standard(workload: Workload) -> Self {
        let (connections, bytes, rate) = match workload {
            Workload::Paced => (400, 250, 50),
            Workload::Saturated => (32, 100, 0),
            Workload::Bulk => (4, 64 << 20, 0),
            Workload::Unary => (8, 2048, 0),
        };
        Self { workload, connections, bytes, rate }
    }

    /// In words, for the report.
    pub(super) fn describe(&self) -> String {
        let Self { connections, bytes, rate, .. } = self;
        match self.workload {
            Workload::Paced => {
                format!("{connections} streams of {rate} events a second, {bytes} B each, evenly spaced")
            }
            Workload::Saturated => {
                format!("{connections} streams, {bytes} B an event, as fast as the worker can write")
            }
            Workload::Bulk => format!("bodies of {} MiB, {connections} at once", bytes >> 20),
            Workload::Unary => format!("bodies of {bytes} B, {connections} connections, one after the other"),
        }
    }

    /// The request's target; `number` varies what the body starts with.
    pub(super) fn target(&self, number: usize) -> String {
        let Self { workload, bytes, rate, .. } = self;
        let kind = match workload {
            Workload::Paced => "paced",
            Workload::Saturated => "saturated",
            Workload::Bulk | Workload::Unary => "body",
        };
        format!("/v1/completions?kind={kind}&bytes={bytes}&rate={rate}&number={number}")
    }
}

/// The bytes of bodies and the filler of events.
pub(super) struct Pattern {
    bytes: Vec<u8>,
}

impl Pattern {
    pub(super) fn new() -> Self {
        let mut random = Random::new(0x5741_524d);
        // Letters, so that it is text in an event.
        let period: Vec<u8> = (0..PERIOD).map(|_| b'a' + random.below(26) as u8).collect();
        Self { bytes: period.repeat(COPIES) }
    }

    /// `length` bytes of a body from `position` on.
    pub(super) fn stretch(&self, position: usize, length: usize) -> &[u8] {
        let start = position % PERIOD;
        &self.bytes[start..start + length]
    }

    /// Puts event `number` of `bytes` bytes, stamped with `now_ns`, into `into`.
    pub(super) fn event(&self, number: u32, bytes: usize, now_ns: u64, into: &mut String) {
        let filler = std::str::from_utf8(self.filler(number, bytes)).expect("the pattern is letters");
        write!(into, "data: {now_ns:016x} {number:08x} {filler}\n\n").expect("a String takes everything");
    }

    fn filler(&self, number: u32, bytes: usize) -> &[u8] {
        self.stretch(number as usize * 97, bytes - EVENT_HEAD_BYTES - 2)
    }

    /// The stamp of `event`, if it is event `number`, byte for byte.
    pub(super) fn check(&self, event: &[u8], number: u32) -> Option<u64> {
        let digits = |range: std::ops::Range<usize>| {
            u64::from_str_radix(std::str::from_utf8(&event[range]).ok()?, 16).ok()
        };
        let stamp = digits(6..22)?;
        let is_right = event.starts_with(b"data: ")
            && event[22] == b' '
            && digits(23..31)? == u64::from(number)
            && event[31] == b' '
            && &event[EVENT_HEAD_BYTES..event.len() - 2] == self.filler(number, event.len())
            && event.ends_with(b"\n\n");
        is_right.then_some(stamp)
    }
}

/// Whether an event can be so long.
pub(super) fn is_event_length(bytes: usize) -> bool {
    (EVENT_HEAD_BYTES + 3..=EVENT_BYTES_MAX).contains(&bytes)
}

/// `CLOCK_MONOTONIC`, nanoseconds: one clock for all processes of this host.
pub(super) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_itself_and_nothing_else() {
        let pattern = Pattern::new();
        let mut event = String::new();
        pattern.event(7, 100, 0x1234, &mut event);
        assert_eq!(event.len(), 100);
        assert_eq!(pattern.check(event.as_bytes(), 7), Some(0x1234));
        assert_eq!(pattern.check(event.as_bytes(), 8), None);
        for at in (0..6).chain(22..100) {
            let mut wrong = event.clone().into_bytes();
            wrong[at] ^= 1;
            assert_eq!(pattern.check(&wrong, 7), None, "byte {at}");
        }
    }

    #[test]
    fn bodies_repeat_after_a_prime() {
        let pattern = Pattern::new();
        assert_eq!(pattern.stretch(5, 1000), pattern.stretch(5 + PERIOD, 1000));
        assert_ne!(pattern.stretch(5, 1000), pattern.stretch(6, 1000));
        assert_eq!(pattern.stretch(PERIOD - 1, STRETCH_BYTES_MAX).len(), STRETCH_BYTES_MAX);
    }
}
