//! When a worker is left alone: `health:`, `breaker:` and `outliers:`.

use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, file::set, schema};
use crate::limits;

/// Active health checks: `GET /health` on every worker, and one token from those that are silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Pause between two checks of one worker.
    pub interval: Duration,
    /// How long one check may take.
    pub timeout: Duration,
    /// Failed checks in a row that make a worker unhealthy.
    pub unhealthy_after: u32,
    /// Passed checks in a row that make it healthy again.
    pub healthy_after: u32,
    /// A worker that has requests and says nothing for longer than this, and than usual, is asked for a token.
    pub silence: Duration,
    /// How long that token may take, beside what its queue is expected to take.
    pub probe_timeout: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(2),
            unhealthy_after: 2,
            healthy_after: 1,
            silence: limits::SILENCE_MIN,
            probe_timeout: limits::PROBE_TIMEOUT,
        }
    }
}

/// The circuit breaker of each worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Breaker {
    /// Worker faults in a row that open it.
    pub failures: u32,
    /// What is remembered of a worker's requests.
    pub window: Duration,
    /// Requests in the window below which their share of faults says nothing.
    pub volume: u32,
    /// Share of faults in the window that opens it: above 0, up to 1.
    pub error_share: f64,
    /// How long it stays open before one request is let through as a probe.
    pub open_for: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { failures: 5, window: seconds(10), volume: 20, error_share: 0.5, open_for: seconds(5) }
    }
}

/// Who stands out from the other workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outliers {
    /// Share of the fleet that may be left out at once; 0: nobody ever is.
    pub share_max: f64,
    /// Requests (or first tokens) in the last while below which a worker's figures say nothing.
    pub volume: u32,
    /// Share of faults above the others' median that makes an outlier.
    pub errors: f64,
    /// How many times longer than predicted, against the others' median, first tokens take on an outlier.
    pub slowness: f64,
    /// How long it is left out the first time; twice as long the next.
    pub eject_for: Duration,
    /// At most this long.
    pub eject_max: Duration,
}

impl Default for Outliers {
    fn default() -> Self {
        Self {
            share_max: 0.5,
            volume: 20,
            errors: 0.2,
            slowness: 5.0,
            eject_for: Duration::from_secs(10),
            eject_max: Duration::from_mins(5),
        }
    }
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HealthFile {
    /// Between two checks.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    interval: Option<Duration>,
    /// Of one check.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    timeout: Option<Duration>,
    /// Failed checks in a row that take a worker out.
    unhealthy_after: Option<u32>,
    /// Passed checks in a row that take it back.
    healthy_after: Option<u32>,
    /// A worker with requests that says nothing for longer, and for longer than usual, is asked for one token.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    silence: Option<Duration>,
    /// For that token, beside what its queue is expected to take; then its engine hangs.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    probe_timeout: Option<Duration>,
}

impl HealthFile {
    pub(super) fn apply(self, health: &mut Health) {
        set(&mut health.interval, self.interval);
        set(&mut health.timeout, self.timeout);
        set(&mut health.unhealthy_after, self.unhealthy_after);
        set(&mut health.healthy_after, self.healthy_after);
        set(&mut health.silence, self.silence);
        set(&mut health.probe_timeout, self.probe_timeout);
    }
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BreakerFile {
    /// Worker faults in a row that open it.
    failures: Option<u32>,
    /// And so does a share of faults within this while.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    window: Option<Duration>,
    /// Requests within the window from which on the share counts.
    volume: Option<u32>,
    /// That share, 0 to 1.
    error_share: Option<f64>,
    /// How long it stays open; then one request is the probe.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    open_for: Option<Duration>,
}

impl BreakerFile {
    pub(super) fn apply(self, breaker: &mut Breaker) {
        set(&mut breaker.failures, self.failures);
        set(&mut breaker.window, self.window);
        set(&mut breaker.volume, self.volume);
        set(&mut breaker.error_share, self.error_share);
        set(&mut breaker.open_for, self.open_for);
    }
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct OutliersFile {
    /// Share of the fleet that may be left out at once; 0: none, ever.
    share_max: Option<f64>,
    /// Requests below which a worker's figures say nothing.
    volume: Option<u32>,
    /// Share of faults above the others' median.
    errors: Option<f64>,
    /// Times longer than predicted, against the others' median.
    slowness: Option<f64>,
    /// The first time; then twice as long, and so on.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    eject_for: Option<Duration>,
    /// The longest time.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    eject_max: Option<Duration>,
}

impl OutliersFile {
    pub(super) fn apply(self, outliers: &mut Outliers) {
        set(&mut outliers.share_max, self.share_max);
        set(&mut outliers.volume, self.volume);
        set(&mut outliers.errors, self.errors);
        set(&mut outliers.slowness, self.slowness);
        set(&mut outliers.eject_for, self.eject_for);
        set(&mut outliers.eject_max, self.eject_max);
    }
}

/// Checks what the types cannot say.
pub(super) fn validate(health: &Health, breaker: &Breaker, outliers: &Outliers) -> Result<(), ConfigError> {
    for (key, duration) in [
        ("health.interval", health.interval),
        ("health.timeout", health.timeout),
        ("health.silence", health.silence),
        ("health.probe_timeout", health.probe_timeout),
        ("breaker.window", breaker.window),
        ("outliers.eject_for", outliers.eject_for),
    ] {
        if duration.is_zero() {
            return Err(ConfigError::Value { key, message: "0s: must be longer than zero".to_owned() });
        }
    }
    let value = |key, message| Err(ConfigError::Value { key, message });
    let share = |x: f64| x > 0.0 && x <= 1.0;
    if !share(breaker.error_share) {
        return value(
            "breaker.error_share",
            format!("{} is no share of faults: above 0, up to 1", breaker.error_share),
        );
    }
    if !(0.0..=1.0).contains(&outliers.share_max) {
        return value(
            "outliers.share_max",
            format!("{} is no share of the fleet: 0 (nobody is left out) to 1", outliers.share_max),
        );
    }
    if !share(outliers.errors) {
        return value(
            "outliers.errors",
            format!("{} is no share of faults: above 0, up to 1", outliers.errors),
        );
    }
    if !(outliers.slowness > 1.0 && outliers.slowness.is_finite()) {
        return value(
            "outliers.slowness",
            format!("{}: how many times longer than predicted, above 1", outliers.slowness),
        );
    }
    if outliers.eject_max < outliers.eject_for {
        return value(
            "outliers.eject_max",
            format!("{:?} is shorter than outliers.eject_for, {:?}", outliers.eject_max, outliers.eject_for),
        );
    }
    Ok(())
}
