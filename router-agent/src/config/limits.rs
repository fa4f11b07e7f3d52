//! `limits:` and `timeouts:`; see [`crate::limits`] for what each bounds and why it is what it is.

use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;

use super::{ConfigError, file::set, schema};
use crate::limits;

/// Limits on clients and on what is sent to workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Client connections open at once.
    pub connections: usize,
    /// Bytes of one request body.
    pub body_bytes: usize,
    /// Bytes of all request bodies in memory.
    pub bodies_bytes: usize,
    /// Tries of one request, the first included.
    pub tries: usize,
    /// Retries there may be for a request, over all of them: 0 to 1, a hundred apart that are always there.
    pub retry_share: f64,
    /// Requests of this gateway on one worker at once; `None`: no bound.
    pub worker_concurrency: Option<u32>,
    /// Prompt tokens sent to one worker and not yet prefilled from which on it gets no more; `None`: no bound.
    pub worker_queued_tokens: Option<u64>,
    /// Requests that wait for a worker.
    pub queue: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: limits::CONNECTIONS_MAX,
            body_bytes: limits::BODY_BYTES_MAX,
            bodies_bytes: limits::BODIES_BYTES_MAX,
            tries: limits::TRIES_MAX,
            retry_share: limits::RETRY_SHARE,
            worker_concurrency: None,
            worker_queued_tokens: None,
            queue: limits::QUEUE_MAX,
        }
    }
}

impl Limits {
    /// Checks what the types cannot say.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let value = |key, message: String| Err(ConfigError::Value { key, message });
        if self.tries == 0 {
            return value("limits.tries", "0 would refuse every request: at least 1".to_owned());
        }
        if !(0.0..=1.0).contains(&self.retry_share) {
            return value(
                "limits.retry_share",
                format!("{} is no share of requests: 0 to 1", self.retry_share),
            );
        }
        if self.bodies_bytes < self.body_bytes {
            return value(
                "limits.bodies_bytes",
                format!(
                    "{} bytes for all bodies, and {} for one: at least as many",
                    self.bodies_bytes, self.body_bytes
                ),
            );
        }
        let none = |key| value(key, "0 would let nothing through: at least 1, or leave it out".to_owned());
        match (self.worker_concurrency, self.worker_queued_tokens) {
            (Some(0), _) => none("limits.worker_concurrency"),
            (_, Some(0)) => none("limits.worker_queued_tokens"),
            _ => Ok(()),
        }
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// A request head, first byte to last.
    pub head: Duration,
    /// A pause inside a request body.
    pub body_idle: Duration,
    /// A client connection between requests.
    pub keep_alive: Duration,
    /// Connecting to a worker.
    pub connect: Duration,
    /// A worker's response head, for each try.
    pub response_head: Duration,
    /// A stream's first byte, for each try; `None`: as long as the head is held.
    pub first_byte: Option<Duration>,
    /// How long the head of a stream waits for the stream's first byte, so that another worker can still be tried.
    pub hold_head: Duration,
    /// A request's wait for a worker.
    pub queue: Duration,
    /// In-flight requests after SIGTERM.
    pub drain: Duration,
    /// In-flight requests after a successor has taken over.
    pub upgrade: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: limits::HEAD_TIMEOUT,
            body_idle: limits::BODY_IDLE_TIMEOUT,
            keep_alive: limits::KEEP_ALIVE_TIMEOUT,
            connect: limits::CONNECT_TIMEOUT,
            response_head: limits::RESPONSE_HEAD_TIMEOUT,
            first_byte: None,
            hold_head: limits::HOLD_HEAD,
            queue: limits::QUEUE_TIMEOUT,
            drain: Duration::from_secs(30),
            upgrade: limits::UPGRADE_TIMEOUT,
        }
    }
}

impl Timeouts {
    /// Checks what the types cannot say.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for (key, duration) in [
            ("timeouts.connect", self.connect),
            ("timeouts.response_head", self.response_head),
            ("timeouts.head", self.head),
            ("timeouts.body_idle", self.body_idle),
            ("timeouts.keep_alive", self.keep_alive),
            ("timeouts.first_byte", self.first_byte.unwrap_or(self.connect)),
        ] {
            if duration.is_zero() {
                return Err(ConfigError::Value { key, message: "0s: must be longer than zero".to_owned() });
            }
        }
        match self.first_byte {
            Some(first_byte) if first_byte > self.hold_head => Err(ConfigError::Value {
                key: "timeouts.first_byte",
                message: format!(
                    "{first_byte:?} is longer than timeouts.hold_head, {:?}: by then the client has the head, and no other \
                     worker can be tried",
                    self.hold_head
                ),
            }),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsFile {
    /// Client connections open at once; one more is answered with 503 and closed.
    connections: Option<usize>,
    /// One request body; a longer one is answered with 413.
    #[schemars(with = "Option<schema::BytesText>")]
    body_bytes: Option<ByteSize>,
    /// All request bodies in memory.
    #[schemars(with = "Option<schema::BytesText>")]
    bodies_bytes: Option<ByteSize>,
    /// Workers tried for one request, the first included.
    tries: Option<usize>,
    /// Retries per request over all of them, 0 to 1, beyond a reserve of 100.
    retry_share: Option<f64>,
    /// Requests on one worker at once (vLLM's `max_num_seqs` and some); no bound where not set.
    worker_concurrency: Option<u32>,
    /// Prompt tokens that wait for one worker's prefill; no bound where not set.
    worker_queued_tokens: Option<u64>,
    /// Requests that wait for a worker.
    queue: Option<usize>,
}

impl LimitsFile {
    pub(super) fn apply(self, limits: &mut Limits) {
        let bytes = |size: ByteSize| size.as_u64() as usize;
        set(&mut limits.connections, self.connections);
        set(&mut limits.body_bytes, self.body_bytes.map(bytes));
        set(&mut limits.bodies_bytes, self.bodies_bytes.map(bytes));
        set(&mut limits.tries, self.tries);
        set(&mut limits.retry_share, self.retry_share);
        set(&mut limits.worker_concurrency, self.worker_concurrency.map(Some));
        set(&mut limits.worker_queued_tokens, self.worker_queued_tokens.map(Some));
        set(&mut limits.queue, self.queue);
    }
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TimeoutsFile {
    /// A request head, first byte to last.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    head: Option<Duration>,
    /// A pause inside a request body.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    body_idle: Option<Duration>,
    /// A client connection between requests.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    keep_alive: Option<Duration>,
    /// Connecting to a worker.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    connect: Option<Duration>,
    /// A worker's response head, per try (unary: the whole generation).
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    response_head: Option<Duration>,
    /// A stream's first byte, per try; where not set as long as `hold_head`, without a retry.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    first_byte: Option<Duration>,
    /// A stream's head waits so long for its first byte, so that another worker can be tried.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    hold_head: Option<Duration>,
    /// A request's wait for a worker; then 429, or 503 where there is none.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    queue: Option<Duration>,
}

impl TimeoutsFile {
    pub(super) fn apply(self, timeouts: &mut Timeouts) {
        set(&mut timeouts.head, self.head);
        set(&mut timeouts.body_idle, self.body_idle);
        set(&mut timeouts.keep_alive, self.keep_alive);
        set(&mut timeouts.connect, self.connect);
        set(&mut timeouts.response_head, self.response_head);
        set(&mut timeouts.first_byte, self.first_byte.map(Some));
        set(&mut timeouts.hold_head, self.hold_head);
        set(&mut timeouts.queue, self.queue);
    }
}
