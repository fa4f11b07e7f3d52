//! Limits that several gateways keep together: one token bucket in Redis for each tenant and limit, of which each gateway
//! takes leases.
//!
//! A lease is taken by a script, which is atomic: what all gateways let through together is never more than the bucket
//! had. It is a little more than what is needed at the moment (this gateway's part of 50 ms), so a busy tenant costs no
//! round trip per request, and a quiet one a round trip each time. Only a request that finds nothing left waits, and no
//! longer than `limits.deadline`; then it goes by this gateway's own share of the limit, as where there is no server.
//!
//! The clock is the server's, so gateways' clocks need not agree.

use std::time::{Duration, Instant};

use redis::{Cmd, FromRedisValue, Value};
use tokio::sync::{mpsc, oneshot};

use super::{
    SharedState,
    link::{CurrentLink, Fault},
};
use crate::{
    limits::SHARED_LEASES_MAX,
    telemetry::{SharedCondition, SharedOutcome, SharedUse},
    tenants::{Lease, Limit, Source},
};

/// What is leased ahead: this gateway's part of so many seconds of the limit.
const AHEAD_S: f64 = 0.05;

/// Takes from a token bucket: `KEYS[1]`; capacity, what comes in per second, what is needed, what is wanted. Gives what is
/// granted (0: there is not enough), what is left, and in how many seconds there would be enough. A bucket that is full
/// again is forgotten.
const TAKE: &str = r"
local capacity, rate, need, want = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local was = redis.call('HMGET', KEYS[1], 'amount', 'at')
local amount = tonumber(was[1]) or capacity
local passed = math.max(0, now - (tonumber(was[2]) or now))
amount = math.min(capacity, amount + passed * rate)
local granted, wait = 0, 0
if amount >= need then
  granted = math.min(want, amount)
  amount = amount - granted
else
  wait = (need - amount) / rate
end
redis.call('HSET', KEYS[1], 'amount', string.format('%.9f', amount), 'at', string.format('%.6f', now))
local full = math.min(2147483, (capacity - amount) / rate + 1)
redis.call('PEXPIRE', KEYS[1], math.ceil(full * 1000))
return {string.format('%.9f', granted), string.format('%.9f', amount), string.format('%.6f', wait)}
";

/// A request for a lease.
#[derive(Debug)]
pub(super) struct Ask {
    command: Cmd,
    reply: oneshot::Sender<Lent>,
}

/// What became of an ask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lent {
    /// So much, and so much is left for everybody.
    Granted { amount: f64, left: f64 },
    /// There is not enough; there will be after this time.
    Refused { after: Duration },
    /// The server did not say.
    Unknown,
}

/// Data threads' end.
#[derive(Debug)]
pub(super) struct Limits {
    asks: mpsc::Sender<Ask>,
}

impl Limits {
    /// With the other end of the asks.
    pub(super) fn new() -> (Self, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(SHARED_LEASES_MAX);
        (Self { asks }, asked)
    }
}

impl SharedState {
    /// What tenants' buckets are filled by now.
    pub fn limits_source(&self) -> Source {
        match &self.limits {
            None => Source::ALONE,
            Some(_) if self.condition() == SharedCondition::Up => Source::Leases,
            Some(_) => self.own_share(),
        }
    }

    /// Without the server: the limit over the gateways that there were.
    pub fn own_share(&self) -> Source {
        Source::Time { share: 1.0 / self.gateways() }
    }

    /// Asks for a lease for a tenant, no longer than the deadline.
    pub async fn lease(&self, tenant: &str, kind: Limit, lease: Lease) -> Lent {
        let Some(limits) = &self.limits else { return Lent::Unknown };
        let Lease { missing, capacity, per_second } = lease;
        let ahead = per_second * AHEAD_S / self.gateways();
        let key = format!("{}limit:{}:{tenant}", self.settings.key_prefix, kind.key());
        let mut command = redis::cmd("EVAL");
        command.arg(TAKE).arg(1).arg(key).arg(capacity).arg(per_second).arg(missing).arg(missing + ahead);
        let (reply, answer) = oneshot::channel();
        if limits.asks.try_send(Ask { command, reply }).is_err() {
            self.metrics.shared.count(SharedUse::Limits, SharedOutcome::Dropped);
            return Lent::Unknown;
        }
        let answer = tokio::time::timeout(self.settings.limits.deadline, answer).await;
        answer.ok().and_then(Result::ok).unwrap_or(Lent::Unknown)
    }
}

/// Lents the data threads, for ever.
pub(super) async fn answer(
    state: std::sync::Arc<SharedState>,
    link: CurrentLink,
    mut asked: mpsc::Receiver<Ask>,
) {
    while let Some(Ask { command, reply }) = asked.recv().await {
        let (state, link) = (state.clone(), link.load_full());
        tokio::spawn(async move {
            let began = Instant::now();
            let answers = link.run_within(vec![command], state.settings.limits.deadline).await;
            let outcome = answers.as_ref().map_or_else(Fault::outcome, |_| SharedOutcome::Ok);
            state.metrics.shared.count(SharedUse::Limits, outcome);
            if let Ok(mut answers) = answers {
                state.metrics.shared.round_trip.observe(began.elapsed().as_secs_f64());
                let _ = reply.send(answers.pop().and_then(understood).unwrap_or(Lent::Unknown)); // it waits no longer
            }
        });
    }
}

fn understood(answer: Value) -> Option<Lent> {
    let (amount, left, wait) = <(f64, f64, f64)>::from_redis_value(answer).ok()?;
    Some(if amount > 0.0 {
        Lent::Granted { amount, left }
    } else {
        Lent::Refused { after: Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX) }
    })
}
