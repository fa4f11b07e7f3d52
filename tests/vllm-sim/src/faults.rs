//! Faults on demand: what goes wrong in a fleet, made to happen here.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::rng::SharedRng;

/// One kind of misbehaviour. In JSON: `{"kind": "die", "after_events": 3, "how": "rst"}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FaultKind {
    /// Generation requests are read and never answered. `/health` stays 200.
    Hang,
    /// The whole engine stops where it is, as on SIGSTOP: streams get their head and then silence. `/health` stays
    /// 200. Lasts until the faults are cleared.
    Freeze,
    /// The response head comes `delay_ms` late.
    SlowHead { delay_ms: u64 },
    /// An error instead of a response.
    Status {
        status: u16,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_s: Option<u64>,
    },
    /// The connection is reset as soon as it is accepted.
    ResetOnAccept,
    /// The connection is reset once the request is read.
    ResetAfterRequest,
    /// A stream's connection ends after so many events (a whole response: before its first byte).
    Die {
        #[serde(default)]
        after_events: u64,
        #[serde(default)]
        how: Ending,
    },
    /// The engine dies: a stream ends cleanly with an error event and `[DONE]`, a whole response is a 500.
    ErrorEvent {
        #[serde(default)]
        after_events: u64,
    },
    /// A stream goes silent after so many events, for `for_ms` or for good.
    Stall {
        #[serde(default)]
        after_events: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_ms: Option<u64>,
    },
    /// A stream breaks off in the middle of a chunk: its size and half of its bytes, then FIN.
    TruncatedChunk {
        #[serde(default)]
        after_events: u64,
    },
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    #[default]
    Fin,
    Rst,
}

/// A fault, and which requests it strikes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    #[serde(flatten)]
    pub kind: FaultKind,
    /// Share of the requests, 0..=1.
    #[serde(default = "all")]
    pub share: f64,
    /// Requests until the fault has done its work; `None`: no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

fn all() -> f64 {
    1.0
}

impl Fault {
    /// Strikes every request.
    pub fn always(kind: FaultKind) -> Self {
        Self { kind, share: 1.0, count: None }
    }

    /// Strikes the next `count` requests.
    pub fn times(kind: FaultKind, count: u64) -> Self {
        Self { kind, share: 1.0, count: Some(count) }
    }

    /// Strikes a share of the requests, chosen by the worker's seed.
    pub fn share(kind: FaultKind, share: f64) -> Self {
        Self { kind, share, count: None }
    }
}

/// The faults that are armed; the first that applies to a request strikes it.
#[derive(Default)]
pub(crate) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    pub(crate) fn set(&self, faults: Vec<Fault>) {
        *self.0.lock() = faults;
    }

    pub(crate) fn list(&self) -> Vec<Fault> {
        self.0.lock().clone()
    }

    /// The fault for a connection just accepted.
    pub(crate) fn on_accept(&self, rng: &SharedRng) -> bool {
        self.draw(rng, |kind| matches!(kind, FaultKind::ResetOnAccept)).is_some()
    }

    /// The fault for a generation request just read.
    pub(crate) fn on_request(&self, rng: &SharedRng) -> Option<FaultKind> {
        self.draw(rng, |kind| !matches!(kind, FaultKind::ResetOnAccept | FaultKind::Freeze))
    }

    fn draw(&self, rng: &SharedRng, applies: impl Fn(&FaultKind) -> bool) -> Option<FaultKind> {
        let mut faults = self.0.lock();
        for index in 0..faults.len() {
            let fault = &mut faults[index];
            if !applies(&fault.kind) || (fault.share < 1.0 && rng.next_f64() >= fault.share) {
                continue;
            }
            let kind = fault.kind.clone();
            if let Some(count) = &mut fault.count {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    faults.remove(index);
                }
            }
            return Some(kind);
        }
        None
    }
}
