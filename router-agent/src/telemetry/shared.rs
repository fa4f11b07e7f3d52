//! Metrics of the state that gateways share.

use prometheus::{Histogram, IntCounter, IntGauge, IntGaugeVec};

use super::metrics::{Maker, Result};

/// From a server in the same rack to a command's longest time.
const ROUND_TRIP_BUCKETS_SECONDS: &[f64] =
    &[0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.25, 1.0];

/// How the server stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SharedCondition {
    /// None is configured.
    Off = 0,
    /// Not reached, or it refuses us.
    Down = 1,
    /// It answers, too late.
    Slow = 2,
    /// It answers, and has no memory left to write to.
    Full = 3,
    /// All is well.
    Up = 4,
}

impl SharedCondition {
    /// Every one, for metrics that show one series per state.
    pub const ALL: [Self; 5] = [Self::Off, Self::Down, Self::Slow, Self::Full, Self::Up];

    /// The name in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Down => "down",
            Self::Slow => "slow",
            Self::Full => "full",
            Self::Up => "up",
        }
    }
}

/// What the server is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedUse {
    /// Whether it is there.
    Heartbeat,
    /// This gateway's load.
    Load,
    /// Hints of a request.
    HintRead,
    /// Hints of what was sent.
    HintWrite,
    /// Leases of tenants' limits.
    Limits,
}

impl SharedUse {
    const ALL: [(Self, &str); 5] = [
        (Self::Heartbeat, "heartbeat"),
        (Self::Load, "load"),
        (Self::HintRead, "hint_read"),
        (Self::HintWrite, "hint_write"),
        (Self::Limits, "limits"),
    ];
}

/// How a use of the server went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedOutcome {
    /// As it should.
    Ok,
    /// Not within its time.
    Late,
    /// The server has no memory left.
    Full,
    /// No connection, or an error of the server.
    Failed,
    /// It was not tried: the server is known not to answer, or too much waits already.
    Dropped,
}

impl SharedOutcome {
    const ALL: [(Self, &str); 5] = [
        (Self::Ok, "ok"),
        (Self::Late, "late"),
        (Self::Full, "full"),
        (Self::Failed, "failed"),
        (Self::Dropped, "dropped"),
    ];
}

/// What became of a look for hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HintOutcome {
    /// A worker is said to have more of the prompt than this gateway knew.
    Found,
    /// Nobody is.
    Nothing,
    /// There was no answer in time, or none at all.
    Unknown,
}

impl HintOutcome {
    const ALL: [(Self, &str); 3] =
        [(Self::Found, "found"), (Self::Nothing, "nothing"), (Self::Unknown, "unknown")];
}

/// See the module.
#[derive(Debug)]
pub struct SharedMetrics {
    condition: [IntGauge; 5],
    commands: [[IntCounter; 5]; 5],
    /// Of commands that were answered.
    pub round_trip: Histogram,
    /// Other gateways that are heard.
    pub peers: IntGauge,
    hints: [IntCounter; 3],
    /// Requests whose worker was chosen with a hint's match.
    pub hints_used: IntCounter,
    peer_in_flight: IntGaugeVec,
    peer_queued: IntGaugeVec,
}

impl SharedMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        let condition = make.gauges(
            "warmpath_shared_state",
            "How Redis stands: 1 for off (none is configured), down, slow, full (no memory left) or up.",
            &["state"],
        )?;
        let commands = make.counters(
            "warmpath_shared_commands_total",
            "Uses of Redis, by what for and how they went (dropped: not tried).",
            &["use", "result"],
        )?;
        let hints = make.counters(
            "warmpath_shared_hints_total",
            "Requests that were looked up among the prefixes of other gateways, by outcome.",
            &["outcome"],
        )?;
        let metrics = Self {
            condition: SharedCondition::ALL.map(|state| condition.with_label_values(&[state.label()])),
            commands: SharedUse::ALL.map(|(_, of)| {
                SharedOutcome::ALL.map(|(_, result)| commands.with_label_values(&[of, result]))
            }),
            round_trip: make.histogram(
                "warmpath_shared_round_trip_seconds",
                "Answers of Redis, from asking to the whole answer.",
                ROUND_TRIP_BUCKETS_SECONDS,
            )?,
            peers: make.gauge("warmpath_shared_peers", "Other gateways whose load is known.")?,
            hints: HintOutcome::ALL.map(|(_, outcome)| hints.with_label_values(&[outcome])),
            hints_used: make.counter(
                "warmpath_shared_hints_used_total",
                "Requests sent to a worker that has their prefix by the word of another gateway.",
            )?,
            peer_in_flight: make.gauges(
                "warmpath_worker_peer_in_flight_requests",
                "Requests that other gateways have on a worker, as they last said.",
                &["worker"],
            )?,
            peer_queued: make.gauges(
                "warmpath_worker_peer_queued_prefill_tokens",
                "Uncached prompt tokens that other gateways have sent to a worker and that wait for prefill.",
                &["worker"],
            )?,
        };
        metrics.set_condition(SharedCondition::Off);
        Ok(metrics)
    }

    /// Notes how the server stands.
    pub fn set_condition(&self, now: SharedCondition) {
        for (state, gauge) in SharedCondition::ALL.iter().zip(&self.condition) {
            gauge.set(i64::from(*state == now));
        }
    }

    /// Counts a use of the server.
    pub fn count(&self, of: SharedUse, outcome: SharedOutcome) {
        self.commands[of as usize][outcome as usize].inc();
    }

    /// Counts a look for hints.
    pub fn looked(&self, outcome: HintOutcome) {
        self.hints[outcome as usize].inc();
    }

    /// Notes what the other gateways have on a worker.
    pub fn set_peer_load(&self, worker: &str, in_flight: u32, queued_prefill_tokens: u64) {
        self.peer_in_flight.with_label_values(&[worker]).set(in_flight.into());
        let tokens = i64::try_from(queued_prefill_tokens).unwrap_or(i64::MAX);
        self.peer_queued.with_label_values(&[worker]).set(tokens);
    }
}
